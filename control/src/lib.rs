//! The hosted control plane: consensus, storage, certificates, and the services that nodes and
//! managers call.
//!
//! What starts it, and what calls it, are functions that return a boxed future: the code of an `async fn` is
//! compiled wherever it is polled, and meshd and every test would have the whole of consensus once more.

pub mod authz;
pub mod client;
pub mod consensus;
pub mod disk;
pub mod health;
pub mod identity;
pub mod join;
pub mod manager;
pub mod pki;
pub mod raft;
pub mod roots;
pub mod server;
pub mod tls;
pub mod token;
pub mod transport;
pub mod watch;
