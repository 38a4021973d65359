//! A small cluster for the tests of this crate.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its own part")]

use std::net::IpAddr;

use jiff::Timestamp;
use mesh_core::{
    Id, Mac, RefusalKind,
    command::{Command, NewEndpoint, NewNode, Outcome, Reply},
    objects::*,
    spec::{NetworkSpec, ServiceSpec},
    state::State,
};

/// A state, and the log index that it is at.
#[derive(Clone, Debug)]
pub struct Lab {
    pub state: State,
    pub index: u64,
}

pub fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

pub fn id(n: u64) -> Id {
    Id::from_bits(n)
}

/// Ids of the nodes h1, h2, ….
pub fn node_id(n: u64) -> Id {
    id(0x1000 + n)
}

pub fn new_node(n: u64, role: Role) -> NewNode {
    NewNode {
        id: node_id(n),
        hostname: format!("h{n}"),
        role,
        addr: ip(&format!("192.168.77.{}", 10 + n)),
        control_port: 2377,
        data_path_addr: ip(&format!("192.168.77.{}", 10 + n)),
        underlay_mtu: 1500,
        host_routes: vec![HostRoute {
            dst: "192.168.77.0/24".parse().unwrap(),
            dev: "eth0".into(),
        }],
    }
}

/// What a node says of itself, as the cluster has it, but for the Ethernet address.
pub fn report(node: &Node, underlay_mac: Option<Mac>) -> Command {
    Command::NodeReport {
        id: node.id,
        addr: node.addr,
        data_path_addr: node.data_path_addr,
        underlay_mtu: node.underlay_mtu,
        underlay_mac,
        host_routes: node.host_routes.clone(),
    }
}

pub fn network_spec(name: &str, subnet: Option<&str>) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        subnets: subnet.iter().map(|s| s.parse().unwrap()).collect(),
        ..NetworkSpec::default()
    }
}

pub fn service_spec(name: &str, networks: &[&str], ports: &[(u16, u16)]) -> ServiceSpec {
    let port = |&(published, target)| Port {
        published,
        target,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
        address: None,
    };
    ServiceSpec {
        name: name.into(),
        networks: networks.iter().map(|s| (*s).into()).collect(),
        ports: ports.iter().map(port).collect(),
        endpoint_mode: EndpointMode::Vip,
        algorithm: Algorithm::Rr,
        drain_secs: 10,
        affinity_secs: 0,
        source_ranges: vec![],
        lb_return: LbReturn::Tunnel,
        selector: Labels::new(),
        labels: Labels::new(),
    }
}

pub fn endpoint(n: u64, node: u64, network: &str, service: Option<&str>) -> NewEndpoint {
    NewEndpoint {
        id: id(0x9000 + n),
        node: node_id(node),
        network: network.into(),
        service: service.map(Into::into),
        name: format!("c{n}"),
        ip: None,
        ip6: None,
        mac: None,
        aliases: vec![],
        labels: Labels::new(),
        sandbox: Sandbox::new(
            7000 + n,
            Place {
                container: format!("netns:c{n}"),
                netns: format!("/run/netns/c{n}"),
                cookie: 8000 + n,
                ..Place::default()
            },
        ),
        ifname: None,
        ports: Vec::new(),
        port_ranges: Vec::new(),
    }
}

impl Lab {
    /// A cluster of h1 (manager) to hN (workers).
    pub fn new(nodes: u64) -> Self {
        let mut lab = Self {
            state: State::default(),
            index: 0,
        };
        lab.ok(Command::Init {
            id: id(1),
            ingress: id(2),
            at: Timestamp::UNIX_EPOCH,
            address_pools: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_prefix: 24,
            ca_cert: String::new(),
            ca_key: String::new(),
            worker_secret: "w".into(),
            manager_secret: "m".into(),
            node: new_node(1, Role::Manager),
        });
        for n in 2..=nodes {
            lab.ok(Command::NodeJoin {
                node: new_node(n, Role::Worker),
                at: Timestamp::UNIX_EPOCH,
            });
        }
        lab
    }

    pub fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let before = self.state.objects().clone();
        let (outcome, changes) = self.state.apply(self.index, &command);
        if outcome.is_err() {
            assert!(changes.is_empty());
            assert_eq!(&before, self.state.objects(), "a refused command changes nothing");
        }
        outcome
    }

    pub fn ok(&mut self, command: Command) -> Reply {
        let shown = format!("{command:?}");
        self.apply(command).unwrap_or_else(|e| panic!("{shown}: {e}"))
    }

    /// Refused with that kind, in one line that has all of `parts`.
    pub fn refused(&mut self, command: Command, kind: RefusalKind, parts: &[&str]) {
        let e = self.apply(command).expect_err("must be refused");
        assert_eq!(e.kind, kind, "{e}");
        assert!(!e.message.contains('\n') && parts.iter().all(|p| e.message.contains(p)), "{e}");
    }

    pub fn network(&mut self, n: u64, name: &str, subnet: Option<&str>) -> Network {
        match self.ok(create_network(n, network_spec(name, subnet))) {
            Reply::Network(n) => *n,
            other => panic!("{other:?}"),
        }
    }

    /// A network whose packets are not encapsulated between nodes of one segment; all nodes tell their Ethernet
    /// addresses.
    pub fn segment_network(&mut self, n: u64, name: &str, subnet: Option<&str>) {
        let mut spec = network_spec(name, subnet);
        spec.options.insert("encapsulation".into(), "cross-subnet".into());
        self.ok(create_network(n, spec));
        let nodes: Vec<_> = self.state.objects().nodes.values().cloned().collect();
        for (mac, node) in (1..).zip(nodes) {
            self.ok(report(&node, Some(Mac([2, 0, 0, 0, 0, mac]))));
        }
    }

    pub fn service(&mut self, n: u64, spec: ServiceSpec) -> Service {
        match self.ok(Command::ServiceCreate {
            id: id(0x300 + n),
            at: Timestamp::UNIX_EPOCH,
            spec,
        }) {
            Reply::Service(s) => *s,
            other => panic!("{other:?}"),
        }
    }

    pub fn attach(&mut self, endpoint: NewEndpoint) -> Endpoint {
        match self.ok(Command::EndpointCreate {
            endpoint,
            at: Timestamp::UNIX_EPOCH,
        }) {
            Reply::Endpoint(e) => *e,
            other => panic!("{other:?}"),
        }
    }

    pub fn ready(&mut self, n: u64) {
        self.ok(Command::EndpointSet {
            id: id(0x9000 + n),
            state: EndpointState::Ready,
        });
    }
}

pub fn create_network(n: u64, spec: NetworkSpec) -> Command {
    Command::NetworkCreate {
        id: id(0x200 + n),
        at: Timestamp::UNIX_EPOCH,
        spec,
    }
}

pub fn create_service(n: u64, spec: ServiceSpec) -> Command {
    Command::ServiceCreate {
        id: id(0x300 + n),
        at: Timestamp::UNIX_EPOCH,
        spec,
    }
}

/// The lab of the README: a service with an endpoint on each of three hosts, a fourth with none.
pub fn hostname() -> Lab {
    let mut lab = Lab::new(4);
    lab.network(1, "demo", Some("172.30.0.0/24"));
    lab.service(1, service_spec("hostname", &["demo"], &[(8888, 80)]));
    for n in 1..=3 {
        lab.attach(endpoint(n, n, "demo", Some("hostname")));
        lab.ready(n);
    }
    lab
}
