//! The steps from what a host looks like to what it must look like. Pure: a plan can be printed
//! (`meshctl doctor --plan`) and tested without root.
//!
//! The order keeps every moment safe: the packet filter before what it guards, backends before the
//! services that send flows to them, names and tables before the container that uses them; and the
//! other way round for what goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    Id,
    action::{Action, BpfAction, NetAction},
    desired::{Desired, Fdb, Link},
    lb::{Hook, Local, Program, Row, Tables},
    observed::{Observed, SeenQueue},
};

/// The steps. With `desired.cluster` absent there are none: a host that belongs to no cluster is
/// cleaned by command only, never because an answer was empty.
pub fn plan(desired: &Desired, seen: &Observed) -> Vec<Action> {
    let Some(cluster) = desired.cluster else { return Vec::new() };
    let mut net = Steps::default();
    links(desired, seen, cluster, &mut net);
    entries(desired, seen, &mut net);
    let missing = desired.hooks.difference(&seen.hooks);
    let (on_veths, on_devices): (Vec<_>, Vec<_>) =
        missing.partition(|h| matches!(h.program, Program::FromContainer | Program::ToContainer));
    let attach = |h: &Hook| Action::Bpf(BpfAction::Attach(h.clone()));
    let (want, is) = (&desired.tables, &seen.tables);

    let mut out: Vec<Action> = net.first.into_iter().map(Action::Net).collect();
    // A host that is new has a step for each row: the list is not copied while it grows.
    out.reserve(want.rows().saturating_sub(is.rows()));
    early_rows(want, is, &mut out);
    if desired.names != seen.names {
        out.push(Action::Names(Box::new(desired.names.clone())));
    }
    out.extend(net.veths.into_iter().map(Action::Net));
    // Rows of an endpoint that is here wait for its interface.
    let local = |k: &String, v: &Local| Row::Local(k.clone(), Some(Box::new(v.clone())));
    changed(&want.locals, &is.locals, local, &mut out);
    out.extend(on_veths.into_iter().map(attach));
    late_rows(want, is, &mut out);
    out.extend(on_devices.into_iter().map(attach));
    out.extend(
        seen.hooks
            .difference(&desired.hooks)
            .map(|h| Action::Bpf(BpfAction::Detach(h.clone()))),
    );
    gone_rows(want, is, &mut out);
    out.extend(sockets(desired, seen).into_iter().map(Action::Net));
    out.extend(net.last.into_iter().map(Action::Net));
    out
}

/// Sockets to backends that are gone, or out of reach, are ended: a socket that was given its backend
/// when it connected would be left hanging. A backend that only left its service goes on. Processes of
/// the host reach a backend elsewhere by its node's address: with the node they lose it.
fn sockets(desired: &Desired, seen: &Observed) -> Vec<NetAction> {
    let there: BTreeSet<IpAddr> = desired
        .neighs
        .iter()
        .map(|n| n.ip)
        .chain(desired.tables.locals.values().flat_map(|l| addresses(l.ip4, l.ip6)))
        .collect();
    let sandboxes: BTreeSet<(String, u64)> = desired
        .veths
        .values()
        .filter(|v| !v.peer.waits)
        .map(|v| (v.peer.netns.clone(), v.peer.inode))
        .collect();
    let left = seen
        .tables
        .backends
        .iter()
        .filter(|(slot, _)| !desired.tables.backends.contains_key(slot))
        .flat_map(|(_, b)| {
            let node = b.node.filter(|_| !b.local);
            let node6 = node.and_then(|ip| seen.tables.nodes.get(&ip).copied());
            addresses(b.ip4, b.ip6).chain(addresses(node, node6))
        });
    let peers: BTreeSet<_> = left.filter(|ip| desired.unreachable.contains(ip) || !there.contains(ip)).collect();
    if peers.is_empty() {
        return Vec::new();
    }
    // Once for each namespace: its sockets are listed for it, however many endpoints are gone.
    let all = sandboxes.into_iter().map(Some).chain([None]);
    all.map(|sandbox| NetAction::EndSockets {
        sandbox,
        peers: peers.clone(),
    })
    .collect()
}

fn addresses(ip4: Option<Ipv4Addr>, ip6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    ip4.map(IpAddr::V4).into_iter().chain(ip6.map(IpAddr::V6))
}

#[derive(Default)]
struct Steps {
    first: Vec<NetAction>,
    veths: Vec<NetAction>,
    last: Vec<NetAction>,
}

fn links(desired: &Desired, seen: &Observed, cluster: Id, steps: &mut Steps) {
    if desired.nft != seen.overlay.nft {
        steps.first.push(NetAction::SetNft(desired.nft.clone().map(Box::new)));
    }
    // Only once our own table keeps networks apart.
    if seen.overlay.blocked && desired.nft.as_ref().is_some_and(|n| !n.bridges.is_empty()) {
        steps.first.push(NetAction::PassForward);
    }
    let (bridges, vxlans): (Vec<_>, Vec<_>) = desired.links.iter().partition(|(_, (_, l))| matches!(l, Link::Bridge { .. }));
    for (name, (id, link)) in bridges.into_iter().chain(vxlans) {
        let mark = (cluster, *id);
        let fine = seen
            .overlay
            .links
            .get(name)
            .is_some_and(|s| s.settled && s.mark == mark && same(link, &s.link));
        if !fine {
            steps.first.push(NetAction::PutLink {
                name: name.clone(),
                mark,
                link: Box::new(link.clone()),
            });
        }
    }
    for (name, veth) in &desired.veths {
        let fine = seen.overlay.veths.get(name).is_some_and(|s| {
            s.endpoint == veth.endpoint
                && s.up
                && s.mtu == veth.mtu
                && s.bridge.as_ref() == Some(&veth.bridge)
                && s.queue == veth.queue.map(SeenQueue::from)
        });
        if !fine {
            steps.veths.push(NetAction::PutVeth {
                name: name.clone(),
                cluster,
                veth: Box::new(veth.clone()),
            });
        }
    }
    // Nothing else waits for them.
    for (name, veth) in desired.veths.iter().filter(|(_, v)| v.peer.taken && !v.peer.returns.is_empty()) {
        let there = seen
            .overlay
            .veths
            .get(name)
            .is_some_and(|s| s.endpoint == veth.endpoint && s.returns);
        if !there {
            steps.last.push(NetAction::AddReturns {
                name: name.clone(),
                peer: Box::new(veth.peer.clone()),
            });
        }
    }
    let gone_veths = seen.overlay.veths.keys().filter(|n| !desired.veths.contains_key(*n));
    steps.last.extend(gone_veths.map(|n| NetAction::DelLink(n.clone())));
    let gone = || {
        seen.overlay
            .links
            .iter()
            // One without a cluster in its mark was left half made by a meshd that ended just then.
            .filter(|(n, s)| !desired.links.contains_key(*n) && (s.mark.0 == cluster || s.mark.0 == Id::default()))
    };
    let is_bridge = |s: &crate::observed::SeenLink| matches!(s.link, Link::Bridge { .. });
    steps
        .last
        .extend(gone().filter(|(_, s)| !is_bridge(s)).map(|(n, _)| NetAction::DelLink(n.clone())));
    steps
        .last
        .extend(gone().filter(|(_, s)| is_bridge(s)).map(|(n, _)| NetAction::DelLink(n.clone())));
}

/// Equal, but for an Ethernet address that was left to the kernel.
fn same(want: &Link, is: &Link) -> bool {
    match (want, is) {
        (
            Link::Vxlan {
                mac: None,
                vni,
                local,
                mtu,
                bridge,
                ipv6,
            },
            Link::Vxlan {
                vni: v,
                local: l,
                mtu: m,
                bridge: b,
                ipv6: i,
                ..
            },
        ) => (vni, local, mtu, bridge, ipv6) == (v, l, m, b, i),
        _ => want == is,
    }
}

fn entries(desired: &Desired, seen: &Observed, steps: &mut Steps) {
    let s = &seen.overlay;
    // Entries of a device that goes, go with it.
    let stays = |dev: &String| desired.links.contains_key(dev) || desired.veths.contains_key(dev);
    diff(
        &desired.addrs,
        &s.addrs,
        |(d, a)| NetAction::AddAddr(d.clone(), *a),
        &mut steps.first,
    );
    diff(&desired.routes, &s.routes, |r| NetAction::AddRoute(r.clone()), &mut steps.first);
    diff(&desired.neighs, &s.neighs, |n| NetAction::AddNeigh(n.clone()), &mut steps.first);
    // One device can hold one entry per address: a move to another VTEP replaces it.
    let (on_veths, on_vxlans): (Vec<_>, Vec<_>) = (desired.fdb.difference(&s.fdb)).partition(|e| desired.veths.contains_key(&e.dev));
    steps.first.extend(on_vxlans.into_iter().cloned().map(NetAction::AddFdb));
    steps.veths.extend(on_veths.into_iter().cloned().map(NetAction::AddFdb));
    let replaced = |e: &&Fdb| {
        let first = Fdb {
            vtep: None,
            ..Fdb::clone(e)
        };
        let alike = desired.fdb.range(first..).take_while(|n| n.dev == e.dev && n.mac == e.mac);
        !alike.into_iter().any(|n| n.vtep.is_some() == e.vtep.is_some())
    };
    steps.last.extend(
        s.fdb
            .difference(&desired.fdb)
            .filter(|e| stays(&e.dev))
            .filter(replaced)
            .map(|e| NetAction::DelFdb(e.clone())),
    );
    let renewed = |n: &&crate::desired::Neigh| !desired.neighs.iter().any(|m| m.dev == n.dev && m.ip == n.ip);
    steps.last.extend(
        s.neighs
            .difference(&desired.neighs)
            .filter(|n| stays(&n.dev))
            .filter(renewed)
            .map(|n| NetAction::DelNeigh(n.clone())),
    );
    let rerouted = |r: &&crate::desired::Route| !desired.routes.iter().any(|m| m.dst == r.dst);
    steps.last.extend(
        s.routes
            .difference(&desired.routes)
            .filter(|r| stays(&r.dev))
            .filter(rerouted)
            .map(|r| NetAction::DelRoute(r.clone())),
    );
    steps.last.extend(
        s.addrs
            .difference(&desired.addrs)
            .filter(|(d, _)| stays(d))
            .map(|(d, a)| NetAction::DelAddr(d.clone(), *a)),
    );
}

fn diff<T: Ord>(want: &BTreeSet<T>, seen: &BTreeSet<T>, step: impl Fn(&T) -> NetAction, out: &mut Vec<NetAction>) {
    out.extend(want.difference(seen).map(step));
}

/// Rows that others build on.
fn early_rows(want: &Tables, seen: &Tables, out: &mut Vec<Action>) {
    let head = |t: &Tables| {
        let (dev, uplink) = (t.ingress_dev.clone(), t.uplink.clone());
        (t.ingress_mac, t.ingress_ip, dev, uplink, t.ingress_mtu)
    };
    if head(want) != head(seen) {
        let (ingress_mac, ingress_ip, ingress_dev, uplink, ingress_mtu) = head(want);
        out.push(row(Row::Config {
            ingress_mac,
            ingress_ip,
            ingress_dev,
            uplink,
            ingress_mtu,
        }));
    }
    out.extend(want.peers.difference(&seen.peers).map(|m| row(Row::Peer(*m, true))));
    out.extend(want.neighbors.difference(&seen.neighbors).map(|m| row(Row::Neighbor(*m, true))));
    changed(&want.nodes, &seen.nodes, |k, v| Row::Node(*k, Some(*v)), out);
    changed(&want.ranges, &seen.ranges, |k, v| Row::Range(*k, Some(*v)), out);
    changed(&want.remotes, &seen.remotes, |k, v| Row::Remote(*k, Some(*v)), out);
    changed(&want.networks, &seen.networks, |k, v| Row::Network(k.clone(), Some(*v)), out);
    changed(&want.backends, &seen.backends, |k, v| Row::Backend(*k, Some(*v)), out);
    // Who is admitted, before there is something to be admitted to.
    changed(&want.sources, &seen.sources, |k, v| Row::Source(*k, Some(*v)), out);
}

/// Service lists and published ports, once their backends are in place.
fn late_rows(want: &Tables, seen: &Tables, out: &mut Vec<Action>) {
    changed(&want.services, &seen.services, |k, v| Row::Service(*k, Some(v.clone())), out);
    changed(&want.vips, &seen.vips, |k, v| Row::Vip(*k, Some(*v)), out);
    changed(&want.bound, &seen.bound, |k, v| Row::Bound(*k, Some(*v)), out);
    changed(&want.published, &seen.published, |k, v| Row::Published(*k, Some(*v)), out);
    changed(&want.namespaces, &seen.namespaces, |k, v| Row::Namespace(*k, Some(v.clone())), out);
    out.extend(want.node_addrs.difference(&seen.node_addrs).map(|a| row(Row::NodeAddr(*a, true))));
}

/// Rows to be removed, in the opposite order.
fn gone_rows(want: &Tables, seen: &Tables, out: &mut Vec<Action>) {
    out.extend(seen.node_addrs.difference(&want.node_addrs).map(|a| row(Row::NodeAddr(*a, false))));
    removed(&want.namespaces, &seen.namespaces, |k| Row::Namespace(*k, None), out);
    removed(&want.published, &seen.published, |k| Row::Published(*k, None), out);
    removed(&want.bound, &seen.bound, |k| Row::Bound(*k, None), out);
    removed(&want.vips, &seen.vips, |k| Row::Vip(*k, None), out);
    removed(&want.services, &seen.services, |k| Row::Service(*k, None), out);
    removed(&want.sources, &seen.sources, |k| Row::Source(*k, None), out);
    removed(&want.backends, &seen.backends, |k| Row::Backend(*k, None), out);
    removed(&want.remotes, &seen.remotes, |k| Row::Remote(*k, None), out);
    removed(&want.ranges, &seen.ranges, |k| Row::Range(*k, None), out);
    removed(&want.locals, &seen.locals, |k| Row::Local(k.clone(), None), out);
    removed(&want.networks, &seen.networks, |k| Row::Network(k.clone(), None), out);
    out.extend(seen.neighbors.difference(&want.neighbors).map(|m| row(Row::Neighbor(*m, false))));
    removed(&want.nodes, &seen.nodes, |k| Row::Node(*k, None), out);
    out.extend(seen.peers.difference(&want.peers).map(|m| row(Row::Peer(*m, false))));
}

fn row(row: Row) -> Action {
    Action::Bpf(BpfAction::Row(row))
}

fn changed<K: Ord, V: PartialEq>(want: &BTreeMap<K, V>, seen: &BTreeMap<K, V>, of: impl Fn(&K, &V) -> Row, out: &mut Vec<Action>) {
    out.extend(want.iter().filter(|(k, v)| seen.get(k) != Some(v)).map(|(k, v)| row(of(k, v))));
}

fn removed<K: Ord, V>(want: &BTreeMap<K, V>, seen: &BTreeMap<K, V>, of: impl Fn(&K) -> Row, out: &mut Vec<Action>) {
    out.extend(seen.keys().filter(|k| !want.contains_key(k)).map(|k| row(of(k))));
}
