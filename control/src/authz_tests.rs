//! The table, row by row: every command, query and call, for every kind of caller.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    RefusalKind,
    command::{NewEndpoint, NewNode},
    objects::{Availability, Dataplane, Endpoint, EndpointState, NodeState, Place, Sandbox},
    spec::{NetworkSpec, ServiceSpec},
};

use super::*;

const MANAGER: u64 = 1;
const WORKER: u64 = 2;
const OTHER: u64 = 3;

fn publish(n: u64) -> Command {
    Command::EndpointPublish {
        id: id(n),
        ports: Vec::new(),
        port_ranges: Vec::new(),
    }
}

fn id(n: u64) -> Id {
    Id::from_bits(n)
}

fn node(n: u64, role: Role) -> (Id, Arc<Node>) {
    let node = Node {
        id: id(n),
        version: 1,
        created_at: Default::default(),
        hostname: format!("h{n}"),
        labels: Default::default(),
        role,
        raft_id: 0,
        availability: Availability::Active,
        addr: [192, 168, 77, 10 + n as u8].into(),
        control_port: 2377,
        data_path_addr: [192, 168, 77, 10 + n as u8].into(),
        underlay_mtu: 1500,
        underlay_mac: None,
        ingress_ip: [10, 0, 0, n as u8].into(),
        host_routes: Vec::new(),
        state: NodeState::Ready,
        dataplane: Dataplane::Reachable,
    };
    (id(n), Arc::new(node))
}

fn sandbox() -> Sandbox {
    let place = Place {
        container: "c".into(),
        netns: "/n".into(),
        ..Place::default()
    };
    Sandbox::new(1, place)
}

fn endpoint(n: u64, on: u64) -> Arc<Endpoint> {
    let mut endpoint = Endpoint::new(id(n), Default::default(), &format!("e{n}"), (id(on), id(50)), [10, 1, 0, 2].into());
    endpoint.version = 1;
    endpoint.sandbox = sandbox();
    endpoint.ifname = "eth0".into();
    endpoint.state = EndpointState::Ready;
    endpoint.slot = 1;
    Arc::new(endpoint)
}

fn cluster() -> Objects {
    Objects {
        nodes: BTreeMap::from([node(MANAGER, Role::Manager), node(WORKER, Role::Worker), node(OTHER, Role::Worker)]),
        endpoints: [endpoint(20, WORKER), endpoint(30, OTHER)].into_iter().collect(),
        ..Objects::default()
    }
}

fn new_node(n: u64) -> NewNode {
    NewNode {
        id: id(n),
        hostname: "x".into(),
        role: Role::Manager,
        addr: [10, 0, 0, 9].into(),
        control_port: 2377,
        data_path_addr: [10, 0, 0, 9].into(),
        underlay_mtu: 1500,
        host_routes: Vec::new(),
    }
}

fn create(on: u64) -> Command {
    let endpoint = NewEndpoint {
        id: id(99),
        node: id(on),
        network: "n".into(),
        service: None,
        name: "e".into(),
        ip: None,
        ip6: None,
        mac: None,
        aliases: Vec::new(),
        labels: Default::default(),
        sandbox: sandbox(),
        ifname: None,
        ports: Vec::new(),
        port_ranges: Vec::new(),
    };
    Command::EndpointCreate {
        endpoint,
        at: Default::default(),
    }
}

fn report(of: u64) -> Command {
    Command::NodeReport {
        id: id(of),
        addr: [10, 0, 0, 1].into(),
        data_path_addr: [10, 0, 0, 1].into(),
        underlay_mtu: 1500,
        underlay_mac: None,
        host_routes: Vec::new(),
    }
}

fn remove(node: &str) -> Command {
    Command::NodeRemove {
        node: node.into(),
        force: true,
    }
}

fn service() -> ServiceSpec {
    serde_json::from_str(r#"{"name": "s", "networks": ["n"]}"#).unwrap()
}

use RefusalKind::{Forbidden, NotFound};

#[test]
fn commands() {
    let init = Command::Init {
        id: id(1),
        ingress: id(2),
        at: Default::default(),
        address_pools: Vec::new(),
        subnet_prefix: 24,
        ca_cert: String::new(),
        ca_key: String::new(),
        worker_secret: String::new(),
        manager_secret: String::new(),
        node: new_node(9),
    };
    let liveness = Command::NodeLiveness {
        id: id(WORKER),
        state: NodeState::Ready,
        dataplane: Dataplane::Reachable,
    };
    // Command, what a manager gets, what the worker gets.
    let table: Vec<(Command, Option<RefusalKind>, Option<RefusalKind>)> = vec![
        (init, Some(Forbidden), Some(Forbidden)),
        (
            Command::NodeJoin {
                node: new_node(9),
                at: Default::default(),
            },
            Some(Forbidden),
            Some(Forbidden),
        ),
        (liveness, Some(Forbidden), Some(Forbidden)),
        (
            Command::NodeUpdate {
                node: "h2".into(),
                availability: None,
                label_add: Default::default(),
                label_rm: Vec::new(),
            },
            None,
            Some(Forbidden),
        ),
        (
            Command::NodeRole {
                node: "h2".into(),
                role: Role::Manager,
            },
            None,
            Some(Forbidden),
        ),
        (
            Command::TokenRotate {
                role: Role::Worker,
                secret: "s".into(),
            },
            None,
            Some(Forbidden),
        ),
        (
            Command::CaRotate {
                from: String::new(),
                at: Default::default(),
                made: None,
            },
            None,
            Some(Forbidden),
        ),
        (Command::CaForget { roots: Vec::new() }, Some(Forbidden), Some(Forbidden)),
        (
            Command::NetworkCreate {
                id: id(5),
                at: Default::default(),
                spec: NetworkSpec::default(),
            },
            None,
            Some(Forbidden),
        ),
        (Command::NetworkRemove { network: "n".into() }, None, Some(Forbidden)),
        (Command::NetworkPrune {}, None, Some(Forbidden)),
        (
            Command::ServiceCreate {
                id: id(5),
                at: Default::default(),
                spec: service(),
            },
            None,
            Some(Forbidden),
        ),
        (
            Command::ServiceUpdate {
                service: "s".into(),
                version: 0,
                spec: service(),
            },
            None,
            Some(Forbidden),
        ),
        (Command::ServiceRemove { service: "s".into() }, None, Some(Forbidden)),
        (report(WORKER), None, None),
        (report(OTHER), None, Some(Forbidden)),
        (report(MANAGER), None, Some(Forbidden)),
        (remove("h2"), None, None),
        (remove(&id(WORKER).to_string()), None, None),
        (remove("h3"), None, Some(Forbidden)),
        (remove("h1"), None, Some(Forbidden)),
        (remove("nobody"), None, Some(Forbidden)),
        (create(WORKER), None, None),
        (create(OTHER), None, Some(Forbidden)),
        (create(77), None, Some(Forbidden)),
        (
            Command::EndpointSet {
                id: id(20),
                state: EndpointState::Ready,
            },
            None,
            None,
        ),
        (
            Command::EndpointSet {
                id: id(30),
                state: EndpointState::Ready,
            },
            None,
            Some(Forbidden),
        ),
        (
            Command::EndpointSet {
                id: id(77),
                state: EndpointState::Ready,
            },
            None,
            Some(NotFound),
        ),
        (publish(20), None, None),
        (publish(30), None, Some(Forbidden)),
        (Command::EndpointWeigh { id: id(20), weight: 3 }, None, None),
        (Command::EndpointWeigh { id: id(30), weight: 3 }, None, Some(Forbidden)),
        (Command::EndpointStopping { id: id(20), until: None }, None, None),
        (Command::EndpointStopping { id: id(30), until: None }, None, Some(Forbidden)),
        (
            Command::EndpointHealth {
                id: id(20),
                healthy: false,
            },
            None,
            None,
        ),
        (
            Command::EndpointHealth {
                id: id(30),
                healthy: false,
            },
            None,
            Some(Forbidden),
        ),
        (Command::EndpointRemove { id: id(20) }, None, None),
        (Command::EndpointRemove { id: id(30) }, None, Some(Forbidden)),
        (Command::EndpointRemove { id: id(77) }, None, Some(NotFound)),
    ];
    let all = cluster();
    for (command, manager, worker) in &table {
        for (node, role, expected) in [(MANAGER, Role::Manager, manager), (WORKER, Role::Worker, worker)] {
            let got = may_propose(Member { node: id(node), role }, command, &all).err().map(|r| r.kind);
            assert_eq!(got, *expected, "{} {command:?}", role.as_str());
        }
    }
    let mut named: Vec<_> = table.iter().map(|(c, ..)| c.name()).collect();
    named.dedup();
    assert_eq!(named.len(), 23, "every command has its row");
}

#[test]
fn nobody_takes_a_managers_address() {
    let all = cluster();
    let report = |of: u64, last| {
        let Command::NodeReport { data_path_addr, .. } = report(of) else {
            unreachable!()
        };
        Command::NodeReport {
            id: id(of),
            addr: [192, 168, 77, last].into(),
            data_path_addr,
            underlay_mtu: 1500,
            underlay_mac: None,
            host_routes: Vec::new(),
        }
    };
    let member = |n, role| Member { node: id(n), role };
    let address = |n: u64| 10 + n as u8;
    for who in [member(WORKER, Role::Worker), member(MANAGER, Role::Manager)] {
        let got = may_propose(who, &report(WORKER, address(MANAGER)), &all).unwrap_err();
        assert!(got.kind == RefusalKind::Forbidden && got.message.contains("manager h1"), "{got}");
    }
    let own = member(WORKER, Role::Worker);
    for last in [address(WORKER), address(OTHER), 99] {
        assert_eq!(may_propose(own, &report(WORKER, last), &all), Ok(()));
    }
    assert_eq!(
        may_propose(member(MANAGER, Role::Manager), &report(MANAGER, address(MANAGER)), &all),
        Ok(())
    );
}

#[test]
fn queries() {
    let all = cluster();
    let worker = Member {
        node: id(WORKER),
        role: Role::Worker,
    };
    let manager = Member {
        node: id(MANAGER),
        role: Role::Manager,
    };
    let x = || "x".to_owned();
    let open = [
        Query::Nodes,
        Query::Node(x()),
        Query::Networks,
        Query::Network(x()),
        Query::Services,
        Query::Service(x()),
        Query::Endpoints,
        Query::Endpoint(x()),
        Query::Authority,
        Query::Head,
    ];
    for query in open {
        assert_eq!(may_query(worker, &query, &all), Ok(()));
        assert_eq!(may_query(manager, &query, &all), Ok(()));
    }
    for role in [Role::Worker, Role::Manager] {
        assert_eq!(may_query(worker, &Query::Token(role), &all).unwrap_err().kind, Forbidden);
        assert_eq!(may_query(manager, &Query::Token(role), &all), Ok(()));
    }
}

#[test]
fn calls() {
    let name = |role| NodeName {
        cluster: id(1),
        node: id(2),
        role,
        raft_id: 0,
    };
    let (manager, worker) = (name(Role::Manager), name(Role::Worker));
    for (path, rpc, _) in CALLS {
        let (found, who) = Rpc::of_path(path).unwrap();
        assert_eq!(found, rpc);
        let open = [None, Some(&worker), Some(&manager)].map(|name| admit(who, name).is_ok());
        let expected = match rpc {
            Rpc::Enroll => [true, true, true],
            Rpc::Raft => [false, false, true],
            _ => [false, true, true],
        };
        assert_eq!(open, expected, "{path}");
    }
    for unknown in [
        "",
        "/",
        "/meshd.v1.Raft/",
        "/meshd.v1.Raft/append",
        "/meshd.v1.Raft/Append/",
        "//meshd.v1.Raft/Append",
        "/meshd.v2.Raft/Append",
    ] {
        assert_eq!(Rpc::of_path(unknown), None, "{unknown}");
    }
}

#[test]
fn a_manager_is_one_by_certificate_and_in_the_cluster() {
    let all = cluster();
    let role = |node, role| {
        membership(
            &NodeName {
                cluster: id(1),
                node: id(node),
                role,
                raft_id: 0,
            },
            &all,
        )
        .map(|m| m.role)
    };
    assert_eq!(role(MANAGER, Role::Manager), Some(Role::Manager));
    assert_eq!(role(MANAGER, Role::Worker), Some(Role::Worker));
    assert_eq!(role(WORKER, Role::Manager), Some(Role::Worker));
    assert_eq!(role(77, Role::Manager), None, "removed, though the certificate is good");
}

#[test]
fn a_worker_is_told_where_to_go() {
    let mut all = cluster();
    let refusal = may_propose(
        Member {
            node: id(WORKER),
            role: Role::Worker,
        },
        &Command::NetworkPrune {},
        &all,
    )
    .unwrap_err();
    assert_eq!(refusal.message, "this node is a worker: run this on a manager (h1, 192.168.77.11)");
    all.nodes.clear();
    assert_eq!(worker_refusal(&all).message, "this node is a worker: run this on a manager");
}

/// A client that knows the objects of entry 30 hears one with a manager's certificate.
#[test]
fn a_demoted_manager_passes_for_none_to_who_has_heard_of_it() {
    let all = cluster();
    let name = |node: u64, raft_id: u64| NodeName {
        cluster: id(1),
        node: id(node),
        role: Role::Manager,
        raft_id,
    };
    let (manager, worker, unknown) = (MANAGER, WORKER, 99);
    for (node, raft_id, revision, passes) in [
        (manager, 10, 30, true),
        (manager, 0, 30, true),
        (worker, 10, 30, false),
        (worker, 30, 30, false),
        (worker, 0, 30, false),
        (worker, 31, 30, true),
        (unknown, 10, 30, false),
        (unknown, 31, 30, true),
        (unknown, 0, 30, true),
        (worker, 10, 0, true),
        (unknown, 10, 0, true),
    ] {
        let got = may_manage(&name(node, raft_id), revision, &all);
        assert_eq!(got.is_ok(), passes, "node {node}, raft id {raft_id}, revision {revision}: {got:?}");
    }
}
