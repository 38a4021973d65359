//! What the kernel programs and their loader share: the layout of map keys and values, the maps'
//! sizes, the counters' names, and every decision and computation of the data path that needs no
//! kernel helper, so that it can be tested in user space.
//!
//! Built twice: for the host (loader, tests) and for the BPF target (ebpf/programs).
#![no_std]

#[cfg(test)]
extern crate std;

pub mod answer;
pub mod answer6;
pub mod checksum;
pub mod flow;
pub mod header;
pub mod quote;
pub mod reason;
pub mod rows;
pub mod spec;

pub use reason::Reason;
