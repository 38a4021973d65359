//! The decisions of meshd, without any I/O: what objects there are, what a command does to them,
//! which addresses are handed out, what a host must look like, and the steps that make it so.
//!
//! Every other crate depends on this one; it depends on none of them. All of it is deterministic:
//! the same input gives the same output on every manager and every node.

pub mod action;
pub mod balance;
pub mod command;
pub mod desired;
pub mod ids;
pub mod intent;
pub mod ipam;
pub mod labels;
pub mod lb;
pub mod mac;
pub mod names;
pub mod nft;
pub mod objects;
pub mod observed;
pub mod part;
pub mod plan;
pub mod refusal;
pub mod spec;
pub mod state;

pub use ids::Id;
pub use mac::Mac;
pub use refusal::{Refusal, RefusalKind};
