//! What a renewed certificate says. Used by `control`.

use std::collections::BTreeMap;

use mesh_core::{
    Refusal,
    objects::{Node, Objects, Role},
};

use super::control_addr;
use crate::{authz, health::lead, pki::NodeName};

/// Role and raft id that the certificate of a caller is to say, by what its present one says. The role is the
/// cluster's word, not the old certificate's: that is how a change of role arrives. `voters` are those of the leader's consensus.
///
/// # Errors
/// Forbidden for a node that was removed. Unavailable for one that is a manager no more, but still votes: with a
/// worker's certificate the others would not speak raft to it, and where its vote is one of two they need it to
/// take that vote away.
pub(super) fn certified(caller: &NodeName, all: &Objects, voters: &BTreeMap<u64, String>) -> Result<(Role, u64), Refusal> {
    let node = all.nodes.get(&caller.node).ok_or_else(|| authz::removed(caller.node))?;
    if node.role == Role::Worker && votes(caller, node, all, voters) {
        return Err(Refusal::unavailable(format!(
            "node {} is a manager no more, but its vote is not taken away yet: its certificate is renewed after that",
            node.hostname
        )));
    }
    Ok((node.role, node.raft_id))
}

/// Whether a worker's vote of before its demotion still counts. A certificate of an earlier release does not say
/// its raft id; then it is the voter at its address that is no manager.
fn votes(caller: &NodeName, node: &Node, all: &Objects, voters: &BTreeMap<u64, String>) -> bool {
    let managers = lead::managers(all);
    let mut leaving = voters.iter().filter(|(id, _)| !managers.contains_key(id));
    leaving.any(|(id, addr)| *id == caller.raft_id || *addr == control_addr(node))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use mesh_core::{
        Id, RefusalKind,
        command::{Command, NewNode},
        objects::{Dataplane, NodeState},
        state::State,
    };

    use super::*;

    fn host(n: u8) -> NewNode {
        NewNode {
            id: Id::from_bits(n.into()),
            hostname: format!("h{n}"),
            role: Role::Manager,
            addr: [192, 0, 2, n].into(),
            control_port: 2377,
            data_path_addr: [192, 0, 2, n].into(),
            underlay_mtu: 1500,
            host_routes: vec![],
        }
    }

    fn apply(state: &mut State, index: u64, command: &Command) {
        state.apply(index, command).0.unwrap();
    }

    /// Managers 1 and 2, of which the second is demoted by entry 9.
    fn demoted() -> State {
        let at = Timestamp::UNIX_EPOCH;
        let mut state = State::default();
        let init = Command::Init {
            id: Id::from_bits(100),
            ingress: Id::from_bits(101),
            at,
            address_pools: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_prefix: 24,
            ca_cert: "cert".into(),
            ca_key: "key".into(),
            worker_secret: "0".into(),
            manager_secret: "0".into(),
            node: host(1),
        };
        apply(&mut state, 1, &init);
        apply(&mut state, 5, &Command::NodeJoin { node: host(2), at });
        for n in [1, 2] {
            let heard = Command::NodeLiveness {
                id: Id::from_bits(n),
                state: NodeState::Ready,
                dataplane: Dataplane::Reachable,
            };
            apply(&mut state, 5 + n, &heard);
        }
        let demote = Command::NodeRole {
            node: "h2".into(),
            role: Role::Worker,
        };
        apply(&mut state, 9, &demote);
        state
    }

    fn caller(node: u64, raft_id: u64) -> NodeName {
        NodeName {
            cluster: Id::from_bits(100),
            node: Id::from_bits(node),
            role: Role::Manager,
            raft_id,
        }
    }

    fn voters(of: &[(u64, u8)]) -> BTreeMap<u64, String> {
        of.iter().map(|(id, n)| (*id, format!("192.0.2.{n}:2377"))).collect()
    }

    #[test]
    fn who_still_votes_gets_no_workers_certificate() {
        let mut state = demoted();
        let (both, one) = (voters(&[(1, 1), (5, 2)]), voters(&[(1, 1)]));
        // The second of two renews before the first has taken its vote away, which takes both. By its raft id,
        // wherever it is now, or by its address.
        for (raft_id, voting) in [(5, &both), (0, &both), (5, &voters(&[(1, 1), (5, 77)]))] {
            let why = certified(&caller(2, raft_id), state.objects(), voting).unwrap_err();
            assert_eq!(why.kind, RefusalKind::Unavailable, "{why}");
        }
        // The vote is gone.
        assert_eq!(certified(&caller(2, 5), state.objects(), &one).unwrap(), (Role::Worker, 0));
        // Who stays is not concerned, and neither is a worker whose host has the address of one that left.
        assert_eq!(certified(&caller(1, 1), state.objects(), &both).unwrap(), (Role::Manager, 1));
        let promote = Command::NodeRole {
            node: "h2".into(),
            role: Role::Manager,
        };
        apply(&mut state, 20, &promote);
        assert_eq!(
            certified(&caller(2, 5), state.objects(), &both).unwrap(),
            (Role::Manager, 20),
            "promoted again"
        );
        assert_eq!(
            certified(&caller(3, 0), state.objects(), &both).unwrap_err().kind,
            RefusalKind::Forbidden
        );
    }
}
