//! The types that openraft is parametrised with. As JSON they are what is on disk and on the wire.

use std::fmt;

use mesh_core::command::{Command, Outcome};
use openraft::{BasicNode, alias, impls::leader_id_std};
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// Standard leader ids: at most one leader in a term, as in the Raft paper.
    pub TypeConfig:
        D = Proposal,
        R = Response,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

/// The command of a log entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proposal(pub Command);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// What applying an entry answers; nothing for entries of raft itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Response(pub Option<Outcome>);

pub type Raft = openraft::Raft<TypeConfig, super::machine::Machine>;
pub type Entry = alias::EntryOf<TypeConfig>;
pub type LogId = alias::LogIdOf<TypeConfig>;
pub type Vote = alias::VoteOf<TypeConfig>;
pub type Membership = alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub type Metrics = openraft::RaftMetrics<TypeConfig>;
/// A snapshot in memory shares the objects with the state that it was taken of.
pub type Snapshot = alias::SnapshotOf<TypeConfig, std::sync::Arc<mesh_core::objects::Objects>>;
