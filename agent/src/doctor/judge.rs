//! Judgements without I/O (but for the table of UDP ports): what was measured, and whether it is
//! well.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::Range,
    time::Duration,
};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use mesh_api::rest::Check;
use mesh_core::{
    Id, Mac,
    desired::VXLAN_PORT,
    objects::{Encapsulation, Node, Objects},
};
use mesh_loader::Usage;

use super::check;
use crate::reconcile::Preview;

/// How far a clock may be off: certificates begin and end by it, and logs are compared.
const CLOCK_LIMIT: SignedDuration = SignedDuration::from_secs(2);
/// Per cent of a table from which on it is nearly full.
const FULL: u64 = 80;
/// Tables of flows that only one end was heard of: made to be full in a flood, when they displace each
/// other.
const DISPLACING: [&str; 2] = ["FLOWS", "REPLIES"];
/// Names in a list before it is cut.
const NAMED: usize = 8;

/// The first of a list, and how many more there are.
pub(super) fn some(list: &[String]) -> String {
    let named = list.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match list.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// What the next pass would do: nothing, on a host that is at rest.
pub(super) fn pending(preview: &Result<Preview, String>) -> Check {
    match preview {
        Ok(p) if p.steps.is_empty() => check("plan", true, "nothing to do"),
        Ok(p) => check(
            "plan",
            false,
            format!(
                "the next pass would take {} steps (meshctl doctor --plan lists them), first: {}",
                p.steps.len(),
                p.steps[0]
            ),
        ),
        Err(e) => check("plan", false, e.clone()),
    }
}

/// `theirs` was read somewhere in a round trip that began at `before`.
pub(super) fn clock(before: Timestamp, trip: Duration, theirs: Timestamp) -> Check {
    let half = SignedDuration::try_from(trip / 2).unwrap_or(SignedDuration::MAX);
    let offset = before.duration_until(theirs).saturating_sub(half);
    let (ahead, size) = if offset.is_negative() {
        ("ahead of", offset.abs())
    } else {
        ("behind", offset)
    };
    // The reading can be off by half the round trip, either way.
    let ok = size.saturating_sub(half) <= CLOCK_LIMIT;
    let text = format!("{:.3} s {ahead} the leader's, ± {:.3} s", size.as_secs_f64(), half.as_secs_f64());
    check(
        "clock",
        ok,
        if ok {
            text
        } else {
            format!("{text}: certificates depend on it; let NTP set it (timedatectl)")
        },
    )
}

/// A node's certificate, which is renewed at 80 % of its life at the latest.
pub(super) fn certificate(valid: &Range<Timestamp>, now: Timestamp) -> Check {
    let Range { start, end } = *valid;
    let renewed = start.saturating_add(start.duration_until(end) / 5 * 4).unwrap_or(end);
    let days = |until: Timestamp| now.duration_until(until).as_secs() / 86_400;
    let (ok, detail) = if now < start {
        (
            false,
            format!("valid from {start} only, and this host's clock is at {now:.0}: let NTP set it (timedatectl)"),
        )
    } else if now >= end {
        (
            false,
            format!(
                "expired at {end}: no manager lets this host in. If its clock is right, remove the node there (meshctl node rm) and let it join again (meshctl leave --force, meshctl join); until then it goes on from its ledger"
            ),
        )
    } else if now > renewed {
        (
            false,
            format!(
                "valid until {end} ({} days left), and was to be renewed by {renewed}: no manager has done so, and from its end on none lets this host in",
                days(end)
            ),
        )
    } else {
        (true, format!("valid until {end} ({} days left), renewed by {renewed}", days(end)))
    };
    check("certificate", ok, detail)
}

/// Tables that will soon refuse rows, or forget flows.
pub(super) fn maps(maps: &[Usage]) -> Check {
    let percent = |u: &Usage| u.rows.saturating_mul(100) / u.capacity.max(1);
    let maps: Vec<_> = maps.iter().filter(|u| !DISPLACING.contains(&u.map)).collect();
    let full: Vec<String> = maps
        .iter()
        .filter(|u| percent(u) > FULL)
        .map(|u| format!("{} holds {} of {} rows", u.map, u.rows, u.capacity))
        .collect();
    if full.is_empty() {
        let most = maps.iter().max_by_key(|u| percent(u));
        let most = most.map_or_else(String::new, |u| format!(": {} at {} %", u.map, percent(u)));
        return check("maps", true, format!("no table is more than {FULL} % full{most}"));
    }
    check(
        "maps",
        false,
        format!("{}; for tables of flows see meshd --flow-table-size", some(&full)),
    )
}

/// Of each peer, whether it answered.
pub(super) fn peers(answers: &BTreeMap<String, bool>) -> Check {
    let silent: Vec<String> = answers.iter().filter(|(_, ok)| !**ok).map(|(name, _)| name.clone()).collect();
    if silent.is_empty() {
        return check("peers", true, format!("{} of {} answer over VXLAN", answers.len(), answers.len()));
    }
    check(
        "peers",
        false,
        format!(
            "{} of {} do not answer over VXLAN: {}; is {VXLAN_PORT}/udp open between the nodes?",
            silent.len(),
            answers.len(),
            some(&silent)
        ),
    )
}

/// Of the nodes on this one's segment (`targets`, by Ethernet address), who takes packets without encapsulation.
pub(super) fn segment(
    all: &Objects,
    me: Id,
    range: Option<IpNet>,
    targets: &BTreeMap<Mac, Ipv4Addr>,
    takers: &BTreeSet<Mac>,
) -> Option<Check> {
    let here: BTreeSet<Id> = all.endpoints.on_node(me).map(|e| e.network).collect();
    let mut bare = here.iter().filter_map(|id| all.networks.get(id));
    if !bare.any(|n| n.encapsulation() == Encapsulation::CrossSubnet) {
        return None;
    }
    if range.is_none() {
        let detail = "all is encapsulated: this host's data-path address is of no segment of the uplink (see meshd --uplink)";
        return Some(check("segment", false, detail));
    }
    let deaf = targets.keys().filter(|mac| !takers.contains(mac));
    let name = |mac: &Mac| {
        all.nodes
            .values()
            .find(|n| n.underlay_mac == Some(*mac))
            .map(|n| n.hostname.clone())
    };
    let deaf: Vec<String> = deaf.filter_map(name).collect();
    let detail = if deaf.is_empty() {
        format!("{} nodes of this segment are sent to without encapsulation", targets.len())
    } else {
        format!(
            "{} of {} nodes of this segment are sent to by VXLAN, as they do not answer without: {}; does a switch or cloud drop what it does not know?",
            deaf.len(),
            targets.len(),
            some(&deaf)
        )
    };
    Some(check("segment", deaf.is_empty(), detail))
}

/// Whether every network's packets fit through every underlay, and whether the cluster knows this
/// host's MTU as it is (`uplink`: name and bytes).
pub(super) fn mtu(all: &Objects, me: Id, uplink: Option<(String, u32)>) -> Check {
    let mut wrong = Vec::new();
    if let (Some((dev, now)), Some(node)) = (&uplink, all.nodes.get(&me))
        && *now != node.underlay_mtu
    {
        wrong.push(format!(
            "{dev} has {now}, but the managers know {} (it is reported again)",
            node.underlay_mtu
        ));
    }
    let smallest = all.nodes.values().min_by_key(|n| room(n));
    if let Some(node) = smallest {
        for network in all.networks.values().filter(|n| all.mtu(n) > room(node)) {
            wrong.push(format!(
                "network {} sends packets of {} bytes, and node {} carries only {} under VXLAN: make it anew with --opt mtu={}",
                network.name,
                all.mtu(network),
                node.hostname,
                room(node),
                room(node)
            ));
        }
    }
    if !wrong.is_empty() {
        return check("mtu", false, some(&wrong));
    }
    let under = uplink.map_or_else(String::new, |(dev, mtu)| format!("{dev} {mtu}, "));
    check(
        "mtu",
        true,
        match smallest {
            Some(node) => format!("{under}room for {} in every network (least on {})", room(node), node.hostname),
            None => "no node is known".to_owned(),
        },
    )
}

/// What VXLAN leaves of a node's underlay (RFC 7348 section 5; 20 bytes more for IPv6).
fn room(node: &Node) -> u32 {
    node.underlay_mtu
        .saturating_sub(if node.data_path_addr.is_ipv4() { 50 } else { 70 })
}

/// Before this host is in a cluster, nothing of meshd's listens at VXLAN's port: whoever does is in
/// the way.
pub(super) fn vxlan_port() -> Check {
    let tables = ["/proc/net/udp", "/proc/net/udp6"].map(|t| std::fs::read_to_string(t).unwrap_or_default());
    if tables.iter().any(|t| listens(t, VXLAN_PORT)) {
        check(
            "vxlan-port",
            false,
            format!("{VXLAN_PORT}/udp is in use (docker swarm? ss -ulnp tells): it must be free for the mesh"),
        )
    } else {
        check("vxlan-port", true, format!("{VXLAN_PORT}/udp is free"))
    }
}

/// Whether a socket of a table like /proc/net/udp is bound to `port`.
fn listens(table: &str, port: u16) -> bool {
    let local = |line: &str| line.split_whitespace().nth(1)?.rsplit_once(':')?.1.parse::<Hex>().ok();
    table.lines().skip(1).filter_map(local).any(|Hex(p)| p == port)
}

/// A port as the kernel prints it.
struct Hex(u16);

impl std::str::FromStr for Hex {
    type Err = std::num::ParseIntError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u16::from_str_radix(s, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_core::objects::Network;
    use serde_json::json;

    use super::*;

    fn node(n: u64, mtu: u32) -> Arc<Node> {
        let ip = format!("192.168.77.1{n}");
        let node = json!({"id": Id::from_bits(n), "version": 1, "created_at": "2026-01-31T12:00:00Z", "hostname": format!("h{n}"), "labels": {},
            "role": "worker", "raft_id": 0, "availability": "active", "addr": ip, "control_port": 2377, "data_path_addr": ip, "underlay_mtu": mtu,
            "ingress_ip": format!("10.255.0.{n}"), "host_routes": [], "state": "ready", "dataplane": "reachable"});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn network(mtu: Option<u32>) -> Arc<Network> {
        let network = json!({"id": Id::from_bits(9), "version": 1, "created_at": "2026-01-31T12:00:00Z", "name": "shop", "labels": {},
            "driver": "overlay", "subnets": [], "vni": 4097, "mtu": mtu, "internal": false, "attachable": false, "ingress": false, "options": {}});
        Arc::new(serde_json::from_value(network).unwrap())
    }

    fn objects(mtu: Option<u32>) -> Objects {
        let mut all = Objects::default();
        for n in [node(1, 1500), node(2, 1400)] {
            all.nodes.insert(n.id, n);
        }
        let n = network(mtu);
        all.networks.insert(n.id, n);
        all
    }

    #[test]
    fn a_network_must_fit_through_the_smallest_underlay() {
        let me = Id::from_bits(1);
        let uplink = |mtu| Some(("eth0".to_owned(), mtu));
        let fine = mtu(&objects(None), me, uplink(1500));
        assert!(
            fine.ok && fine.detail.contains("room for 1350") && fine.detail.contains("h2"),
            "{}",
            fine.detail
        );
        let tight = mtu(&objects(Some(1400)), me, uplink(1500));
        assert!(
            !tight.ok && tight.detail.contains("shop") && tight.detail.contains("mtu=1350"),
            "{}",
            tight.detail
        );
        let changed = mtu(&objects(None), me, uplink(9000));
        assert!(!changed.ok && changed.detail.contains("eth0 has 9000"), "{}", changed.detail);
    }

    #[test]
    fn a_certificate_is_spoken_of_before_it_is_too_late() {
        let day = |n: i64| Timestamp::from_second(1_800_000_000 + n * 86_400).unwrap();
        let valid = day(0)..day(90);
        for (now, ok, word) in [
            (-1, false, "clock"),
            (0, true, "(90 days left)"),
            (71, true, "(19 days left)"),
            (73, false, "was to be renewed by"),
            (89, false, "(1 days left)"),
            (90, false, "meshctl join"),
            (1000, false, "meshctl join"),
        ] {
            let said = certificate(&valid, day(now));
            assert!(said.ok == ok && said.detail.contains(word), "day {now}: {said:?}");
        }
    }

    #[test]
    fn a_slow_answer_is_no_wrong_clock() {
        let at = |ms: i64| Timestamp::from_millisecond(1_000_000 + ms).unwrap();
        let trip = Duration::from_millis;
        assert!(clock(at(0), trip(100), at(50)).ok);
        assert!(clock(at(0), trip(9000), at(0)).ok, "it may have been read at once");
        let late = clock(at(0), trip(100), at(5050));
        assert!(!late.ok && late.detail.contains("5.000 s behind"), "{}", late.detail);
        let early = clock(at(0), trip(100), at(-4950));
        assert!(!early.ok && early.detail.contains("5.000 s ahead"), "{}", early.detail);
    }

    #[test]
    fn silent_peers_are_named() {
        let mut answers: BTreeMap<_, _> = (0..20).map(|n| (format!("h{n:02}"), true)).collect();
        assert!(peers(&answers).ok);
        answers.values_mut().for_each(|ok| *ok = false);
        let bad = peers(&answers);
        assert!(
            !bad.ok && bad.detail.contains("h00, h01") && bad.detail.contains("12 more"),
            "{}",
            bad.detail
        );
    }

    #[test]
    fn a_table_is_named_before_it_is_full() {
        let usage = |map, rows| Usage { map, rows, capacity: 100 };
        let fine = maps(&[usage("VIPS", 3), usage("FLOWS_KEPT", 80), usage("FLOWS", 100)]);
        assert!(fine.ok && fine.detail.contains("FLOWS_KEPT at 80 %"), "{}", fine.detail);
        let full = maps(&[usage("VIPS", 81), usage("FLOWS_KEPT", 0)]);
        assert!(!full.ok && full.detail.contains("VIPS holds 81 of 100"), "{}", full.detail);
        assert!(maps(&[]).ok);
    }

    #[test]
    fn a_taken_port_is_seen() {
        let table = "  sl  local_address rem_address   st\n  97: 00000000:12B5 00000000:0000 07\n";
        assert!(listens(table, 4789) && !listens(table, 4790));
        assert!(!listens("", 4789) && !listens("head\nx y\n: :\n", 0));
    }

    #[test]
    fn a_host_at_rest_has_nothing_to_do() {
        assert!(pending(&Ok(Preview::default())).ok);
        let steps = vec!["add bridge".to_owned(), "x".to_owned()];
        let busy = pending(&Ok(Preview {
            steps,
            ..Preview::default()
        }));
        assert!(!busy.ok && busy.detail.contains("2 steps") && busy.detail.contains("add bridge"));
    }
}
