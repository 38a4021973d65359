//! What commands do to the nodes of a cluster, their roles and what they trust each other by.
#![expect(clippy::unwrap_used, reason = "test")]

mod common;

use common::*;
use jiff::Timestamp;
use mesh_core::{RefusalKind as K, command::Command as C, objects::*};

#[test]
fn nodes_come_and_go() {
    let mut lab = Lab::new(3);
    lab.network(1, "n", Some("172.30.0.0/16"));
    lab.attach(endpoint(1, 2, "n", None));
    let join = |n: mesh_core::command::NewNode| C::NodeJoin {
        node: n,
        at: Timestamp::UNIX_EPOCH,
    };
    let mut twin = new_node(4, Role::Worker);
    twin.hostname = "H2".into();
    lab.refused(join(twin), K::Conflict, &["host name"]);
    let mut routed = new_node(4, Role::Worker);
    routed.host_routes[0].dst = "172.30.8.0/24".parse().unwrap();
    lab.refused(join(routed), K::Conflict, &["172.30.8.0/24 dev eth0", "172.30.0.0/16", "\"n\""]);
    lab.refused(
        C::NodeRemove {
            node: "h1".into(),
            force: true,
        },
        K::Conflict,
        &["only manager"],
    );
    lab.refused(
        C::NodeRemove {
            node: "h2".into(),
            force: false,
        },
        K::Conflict,
        &["c1"],
    );
    lab.ok(C::NodeLiveness {
        id: node_id(3),
        state: NodeState::Ready,
        dataplane: Dataplane::Reachable,
    });
    lab.refused(
        C::NodeRemove {
            node: "h3".into(),
            force: false,
        },
        K::Conflict,
        &["ready"],
    );
    lab.ok(C::NodeRemove {
        node: "h2".into(),
        force: true,
    });
    assert!(lab.state.objects().endpoints.is_empty());
    assert_eq!(
        lab.ok(join(new_node(4, Role::Worker))),
        lab.ok(join(new_node(4, Role::Worker))),
        "asked twice, taken in once"
    );
    assert_eq!(
        lab.state.objects().nodes[&node_id(4)].ingress_ip,
        ip("10.0.0.5"),
        "a released address rests"
    );
}

#[test]
fn managers_keep_their_majority() {
    let mut lab = Lab::new(1);
    for n in 2..=4 {
        lab.ok(C::NodeJoin {
            node: new_node(n, Role::Manager),
            at: Timestamp::UNIX_EPOCH,
        });
    }
    let state = |n, state| C::NodeLiveness {
        id: node_id(n),
        state,
        dataplane: Dataplane::Reachable,
    };
    let remove = |n: u64, force| C::NodeRemove {
        node: format!("h{n}"),
        force,
    };
    for n in 1..=3 {
        lab.ok(state(n, NodeState::Ready));
    }
    // h4 was not heard yet, which is not down.
    lab.ok(state(3, NodeState::Down));
    lab.ok(remove(2, true));
    // Of h1, h3 and h4 two are up: neither can be spared, the third can.
    lab.refused(remove(1, true), K::Conflict, &["h1", "quorum", "1 of the other 2 is down", "h3"]);
    lab.refused(remove(4, true), K::Conflict, &["h4", "quorum"]);
    lab.ok(remove(3, false));
    lab.ok(remove(1, true));
    lab.refused(remove(4, true), K::Conflict, &["only manager"]);
}

#[test]
fn roles_change_as_long_as_there_is_a_quorum() {
    let mut lab = Lab::new(3);
    let role = |n: u64, role| C::NodeRole {
        node: format!("h{n}"),
        role,
    };
    let state = |n, state| C::NodeLiveness {
        id: node_id(n),
        state,
        dataplane: Dataplane::Reachable,
    };
    let raft_id = |lab: &Lab, n| lab.state.objects().nodes[&node_id(n)].raft_id;
    lab.refused(role(1, Role::Worker), K::Conflict, &["h1", "only manager", "promote"]);
    lab.refused(role(9, Role::Manager), K::NotFound, &["h9"]);
    lab.refused(role(2, Role::Manager), K::Conflict, &["h2", "was not heard yet"]);
    lab.ok(state(1, NodeState::Ready));
    lab.ok(state(2, NodeState::Down));
    lab.refused(role(2, Role::Manager), K::Conflict, &["h2", "is down"]);
    lab.ok(state(2, NodeState::Ready));
    lab.ok(state(3, NodeState::Ready));
    lab.ok(role(2, Role::Manager));
    lab.ok(role(3, Role::Manager));
    let first = raft_id(&lab, 2);
    assert!(first > 1 && raft_id(&lab, 3) > first);
    // Repeated, it changes nothing.
    lab.ok(role(2, Role::Manager));
    assert_eq!(raft_id(&lab, 2), first);

    lab.ok(state(3, NodeState::Down));
    lab.refused(
        role(2, Role::Worker),
        K::Conflict,
        &["h2", "quorum", "1 of the other 2 is down", "h3"],
    );
    lab.ok(role(3, Role::Worker));
    assert_eq!(raft_id(&lab, 3), 0);
    lab.ok(role(2, Role::Worker));
    lab.ok(role(2, Role::Manager));
    assert!(raft_id(&lab, 2) > first, "a raft id is never given twice");
    lab.ok(role(1, Role::Worker));
    lab.refused(role(2, Role::Worker), K::Conflict, &["only manager"]);
}

#[test]
fn a_rotation_replaces_the_root_and_both_secrets_once() {
    let mut lab = Lab::new(1);
    let at = Timestamp::UNIX_EPOCH;
    let cluster = |lab: &Lab| lab.state.objects().cluster.clone().unwrap();
    let before = cluster(&lab);
    let rotate = |from: &str, name: &str, secret: Option<&str>| C::CaRotate {
        from: from.to_owned(),
        at,
        made: Some(mesh_core::command::NewRoot {
            cert: format!("{name} cert"),
            key: format!("{name} key"),
            cross: "cross".into(),
            worker_secret: secret.map(|s| format!("{s} worker")),
            manager_secret: secret.map(|s| format!("{s} manager")),
        }),
    };
    let first = rotate(&before.ca_cert, "second", Some("new"));
    assert!(!format!("{first:?}").contains("second key"), "a key is not for logs");
    lab.ok(first.clone());
    let after = cluster(&lab);
    assert_eq!((after.ca_cert.as_str(), after.ca_key.as_str()), ("second cert", "second key"));
    assert_eq!(
        (after.worker_secret.as_str(), after.manager_secret.as_str()),
        ("new worker", "new manager")
    );
    // Repeated after a lost answer, it changes nothing; another one from the old root is refused.
    lab.ok(first);
    assert_eq!(cluster(&lab), after);
    let late = match rotate(&before.ca_cert, "third", None) {
        C::CaRotate { from, made, .. } => C::CaRotate {
            from,
            made,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
        },
        other => other,
    };
    lab.refused(late, K::Conflict, &["replaced meanwhile"]);
    // An entry of before there were secrets in it keeps them.
    lab.ok(rotate("second cert", "third", None));
    assert_eq!(cluster(&lab).manager_secret, "new manager");
}
