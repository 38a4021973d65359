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
    intent::{self, Facts, bridge_name, veth_name, vxlan_name},
    lb::{LOCAL, Method, Program, Tables, V6},
    objects::*,
    observed::{Observed, SeenLink, SeenQueue},
    plan::plan,
    spec::NetworkSpec,
};
use proptest::prelude::*;

/// The lab of the README: a service with an endpoint on each of three hosts, a fourth with none.
fn hostname() -> Lab {
    let mut lab = Lab::new(4);
    lab.network(1, "demo", Some("172.30.0.0/24"));
    lab.service(1, service_spec("hostname", &["demo"], &[(8888, 80)]));
    for n in 1..=3 {
        lab.attach(endpoint(n, n, "demo", Some("hostname")));
        lab.ready(n);
    }
    lab
}

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
fn nobody_is_sent_to_a_host_that_does_not_answer() {
    let mut lab = hostname();
    let liveness = |state, dataplane| C::NodeLiveness {
        id: node_id(2),
        state,
        dataplane,
    };
    lab.ok(liveness(NodeState::Down, Dataplane::Reachable));
    assert_eq!(
        desired(&lab, 1).tables.services[&1].list.len(),
        3,
        "meshd is silent, its kernel is not"
    );
    lab.ok(liveness(NodeState::Down, Dataplane::Unreachable));
    let cut = desired(&lab, 1);
    assert_eq!(cut.tables.services[&1].list.len(), 2);
    assert_eq!(cut.names.zones.values().next().unwrap().names["tasks.hostname"].len(), 2);
    assert_eq!(
        desired(&lab, 2).tables.services[&1].list.len(),
        3,
        "the host itself does not give itself up"
    );
    lab.ok(liveness(NodeState::Ready, Dataplane::Reachable));
    assert_eq!(desired(&lab, 1).tables.services[&1].list.len(), 3);
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
fn draining_endpoints_keep_what_they_have() {
    let mut lab = hostname();
    lab.ok(C::EndpointSet {
        id: id(0x9002),
        state: EndpointState::Draining,
    });
    let t = desired(&lab, 1).tables;
    let slot = lab.state.objects().endpoints[&id(0x9002)].slot;
    assert!(!t.services[&1].list.contains(&slot) && !t.backends[&slot].accepting);
}

#[test]
fn a_stopping_container_gets_new_flows_only_where_nobody_else_takes_them() {
    let mut lab = hostname();
    let stopping = |n: u64, is: bool| C::EndpointStopping {
        id: id(0x9000 + n),
        until: is.then_some(jiff::Timestamp::UNIX_EPOCH),
    };
    let drained = |n: u64, state| C::EndpointSet { id: id(0x9000 + n), state };
    let list = |lab: &Lab| desired(lab, 1).tables.services[&1].list.clone();
    let (one, two, three) = (slot(&lab, 1), slot(&lab, 2), slot(&lab, 3));
    let all = list(&lab);
    lab.ok(stopping(2, true));
    assert_eq!(list(&lab), [one, three]);
    let t = desired(&lab, 1).tables;
    assert!(!t.backends[&two].accepting, "its flows go on");
    // The last of a host goes on answering there; the operator's word is the operator's.
    lab.ok(stopping(1, true));
    lab.ok(drained(3, EndpointState::Draining));
    assert_eq!(list(&lab), [one, two]);
    lab.ok(stopping(1, false));
    assert_eq!(list(&lab), [one]);
    lab.ok(drained(2, EndpointState::Draining));
    lab.ok(stopping(2, false));
    assert_eq!(list(&lab), [one], "it was drained by hand");
    lab.ok(stopping(2, true));
    lab.ok(drained(2, EndpointState::Ready));
    lab.ok(drained(3, EndpointState::Ready));
    assert_eq!(list(&lab), all, "told to take flows, it does");
}

#[test]
fn an_unhealthy_container_gets_new_flows_only_where_all_are() {
    let mut lab = hostname();
    let healthy = |n: u64, healthy| C::EndpointHealth {
        id: id(0x9000 + n),
        healthy,
    };
    let list = |lab: &Lab| desired(lab, 1).tables.services[&1].list.clone();
    let (one, two, three) = (slot(&lab, 1), slot(&lab, 2), slot(&lab, 3));
    let all = list(&lab);
    lab.ok(healthy(2, false));
    assert_eq!(list(&lab), [one, three]);
    assert!(!desired(&lab, 1).tables.backends[&two].accepting, "its flows go on");
    // One that stops serves still, as far as anybody knows.
    lab.ok(C::EndpointStopping {
        id: id(0x9001),
        until: Some(jiff::Timestamp::UNIX_EPOCH),
    });
    lab.ok(healthy(3, false));
    assert_eq!(list(&lab), [one]);
    lab.ok(healthy(1, false));
    assert_eq!(list(&lab), all, "none is better");
    // Of those, an operator's word holds.
    lab.ok(C::EndpointSet {
        id: id(0x9003),
        state: EndpointState::Draining,
    });
    assert_eq!(list(&lab), [one, two]);
    lab.ok(healthy(2, true));
    assert_eq!(list(&lab), [two]);
    lab.ok(C::EndpointSet {
        id: id(0x9003),
        state: EndpointState::Ready,
    });
    lab.ok(healthy(3, false));
    assert_eq!(list(&lab), [two, three], "told to take flows, it does");
    lab.ok(healthy(3, true));
    lab.ok(healthy(3, false));
    assert_eq!(list(&lab), [two], "that was about the time before");
}

/// The lab with its service changed.
fn changed(change: impl FnOnce(&mut mesh_core::spec::ServiceSpec)) -> Lab {
    let mut lab = hostname();
    let mut spec = service_spec("hostname", &["demo"], &[(8888, 80)]);
    change(&mut spec);
    lab.ok(C::ServiceUpdate {
        service: "hostname".into(),
        version: 0,
        spec,
    });
    lab
}

fn slot(lab: &Lab, n: u64) -> u32 {
    lab.state.objects().endpoints[&id(0x9000 + n)].slot
}

#[test]
fn weights_and_methods_reach_the_pools() {
    let mut lab = changed(|s| s.affinity_secs = 60);
    lab.ok(C::EndpointWeigh { id: id(0x9001), weight: 3 });
    lab.ok(C::EndpointWeigh { id: id(0x9003), weight: 0 });
    let (one, two, three) = (slot(&lab, 1), slot(&lab, 2), slot(&lab, 3));
    let t = desired(&lab, 4).tables;
    assert_eq!(t.services[&1].list, [one, one, two, one]);
    assert_eq!((t.services[&1].method, t.services[&1].affinity_secs), (Method::Turn, 60));
    assert!(t.backends[&one].accepting && !t.backends[&three].accepting);
    for (algorithm, method) in [
        (Algorithm::Random, Method::Random),
        (Algorithm::Maglev, Method::Flow),
        (Algorithm::SourceHash, Method::Source),
    ] {
        let lab = changed(|s| s.algorithm = algorithm);
        let vip = lab.state.objects().service("hostname").unwrap().vips[0].slot;
        let t = desired(&lab, 1).tables;
        for set in [1, vip] {
            assert_eq!((t.services[&set].method, t.services[&set].affinity_secs), (method, 0));
        }
        assert_eq!(t.services[&1].list, desired(&lab, 4).tables.services[&1].list, "nodes choose alike");
    }
}

#[test]
fn host_ports_answer_where_an_endpoint_runs() {
    let mut lab = changed(|s| s.ports[0].mode = PublishMode::Host);
    let key = (Protocol::Tcp, 8888);
    let one = desired(&lab, 1).tables;
    assert_eq!((one.published[&key].service, one.published[&key].target), (1 | LOCAL, 80));
    assert_eq!(one.services[&(1 | LOCAL)].list, [slot(&lab, 1)]);
    assert!(!one.services.contains_key(&1));
    assert!(desired(&lab, 4).tables.published.is_empty());
    lab.ok(C::EndpointSet {
        id: id(0x9001),
        state: EndpointState::Draining,
    });
    let drained = desired(&lab, 1).tables;
    assert!(drained.published.contains_key(&key), "its flows go on");
    assert!(drained.services[&(1 | LOCAL)].list.is_empty());
    lab.ok(C::EndpointRemove { id: id(0x9001) });
    assert!(desired(&lab, 1).tables.published.is_empty());
}

#[test]
fn a_containers_own_port_answers_at_its_node() {
    let mut lab = hostname();
    let own = |published, address: Option<&str>| Port {
        published,
        target: 81,
        protocol: Protocol::Tcp,
        mode: PublishMode::Host,
        address: address.map(ip),
    };
    lab.ok(C::EndpointCreate {
        endpoint: NewEndpoint {
            ports: vec![own(9000, None), own(9001, Some("192.168.77.11"))],
            ..endpoint(7, 1, "demo", None)
        },
        at: jiff::Timestamp::UNIX_EPOCH,
    });
    let key = (Protocol::Tcp, 9000);
    assert!(!desired(&lab, 1).tables.published.contains_key(&key), "it has no interface yet");
    lab.ok(C::EndpointSet {
        id: id(0x9007),
        state: EndpointState::Ready,
    });
    let t = desired(&lab, 1).tables;
    let slot = slot(&lab, 7);
    assert_eq!((t.published[&key].service, t.published[&key].target), (slot | LOCAL, 81));
    assert_eq!(t.bound[&(ip("192.168.77.11"), Protocol::Tcp, 9001)].service, slot | LOCAL);
    assert_eq!(t.services[&(slot | LOCAL)].list, [slot]);
    assert!(
        !t.services.contains_key(&(slot | LOCAL | V6)),
        "no set: answered at once, by nobody"
    );
    assert!(t.backends[&slot].local);
    assert!(!desired(&lab, 2).tables.published.contains_key(&key));
    lab.ok(C::EndpointRemove { id: id(0x9007) });
    assert!(!desired(&lab, 1).tables.published.contains_key(&key));
}

/// Every set that a published port can ask is there, also without members, but for those of IPv6 that
/// nobody is in: without a set, as with an empty one, a client is answered at once.
#[test]
fn published_sets_are_of_both_families_and_local() {
    let mut lab = hostname();
    let t = desired(&lab, 1).tables;
    let list = |t: &Tables, set: u32| t.services.get(&set).map(|p| p.list.len());
    assert_eq!(list(&t, 1), Some(3));
    assert_eq!(list(&t, 1 | V6), None);
    assert_eq!(list(&t, 1 | LOCAL), Some(1));
    assert_eq!(list(&t, 1 | V6 | LOCAL), None);
    let four = desired(&lab, 4).tables;
    assert_eq!((list(&four, 1 | V6), list(&four, 1 | LOCAL)), (None, None), "it runs none");
    let h2 = lab.state.objects().nodes[&node_id(2)].ingress_ip;
    assert_eq!(four.backends[&slot(&lab, 2)].node.map(IpAddr::V4), Some(h2));
    let own = lab.state.objects().nodes[&node_id(4)].ingress_ip;
    assert_eq!(four.ingress_ip.map(IpAddr::V4), Some(own));
    // Objects of both families, as the allocator gives them.
    let mut all = lab.state.objects().clone();
    let both = |e: &std::sync::Arc<Endpoint>| {
        let ip6 = e
            .slot
            .is_multiple_of(2)
            .then(|| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, e.slot as u16));
        let mut both = Endpoint::clone(e);
        both.ip6 = ip6.map(Box::new);
        std::sync::Arc::new(both)
    };
    all.endpoints = all.endpoints.values().map(both).collect();
    let mut service = Service::clone(all.services.values().next().unwrap());
    service.vips[0].ip6 = Some("fd00::ffff".parse().unwrap());
    let (vip, vip6) = (service.vips[0].ip, ip("fd00::ffff"));
    let vip_set = service.vips[0].slot;
    all.services.insert(service.into());
    let t = intent::desired(&all, lab.index, id(1), node_id(1), &facts(1)).tables;
    let six: Vec<_> = all.endpoints.values().filter(|e| e.ip6.is_some()).map(|e| e.slot).collect();
    assert!(!six.is_empty() && six.len() < 3);
    assert_eq!((&t.services[&(1 | V6)].list, &t.services[&(vip_set | V6)].list), (&six, &six));
    assert_eq!((t.vips[&vip].service, t.vips[&vip6].service), (vip_set, vip_set | V6));
    lab.ok(C::EndpointRemove { id: id(0x9001) });
    assert_eq!(list(&desired(&lab, 1).tables, 1 | LOCAL), None);
}

#[test]
fn sockets_are_balanced_by_namespace() {
    let mut lab = hostname();
    lab.network(2, "other", None);
    lab.attach(mesh_core::command::NewEndpoint {
        id: id(0x9101),
        ..endpoint(1, 1, "other", None)
    });
    let vni = |name: &str| lab.state.objects().network(name).unwrap().vni;
    let spaces = desired(&lab, 1).tables.namespaces;
    let both: BTreeSet<_> = [vni("demo"), vni("other")].into();
    assert_eq!(spaces.len(), 2);
    assert_eq!((spaces[&8001].host, &spaces[&8001].networks), (false, &both));
    assert_eq!((spaces[&501].host, &spaces[&501].networks), (true, &both));
    let four = desired(&lab, 4).tables.namespaces;
    assert!(four.len() == 1 && four[&504].networks.is_empty());
    let blind = Facts { cookie: 0, ..facts(4) };
    let t = intent::desired(lab.state.objects(), lab.index, id(1), node_id(4), &blind).tables;
    assert!(t.namespaces.is_empty(), "a kernel without cookies");
}

#[test]
fn bound_ports_are_known_to_every_node() {
    let at = ip("192.168.77.11");
    let lab = changed(|s| s.ports[0].address = Some(at));
    for n in 1..=4 {
        let t = desired(&lab, n).tables;
        assert_eq!(t.published[&(Protocol::Tcp, 8888)].service, 0, "h{n}");
        assert_eq!(t.bound[&(at, Protocol::Tcp, 8888)].service, 1, "h{n}");
        assert_eq!(t.services[&1].list.len(), 3);
    }
    assert!(desired(&changed(|s| s.lb_return = LbReturn::Direct), 4).tables.published[&(Protocol::Tcp, 8888)].direct);
}

#[test]
fn clients_are_admitted_by_range() {
    let net = |s: &str| s.parse().unwrap();
    let given = |ranges: &[(&str, bool)]| {
        let ranges = ranges
            .iter()
            .map(|(n, allow)| SourceRange {
                net: net(n),
                allow: *allow,
            })
            .collect();
        let lab = changed(|s| s.source_ranges = ranges);
        let vip = lab.state.objects().service("hostname").unwrap().vips[0].slot;
        let t = desired(&lab, 1).tables;
        assert!(!t.services[&vip].ranged, "containers are no clients from outside");
        (t.services[&1].ranged, t.sources)
    };
    assert_eq!(given(&[]), (false, Default::default()));
    let some = given(&[("10.0.0.0/8", true), ("10.1.0.0/16", false)]);
    assert_eq!(
        some,
        (true, [((1, net("10.0.0.0/8")), true), ((1, net("10.1.0.0/16")), false)].into())
    );
    let denied = given(&[("10.1.0.0/16", false)]);
    assert_eq!(
        denied.1,
        [
            ((1, net("10.1.0.0/16")), false),
            ((1, net("0.0.0.0/0")), true),
            ((1, net("::/0")), true)
        ]
        .into()
    );
    let four = given(&[("0.0.0.0/0", false)]);
    assert_eq!(four.1, [((1, net("0.0.0.0/0")), false), ((1, net("::/0")), true)].into());
}

#[test]
fn labels_select_members() {
    let mut lab = changed(|s| s.selector = [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())].into());
    lab.network(2, "other", None);
    let mut add = |n: u64, network: &str, labels: &[(&str, &str)]| {
        let mut e = endpoint(n, 4, network, None);
        e.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        lab.attach(e);
        lab.ready(n);
    };
    add(5, "demo", &[("app", "web"), ("tier", "front"), ("more", "1")]);
    add(6, "demo", &[("app", "web")]);
    add(7, "other", &[("app", "web"), ("tier", "front")]);
    let t = desired(&lab, 4).tables;
    assert_eq!(t.services[&1].list, [slot(&lab, 1), slot(&lab, 2), slot(&lab, 3), slot(&lab, 5)]);
    let vip = lab.state.objects().service("hostname").unwrap().vips[0].slot;
    assert_eq!(t.services[&vip].list.len(), 4);
    let network = lab.state.objects().network("demo").unwrap().id;
    assert_eq!(desired(&lab, 4).names.zones[&network].names["tasks.hostname"].len(), 4);
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

#[test]
fn published_ports_are_not_served_from_internal_networks() {
    let mut lab = Lab::new(1);
    lab.ok(create_network(
        1,
        NetworkSpec {
            internal: true,
            ..network_spec("inside", None)
        },
    ));
    lab.network(2, "out", None);
    lab.service(1, service_spec("web", &["inside", "out"], &[(8888, 80)]));
    // A container that has both, and one inside.
    for (n, network, inode) in [(1, "inside", 71), (2, "out", 71), (3, "inside", 72)] {
        let mut e = endpoint(n, 1, network, Some("web"));
        e.sandbox.inode = inode;
        lab.attach(e);
        lab.ready(n);
    }
    let t = desired(&lab, 1).tables;
    let web = lab.state.objects().service("web").unwrap();
    let slot = |n: u64| lab.state.objects().endpoints[&id(0x9000 + n)].slot;
    assert_eq!(t.services[&web.slot].list, [slot(2)]);
    assert_eq!(t.services[&(web.slot | LOCAL)].list, [slot(2)]);
    // Its virtual addresses have everybody.
    let vips: Vec<_> = web.vips.iter().map(|v| t.services[&v.slot].list.clone()).collect();
    assert_eq!(vips, [vec![slot(1), slot(3)], vec![slot(2)]]);
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
