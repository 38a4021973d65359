//! The service DNS: answers at the gateway address of every network on this host.
//!
//! The agent makes a [`mesh_core::names::NameTable`] from what is desired and swaps it in
//! ([`Dns::swap`]); containers find the gateway in their resolv.conf. Names are seen only from the
//! networks that they are on; what is no mesh name goes to the host's resolvers. Types of
//! hickory-proto and hickory-server stop at this crate.
//!
//! Queries, answers and their encoding are hickory-server's (`Request`, `RequestHandler`,
//! `ResponseHandler`, `MessageResponse`). Its `Server` is not used: it accepts TCP connections without
//! a bound, spins when there are no file descriptors left, answers malformed answers (a reflection
//! loop), and writes a log line for every query.

mod answer;
mod dns;
mod forward;
mod handler;
mod limit;
mod listen;
mod query;
mod reply;
mod resolv;
mod stats;
mod tcp;
mod udp;
mod upstream;
mod view;
mod wire;

pub use dns::{Config, Dns, LONGEST_TTL, SwapError};
pub use listen::{ListenError, Transport};
pub use stats::Stats;
