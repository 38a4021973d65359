//! Networks with IPv6: their ranges and addresses, and what hosts make of them.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;

use std::{collections::BTreeSet, net::IpAddr};

use common::*;
use jiff::Timestamp;
use mesh_core::{
    Mac, RefusalKind as K,
    command::{Command as C, NewEndpoint, NewNode},
    desired::{Desired, Link, Neigh, Route},
    intent::{self, Facts, bridge_name, veth_name, vxlan_name},
    ipam, lb,
    objects::*,
    spec::{NetworkSpec, ServiceSpec},
};

/// Asked for with `--ipv6` and these subnets.
fn six(name: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec {
        subnets: subnets.iter().map(|s| s.parse().unwrap()).collect(),
        ipv6: true,
        ..network_spec(name, None)
    }
}

fn make(lab: &mut Lab, n: u64, spec: NetworkSpec) -> Network {
    lab.ok(create_network(n, spec));
    Network::clone(&lab.state.objects().networks[&id(0x200 + n)])
}

fn ranges(n: &Network) -> Vec<(String, String)> {
    n.subnets.iter().map(|s| (s.subnet.to_string(), s.gateway.to_string())).collect()
}

fn attach(e: NewEndpoint) -> C {
    C::EndpointCreate {
        endpoint: e,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn join(n: u64, change: impl FnOnce(&mut NewNode)) -> C {
    let mut node = new_node(n, Role::Worker);
    change(&mut node);
    C::NodeJoin {
        node,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn desired(lab: &Lab, node: u64) -> Desired {
    intent::desired(lab.state.objects(), lab.index, id(1), node_id(node), &Facts::default())
}

fn texts<T: ToString>(list: impl IntoIterator<Item = T>) -> Vec<String> {
    list.into_iter().map(|x| x.to_string()).collect()
}

#[test]
fn a_network_gets_the_families_that_were_asked_for() {
    let mut lab = Lab::new(1);
    // The cluster's id is 1, so its pool is fd00:0:1::/48, of which the nodes have the first /64.
    assert_eq!(ipam::local_pool(id(1)).to_string(), "fd00:0:1::/48");
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let both = make(&mut lab, 1, six("both", &[]));
    assert_eq!(
        ranges(&both),
        [pair("10.1.0.0/24", "10.1.0.1"), pair("fd00:0:1:1::/64", "fd00:0:1:1::1")]
    );
    let given4 = make(&mut lab, 2, six("given4", &["172.30.0.0/16"]));
    assert_eq!(
        ranges(&given4),
        [pair("172.30.0.0/16", "172.30.0.1"), pair("fd00:0:1:2::/64", "fd00:0:1:2::1")]
    );
    let only6 = make(&mut lab, 3, network_spec("only6", Some("fd02::/64")));
    assert_eq!(ranges(&only6), [pair("fd02::/64", "fd02::1")]);
    let order = make(&mut lab, 4, six("order", &["fd03::/64", "172.31.0.0/16"]));
    assert_eq!(ranges(&order), [pair("172.31.0.0/16", "172.31.0.1"), pair("fd03::/64", "fd03::1")]);
    let only4 = lab.network(5, "only4", None);
    assert!(only4.has_ip4() && !only4.has_ip6());
    // One that was removed gives its range back.
    lab.ok(C::NetworkRemove { network: "both".into() });
    assert_eq!(ranges(&make(&mut lab, 6, six("again", &[])))[1].0, "fd00:0:1:1::/64");
}

#[test]
fn ranges_that_no_network_can_have() {
    let mut lab = Lab::new(1);
    for bad in [
        "fe80::/64",
        "ff02::/16",
        "::1/128",
        "::/96",
        "::ffff:10.0.0.0/104",
        "fd02::1/64",
        "fd02::/127",
        "fd02::/128",
        "fc00::/7",
    ] {
        lab.refused(create_network(1, network_spec("n", Some(bad))), K::Malformed, &[bad]);
    }
    lab.network(1, "n", Some("fd02::/64"));
    for taken in ["fd02::/64", "fd02::/48", "fd02::8/125"] {
        lab.refused(
            create_network(2, network_spec("m", Some(taken))),
            K::Conflict,
            &["fd02::/64", "\"n\""],
        );
    }
    lab.refused(
        create_network(2, network_spec("m", Some("fd00:0:1::/56"))),
        K::Conflict,
        &["nodes' own addresses"],
    );
    let mut far = six("m", &["fd03::/64"]);
    far.gateways = vec![ip("fd04::1")];
    lab.refused(create_network(2, far.clone()), K::Malformed, &["fd04::1", "fd03::/64"]);
    far.gateways = vec![ip("fd03::")];
    lab.refused(create_network(2, far.clone()), K::Malformed, &["fd03::", "network address"]);
    far.gateways = vec![ip("fd03::fe")];
    far.ip_ranges = vec!["fd03::100/120".parse().unwrap()];
    far.aux_addresses = [("router".to_owned(), ip("fd03::100"))].into();
    make(&mut lab, 2, far);
    let e = lab.attach(endpoint(1, 1, "m", None));
    assert_eq!(
        (e.ip, e.ip6.as_deref()),
        (ip("fd03::101"), None),
        "in the range, behind the aux address"
    );
}

#[test]
fn addresses_are_given_and_given_back_together() {
    let mut lab = Lab::new(1);
    make(&mut lab, 1, six("n", &["172.30.0.0/29", "fd02::/125"]));
    let s = lab.service(1, service_spec("web", &["n"], &[]));
    assert_eq!(texts(s.vips[0].ips()), ["172.30.0.2", "fd02::2"]);
    let e = lab.attach(endpoint(1, 1, "n", Some("web")));
    assert_eq!(texts(e.ips()), ["172.30.0.3", "fd02::3"]);
    assert_eq!(e.mac(), Mac::for_ip(e.ip), "made from the IPv4 address");
    // Chosen, by either option.
    let ask = |n, ip4: Option<&str>, ip6: Option<&str>| NewEndpoint {
        ip: ip4.map(ip),
        ip6: ip6.map(|t| t.parse().unwrap()),
        ..endpoint(n, 1, "n", None)
    };
    assert_eq!(
        texts(lab.attach(ask(2, Some("172.30.0.6"), Some("fd02::7"))).ips()),
        ["172.30.0.6", "fd02::7"]
    );
    assert_eq!(texts(lab.attach(ask(3, Some("fd02::6"), None)).ips()), ["172.30.0.4", "fd02::6"]);
    lab.refused(attach(ask(4, None, Some("fd02::7"))), K::Conflict, &["fd02::7", "c2"]);
    lab.refused(attach(ask(4, None, Some("fd02::2"))), K::Conflict, &["fd02::2", "web"]);
    lab.refused(attach(ask(4, None, Some("fd03::2"))), K::Other, &["fd03::2", "fd02::/125"]);
    lab.refused(
        attach(ask(4, Some("fd02::4"), Some("fd02::5"))),
        K::Malformed,
        &["fd02::4", "fd02::5"],
    );
    // IPv4 runs out first: then there is no IPv6 address either.
    lab.attach(ask(5, None, None));
    lab.refused(attach(ask(6, None, None)), K::Other, &["172.30.0.0/29"]);
    lab.ok(C::EndpointRemove { id: id(0x9001) });
    assert_eq!(
        texts(lab.attach(ask(6, None, None)).ips()),
        ["172.30.0.3", "fd02::5"],
        "what was released rests"
    );
    lab.ok(C::EndpointRemove { id: id(0x9006) });
    assert_eq!(texts(lab.attach(ask(7, None, None)).ips()), ["172.30.0.3", "fd02::3"]);
}

#[test]
fn an_automatic_ethernet_address_is_nobody_elses_to_choose() {
    let mut lab = Lab::new(1);
    make(&mut lab, 1, six("n", &["172.30.0.0/24"]));
    make(&mut lab, 2, network_spec("six", Some("fd02::/64")));
    let ask = |n, net: &str, mac: Mac| NewEndpoint {
        mac: Some(mac),
        ..endpoint(n, 1, net, None)
    };
    for later in ["172.30.0.9", "172.30.0.1", "10.0.0.2", "192.0.2.1"] {
        let mac = Mac::for_ip(ip(later));
        lab.refused(attach(ask(1, "n", mac)), K::Conflict, &[&mac.to_string(), "02:6d"]);
    }
    let own = NewEndpoint {
        ip: Some(ip("172.30.0.9")),
        ..ask(1, "n", Mac::for_ip(ip("172.30.0.9")))
    };
    lab.attach(own);
    // Those of IPv6 addresses are a hash: whoever chose one first keeps it, the other gets the next.
    let taken = Mac::for_ip(ip("fd02::2"));
    lab.attach(ask(2, "n", taken));
    let e = lab.attach(endpoint(3, 1, "six", None));
    assert_eq!(e.ip, ip("fd02::2"));
    assert!(e.mac() != taken && e.mac().is_usable());
    lab.refused(
        attach(ask(4, "six", Mac::for_ip(ip("fd02::1")))),
        K::Conflict,
        &["meshd gives itself"],
    );
}

#[test]
fn vteps_are_of_one_family_and_the_underlay_is_large_enough() {
    let mut lab = Lab::new(1);
    lab.refused(
        join(2, |n| n.data_path_addr = ip("fd77::12")),
        K::Other,
        &["fd77::12", "IPv6", "IPv4", "h1", "192.168.77.11"],
    );
    lab.refused(join(2, |n| n.underlay_mtu = 625), K::Other, &["625", "626"]);
    lab.ok(join(2, |n| n.underlay_mtu = 1329));
    lab.refused(create_network(1, six("n", &[])), K::Other, &["1280", "1279"]);
    lab.ok(C::NodeRemove {
        node: "h2".into(),
        force: true,
    });
    let mut small = six("n", &[]);
    small.options.insert("mtu".into(), "1279".into());
    lab.refused(create_network(1, small), K::Malformed, &["1279", "1280"]);
    make(&mut lab, 1, six("n", &[]));
    lab.refused(join(3, |n| n.underlay_mtu = 1329), K::Other, &["1329", "\"n\"", "1330"]);
    lab.ok(join(3, |n| n.underlay_mtu = 1330));
    let report = |vtep: &str| C::NodeReport {
        id: node_id(3),
        addr: ip("192.168.77.13"),
        data_path_addr: ip(vtep),
        underlay_mtu: 1400,
        underlay_mac: None,
        host_routes: vec![],
    };
    lab.refused(report("fd77::13"), K::Other, &["fd77::13", "IPv4"]);
    lab.ok(report("192.168.77.99"));
}

/// h1 and h2 with a container each in a network with both families, and a service on it.
fn two() -> Lab {
    let mut lab = Lab::new(2);
    make(&mut lab, 1, six("n", &["172.30.0.0/24", "fd02::/64"]));
    lab.service(1, service_spec("web", &["n"], &[(8888, 80)]));
    for n in 1..=2 {
        lab.attach(endpoint(n, n, "n", Some("web")));
        lab.ready(n);
    }
    lab
}

#[test]
fn a_host_carries_both_families() {
    let lab = two();
    let d = desired(&lab, 1);
    let (net, ingress) = (id(0x201), id(2));
    let (bridge, dev) = (bridge_name(net), vxlan_name(ingress));
    let own6: IpAddr = ipam::node_address(id(1), node_id(1)).into();
    assert_eq!(own6, ip("fd00:0:1::1001"));
    assert!(matches!(d.links[&bridge].1, Link::Bridge { ipv6: true, .. }));
    assert!(matches!(d.links[&dev].1, Link::Vxlan { ipv6: true, .. }));
    assert!(matches!(d.links[&vxlan_name(net)].1, Link::Vxlan { ipv6: false, .. }));
    let at = |dev: &str| texts(d.addrs.iter().filter(|(d, _)| d == dev).map(|(_, a)| a));
    assert_eq!(at(&bridge), ["172.30.0.1/24", "fd02::1/64"]);
    assert_eq!(at(&dev), ["10.0.0.2/16", "fd00:0:1::1001/64"]);
    assert!(d.routes.contains(&Route {
        dst: "fd02::/64".parse().unwrap(),
        dev: bridge.clone(),
        src: own6,
    }));
    let (here, there) = (
        &lab.state.objects().endpoints[&id(0x9001)],
        &lab.state.objects().endpoints[&id(0x9002)],
    );
    let neigh = |dev: &str, ip: IpAddr, mac| Neigh {
        dev: dev.to_owned(),
        ip,
        mac,
    };
    let peer = &lab.state.objects().nodes[&node_id(2)];
    assert_eq!(
        d.neighs,
        BTreeSet::from([
            neigh(&bridge, there.ip, there.mac()),
            neigh(&bridge, there.ip6().unwrap().into(), there.mac()),
            neigh(&bridge, here.ip6().unwrap().into(), here.mac()),
            neigh(&dev, peer.ingress_ip, peer.ingress_mac()),
            neigh(&dev, ip("fd00:0:1::1002"), peer.ingress_mac()),
        ])
    );
    // Processes of a host reach other hosts' backends by these.
    let v4 = |n| lab.state.objects().nodes[&node_id(n)].ingress_ip;
    let nodes = d.tables.nodes.iter().map(|(ip, six)| (IpAddr::V4(*ip), six.to_string()));
    assert_eq!(nodes.collect::<Vec<_>>(), [1, 2].map(|n| (v4(n), format!("fd00:0:1::100{n}"))));
    let veth = &d.veths[&veth_name(here.id)];
    assert_eq!(texts(&veth.peer.addrs), ["172.30.0.3/24", "fd02::3/64"]);
    assert_eq!(texts(&veth.peer.gateways), ["172.30.0.1", "fd02::1"]);
    let nft = d.nft.unwrap();
    assert_eq!(texts(&nft.ingress), ["10.0.0.0/16", "fd00:0:1::/64"]);
    assert_eq!(texts(&nft.bridges[&bridge].gateways), ["172.30.0.1", "fd02::1"]);
    assert_eq!(texts(d.names.listeners.keys()), ["172.30.0.1", "fd02::1"]);
    assert_eq!(texts(d.names.clients.keys()), ["172.30.0.3", "fd02::3"]);
    let zone = &d.names.zones[&net];
    assert_eq!(texts(&zone.names["web"]), ["172.30.0.2", "fd02::2"]);
    assert_eq!(texts(&zone.names["c2"]), ["172.30.0.4", "fd02::4"]);
    assert_eq!(zone.reverse[&ip("fd02::4")], "c2");
    // Without such a network there is no IPv6 on the host at all.
    let mut plain = Lab::new(2);
    plain.network(1, "n", None);
    plain.attach(endpoint(1, 1, "n", None));
    let d = desired(&plain, 1);
    assert!(d.addrs.iter().all(|(_, a)| a.addr().is_ipv4()) && d.neighs.iter().all(|n| n.ip.is_ipv4()));
    assert!(d.tables.nodes.is_empty());
    assert!(
        d.links
            .values()
            .all(|(_, l)| matches!(l, Link::Bridge { ipv6: false, .. } | Link::Vxlan { ipv6: false, .. }))
    );
}

#[test]
fn sets_of_backends_exist_for_each_family() {
    let mut lab = two();
    // Over another network, with IPv6 only, comes a third member; it has no VIP of the first.
    make(&mut lab, 2, network_spec("six", Some("fd05::/64")));
    let s = Service::clone(&lab.state.objects().services[&id(0x301)]);
    let spec = service_spec("web", &["n", "six"], &[(8888, 80)]);
    lab.ok(C::ServiceUpdate {
        service: "web".into(),
        version: s.version,
        spec,
    });
    lab.attach(endpoint(3, 1, "six", Some("web")));
    lab.ready(3);
    let s = Service::clone(&lab.state.objects().services[&id(0x301)]);
    let slot = |n: u64| lab.state.objects().endpoints[&id(0x9000 + n)].slot;
    let t = desired(&lab, 1).tables;
    let sorted = |set: u32| {
        let mut list = t.services[&set].list.clone();
        list.sort_unstable();
        list
    };
    assert_eq!(sorted(s.slot), [slot(1), slot(2)]);
    assert_eq!(sorted(s.slot | lb::V6), [slot(1), slot(2), slot(3)]);
    let (n, only6) = (&s.vips[0], &s.vips[1]);
    assert_eq!(t.vips[&n.ip].service, n.slot);
    assert_eq!(t.vips[&n.ip6.unwrap().into()].service, n.slot | lb::V6);
    assert_eq!(t.vips[&only6.ip].service, only6.slot | lb::V6);
    assert_eq!(sorted(only6.slot | lb::V6), [slot(3)]);
    assert!(!t.services.contains_key(&only6.slot));
    let row = t.backends[&slot(3)];
    assert_eq!((row.ip4, row.ip6.map(IpAddr::V6)), (None, Some(ip("fd05::3"))));
    assert_eq!(t.locals[&veth_name(id(0x9001))].ip6.map(IpAddr::V6), Some(ip("fd02::3")));
    // A published service of an IPv4 network has none for IPv6, unless clients are to be refused by it.
    lab.network(3, "four", None);
    let four = lab.service(3, service_spec("four", &["four"], &[(9999, 80)]));
    let t = desired(&lab, 1).tables;
    assert!(t.services.contains_key(&four.slot) && !t.services.contains_key(&(four.slot | lb::V6)));
    let spec = ServiceSpec {
        source_ranges: vec![SourceRange {
            net: "fd00::/8".parse().unwrap(),
            allow: true,
        }],
        ..service_spec("four", &["four"], &[(9999, 80)])
    };
    lab.ok(C::ServiceUpdate {
        service: "four".into(),
        version: four.version,
        spec,
    });
    let t = desired(&lab, 1).tables;
    assert!(t.services[&(four.slot | lb::V6)].ranged);
}
