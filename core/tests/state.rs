//! What commands do to the state, and what they refuse.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;

use std::collections::BTreeSet;

use common::*;
use jiff::Timestamp;
use mesh_core::{RefusalKind as K, command::Command as C, objects::*, state::State};
use proptest::prelude::*;

fn attach(e: mesh_core::command::NewEndpoint) -> C {
    C::EndpointCreate {
        endpoint: e,
        at: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn begins_with_an_ingress_network_and_a_node() {
    let lab = Lab::new(3);
    let all = lab.state.objects();
    let ingress = all.ingress().unwrap();
    assert_eq!(
        (ingress.name.as_str(), ingress.vni, ingress.subnets[0].subnet.to_string()),
        ("ingress", 4096, "10.0.0.0/16".into())
    );
    let ips: Vec<_> = all.nodes.values().map(|n| n.ingress_ip.to_string()).collect();
    assert_eq!(ips, ["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
}

#[test]
fn a_second_init_is_refused() {
    let mut lab = Lab::new(1);
    let again = C::Init {
        id: id(9),
        ingress: id(10),
        at: Timestamp::UNIX_EPOCH,
        address_pools: vec![],
        subnet_prefix: 24,
        ca_cert: String::new(),
        ca_key: String::new(),
        worker_secret: String::new(),
        manager_secret: String::new(),
        node: new_node(9, Role::Manager),
    };
    lab.refused(again, K::Conflict, &["in cluster", "already"]);
}

#[test]
fn pools_that_the_host_routes_are_refused_by_its_route() {
    let mut node = new_node(1, Role::Manager);
    for (dst, dev) in [("172.16.0.0/12", "tun0"), ("192.0.2.0/24", "eth0")] {
        let dst = dst.parse().unwrap();
        node.host_routes.push(HostRoute { dst, dev: dev.into() });
    }
    let init = C::Init {
        id: id(9),
        ingress: id(10),
        at: Timestamp::UNIX_EPOCH,
        address_pools: vec!["172.20.0.0/16".parse().unwrap()],
        subnet_prefix: 24,
        ca_cert: String::new(),
        ca_key: String::new(),
        worker_secret: String::new(),
        manager_secret: String::new(),
        node,
    };
    let refusal = State::default().apply(1, &init).0.unwrap_err();
    assert_eq!(refusal.kind, K::Conflict, "{refusal}");
    for word in ["172.20.0.0/16", "the route 172.16.0.0/12 dev tun0;", "--default-addr-pool"] {
        assert!(refusal.message.contains(word), "{word}: {refusal}");
    }
}

#[test]
fn a_name_that_nothing_has_is_told_but_not_at_length() {
    let mut lab = Lab::new(1);
    let remove = |name: &str| C::NetworkRemove { network: name.into() };
    let longest = "n".repeat(63);
    lab.refused(remove(&longest), K::NotFound, &[&longest, "meshctl network ls"]);
    let refusal = lab.apply(remove(&"ä".repeat(10_000))).unwrap_err();
    assert!(refusal.kind == K::NotFound && refusal.message.len() < 200, "{refusal}");
}

#[test]
fn the_network_of_the_readme() {
    let mut lab = Lab::new(1);
    let mut spec = network_spec("kafka", Some("172.30.0.0/16"));
    spec.gateways = vec![ip("172.30.0.1")];
    lab.ok(create_network(1, spec));
    let mut e = endpoint(1, 1, "kafka", None);
    e.ip = Some(ip("172.30.5.5"));
    let e = lab.attach(e);
    assert_eq!(
        (e.ip, e.mac().to_string().as_str(), &*e.ifname),
        (ip("172.30.5.5"), "02:6d:ac:1e:05:05", "eth0")
    );
    assert_eq!(lab.attach(endpoint(2, 1, "KAFKA", None)).ip, ip("172.30.0.2"), "names have no case");
}

#[test]
fn refuses_networks_that_can_not_be() {
    let mut lab = Lab::new(2);
    lab.network(1, "taken", Some("172.30.0.0/16"));
    let net = |name: &str, s: Option<&str>| create_network(9, network_spec(name, s));
    lab.refused(net("", None), K::Malformed, &["empty"]);
    lab.refused(net(&"a".repeat(64), None), K::Malformed, &["64 characters"]);
    for name in ["-a", "a-", "a_b", "a.b", "ä", "a b", "../x", "a\nb"] {
        lab.refused(net(name, None), K::Malformed, &["not a DNS label"]);
    }
    lab.refused(net("Taken", None), K::Conflict, &["exists already"]);
    lab.refused(
        net("n", Some("172.30.4.0/24")),
        K::Conflict,
        &["172.30.4.0/24", "172.30.0.0/16", "\"taken\""],
    );
    lab.refused(
        net("n", Some("192.168.0.0/16")),
        K::Conflict,
        &["192.168.77.0/24 dev eth0 of node h1"],
    );
    lab.refused(net("n", Some("10.0.0.0/24")), K::Conflict, &["\"ingress\""]);
    for (bad, why) in [
        ("172.31.0.0/31", "too small"),
        ("172.31.0.1/24", "host bits"),
        ("127.0.0.0/16", "unicast"),
        ("0.0.0.0/0", "unicast"),
        ("224.0.0.0/8", "unicast"),
    ] {
        lab.refused(net("n", Some(bad)), K::Malformed, &[why]);
    }
    let mut spec = network_spec("n", Some("172.31.0.0/24"));
    spec.gateways = vec![ip("172.32.0.1")];
    lab.refused(create_network(9, spec.clone()), K::Malformed, &["172.32.0.1", "172.31.0.0/24"]);
    spec.gateways = vec![ip("172.31.0.255")];
    lab.refused(create_network(9, spec.clone()), K::Malformed, &["broadcast"]);
    spec.gateways.clear();
    spec.options.insert("mtu".into(), "9000".into());
    lab.refused(create_network(9, spec.clone()), K::Other, &["9000", "1450"]);
    spec.options.insert("mtu".into(), "x".into());
    lab.refused(create_network(9, spec), K::Malformed, &["mtu"]);
}

#[test]
fn refuses_addresses_that_can_not_be() {
    let mut lab = Lab::new(1);
    lab.network(1, "n", Some("172.30.0.0/29"));
    let with = |s: &str| {
        let mut e = endpoint(7, 1, "n", None);
        e.ip = Some(ip(s));
        attach(e)
    };
    lab.refused(with("172.30.0.1"), K::Conflict, &["the gateway"]);
    lab.refused(with("172.30.0.0"), K::Other, &["network address"]);
    lab.refused(with("172.30.0.7"), K::Other, &["broadcast"]);
    lab.refused(with("172.31.0.2"), K::Other, &["not in network", "172.30.0.0/29"]);
    for n in 1..=5 {
        lab.attach(endpoint(n, 1, "n", None));
    }
    lab.refused(
        attach(endpoint(6, 1, "n", None)),
        K::Other,
        &["no free address", "all 6 of 172.30.0.0/29"],
    );
    lab.refused(with("172.30.0.3"), K::Conflict, &["taken"]);
    lab.ok(C::EndpointRemove { id: id(0x9002) });
    assert_eq!(lab.attach(endpoint(6, 1, "n", None)).ip, ip("172.30.0.3"));
}

#[test]
fn refuses_attachments_that_can_not_be() {
    let mut lab = Lab::new(2);
    lab.network(1, "n", None);
    lab.network(2, "m", None);
    lab.service(1, service_spec("web", &["n"], &[]));
    lab.attach(endpoint(1, 1, "n", Some("web")));
    lab.refused(attach(endpoint(2, 1, "nope", None)), K::NotFound, &["no network named \"nope\""]);
    lab.refused(attach(endpoint(2, 1, "n", Some("nope"))), K::NotFound, &["no service"]);
    lab.refused(
        attach(endpoint(2, 1, "m", Some("web"))),
        K::Other,
        &["not on network \"m\"", "on n"],
    );
    lab.refused(attach(endpoint(2, 7, "n", None)), K::NotFound, &["no node"]);
    lab.refused(attach(endpoint(2, 1, "ingress", None)), K::Other, &["published ports only"]);
    let mut again = endpoint(1, 1, "n", None);
    again.id = id(0x9999);
    again.name = "other".into();
    lab.refused(attach(again.clone()), K::Conflict, &["attached", "already"]);
    again.sandbox.inode = 1;
    again.name = "C1".into();
    lab.refused(attach(again.clone()), K::Conflict, &["taken", "h1"]);
    again.name = "c9".into();
    for bad in ["", "lo", "a/b", "sixteencharacter", "a b"] {
        again.ifname = Some(bad.into());
        lab.refused(attach(again.clone()), K::Malformed, &["interface name"]);
    }
    let second = lab.attach(mesh_core::command::NewEndpoint {
        network: "m".into(),
        id: id(0x9100),
        ..endpoint(1, 1, "m", None)
    });
    assert_eq!(&*second.ifname, "eth1", "a second network gets the next interface");
    assert_eq!(
        lab.attach(endpoint(1, 1, "n", Some("web"))).ip,
        ip("10.1.0.3"),
        "asked again with the same id, answered the same"
    );
}

#[test]
fn services_get_addresses_and_ports() {
    let mut lab = Lab::new(1);
    lab.network(1, "n", None);
    let s = lab.service(1, service_spec("web", &["n"], &[(8888, 80), (0, 81), (0, 82)]));
    assert_eq!(s.vips.len(), 1);
    assert_eq!(s.ports.iter().map(|p| p.published).collect::<Vec<_>>(), [8888, 30000, 30001]);
    lab.refused(
        create_service(2, service_spec("WEB", &["n"], &[])),
        K::Conflict,
        &["exists already"],
    );
    lab.refused(
        create_service(2, service_spec("b", &["n"], &[(8888, 1)])),
        K::Conflict,
        &["8888/tcp", "\"web\""],
    );
    lab.refused(
        create_service(2, service_spec("b", &["n"], &[(2377, 1)])),
        K::Conflict,
        &["control plane"],
    );
    lab.refused(
        create_service(2, service_spec("b", &["n"], &[(80, 0)])),
        K::Malformed,
        &["target port 0"],
    );
    lab.refused(create_service(2, service_spec("b", &[], &[])), K::Malformed, &["--network"]);
    lab.refused(create_service(2, service_spec("b", &["nope"], &[])), K::NotFound, &["no network"]);
    let mut udp = service_spec("dns", &["n"], &[(8888, 53)]);
    udp.ports[0].protocol = Protocol::Udp;
    lab.service(2, udp);
    lab.ok(C::ServiceUpdate {
        service: "web".into(),
        version: 0,
        spec: service_spec("web", &["n"], &[(0, 82), (9999, 80)]),
    });
    let now = lab.state.objects().service("web").unwrap().clone();
    assert_eq!(
        now.ports.iter().map(|p| p.published).collect::<Vec<_>>(),
        [30001, 9999],
        "the open one stays as it was"
    );
    assert_eq!((&now.vips, now.slot), (&s.vips, s.slot));
    lab.service(3, service_spec("next", &["n"], &[(8888, 80)]));
    lab.refused(
        C::ServiceUpdate {
            service: "web".into(),
            version: 1,
            spec: service_spec("web", &["n"], &[]),
        },
        K::Conflict,
        &["changed meanwhile"],
    );
}

#[test]
fn options_of_the_balancer() {
    let mut lab = Lab::new(1);
    lab.network(1, "n", None);
    let range = |net: &str, allow| SourceRange {
        net: net.parse().unwrap(),
        allow,
    };
    let mut spec = service_spec("web", &["n"], &[]);
    spec.algorithm = Algorithm::Maglev;
    spec.affinity_secs = 86400;
    spec.source_ranges = vec![range("10.0.0.0/8", true), range("10.1.0.0/16", false)];
    spec.lb_return = LbReturn::Direct;
    spec.selector = [("app".to_owned(), "web".to_owned())].into();
    let s = lab.service(1, spec.clone());
    assert_eq!(
        (s.algorithm, s.affinity_secs, s.lb_return, &*s.source_ranges, &*s.selector),
        (Algorithm::Maglev, 86400, LbReturn::Direct, &spec.source_ranges, &spec.selector)
    );
    for (change, words) in [
        (
            &mut (|s: &mut mesh_core::spec::ServiceSpec| s.affinity_secs = 86401) as &mut dyn FnMut(&mut _),
            "at most 24h",
        ),
        (
            &mut |s: &mut mesh_core::spec::ServiceSpec| s.source_ranges.push(range("10.0.0.1/8", true)),
            "host bits",
        ),
        (
            &mut |s: &mut mesh_core::spec::ServiceSpec| s.source_ranges.push(range("10.0.0.0/8", false)),
            "twice",
        ),
    ] {
        let mut bad = spec.clone();
        change(&mut bad);
        let update = C::ServiceUpdate {
            service: "web".into(),
            version: 0,
            spec: bad,
        };
        lab.refused(update, K::Malformed, &[words]);
    }
    lab.ok(C::ServiceUpdate {
        service: "web".into(),
        version: 0,
        spec: service_spec("web", &["n"], &[]),
    });
    let now = lab.state.objects().service("web").unwrap();
    assert!(now.source_ranges.is_empty() && now.selector.is_empty() && now.affinity_secs == 0);
    // As a release wrote it that knew none of these.
    let mut old = serde_json::to_value(&**now).unwrap();
    for field in ["affinity_secs", "source_ranges", "lb_return", "selector"] {
        old.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(serde_json::from_value::<Service>(old).unwrap(), **now);
}

#[test]
fn weights() {
    let mut lab = Lab::new(1);
    lab.network(1, "n", None);
    assert_eq!(lab.attach(endpoint(1, 1, "n", None)).weight, 1);
    let weigh = |weight| C::EndpointWeigh { id: id(0x9001), weight };
    lab.ok(weigh(1000));
    assert_eq!(lab.state.objects().endpoints[&id(0x9001)].weight, 1000);
    let before = lab.state.objects().endpoints[&id(0x9001)].version;
    lab.ok(weigh(1000));
    assert_eq!(lab.state.objects().endpoints[&id(0x9001)].version, before, "nothing changed");
    lab.refused(weigh(1001), K::Malformed, &["1001", "0 to 1000"]);
    lab.refused(C::EndpointWeigh { id: id(7), weight: 1 }, K::NotFound, &["no endpoint"]);
}

#[test]
fn a_used_network_stays() {
    let mut lab = Lab::new(2);
    lab.network(1, "n", None);
    lab.network(2, "unused", None);
    lab.service(1, service_spec("web", &["n"], &[]));
    lab.attach(endpoint(1, 2, "n", Some("web")));
    let rm = || C::NetworkRemove { network: "n".into() };
    lab.refused(rm(), K::Conflict, &["service web", "endpoint c1 on h2"]);
    assert_eq!(
        lab.ok(C::NetworkPrune {}),
        mesh_core::command::Reply::Networks(vec!["unused".into()])
    );
    lab.ok(C::ServiceRemove { service: "web".into() });
    assert_eq!(lab.state.objects().endpoints[&id(0x9001)].service, None);
    lab.refused(rm(), K::Conflict, &["c1"]);
    lab.ok(C::EndpointRemove { id: id(0x9001) });
    lab.ok(rm());
    lab.refused(C::NetworkRemove { network: "ingress".into() }, K::Conflict, &["ingress"]);
    assert_eq!(
        lab.network(1, "n", None).subnets[0].subnet.to_string(),
        "10.1.0.0/24",
        "its range is free again"
    );
}

/// A step of a random history.
fn step() -> impl Strategy<Value = C> {
    let n = 0..6u64;
    prop_oneof![
        (n.clone(), any::<bool>(), any::<bool>()).prop_map(|(n, small, ipv6)| create_network(
            n,
            mesh_core::spec::NetworkSpec {
                ipv6,
                ..network_spec(
                    &format!("n{n}"),
                    small.then_some(["172.30.0.0/29", "172.30.0.8/29", "172.30.0.0/28", "fd01::/125", "fd01::/126"][n as usize % 5]),
                )
            }
        )),
        n.clone().prop_map(|n| C::NetworkRemove { network: format!("n{n}") }),
        (n.clone(), n.clone()).prop_map(|(n, m)| create_service(
            n,
            service_spec(
                &format!("s{n}"),
                &[&format!("n{m}")],
                &[(if m % 2 == 0 { 0 } else { 8000 + m as u16 }, 80)]
            )
        )),
        n.clone().prop_map(|n| C::ServiceRemove { service: format!("s{n}") }),
        (0..30u64, 1..5u64, n.clone(), proptest::option::of(n.clone())).prop_map(|(e, h, m, s)| attach(endpoint(
            e,
            h,
            &format!("n{m}"),
            s.map(|s| format!("s{s}")).as_deref()
        ))),
        (0..30u64).prop_map(|e| C::EndpointRemove { id: id(0x9000 + e) }),
        (2..5u64).prop_map(|h| C::NodeJoin {
            node: new_node(h, Role::Worker),
            at: Timestamp::UNIX_EPOCH
        }),
        (2..5u64).prop_map(|h| C::NodeRemove {
            node: format!("h{h}"),
            force: true
        }),
    ]
}

proptest! {
    /// BEHAVIOURS 1: whatever happens, no address, port, VNI or slot is had twice, and a state that
    /// was stored and read again goes on exactly as the one that was not.
    #[test]
    fn nothing_is_handed_out_twice(history in proptest::collection::vec(step(), 1..120)) {
        let mut lab = Lab::new(2);
        let mut restored = lab.clone();
        for (i, command) in history.into_iter().enumerate() {
            if i % 7 == 0 {
                restored.state = State::from_objects(restored.state.objects().clone());
            }
            let one = lab.apply(command.clone());
            let two = restored.apply(command);
            prop_assert_eq!(one, two);
            prop_assert_eq!(lab.state.objects(), restored.state.objects());
            let all = lab.state.objects();
            let mut ips = BTreeSet::new();
            let mut macs = BTreeSet::new();
            // As many addresses as the network has families, each in a subnet of its own.
            let fits = |network: &mesh_core::Id, ips: &[std::net::IpAddr]| {
                let n = &all.networks[network];
                let families = usize::from(n.has_ip4()) + usize::from(n.has_ip6());
                ips.len() == families && ips.iter().all(|ip| n.subnet_of(*ip).is_some())
            };
            for e in all.endpoints.values() {
                prop_assert!(fits(&e.network, &e.ips().collect::<Vec<_>>()));
                prop_assert!(e.ips().all(|ip| ips.insert((e.network, ip))), "{}", e.ip);
                prop_assert!(macs.insert(e.mac()), "{}", e.mac());
            }
            for v in all.services.values().flat_map(|s| &s.vips) {
                prop_assert!(fits(&v.network, &v.ips().collect::<Vec<_>>()));
                prop_assert!(v.ips().all(|ip| ips.insert((v.network, ip))), "{}", v.ip);
            }
            for n in all.networks.values() {
                for s in &n.subnets {
                    prop_assert!(ips.insert((n.id, s.gateway)), "{}", s.gateway);
                }
            }
            let ingress = all.ingress().unwrap().id;
            for n in all.nodes.values() {
                prop_assert!(ips.insert((ingress, n.ingress_ip)), "{}", n.ingress_ip);
            }
            let nets: Vec<_> = all.networks.values().flat_map(|n| n.subnets.iter().map(|s| s.subnet)).collect();
            for (i, a) in nets.iter().enumerate() {
                prop_assert!(nets[..i].iter().all(|b| !mesh_core::spec::overlap(*a, *b)));
            }
            let mut seen = BTreeSet::new();
            for p in all.services.values().flat_map(|s| &s.ports) {
                prop_assert!(seen.insert((p.protocol, p.published)));
            }
            let mut slots = BTreeSet::new();
            let service_slots = all.services.values().flat_map(|s| s.vips.iter().map(|v| v.slot).chain([s.slot]));
            for slot in service_slots.chain(all.endpoints.values().map(|e| e.slot)) {
                prop_assert!(slots.insert(slot));
            }
        }
    }
}
