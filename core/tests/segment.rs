//! Which endpoints are reached without encapsulation.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;
mod host;

use common::*;
use host::*;
use mesh_core::{Mac, RefusalKind as K, command::Command as C, intent, lb, objects::*, plan::plan};

/// Three nodes on one segment, an endpoint of each network on each.
fn lab() -> Lab {
    let mut lab = Lab::new(3);
    lab.network(1, "n1", Some("172.30.0.0/24"));
    lab.segment_network(2, "n2", Some("172.31.0.0/24"));
    for n in 1..=3 {
        for (i, network) in [(0, "n1"), (3, "n2")] {
            lab.attach(endpoint(n + i, n, network, None));
        }
    }
    lab
}

fn node(lab: &Lab, n: u64) -> Node {
    lab.state.objects().nodes[&node_id(n)].as_ref().clone()
}

/// The nodes to which a host's endpoints send without encapsulation.
fn remotes(lab: &Lab, n: u64) -> Vec<String> {
    let rows = desired(lab, n).tables.remotes;
    rows.into_iter().map(|(ip, r)| format!("{ip} by {}, {}", r.node, r.own)).collect()
}

#[test]
fn nodes_of_a_segment_reach_each_other_as_they_are() {
    let lab = lab();
    let there = |n| desired(&lab, n).tables.locals.values().find(|l| l.segment).unwrap().ip4.unwrap();
    let want = [2, 3].map(|n| format!("{} by 02:00:00:00:00:0{n}, 02:00:00:00:00:01", there(n)));
    assert_eq!(remotes(&lab, 1), want);
    let t = desired(&lab, 1).tables;
    assert!(
        t.remotes
            .values()
            .all(|r| r.network == lab.state.objects().network("n2").unwrap().vni)
    );
    assert_eq!(t.locals.values().filter(|l| l.segment).count(), 1);
    assert_eq!(t.neighbors.len(), 2);
    let vni = lab.state.objects().network("n2").unwrap().vni;
    assert_eq!(t.ranges, [("172.31.0.0/24".parse().unwrap(), vni)].into());
    let mut seen = Default::default();
    let steps = plan(&desired(&lab, 1), &seen);
    carry_out(&mut seen, &steps);
    assert_eq!((&seen.tables.remotes, &seen.tables.neighbors), (&t.remotes, &t.neighbors));
    assert_eq!(plan(&desired(&lab, 1), &seen), []);
    // The forwarding entries stay: what the tables have no room for takes them, and so does the bridge.
    let vxlan = intent::vxlan_name(lab.state.objects().network("n2").unwrap().id);
    assert_eq!(
        desired(&lab, 1).fdb.iter().filter(|f| f.dev == vxlan && f.vtep.is_some()).count(),
        2
    );
}

#[test]
fn a_node_elsewhere_or_of_another_release_is_reached_by_vxlan() {
    let mut lab = lab();
    let moved = Node {
        data_path_addr: ip("192.168.78.12"),
        addr: ip("192.168.78.12"),
        ..node(&lab, 2)
    };
    lab.ok(report(&moved, moved.underlay_mac));
    assert_eq!(remotes(&lab, 1).len(), 1);
    // It may see that otherwise, and is listened to all the same.
    assert_eq!(desired(&lab, 1).tables.neighbors.len(), 2);
    lab.ok(report(&node(&lab, 3), None));
    assert_eq!(remotes(&lab, 1), [""; 0]);
    assert_eq!(desired(&lab, 1).tables.neighbors, [Mac([2, 0, 0, 0, 0, 2])].into());
    // A node that is not heard without VXLAN does not speak without it.
    assert_eq!(remotes(&lab, 3), [""; 0]);
    let elsewhere = intent::Facts { segment: None, ..facts(1) };
    assert!(
        intent::desired(lab.state.objects(), 1, id(1), node_id(1), &elsewhere)
            .tables
            .remotes
            .is_empty()
    );
}

#[test]
fn only_who_answers_is_sent_to_so() {
    let lab = lab();
    let of = |facts: &intent::Facts| intent::on_segment(lab.state.objects(), node_id(1), facts.segment);
    assert_eq!(of(&facts(1)).keys().map(|mac| mac.0[5]).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(of(&intent::Facts { segment: None, ..facts(1) }).len(), 0);
    let one = intent::Facts {
        neighbors: [Mac([2, 0, 0, 0, 0, 3])].into(),
        ..facts(1)
    };
    let d = intent::desired(lab.state.objects(), 1, id(1), node_id(1), &one);
    assert_eq!(d.tables.remotes.len(), 1);
    // A network that is encapsulated makes nobody a target.
    let mut lab = Lab::new(2);
    lab.network(1, "n1", None);
    lab.segment_network(2, "n2", None);
    lab.attach(endpoint(1, 1, "n1", None));
    lab.attach(endpoint(2, 2, "n1", None));
    lab.attach(endpoint(3, 2, "n2", None));
    assert_eq!(intent::on_segment(lab.state.objects(), node_id(1), facts(1).segment).len(), 0);
}

#[test]
fn there_is_room_for_so_many() {
    let mut lab = Lab::new(2);
    lab.segment_network(1, "n1", Some("172.16.0.0/12"));
    lab.attach(endpoint(1, 1, "n1", None));
    let mut objects = lab.state.objects().clone();
    let first = lab.attach(endpoint(2, 2, "n1", None));
    for n in 0..lb::REMOTES as u32 + 10 {
        let mut one = first.clone();
        one.id = id(0x10_0000 + u64::from(n));
        one.ip = std::net::Ipv4Addr::from(0xac11_0000 + n).into();
        objects.endpoints.insert(std::sync::Arc::new(one));
    }
    let d = intent::desired(&objects, 1, id(1), node_id(1), &facts(1));
    assert_eq!(d.tables.remotes.len(), lb::REMOTES);
    assert_eq!(d.neighs.len(), lb::REMOTES + 11);
}

#[test]
fn the_option_is_checked() {
    let mut lab = Lab::new(1);
    let mut spec = network_spec("n1", None);
    spec.options.insert("encapsulation".into(), "none".into());
    lab.refused(create_network(1, spec.clone()), K::Malformed, &["\"none\"", "cross-subnet"]);
    spec.options.insert("encapsulation".into(), "vxlan".into());
    assert!(matches!(lab.ok(create_network(1, spec)), mesh_core::command::Reply::Network(n) if n.encapsulation() == Encapsulation::Vxlan));
    let report = C::NodeReport {
        id: node_id(9),
        addr: ip("192.0.2.1"),
        data_path_addr: ip("192.0.2.1"),
        underlay_mtu: 1500,
        underlay_mac: None,
        host_routes: vec![],
    };
    lab.refused(report, K::NotFound, &[]);
}
