//! What a host must look like, and the steps that lead there.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;
mod host;

use std::{collections::BTreeSet, net::IpAddr};

use common::*;
use host::*;
use mesh_core::{
    Id, Mac, RefusalKind,
    action::{Action, NetAction},
    command::{Command as C, NewEndpoint},
    desired::{Desired, Link, Queue},
    intent::{bridge_name, veth_name, vxlan_name},
    lb::Program,
    objects::*,
    observed::{Observed, SeenLink, SeenQueue},
    plan::plan,
    spec::NetworkSpec,
};
use proptest::prelude::*;

#[test]
fn a_host_carries_only_the_networks_of_its_endpoints() {
    let lab = hostname();
    let network = lab.state.objects().network("demo").unwrap().clone();
    let ingress = lab.state.objects().ingress().unwrap().id;
    let one = desired(&lab, 1);
    let names: BTreeSet<_> = one.links.keys().cloned().collect();
    assert_eq!(names, [bridge_name(network.id), vxlan_name(network.id), vxlan_name(ingress)].into());
    assert_eq!(one.veths.keys().cloned().collect::<Vec<_>>(), [veth_name(id(0x9001))]);
    let Link::Vxlan { vni, mtu, bridge, .. } = &one.links[&vxlan_name(network.id)].1 else {
        panic!()
    };
    assert_eq!(
        (*vni, *mtu, bridge.as_deref()),
        (4097, 1450, Some(bridge_name(network.id).as_str()))
    );
    let four = desired(&lab, 4);
    assert_eq!(
        four.links.keys().cloned().collect::<Vec<_>>(),
        [vxlan_name(ingress)],
        "no endpoint, no network"
    );
    assert!(four.veths.is_empty() && four.names.zones.is_empty());
    let backends: Vec<_> = four.tables.services[&1]
        .list
        .iter()
        .filter_map(|s| four.tables.backends[s].ip4)
        .map(|ip| ip.to_string())
        .collect();
    assert_eq!(backends, ["172.30.0.3", "172.30.0.4", "172.30.0.5"], "but it answers the port");
    let carried = four.fdb.iter().filter(|e| e.dev == vxlan_name(ingress)).count();
    assert_eq!(carried, 3 + 3, "a way to every endpoint of a published service and to every node");
}

#[test]
fn sockets_to_backends_that_are_gone_are_ended() {
    let mut lab = hostname();
    let seen = |lab: &Lab| {
        let mut seen = Observed::default();
        let want = desired(lab, 1);
        let steps = plan(&want, &seen);
        carry_out(&mut seen, &steps);
        seen
    };
    let ends = |lab: &Lab, seen: &Observed| -> Vec<(bool, String)> {
        let steps = plan(&desired(lab, 1), seen);
        let ended = steps.into_iter().filter_map(|s| match s {
            Action::Net(NetAction::EndSockets { sandbox, peers }) => Some((sandbox.is_some(), peers)),
            _ => None,
        });
        let each = ended.flat_map(|(inside, peers)| peers.into_iter().map(move |ip| (inside, ip.to_string())));
        each.collect()
    };
    // Somebody has IPv6, and so nodes have.
    lab.ok(create_network(
        2,
        NetworkSpec {
            ipv6: true,
            ..network_spec("six", None)
        },
    ));
    let before = seen(&lab);
    lab.ok(C::NodeLiveness {
        id: node_id(2),
        state: NodeState::Down,
        dataplane: Dataplane::Unreachable,
    });
    let both = |ip: &str| vec![(true, ip.to_owned()), (false, ip.to_owned())];
    // By the node's addresses processes of the host reached it.
    let node = lab.state.objects().nodes[&node_id(2)].ingress_ip;
    let IpAddr::V4(node4) = node else { panic!("{node}") };
    let gone = [node.to_string(), "172.30.0.4".to_owned()];
    let gone = gone.into_iter().chain(before.tables.nodes.get(&node4).map(ToString::to_string));
    let gone: Vec<_> = gone.collect();
    assert_eq!(gone.len(), 3);
    let inside_and_on_the_host = [true, false].map(|at| gone.iter().map(move |ip| (at, ip.clone())).collect::<Vec<_>>());
    assert_eq!(ends(&lab, &before), inside_and_on_the_host.concat());
    assert_eq!(ends(&lab, &seen(&lab)), [], "once");
    let before = seen(&lab);
    lab.ok(C::EndpointRemove { id: id(0x9003) });
    assert_eq!(ends(&lab, &before), both("172.30.0.5"));
    // Who leaves a service is still there.
    let before = seen(&lab);
    lab.ok(C::ServiceRemove {
        service: "hostname".into(),
    });
    assert_eq!(ends(&lab, &before), []);
}

#[test]
fn rows_name_the_network_that_they_belong_to() {
    let mut lab = hostname();
    lab.network(2, "other", None);
    lab.attach(endpoint(7, 1, "other", None));
    let t = desired(&lab, 1).tables;
    let network = |name: &str| lab.state.objects().network(name).unwrap().clone();
    for (name, n) in [("demo", 1), ("other", 7)] {
        let local = &t.locals[&veth_name(id(0x9000 + n))];
        assert_eq!(
            (local.network, local.vxlan.as_str()),
            (network(name).vni, vxlan_name(network(name).id).as_str())
        );
        assert_eq!(t.networks[&vxlan_name(network(name).id)], network(name).vni);
    }
    assert_eq!(t.networks.len(), 2, "the ingress network is none of them");
    let vip = lab.state.objects().service("hostname").unwrap().vips[0].clone();
    assert_eq!((t.vips[&vip.ip].service, t.vips[&vip.ip].network), (vip.slot, network("demo").vni));
    assert!(desired(&lab, 4).tables.networks.is_empty() && desired(&lab, 4).tables.vips.is_empty());
}

#[test]
fn names_of_a_network() {
    let mut lab = hostname();
    let mut e = endpoint(7, 1, "demo", None);
    e.aliases = vec!["Cache".into()];
    lab.attach(e);
    let names = desired(&lab, 1).names;
    let zone = names.zones.values().next().unwrap();
    let vip = lab.state.objects().service("hostname").unwrap().vips[0].ip;
    assert_eq!(zone.names["hostname"], [vip]);
    assert_eq!(zone.names["tasks.hostname"].len(), 3);
    assert_eq!(zone.names["cache"], zone.names["c7"]);
    assert_eq!(zone.names["c3"].len(), 1, "also what is on other hosts");
    assert_eq!(names.clients.len(), 2);
    assert_eq!(names.listeners.keys().map(ToString::to_string).collect::<Vec<_>>(), ["172.30.0.1"]);
}

#[test]
fn one_default_route_per_container() {
    let mut lab = Lab::new(1);
    lab.ok(create_network(
        1,
        mesh_core::spec::NetworkSpec {
            internal: true,
            ..network_spec("inside", None)
        },
    ));
    lab.network(2, "out", None);
    lab.network(3, "more", None);
    for (n, net) in ["inside", "out", "more"].iter().enumerate() {
        lab.attach(mesh_core::command::NewEndpoint {
            id: id(0x9000 + n as u64),
            ..endpoint(1, 1, net, None)
        });
    }
    let d = desired(&lab, 1);
    let peers: Vec<_> = (0..3).map(|n| &d.veths[&veth_name(id(0x9000 + n))].peer).collect();
    let out = ip("10.1.1.1");
    assert_eq!(
        peers.iter().map(|p| p.gateways.clone()).collect::<Vec<_>>(),
        [vec![], vec![out], vec![]]
    );
    // The one that is neither internal nor has the route answers its own clients.
    assert_eq!(
        peers.iter().map(|p| p.returns.clone()).collect::<Vec<_>>(),
        [vec![], vec![], vec![ip("10.1.2.1")]]
    );
}

/// An endpoint that receives and sends that many bits per second at most.
fn limited(n: u64, node: u64, network: &str, service: Option<&str>, ingress: Option<Rate>, egress: Option<Rate>) -> NewEndpoint {
    let mut new = endpoint(n, node, network, service);
    new.sandbox.bandwidth = Some(Box::new(Bandwidth { ingress, egress }));
    new
}

#[test]
fn what_limits_an_endpoint_is_at_its_interface() {
    let mut lab = hostname();
    let at = jiff::Timestamp::UNIX_EPOCH;
    let rate = |rate, burst| Rate { rate, burst };
    let none = limited(7, 1, "demo", None, Some(rate(0, 1)), None);
    lab.refused(
        C::EndpointCreate { endpoint: none, at },
        RefusalKind::Malformed,
        &["ingress rate 0", "8 bits per second"],
    );
    let none = limited(7, 1, "demo", None, None, Some(rate(8, 0)));
    lab.refused(
        C::EndpointCreate { endpoint: none, at },
        RefusalKind::Malformed,
        &["egress burst 0"],
    );
    let new = limited(7, 1, "demo", None, Some(rate(20_000_000, 1_600_000)), Some(rate(8, 1)));
    lab.ok(C::EndpointCreate { endpoint: new, at });
    let d = desired(&lab, 1);
    let name = veth_name(id(0x9007));
    let received = Queue {
        rate: 2_500_000,
        burst: 200_000,
        limit: 262_500,
    };
    // A packet of the network's MTU, and its header, fits at least.
    let sent = Queue {
        rate: 1,
        burst: 1464,
        limit: 1464,
    };
    assert_eq!((d.veths[&name].queue, d.veths[&name].peer.queue), (Some(received), Some(sent)));
    assert!(d.tables.locals[&name].queued && !d.tables.locals[&veth_name(id(0x9001))].queued);
    assert_eq!(d.veths[&veth_name(id(0x9001))].queue, None);
    // Somebody has changed or removed it.
    let mut seen = Observed::default();
    carry_out(&mut seen, &plan(&d, &Observed::default()));
    let slower = SeenQueue {
        rate: 7,
        ..received.into()
    };
    for queue in [None, Some(sent.into()), Some(slower)] {
        seen.overlay.veths.get_mut(&name).unwrap().queue = queue;
        let steps = plan(&d, &seen);
        assert!(
            matches!(&steps[..], [Action::Net(NetAction::PutVeth { veth, .. })] if veth.queue == Some(received)),
            "{steps:?}"
        );
    }
    // One that only sends less is handed what it receives past its interface.
    lab.ok(C::EndpointCreate {
        endpoint: limited(8, 1, "demo", None, None, Some(rate(1_000_000, 1_000_000))),
        at,
    });
    let d = desired(&lab, 1);
    let name = veth_name(id(0x9008));
    assert!(!d.tables.locals[&name].queued && d.veths[&name].queue.is_none() && d.veths[&name].peer.queue.is_some());
}

#[test]
fn marks_tell_queues_apart() {
    let rates = [8, 1_000, 1_000_000, 2_000_000, 20_000_000, 1_000_000_000, 100_000_000_000, u64::MAX];
    let queues = rates
        .iter()
        .flat_map(|rate| [1280, 1450, 9000].map(|mtu| Queue::new(Rate::of(*rate), mtu)));
    let queues: std::collections::HashSet<_> = queues.collect();
    let marks: BTreeSet<_> = queues.iter().map(Queue::mark).collect();
    assert_eq!(marks.len(), queues.len());
    assert!(marks.iter().all(|m| *m < 0x4000));
}

#[test]
fn what_is_as_it_must_be_is_left_alone() {
    let lab = hostname();
    for n in 1..=4 {
        let d = desired(&lab, n);
        let mut seen = Observed::default();
        let steps = plan(&d, &seen);
        assert!(!steps.is_empty());
        carry_out(&mut seen, &steps);
        assert_eq!(plan(&d, &seen), [], "h{n}");
    }
}

/// A link whose maker ended before it was marked in full would hold its VNI for ever.
#[test]
fn what_was_left_half_made_goes() {
    let lab = hostname();
    let d = desired(&lab, 1);
    let mut seen = Observed::default();
    carry_out(&mut seen, &plan(&d, &Observed::default()));
    let link = Link::Bridge {
        mac: Mac::default(),
        mtu: 1500,
        ipv6: false,
    };
    for (name, cluster) in [("mb-half", Id::default()), ("mb-foreign", id(99))] {
        let mark = (cluster, id(77));
        let half = SeenLink {
            mark,
            link: link.clone(),
            settled: false,
        };
        seen.overlay.links.insert(name.into(), half);
    }
    assert_eq!(plan(&d, &seen), [Action::Net(NetAction::DelLink("mb-half".into()))]);
}

#[test]
fn without_a_cluster_nothing_is_done() {
    let lab = hostname();
    let mut seen = Observed::default();
    carry_out(&mut seen, &plan(&desired(&lab, 1), &Observed::default()));
    assert_eq!(plan(&Desired::default(), &seen), [], "an empty answer never deletes");
}

#[test]
fn programs_sit_where_they_belong() {
    let lab = hostname();
    let hooks: BTreeSet<_> = desired(&lab, 1).hooks.iter().map(|h| (h.program, h.dev.clone())).collect();
    let veth = veth_name(id(0x9001));
    let ingress = vxlan_name(lab.state.objects().ingress().unwrap().id);
    let vxlan = vxlan_name(lab.state.objects().network("demo").unwrap().id);
    let want = [
        (Program::FromUplink, "eth0".to_owned()),
        (Program::Sockets, String::new()),
        (Program::FromOverlay, ingress),
        (Program::FromNetwork, vxlan),
        (Program::FromContainer, veth.clone()),
        (Program::ToContainer, veth),
        (Program::Sockets, String::new()),
    ];
    assert_eq!(hooks, want.into());
}

fn change() -> impl Strategy<Value = (u8, u64, u64)> {
    (0..8u8, 0..8u64, 1..4u64)
}

proptest! {
    /// From wherever a host is, one plan leads to where it must be, in an order that is safe at
    /// every step (asserted while it is carried out), and the next plan is empty.
    #[test]
    fn every_plan_leads_to_its_goal(changes in proptest::collection::vec(change(), 1..40)) {
        let mut lab = Lab::new(3);
        lab.network(1, "n1", Some("172.30.0.0/24"));
        lab.segment_network(2, "n2", Some("172.31.0.0/24"));
        lab.service(1, service_spec("s1", &["n1", "n2"], &[(8000, 80)]));
        let mut hosts = vec![Observed::default(); 4];
        for (what, n, h) in changes {
            let net = if n % 2 == 0 { "n1" } else { "n2" };
            let _ = lab.apply(match what {
                0 | 1 => C::EndpointCreate { endpoint: limited(n, h, net, (n % 3 == 0).then_some("s1"), (n % 4 == 1).then_some(Rate::of(1000)), None), at: jiff::Timestamp::UNIX_EPOCH },
                2 => C::EndpointSet { id: id(0x9000 + n), state: EndpointState::Ready },
                3 => C::EndpointRemove { id: id(0x9000 + n) },
                4 => C::EndpointSet { id: id(0x9000 + n), state: EndpointState::Draining },
                6 => C::EndpointStopping { id: id(0x9000 + n), until: h.is_multiple_of(2).then_some(jiff::Timestamp::UNIX_EPOCH) },
                7 if h == 2 => C::EndpointHealth { id: id(0x9000 + n), healthy: n.is_multiple_of(2) },
                5 => C::NodeLiveness { id: node_id(h), state: NodeState::Down, dataplane: if n % 2 == 0 { Dataplane::Unreachable } else { Dataplane::Reachable } },
                _ => C::NodeReport { id: node_id(h), addr: ip("192.168.77.9"), data_path_addr: ip(&format!("192.168.78.{}", n + 1)), underlay_mtu: 1500 + n as u32, underlay_mac: (n % 2 == 0).then_some(Mac([2, 0, 0, 0, 0, n as u8])), host_routes: vec![] },
            });
            // Hosts fall behind and catch up at different times.
            for (at, seen) in hosts.iter_mut().enumerate().skip(1) {
                if !(n + at as u64).is_multiple_of(3) {
                    continue;
                }
                let d = desired(&lab, at as u64);
                carry_out(seen, &plan(&d, seen));
                prop_assert_eq!(plan(&d, seen), vec![]);
            }
        }
    }
}
