//! Consensus on openraft, the log and the state on redb: the only part that sees either's types.
//!
//! [`RaftHost`] implements [`crate::consensus::Consensus`]. Its parts: [`log`] (the raft log and
//! the vote), [`machine`] (the replicated objects and the last applied entry, in one transaction),
//! [`snapshot`] (how a state travels), [`network`] (openraft's outgoing calls on a
//! [`crate::consensus::RaftTransport`]), [`members`] (changes of membership).

mod host;
mod leadership;
mod log;
mod machine;
mod members;
mod network;
mod snapshot;
mod store;
mod types;

pub use host::{RaftHost, StartError};

#[cfg(test)]
mod suite;
