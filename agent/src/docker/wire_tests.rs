//! What libnetwork sends, as it sends it, and what nobody should.

use mesh_core::RefusalKind;
use serde_json::json;

use super::*;

fn network(internal: bool) -> Network {
    serde_json::from_value(json!({
        "id": Id::from_bits(7), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "ov", "labels": {}, "driver": "overlay",
        "subnets": [{"subnet": "10.1.0.0/20", "gateway": "10.1.0.1", "aux": {"printer": "10.1.0.9"}},
                    {"subnet": "fd00:1::/64", "gateway": "fd00:1::1"}],
        "vni": 4097, "mtu": null, "internal": internal, "attachable": true, "ingress": false, "options": {},
    }))
    .unwrap()
}

fn endpoint() -> Endpoint {
    serde_json::from_value(json!({
        "id": Id::from_bits(9), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "e", "labels": {},
        "node": Id::from_bits(1), "network": Id::from_bits(7), "ip": "10.1.0.5", "ip6": "fd00:1::5", "mac": "02:6d:0a:01:00:05",
        "aliases": [], "service": null, "ifname": "eth0", "state": "ready", "slot": 1,
        "sandbox": {"container": "docker:x", "netns": "", "inode": 0},
    }))
    .unwrap()
}

fn create(pool: Value) -> CreateNetwork {
    let options = json!({"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {"mesh.network": "ov"}});
    let body = json!({"NetworkID": "n", "Options": options, "IPv4Data": [pool], "IPv6Data": null});
    read(body.to_string().as_bytes()).unwrap()
}

fn mesh_pool() -> Value {
    json!({"AddressSpace": "mesh", "Pool": "10.1.0.0/20", "Gateway": "10.1.0.1/20", "AuxAddresses": null})
}

#[test]
fn a_pool_of_dockers_own_is_refused_with_the_command_that_works() {
    assert_eq!(named(&create(mesh_pool()).options), Some("ov"));
    check_network(&create(mesh_pool()), &network(false)).unwrap();
    let own = json!({"AddressSpace": "LocalDefault", "Pool": "172.18.0.0/16", "Gateway": "172.18.0.1/16", "AuxAddresses": {}});
    let refused = check_network(&create(own), &network(false)).unwrap_err().message;
    assert!(
        refused.ends_with("--ipam-driver mesh --ipam-opt mesh.network=ov --subnet 10.1.0.0/20 ov"),
        "{refused}"
    );
    // Given by hand, it is the network's after all: the allocator then refuses what two hosts give.
    let by_hand = json!({"AddressSpace": "LocalDefault", "Pool": "10.1.0.0/20", "Gateway": "10.1.0.1/20"});
    check_network(&create(by_hand), &network(false)).unwrap();
}

#[test]
fn what_differs_from_the_network_is_named() {
    for (key, value, said) in [
        ("Gateway", json!("10.1.0.2/20"), "gateway of network"),
        ("Gateway", json!(""), "gateway of network"),
        ("Pool", json!("10.1.0.0/24"), "host by host"),
        ("Pool", json!("0.0.0.0/0"), "host by host"),
        ("Pool", json!(""), "host by host"),
        ("AuxAddresses", json!({"a": "10.1.0.8/20"}), "--aux-address"),
        ("AuxAddresses", json!({"a": "x"}), "--aux-address"),
    ] {
        let mut pool = mesh_pool();
        pool[key] = value.clone();
        let refused = check_network(&create(pool), &network(false)).unwrap_err().message;
        assert!(refused.contains(said), "{key} {value}: {refused}");
    }
    let mut pool = mesh_pool();
    pool["AuxAddresses"] = json!({"printer": "10.1.0.9/20"});
    check_network(&create(pool), &network(false)).unwrap();
    let mut internal = create(mesh_pool());
    internal.options.insert("com.docker.network.internal".into(), true.into());
    assert!(check_network(&internal, &network(false)).is_err());
    check_network(&internal, &network(true)).unwrap();
}

#[test]
fn pools_are_the_networks_subnets() {
    let ask = |pool: &str, sub_pool: &str, v6| RequestPool {
        pool: pool.into(),
        sub_pool: sub_pool.into(),
        options: BTreeMap::new(),
        v6,
    };
    let given = pool(&ask("", "", false), &network(false)).unwrap();
    assert_eq!(given.pool, "10.1.0.0/20");
    assert_eq!(given.data[GATEWAY], "10.1.0.1/20");
    assert_eq!(read_pool(&given.pool_id).unwrap(), (Id::from_bits(7), false));
    let six = pool(&ask("", "", true), &network(false)).unwrap();
    assert_eq!((six.pool.as_str(), read_pool(&six.pool_id).unwrap().1), ("fd00:1::/64", true));
    pool(&ask("10.1.0.0/20", "", false), &network(false)).unwrap();
    for (asked, sub, v6) in [
        ("10.2.0.0/20", "", false),
        ("10.1.0.0/24", "", false),
        ("fd00:1::/64", "", false),
        ("10.1.0.0/20", "", true),
        ("", "10.1.0.0/24", false),
        ("ten", "", false),
        ("", "ten", false),
    ] {
        assert!(pool(&ask(asked, sub, v6), &network(false)).is_err(), "{asked} {sub} {v6}");
    }
}

#[test]
fn standing_addresses_are_not_reserved() {
    let ask = |address: &str, kind: Option<&str>| OfAddress {
        pool_id: String::new(),
        address: address.into(),
        options: kind.map(|k| ("RequestAddressType".to_owned(), k.to_owned())).into_iter().collect(),
    };
    let standing = |address, kind| standing(&ask(address, kind), &network(false), false);
    assert_eq!(standing("", Some(GATEWAY)).unwrap().as_deref(), Some("10.1.0.1/20"));
    assert_eq!(standing("10.1.0.1", Some(GATEWAY)).unwrap().as_deref(), Some("10.1.0.1/20"));
    assert_eq!(standing("10.1.0.9", None).unwrap().as_deref(), Some("10.1.0.9/20"));
    assert_eq!(standing("10.1.0.7", None).unwrap(), None);
    assert_eq!(standing("", None).unwrap(), None);
    assert_eq!(standing("10.1.0.1", None).unwrap(), None, "a container's: the allocator refuses it");
    assert!(standing("10.1.0.2", Some(GATEWAY)).is_err());
    assert!(standing("x", None).is_err());
}

#[test]
fn an_address_is_promised_to_the_node_that_it_is_reserved_for() {
    let (ip, own, other) = ("10.1.0.7".parse().unwrap(), endpoint().id, network(false).id);
    let mut network = network(false);
    assert_eq!(promised(&network, own, ip), None);
    network.reserved.insert(ip, own);
    assert_eq!(promised(&network, own, ip).as_deref(), Some("10.1.0.7/20"));
    assert_eq!(promised(&network, other, ip), None);
}

#[test]
fn only_what_docker_left_open_is_answered() {
    let decide = |address: &str, six: &str, mac: &str| Interface {
        address: address.into(),
        address_ipv6: six.into(),
        mac_address: mac.into(),
    };
    let asked = decide("10.1.0.5/20", "", "");
    let left_open = left(&asked, &endpoint(), &network(false));
    assert_eq!(left_open, decide("", "fd00:1::5/64", "02:6d:0a:01:00:05"));
    let all = decide("10.1.0.5/20", "fd00:1::5/64", "02:42:00:00:00:01");
    assert_eq!(left(&all, &endpoint(), &network(false)), Interface::default());
    let d = decided(&all).unwrap();
    assert_eq!(
        (d.ip.to_string().as_str(), d.ip6, d.mac),
        (
            "10.1.0.5",
            Some("fd00:1::5".parse().unwrap()),
            Some("02:42:00:00:00:01".parse().unwrap())
        )
    );
    for bad in [
        decide("", "", ""),
        decide("10.1.0.5", "", ""),
        decide("10.1.0.5/99", "", ""),
        decide("10.1.0.5/20", "10.1.0.5/20", ""),
        decide("10.1.0.5/20", "", "02:42"),
    ] {
        assert!(decided(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn joining_tells_the_interface_and_the_way_out() {
    let resolvers = BTreeSet::from([Ipv4Addr::new(192, 0, 2, 1)]);
    let j = joined(&endpoint(), &network(false), &resolvers);
    assert_eq!(j.interface_name.src_name, format!("mc-{}", Id::from_bits(9)));
    assert_eq!((j.gateway.as_str(), j.gateway_ipv6.as_str()), ("10.1.0.1", "fd00:1::1"));
    assert!(j.static_routes.is_empty());
    let j = joined(&endpoint(), &network(true), &resolvers);
    assert_eq!(
        (j.static_routes[0].destination.as_str(), j.static_routes[0].next_hop.as_str()),
        ("192.0.2.1/32", "10.1.0.1")
    );
    assert!(j.gateway.is_empty() && j.gateway_ipv6.is_empty() && j.disable_gateway_service);
}

#[test]
fn published_ports_are_the_containers() {
    let read = |list: Value| ports(json!({"com.docker.network.portmap": list}).as_object().unwrap());
    let (one, ranges) = read(
        json!([{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080},
                          {"Proto": 17, "IP": "", "Port": 53, "HostIP": "0.0.0.0", "HostPort": 0, "HostPortEnd": 0},
                          {"Proto": 6, "Port": 81, "HostIP": "192.0.2.1", "HostPort": 81},
                          {"Proto": 6, "Port": 82, "HostPort": 9000, "HostPortEnd": 9003}]),
    )
    .unwrap();
    let seen: Vec<_> = one
        .iter()
        .map(|p| (p.published, p.target, p.protocol.as_str(), p.address))
        .collect();
    let at = Some("192.0.2.1".parse().unwrap());
    assert_eq!(seen, [(8080, 80, "tcp", None), (0, 53, "udp", None), (81, 81, "tcp", at)]);
    let ranges: Vec<_> = ranges.iter().map(|r| (r.port.target, r.port.published, r.last)).collect();
    assert_eq!(ranges, [(82, 9000, 9003)]);
    let none = (Vec::new(), Vec::new());
    assert!(read(Value::Null).unwrap() == none && ports(&Map::new()).unwrap() == none);
    for bad in [
        json!([{"Proto": 132, "Port": 80}]),
        json!([{"Proto": 6, "Port": 80, "HostIP": "x"}]),
        json!("80"),
        json!([{"Port": -1}]),
    ] {
        assert!(read(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn malformed_messages_are_refused() {
    for bad in [
        "{",
        "[]",
        "nul",
        "0",
        "\"\"",
        "\u{0}",
        "{\"Options\": 1}",
        "{\"Options\": []}",
        "{\"IPv4Data\": {}}",
        "{\"IPv4Data\": [7]}",
        "{\"IPv4Data\": [{\"Pool\": 1}]}",
        "{\"IPv4Data\": [{\"AuxAddresses\": []}]}",
        "{\"Options\": {}}{}",
    ] {
        let e = read::<CreateNetwork>(bad.as_bytes()).map(drop).unwrap_err();
        assert_eq!(e.kind, RefusalKind::Malformed, "{bad}");
        assert!(!e.message.contains('\n'));
    }
    assert!(read::<CreateEndpoint>(b"{\"Interface\": 3}").is_err());
    assert!(read::<CreateEndpoint>(b"\xff").is_err());
    let none: CreateEndpoint = read(b"{\"Interface\": null, \"Options\": null, \"Unknown\": {}}").unwrap();
    assert_eq!(none.interface, Interface::default());
    let again = read::<OfEndpoint>(b" \n").map(drop).unwrap_err();
    assert!(again.message.contains("without its content"), "{again}");
    for bad in ["", "x", "é", &"g".repeat(64), &"a".repeat(63), &"0".repeat(65), "../../etc"] {
        assert!(endpoint_id(bad).is_err(), "{bad}");
    }
    for bad in ["", "/", "x/10.0.0.0/8", "000000000007", "000000000007/x"] {
        assert!(read_pool(bad).is_err(), "{bad}");
    }
}

#[test]
fn an_endpoint_has_one_id_however_often_it_is_asked_for() {
    let (a, b) = (
        format!("123456789abcdef{}", "0".repeat(49)),
        format!("123456789abcdee{}", "0".repeat(49)),
    );
    assert_eq!(endpoint_id(&a).unwrap(), endpoint_id(&a).unwrap());
    assert_ne!(endpoint_id(&a).unwrap(), endpoint_id(&b).unwrap());
}
