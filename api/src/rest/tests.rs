//! Views made from small clusters, and the shapes that scripts hold on to.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use mesh_core::{
    Id,
    objects::{
        Algorithm, Availability, Dataplane, Endpoint, EndpointMode, EndpointState, Labels, LbReturn, Network, Node, NodeState, Objects,
        Place, Port, Protocol, PublishMode, Role, Sandbox, Service, SourceRange, Subnet, Vip,
    },
    spec::{NetworkSpec, ServiceSpec},
};
use serde_json::{Value, json};
use utoipa::PartialSchema;

use super::*;

const NODE: u64 = 1;
const INGRESS: u64 = 10;
const SHOP: u64 = 11;
const WEB: u64 = 20;

fn id(n: u64) -> Id {
    Id::from_bits(n)
}

fn node(n: u64) -> Node {
    Node {
        id: id(n),
        version: 5,
        created_at: Timestamp::UNIX_EPOCH,
        hostname: format!("h{n}"),
        labels: Default::default(),
        role: if n == NODE { Role::Manager } else { Role::Worker },
        raft_id: u64::from(n == NODE),
        availability: Availability::Active,
        addr: format!("192.168.77.1{n}").parse().unwrap(),
        control_port: 2377,
        data_path_addr: format!("192.168.77.1{n}").parse().unwrap(),
        underlay_mtu: 1500 - 100 * (n as u32 - 1),
        underlay_mac: None,
        ingress_ip: format!("10.255.0.{}", n + 1).parse().unwrap(),
        host_routes: vec![],
        state: NodeState::Ready,
        dataplane: Dataplane::Reachable,
    }
}

fn network(n: u64, name: &str, subnet: &str, gateway: &str) -> Network {
    Network {
        id: id(n),
        version: 6,
        created_at: Timestamp::UNIX_EPOCH,
        name: name.into(),
        labels: Default::default(),
        driver: "overlay".into(),
        subnets: vec![Subnet {
            subnet: subnet.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            ip_range: None,
            aux: Default::default(),
            cursor: None,
        }],
        vni: 4096 + n as u32,
        mtu: None,
        internal: false,
        attachable: true,
        ingress: n == INGRESS,
        options: Default::default(),
        reserved: Default::default(),
    }
}

fn endpoint(n: u64, on: u64, ip: &str, state: EndpointState) -> Endpoint {
    let mut endpoint = Endpoint::new(
        id(n),
        Timestamp::UNIX_EPOCH,
        &format!("web{n}"),
        (id(on), id(SHOP)),
        ip.parse().unwrap(),
    );
    endpoint.version = 7;
    endpoint.aliases = vec!["www".into()].into();
    endpoint.service = Some(id(WEB));
    endpoint.sandbox = Sandbox::new(
        n,
        Place {
            container: format!("netns:web{n}"),
            netns: format!("/run/netns/web{n}"),
            ..Place::default()
        },
    );
    endpoint.ifname = "eth0".into();
    endpoint.state = state;
    endpoint.slot = n as u32;
    endpoint
}

/// Two nodes; the ingress network; a network with a service of three endpoints.
fn cluster() -> Objects {
    let mut all = Objects::default();
    let mut shop = network(SHOP, "shop", "172.30.0.0/24", "172.30.0.1");
    shop.subnets[0].aux.insert("router".into(), "172.30.0.2".parse().unwrap());
    for n in [node(1), node(2)] {
        all.nodes.insert(n.id, Arc::new(n));
    }
    for n in [network(INGRESS, "ingress", "10.255.0.0/16", "10.255.0.1"), shop] {
        all.networks.insert(n.id, Arc::new(n));
    }
    let web = Service {
        id: id(WEB),
        version: 8,
        created_at: Timestamp::UNIX_EPOCH,
        name: "web".into(),
        labels: Labels::from([("tier".to_owned(), "front".to_owned())]).into(),
        networks: vec![id(SHOP)],
        endpoint_mode: EndpointMode::Vip,
        algorithm: Algorithm::Rr,
        ports: vec![Port {
            published: 8888,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            address: None,
        }],
        vips: vec![Vip {
            network: id(SHOP),
            ip: "172.30.0.3".parse().unwrap(),
            ip6: None,
            slot: 1,
        }],
        slot: 2,
        drain_secs: 10,
        affinity_secs: 0,
        source_ranges: Default::default(),
        lb_return: LbReturn::Tunnel,
        selector: Default::default(),
    };
    all.services.insert(Arc::new(web));
    let endpoints = [
        endpoint(30, 1, "172.30.0.4", EndpointState::Ready),
        endpoint(31, 2, "172.30.0.5", EndpointState::Starting),
        endpoint(32, 2, "172.30.0.6", EndpointState::Draining),
    ];
    for e in endpoints {
        all.endpoints.insert(Arc::new(e));
    }
    all
}

fn on_node(all: &mut Objects, n: u64, change: impl FnOnce(&mut Node)) {
    change(Arc::make_mut(all.nodes.get_mut(&id(n)).unwrap()));
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn has(value: &Value, wanted: &[&str]) {
    for key in wanted {
        assert!(value.get(key).is_some(), "{key} is missing in {value}");
    }
}

#[test]
fn subnets_count_every_address_that_somebody_has() {
    let all = cluster();
    let shop = NetworkView::of(&all.networks[&id(SHOP)], &all);
    // Gateway, auxiliary, virtual, and three endpoints, of 254.
    assert_eq!((shop.subnets[0].used, shop.subnets[0].free), (6, 248));
    assert_eq!(shop.mtu, 1350, "the smaller underlay decides");
    let ingress = NetworkView::of(&all.networks[&id(INGRESS)], &all);
    // Gateway and two nodes.
    assert_eq!((ingress.subnets[0].used, ingress.subnets[0].free), (3, 65534 - 3));
}

#[test]
fn what_a_range_leaves_out_is_not_free() {
    let mut all = cluster();
    let mut n = network(12, "small", "172.29.0.0/24", "172.29.0.1");
    n.subnets[0].ip_range = Some("172.29.0.128/29".parse().unwrap());
    n.subnets[0].aux.insert("printer".to_owned(), "172.29.0.130".parse().unwrap());
    all.networks.insert(n.id, Arc::new(n.clone()));
    // Eight, of which the auxiliary address has one; the gateway is not among them.
    let seen = &NetworkView::of(&n, &all).subnets[0];
    assert_eq!((seen.used, seen.free), (2, 7));
}

#[test]
fn a_huge_or_tiny_subnet_does_not_overflow() {
    let mut all = cluster();
    for (subnet, gateway, free) in [
        ("fd00::/8", "fd00::1", u64::MAX),
        ("172.29.0.0/30", "172.29.0.1", 1),
        ("172.29.0.0/32", "172.29.0.0", 0),
    ] {
        let n = network(12, "odd", subnet, gateway);
        all.networks.insert(n.id, Arc::new(n.clone()));
        assert_eq!(NetworkView::of(&n, &all).subnets[0].free, free, "{subnet}");
    }
}

#[test]
fn lists_say_the_same_as_single_views() {
    let all = cluster();
    let mut networks: Vec<_> = all.networks.values().map(|n| NetworkView::of(n, &all)).collect();
    networks.sort_by_key(|n| n.name.clone());
    assert_eq!(NetworkView::list(&all), networks);
    let mut services: Vec<_> = all.services.values().map(|s| ServiceView::of(s, &all)).collect();
    services.sort_by_key(|s| s.name.clone());
    assert_eq!(ServiceView::list(&all), services);
    let endpoints = EndpointView::list(&all);
    assert_eq!(endpoints.len(), 3);
    assert!(endpoints.is_sorted_by_key(|e| e.name.clone()));
}

#[test]
fn endpoint_states_follow_their_nodes() {
    let mut all = cluster();
    let states = |all: &Objects| ServiceView::list(all)[0].endpoints.iter().map(|e| e.state).collect::<Vec<_>>();
    assert_eq!(states(&all), [StateView::Ready, StateView::Starting, StateView::Draining]);
    // Its meshd is gone, its kernel goes on: the endpoint still takes flows.
    on_node(&mut all, 1, |n| n.state = NodeState::Down);
    assert_eq!(states(&all)[0], StateView::Ready);
    on_node(&mut all, 1, |n| n.availability = Availability::Drain);
    assert_eq!(states(&all)[0], StateView::Draining);
    on_node(&mut all, 1, |n| n.dataplane = Dataplane::Unreachable);
    on_node(&mut all, 2, |n| n.dataplane = Dataplane::Unreachable);
    assert_eq!(states(&all), [StateView::Unreachable; 3]);
}

#[test]
fn views_have_the_fields_that_scripts_read() {
    let all = cluster();
    let node = serde_json::to_value(NodeView::of(&all.nodes[&id(1)], true)).unwrap();
    has(&node, &["id", "hostname", "role", "state", "availability", "leader"]);
    assert_eq!(
        (&node["role"], &node["state"], &node["availability"], &node["leader"]),
        (&json!("manager"), &json!("ready"), &json!("active"), &json!(true))
    );

    let network = serde_json::to_value(NetworkView::of(&all.networks[&id(SHOP)], &all)).unwrap();
    has(&network, &["id", "name", "driver", "vni", "mtu", "subnets", "endpoints"]);
    has(&network["subnets"][0], &["subnet", "gateway", "used", "free"]);
    has(&network["endpoints"][0], &["id", "name", "node", "ip", "mac"]);

    let service = serde_json::to_value(ServiceView::of(&all.services[&id(WEB)], &all)).unwrap();
    has(&service, &["id", "name", "endpoint_mode", "vips", "ports", "endpoints"]);
    assert_eq!(service["vips"], json!([{"network": "shop", "ip": "172.30.0.3"}]));
    assert_eq!(
        service["ports"],
        json!([{"published": 8888, "target": 80, "protocol": "tcp", "mode": "ingress", "address": null}])
    );
    assert_eq!(service["endpoints"][0]["node"], "h1");
    assert_eq!(service["endpoints"][0]["state"], "ready");

    let status = serde_json::to_value(StatusView::default()).unwrap();
    has(
        &status,
        &[
            "node",
            "role",
            "manager",
            "applied_generation",
            "networks",
            "services",
            "endpoints",
            "dataplane",
        ],
    );
    has(&status["dataplane"], &["hooks", "kernel", "degraded"]);
    let manager = serde_json::to_value(ManagerView::default()).unwrap();
    has(&manager, &["leader", "revision", "peers"]);
}

#[test]
fn an_endpoint_says_what_its_container_needs() {
    let mut all = cluster();
    let view = EndpointView::of(&all.endpoints[&id(30)], &all);
    assert_eq!(
        (view.gateway, view.prefix_len, view.mtu),
        (Some("172.30.0.1".parse().unwrap()), Some(24), Some(1350))
    );
    assert_eq!(
        (view.node.as_str(), view.network.as_str(), view.service.as_deref()),
        ("h1", "shop", Some("web"))
    );
    // What it refers to is not known: ids stand in, nothing is made up.
    all.networks.clear();
    all.services = Default::default();
    let view = EndpointView::of(&all.endpoints[&id(30)], &all);
    assert_eq!((view.gateway, view.prefix_len, view.mtu), (None, None, None));
    assert_eq!(view.network, id(SHOP).to_string());
}

#[test]
fn leader_is_named_by_host_name() {
    let peer = |n: u64, leader| crate::query::Manager {
        node: id(n),
        hostname: format!("h{n}"),
        addr: format!("192.168.77.1{n}:2377"),
        leader,
        voter: true,
    };
    assert_eq!(ManagerView::of(9, &[peer(1, false), peer(2, true)]).leader.as_deref(), Some("h2"));
    assert_eq!(ManagerView::of(9, &[peer(1, false)]).leader, None);
}

#[test]
fn an_update_begins_with_what_is() {
    let all = cluster();
    let spec = ServiceView::of(&all.services[&id(WEB)], &all).spec();
    spec.check().unwrap();
    assert_eq!(
        (spec.name.as_str(), spec.networks.as_slice(), spec.ports.len()),
        ("web", &["shop".to_owned()][..], 1)
    );
    assert_eq!(spec.labels["tier"], "front");
}

#[test]
fn an_update_keeps_every_option() {
    let mut all = cluster();
    let mut web = Service::clone(&all.services[&id(WEB)]);
    web.algorithm = Algorithm::SourceHash;
    web.affinity_secs = 60;
    let range = SourceRange {
        net: "10.0.0.0/8".parse().unwrap(),
        allow: false,
    };
    web.source_ranges = vec![range].into();
    web.lb_return = LbReturn::Direct;
    web.selector = Labels::from([("app".to_owned(), "web".to_owned())]).into();
    web.ports[0].address = Some("192.168.77.11".parse().unwrap());
    web.ports[0].mode = PublishMode::Host;
    let web = Arc::new(web);
    all.services.insert(web.clone());
    let spec = ServiceView::of(&web, &all).spec();
    assert_eq!(
        (
            spec.algorithm,
            spec.affinity_secs,
            spec.lb_return,
            spec.source_ranges,
            spec.selector
        ),
        (
            web.algorithm,
            web.affinity_secs,
            web.lb_return,
            web.source_ranges.to_vec(),
            Labels::clone(&web.selector)
        )
    );
    assert_eq!(spec.ports, web.ports);
    let value = serde_json::to_value(ServiceView::of(&web, &all)).unwrap();
    assert_eq!(value["source_ranges"], json!([{"net": "10.0.0.0/8", "allow": false}]));
    assert_eq!(
        (&value["algorithm"], &value["lb_return"]),
        (&json!("source-hash"), &json!("direct"))
    );
}

/// A service has the endpoints that were attached to it and those that its selector names.
#[test]
fn selected_endpoints_are_members() {
    let mut all = cluster();
    let mut e = endpoint(40, 1, "172.30.0.9", EndpointState::Ready);
    e.service = None;
    e.labels = Labels::from([("app".to_owned(), "web".to_owned())]).into();
    e.slot = 99;
    all.endpoints.insert(Arc::new(e));
    let count = |all: &Objects| {
        (
            ServiceView::list(all)[0].endpoints.len(),
            ServiceView::of(&all.services[&id(WEB)], all).endpoints.len(),
        )
    };
    assert_eq!(count(&all), (3, 3));
    let mut web = Service::clone(&all.services[&id(WEB)]);
    web.selector = Labels::from([("app".to_owned(), "web".to_owned())]).into();
    all.services.insert(Arc::new(web));
    assert_eq!(count(&all), (4, 4));
    let found = crate::query::select(&all, &crate::query::Query::Service("web".into())).unwrap();
    assert!(found.iter().any(|o| o.key().1 == id(40)));
}

#[test]
fn paths_hold_any_reference() {
    assert_eq!(paths::at(paths::NETWORK_CONNECT, "kafka"), "/v1/networks/kafka/connect");
    assert_eq!(paths::at(paths::NODE, "../a b?c=ü"), "/v1/nodes/..%2Fa%20b%3Fc%3D%C3%BC");
    assert_eq!(paths::at(paths::STATUS, "x"), "/v1/status");
}

#[test]
fn streams_begin_where_asked() {
    let event = Event {
        time: Timestamp::from_second(100).unwrap(),
        revision: 7,
        action: EventAction::Create,
        kind: mesh_core::objects::Kind::Network,
        id: id(1),
        name: "n".into(),
    };
    let covers = |s: &str| s.parse::<Since>().unwrap().covers(&event);
    assert!(covers("6") && !covers("7"));
    assert!(covers("1970-01-01T00:01:40Z") && !covers("1970-01-01T00:01:41Z"));
    assert!("soon".parse::<Since>().is_err());
    assert_eq!(serde_json::to_value(&event).unwrap()["action"], "create");
    for text in ["7", "1970-01-01T00:01:40Z"] {
        assert_eq!(text.parse::<Since>().unwrap().to_string(), text);
    }
}

#[test]
fn described_bodies_are_the_real_ones() {
    let network = serde_json::to_value(NetworkSpec {
        name: "n".into(),
        ..Default::default()
    })
    .unwrap();
    let service: ServiceSpec = serde_json::from_value(json!({"name": "s"})).unwrap();
    let service = serde_json::to_value(service).unwrap();
    let described = |schema: utoipa::openapi::RefOr<utoipa::openapi::Schema>| keys(&serde_json::to_value(schema).unwrap()["properties"]);
    assert_eq!(described(schema::NetworkSpec::schema()), keys(&network));
    assert_eq!(described(schema::ServiceSpec::schema()), keys(&service));
    assert_eq!(
        described(schema::Refusal::schema()),
        keys(&serde_json::to_value(mesh_core::Refusal::other("x")).unwrap())
    );
}
