//! Changes of membership: one at a time, new managers brought up to date before they vote, and
//! refused before anything is written when the members would have no majority.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    time::Duration,
};

use openraft::{
    BasicNode, ChangeMembers, Instant as _,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RaftError},
};

use super::{
    host::{api_error, fatal},
    leadership::SILENCE,
    types::{Metrics, Raft, TypeConfig},
};
use crate::consensus::ConsensusError;

/// Time for one change to be committed.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a new manager to be brought up to date.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

/// Makes `managers` the members. See [`crate::consensus::Consensus::set_members`].
pub async fn set(raft: &Raft, managers: &BTreeMap<u64, String>) -> Result<(), ConsensusError> {
    if managers.is_empty() {
        return Err(ConsensusError::Invalid("a cluster can not be without managers".into()));
    }
    settle(raft).await?;
    let known: BTreeMap<u64, String> = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .nodes()
            .map(|(id, node)| (*id, node.addr.clone()))
            .collect()
    };
    let moved: BTreeMap<u64, BasicNode> = managers
        .iter()
        .filter(|(id, addr)| known.get(id).is_some_and(|old| old != *addr))
        .map(|(id, addr)| (*id, BasicNode::new(addr)))
        .collect();
    if !moved.is_empty() {
        commit(raft.change_membership(ChangeMembers::SetNodes(moved), true)).await?;
    }
    // Those that leave go first: they wait for it, and a new one that is not there must not hold
    // them up.
    let wanted: BTreeSet<u64> = managers.keys().copied().collect();
    let staying: BTreeSet<u64> = voters(raft).intersection(&wanted).copied().collect();
    if !staying.is_empty() {
        vote(raft, staying).await?;
    }
    let (target, missing) = take_in(raft, managers).await?;
    vote(raft, target).await?;
    let left = metrics(raft, |m| {
        m.membership_config
            .nodes()
            .map(|(id, _)| *id)
            .filter(|id| !wanted.contains(id))
            .collect::<BTreeSet<_>>()
    });
    if !left.is_empty() {
        commit(raft.change_membership(ChangeMembers::RemoveNodes(left), false)).await?;
    }
    missing.map_or(Ok(()), Err)
}

fn voters(raft: &Raft) -> BTreeSet<u64> {
    metrics(raft, |m| m.membership_config.voter_ids().collect())
}

/// Makes `target` the voters, unless they are.
async fn vote(raft: &Raft, target: BTreeSet<u64>) -> Result<(), ConsensusError> {
    let joint = metrics(raft, |m| m.membership_config.get_joint_config().len() > 1);
    if voters(raft) == target && !joint {
        return Ok(());
    }
    majority(raft, &target)?;
    commit(raft.change_membership(ChangeMembers::ReplaceAllVoters(target), false)).await
}

/// Brings up to date those of `managers` that have no vote yet: all that can vote now, and the first
/// reason why another one can not.
async fn take_in(raft: &Raft, managers: &BTreeMap<u64, String>) -> Result<(BTreeSet<u64>, Option<ConsensusError>), ConsensusError> {
    let voting = voters(raft);
    let mut target: BTreeSet<u64> = managers.keys().filter(|id| voting.contains(id)).copied().collect();
    let new: Vec<_> = managers.iter().filter(|(id, _)| !voting.contains(id)).collect();
    for (id, addr) in &new {
        if metrics(raft, |m| m.membership_config.get_node(id).is_none()) {
            tracing::info!(raft_id = id, addr, "taking a manager in");
            commit(raft.add_learner(**id, BasicNode::new(*addr), false)).await?;
        }
    }
    // All at once: one that does not answer keeps nobody waiting but itself.
    let arrivals = new.iter().map(|(id, addr)| catch_up(raft, **id, addr));
    let mut missing = None;
    for ((id, addr), arrived) in new.iter().zip(futures::future::join_all(arrivals).await) {
        match arrived {
            Ok(()) => drop(target.insert(**id)),
            Err(error) => {
                tracing::warn!(raft_id = id, addr, %error, "a new manager has no vote yet");
                missing.get_or_insert(error);
            }
        }
    }
    // Nobody who votes now stays, and nobody new can: nothing to change to.
    match missing {
        Some(error) if target.is_empty() => Err(error),
        missing => Ok((target, missing)),
    }
}

fn metrics<T>(raft: &Raft, read: impl FnOnce(&Metrics) -> T) -> T {
    read(&raft.metrics().borrow_watched())
}

/// Waits until the change before is committed, which may be one that was given up half way: openraft
/// refuses another one until then. It is asked itself, since one that was given up a moment ago may still be on its way
/// to it, and nowhere in the metrics.
async fn settle(raft: &Raft) -> Result<(), ConsensusError> {
    let last = raft.with_raft_state(|state| state.membership_state.effective().log_id().map(|l| l.index));
    let last = last.await.map_err(|e| fatal(&e))?;
    let committed = |m: &Metrics| last <= m.local_committed.map(|l| l.index);
    match raft
        .wait(Some(COMMIT_TIMEOUT))
        .metrics(committed, "the change of managers before is committed")
        .await
    {
        Ok(_) => Ok(()),
        Err(_) => Err(ConsensusError::NoQuorum(format!(
            "the change of managers before was not confirmed by a majority within {COMMIT_TIMEOUT:?}"
        ))),
    }
}

/// Waits for one change, within bounds.
async fn commit<T>(change: impl Future<Output = Result<T, WriteError>>) -> Result<(), ConsensusError> {
    match tokio::time::timeout(COMMIT_TIMEOUT, change).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(e)))) => Err(ConsensusError::Invalid(e.to_string())),
        Ok(Err(e)) => Err(api_error(e)),
        Err(_) => Err(ConsensusError::NoQuorum(format!(
            "the change of managers was not confirmed by a majority within {COMMIT_TIMEOUT:?}"
        ))),
    }
}

/// Waits until a learner has all that was committed when this began.
async fn catch_up(raft: &Raft, id: u64, addr: &str) -> Result<(), ConsensusError> {
    let goal = metrics(raft, |m| m.local_committed.map(|l| l.index));
    let arrived = |m: &Metrics| {
        let matched = m.replication.as_ref().and_then(|r| r.get(&id).cloned().flatten());
        // No replication at all: this manager does not lead any more, which the next step reports.
        m.replication.is_none() || matched.map(|l| l.index) >= goal
    };
    match raft
        .wait(Some(CATCH_UP_TIMEOUT))
        .metrics(arrived, "a new manager has caught up")
        .await
    {
        Ok(_) => Ok(()),
        Err(_) => Err(ConsensusError::NoQuorum(format!(
            "the new manager {addr} has not caught up within {CATCH_UP_TIMEOUT:?}"
        ))),
    }
}

/// Refuses members of which a majority is not heard: the change could not be committed, and nothing
/// else after it.
fn majority(raft: &Raft, members: &BTreeSet<u64>) -> Result<(), ConsensusError> {
    let me = *raft.node_id();
    let silent: Vec<String> = metrics(raft, |m| {
        let heard = |id: &u64| {
            let at = m.heartbeat.as_ref().and_then(|h| h.get(id).cloned().flatten());
            *id == me || at.is_some_and(|at| at.into_inner().elapsed() < SILENCE)
        };
        let name = |id: &u64| m.membership_config.get_node(id).map_or_else(|| id.to_string(), |n| n.addr.clone());
        members.iter().filter(|id| !heard(id)).map(name).collect()
    });
    if (members.len() - silent.len()) * 2 > members.len() {
        return Ok(());
    }
    let (up, all) = (members.len() - silent.len(), members.len());
    Err(ConsensusError::NoQuorum(format!(
        "the managers would have no majority: {up} of {all} answer, {} not",
        silent.join(", ")
    )))
}
