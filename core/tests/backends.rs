//! Who serves what on a host: sets of backends, ports, virtual addresses, sockets, and who may be a client.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;
mod host;

use std::{collections::BTreeSet, net::IpAddr};

use common::*;
use host::*;
use mesh_core::{
    command::{Command as C, NewEndpoint},
    intent::{self, Facts},
    lb::{LOCAL, Method, Tables, V6},
    objects::*,
    spec::NetworkSpec,
};

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
