//! What the rest of the manager sees of consensus: propose, read, follow, and who leads.
//!
//! [`crate::raft::RaftHost`] is the implementation; nothing here names it, so that the server, the
//! watches and the agent do not either. [`RaftTransport`] is the other direction: how one manager's
//! consensus reaches another's, implemented over mTLS.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use mesh_core::{
    Refusal,
    command::{Command, Outcome},
    objects::{Change, Objects},
};
use tokio::sync::{broadcast, watch};

/// A command that was carried out, or refused, in its turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Raft index of its log entry.
    pub revision: u64,
    /// What it answered.
    pub outcome: Outcome,
}

/// What one log entry changed. A batch without changes only moves the revision on.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Raft index of the entry; of a snapshot's last entry when one was installed.
    pub revision: u64,
    /// The changes, in order; all of them or none are visible in [`Consensus::objects`].
    pub changes: Arc<Vec<Change>>,
}

/// Leadership as this manager sees it. It may be behind: only [`Consensus::propose`] and
/// [`Consensus::read_barrier`] prove anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Raft term.
    pub term: u64,
    /// Raft id of the leader, as far as it is known and has been heard lately.
    pub leader: Option<u64>,
    /// This manager is the leader.
    pub is_leader: bool,
    /// `host:port` of the leader.
    pub leader_addr: Option<String>,
    /// Raft ids and `host:port` of the managers that vote.
    pub voters: BTreeMap<u64, String>,
    /// Those that are being brought up to date.
    pub learners: BTreeMap<u64, String>,
}

/// Why consensus did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsensusError {
    /// Another manager leads, or none does. Nothing was changed.
    #[error("{}", match .leader {
        Some(leader) => format!("this manager does not lead the cluster, {leader} does"),
        None => "no manager leads the cluster now: more than half of the managers must be up and reach each other".into(),
    })]
    NotLeader {
        /// `host:port` of the leader, where it is known.
        leader: Option<String>,
    },
    /// No majority answered in time. What was proposed may still be carried out later.
    #[error("{0}; more than half of the managers must be up and reach each other")]
    NoQuorum(String),
    /// The request itself can not be carried out.
    #[error("{0}")]
    Invalid(String),
    /// Consensus has stopped on this manager, for good.
    #[error("consensus has stopped on this manager: {0}")]
    Fatal(String),
}

impl From<ConsensusError> for Refusal {
    fn from(e: ConsensusError) -> Self {
        match e {
            ConsensusError::Invalid(why) => Self::other(why),
            e => Self::unavailable(e.to_string()),
        }
    }
}

/// The kinds of messages between managers, besides snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RaftRpc {
    /// Log entries, or a heartbeat.
    Append,
    /// A request for a vote, or whether one would be given.
    Vote,
    /// The leader hands over.
    TransferLeader,
}

/// The replicated state, as one manager takes part in it.
#[async_trait]
pub trait Consensus: Send + Sync + 'static {
    /// Appends a command to the log and waits until it is applied here; 5 s at most.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`] on a follower: ask the leader. [`ConsensusError::NoQuorum`]
    /// when the outcome is not known: the command may yet be applied.
    async fn propose(&self, command: Command) -> Result<Applied, ConsensusError>;

    /// Proves, by asking a majority, that this manager still leads (ReadIndex, Raft thesis 6.4),
    /// and waits until all that was committed before is applied here. After `Ok(revision)`,
    /// [`Self::objects`] is linearizable and at least at that revision.
    ///
    /// # Errors
    /// As [`Self::propose`].
    async fn read_barrier(&self) -> Result<u64, ConsensusError>;

    /// The applied objects and their revision. Do not keep it for long: while somebody does, the
    /// next change copies the maps.
    fn objects(&self) -> (u64, Arc<Objects>);

    /// What is applied from now on, in order. Objects are updated before their batch is sent:
    /// subscribe, then read [`Self::objects`], then skip batches up to that revision. A receiver
    /// that falls behind learns so.
    fn subscribe(&self) -> broadcast::Receiver<Batch>;

    /// Who leads.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// `Some(why)` once consensus has stopped for good: the log or the state could not be written,
    /// or turned out to be damaged. The process must then exit and say so.
    fn fatal(&self) -> watch::Receiver<Option<String>>;

    /// Makes `managers` (raft id to `host:port`) the members; leader only. New ones are added as
    /// learners, brought up to date and then given a vote; those not listed are removed. A raft id
    /// is never given to another manager. Can be repeated at will.
    ///
    /// # Errors
    /// [`ConsensusError::NoQuorum`] when a new manager does not catch up or is not reached, or when
    /// the members would have no majority that is up; then nobody was removed.
    async fn set_members(&self, managers: BTreeMap<u64, String>) -> Result<(), ConsensusError>;

    /// Hands leadership to another voter and waits until it leads; leader only.
    ///
    /// # Errors
    /// [`ConsensusError::Invalid`] when `to` has no vote, [`ConsensusError::NoQuorum`] when it does
    /// not take over.
    async fn transfer_leader(&self, to: u64) -> Result<(), ConsensusError>;

    /// Answers a message of another manager that is for raft id `to`; 0: it did not say, as older releases.
    ///
    /// # Errors
    /// [`ConsensusError::Invalid`] for a payload that can not be read, and for a message to another raft id:
    /// what this manager writes and promises counts for nobody else.
    async fn handle(&self, to: u64, rpc: RaftRpc, payload: Bytes) -> Result<Bytes, ConsensusError>;

    /// Takes in a snapshot that another manager streams to raft id `to`, as in [`Self::handle`].
    ///
    /// # Errors
    /// [`ConsensusError::Invalid`] for a stream that breaks off, can not be read or is for another raft id.
    async fn handle_snapshot(&self, to: u64, stream: BoxStream<'static, Result<Bytes, String>>) -> Result<Bytes, ConsensusError>;

    /// Stops taking part and closes the files.
    async fn shutdown(&self);
}

/// Why a message did not get an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// No connection: consensus waits a little before it tries again.
    #[error("can not reach {addr}: {why}")]
    Unreachable {
        /// `host:port` of the manager.
        addr: String,
        /// Why.
        why: String,
    },
    /// The manager answered with an error, or the connection broke.
    #[error("{addr} did not answer: {why}")]
    Failed {
        /// `host:port` of the manager.
        addr: String,
        /// Why.
        why: String,
    },
    /// No answer in time.
    #[error("{addr} did not answer within {after:?}")]
    Timeout {
        /// `host:port` of the manager.
        addr: String,
        /// The time it had.
        after: Duration,
    },
}

/// How one manager's consensus reaches another's [`Consensus::handle`]: the manager with raft id `to`, expected at
/// `addr`. A host that was a manager before has another raft id now, and may still run as the old one.
///
/// Snapshots must not hold up appends: they need a connection of their own. Messages may be lost
/// or repeated, but not altered.
#[async_trait]
pub trait RaftTransport: Send + Sync + 'static {
    /// Sends one message and returns the answer.
    ///
    /// # Errors
    /// See [`TransportError`].
    async fn call(&self, addr: &str, to: u64, rpc: RaftRpc, payload: Bytes, timeout: Duration) -> Result<Bytes, TransportError>;

    /// Streams a snapshot, in chunks of at most 64 KiB, and returns the answer.
    ///
    /// # Errors
    /// See [`TransportError`].
    async fn snapshot(&self, addr: &str, to: u64, stream: BoxStream<'static, Bytes>) -> Result<Bytes, TransportError>;
}
