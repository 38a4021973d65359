//! Published ports: of services, and of containers for themselves.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;

use common::*;
use jiff::Timestamp;
use mesh_core::{
    RefusalKind as K,
    command::{Command as C, PortRange},
    objects::*,
};

#[test]
fn a_port_may_be_bound_to_addresses() {
    let mut lab = Lab::new(1);
    lab.network(1, "n", None);
    let bound = |name: &str, ports: &[(u16, Option<&str>)]| {
        let mut spec = service_spec(name, &["n"], &ports.iter().map(|p| (p.0, 80)).collect::<Vec<_>>());
        for (port, (_, address)) in spec.ports.iter_mut().zip(ports) {
            port.address = address.map(ip);
        }
        spec
    };
    let (one, two) = (Some("192.168.77.11"), Some("fd77::11"));
    lab.service(1, bound("a", &[(8080, one), (8080, two)]));
    lab.service(2, bound("b", &[(8080, Some("192.168.77.12"))]));
    lab.refused(
        create_service(3, bound("c", &[(8080, two)])),
        K::Conflict,
        &["8080/tcp", "at fd77::11", "\"a\""],
    );
    lab.refused(create_service(3, bound("c", &[(8080, None)])), K::Conflict, &["8080/tcp"]);
    lab.refused(
        create_service(3, bound("c", &[(8081, None), (8081, one)])),
        K::Malformed,
        &["published twice"],
    );
    lab.refused(
        create_service(3, bound("c", &[(8081, Some("0.0.0.0"))])),
        K::Malformed,
        &["leave it out"],
    );
    lab.ok(C::ServiceRemove { service: "a".into() });
    lab.service(3, bound("c", &[(8080, two)]));
    lab.ok(C::ServiceRemove { service: "b".into() });
    lab.ok(C::ServiceRemove { service: "c".into() });
    lab.service(4, bound("d", &[(8080, None)]));
    lab.refused(create_service(5, bound("e", &[(8080, one)])), K::Conflict, &["\"d\""]);
    let mut host = bound("e", &[(8080, None)]);
    host.ports[0].mode = PublishMode::Host;
    lab.refused(create_service(5, host), K::Conflict, &["\"d\""]);
}

#[test]
fn ports_of_containers() {
    let mut lab = Lab::new(2);
    lab.network(1, "n", None);
    lab.service(1, service_spec("web", &["n"], &[(8080, 80)]));
    let own = |published, address: Option<&str>| Port {
        published,
        target: 80,
        protocol: Protocol::Tcp,
        mode: PublishMode::Host,
        address: address.map(ip),
    };
    let with = |n, node, ports: &[Port]| C::EndpointCreate {
        endpoint: mesh_core::command::NewEndpoint {
            ports: ports.to_vec(),
            ..endpoint(n, node, "n", None)
        },
        at: Timestamp::UNIX_EPOCH,
    };
    lab.refused(with(1, 1, &[own(8080, None)]), K::Conflict, &["8080/tcp", "\"web\""]);
    lab.refused(with(1, 1, &[own(2377, None)]), K::Conflict, &["2377/tcp", "control plane"]);
    lab.refused(with(1, 1, &[own(81, None), own(81, None)]), K::Malformed, &["81/tcp", "twice"]);
    lab.refused(with(1, 1, &[own(81, Some("127.0.0.1"))]), K::Malformed, &["127.0.0.1"]);
    let everywhere = Port {
        mode: PublishMode::Ingress,
        ..own(81, None)
    };
    lab.refused(with(1, 1, &[everywhere]), K::Malformed, &["mode=host"]);
    lab.ok(with(1, 1, &[own(81, None), own(0, None)]));
    let given = |lab: &Lab, n: u64| lab.state.objects().endpoints[&id(0x9000 + n)].ports[1].published;
    assert_eq!(given(&lab, 1), 30000);
    lab.refused(with(2, 1, &[own(81, None)]), K::Conflict, &["81/tcp", "\"c1\" on h1"]);
    lab.refused(with(2, 1, &[own(81, Some("192.168.77.11"))]), K::Conflict, &["81/tcp"]);
    lab.ok(with(2, 2, &[own(81, Some("192.168.77.12")), own(0, None)]));
    assert_eq!(given(&lab, 2), 30000, "each node has its own");
    lab.refused(
        create_service(2, service_spec("late", &["n"], &[(81, 80)])),
        K::Conflict,
        &["81/tcp", "endpoint \"c1\" on h1"],
    );
    assert_eq!(lab.service(2, service_spec("free", &["n"], &[(0, 80)])).ports[0].published, 30001);
    let mut late = new_node(3, Role::Worker);
    late.control_port = 81;
    let join = C::NodeJoin {
        node: late,
        at: Timestamp::UNIX_EPOCH,
    };
    lab.refused(join, K::Conflict, &["81/tcp", "\"c1\""]);
    lab.ok(C::EndpointRemove { id: id(0x9001) });
    lab.ok(with(3, 1, &[own(81, None)]));

    // One of a range: the first that the node has free.
    let in_range = |n, node, ranges: &[(u16, u16)]| C::EndpointCreate {
        endpoint: mesh_core::command::NewEndpoint {
            port_ranges: ranges
                .iter()
                .map(|&(first, last)| PortRange {
                    port: own(first, None),
                    last,
                })
                .collect(),
            ..endpoint(n, node, "n", None)
        },
        at: Timestamp::UNIX_EPOCH,
    };
    let taken = |lab: &Lab, n: u64| {
        let e = &lab.state.objects().endpoints[&id(0x9000 + n)];
        e.ports.iter().map(|p| p.published).collect::<Vec<_>>()
    };
    lab.ok(in_range(4, 1, &[(8079, 8082), (8079, 8082)]));
    assert_eq!(taken(&lab, 4), [8079, 8081], "8080 is the service's");
    lab.ok(in_range(5, 1, &[(8079, 8082)]));
    assert_eq!(taken(&lab, 5), [8082]);
    lab.ok(in_range(6, 2, &[(8079, 8082)]));
    assert_eq!(taken(&lab, 6), [8079], "each node has its own");
    lab.refused(in_range(7, 1, &[(8079, 8082)]), K::Conflict, &["8079-8082/tcp", "wider"]);
    for (first, last) in [(0, 9), (9, 8)] {
        lab.refused(in_range(7, 1, &[(first, last)]), K::Malformed, &["range"]);
    }
    lab.ok(in_range(7, 1, &[(65535, 65535)]));

    // Of an endpoint that is there: in the place of what it has, which is no obstacle.
    let publish = |n: u64, ports: &[(u16, u16)]| C::EndpointPublish {
        id: id(0x9000 + n),
        ports: Vec::new(),
        port_ranges: ports
            .iter()
            .map(|&(first, last)| PortRange {
                port: own(first, None),
                last,
            })
            .collect(),
    };
    lab.ok(publish(4, &[(8079, 8082)]));
    assert_eq!(taken(&lab, 4), [8079]);
    lab.refused(publish(5, &[(8079, 8080)]), K::Conflict, &["8079-8080/tcp"]);
    assert_eq!(taken(&lab, 5), [8082], "as before");
    lab.ok(publish(4, &[]));
    lab.ok(publish(5, &[(8079, 8080)]));
    assert_eq!((taken(&lab, 4), taken(&lab, 5)), (vec![], vec![8079]));
    lab.refused(publish(9, &[]), K::NotFound, &["no endpoint"]);
}

#[test]
fn nobody_gets_the_nodes_own_ports() {
    let mut lab = Lab::new(1);
    lab.network(1, "n", None);
    let mut odd = new_node(2, Role::Worker);
    odd.control_port = 30001;
    lab.ok(C::NodeJoin {
        node: odd,
        at: Timestamp::UNIX_EPOCH,
    });
    let s = lab.service(1, service_spec("web", &["n"], &[(0, 80), (0, 81), (9999, 82)]));
    assert_eq!(s.ports.iter().map(|p| p.published).collect::<Vec<_>>(), [30000, 30002, 9999]);
    let mut late = new_node(3, Role::Worker);
    late.control_port = 9999;
    lab.refused(
        C::NodeJoin {
            node: late,
            at: Timestamp::UNIX_EPOCH,
        },
        K::Conflict,
        &["9999/tcp", "\"web\""],
    );
}
