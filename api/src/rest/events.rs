//! The stream of events: what happened to the cluster's objects.

use std::str::FromStr;

use jiff::Timestamp;
use mesh_core::{Id, objects::Kind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Query of [`super::paths::EVENTS`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventsQuery {
    /// Begin with what is remembered after this point (see [`Since`]); else with what comes.
    pub since: Option<String>,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventAction {
    /// It was made.
    Create,
    /// It was changed.
    Update,
    /// It was removed.
    Remove,
}

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When this host learnt of it.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// Raft index of the change.
    pub revision: u64,
    /// What happened.
    pub action: EventAction,
    /// node, network, service or endpoint.
    #[schema(value_type = String)]
    pub kind: Kind,
    /// The object's id.
    #[schema(value_type = String)]
    pub id: Id,
    /// The object's name.
    pub name: String,
}

/// Where a stream of events begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// After this revision: how a reader that was cut off goes on.
    Revision(u64),
    /// At this time.
    Time(Timestamp),
}

impl Since {
    /// Whether `event` lies behind this point.
    pub fn covers(self, event: &Event) -> bool {
        match self {
            Self::Revision(r) => event.revision > r,
            Self::Time(t) => event.time >= t,
        }
    }
}

/// The text is neither a revision nor a time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is neither a revision nor a time (like 1042 or 2026-01-31T12:00:00Z)")]
pub struct NotAPoint(String);

impl FromStr for Since {
    type Err = NotAPoint;

    fn from_str(s: &str) -> Result<Self, NotAPoint> {
        match s.parse() {
            Ok(revision) => Ok(Self::Revision(revision)),
            Err(_) => s.parse().map(Self::Time).map_err(|_| NotAPoint(s.into())),
        }
    }
}

impl std::fmt::Display for Since {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Revision(r) => r.fmt(f),
            Self::Time(t) => t.fmt(f),
        }
    }
}
