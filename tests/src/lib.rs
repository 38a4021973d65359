//! What the scenarios of `tests/tests` share: the lab, driven from Rust.

mod asked;
mod bounded;
mod conn;
pub mod containerd;
pub mod cri;
mod docker;
mod host;
mod image;
pub mod kubelet;
mod lab;
mod place;
mod process;
mod wait;

pub use conn::{Connection, Held};
pub use docker::Docker;
pub use host::Host;
pub use image::image;
pub use lab::{BACKENDS, Done, Endpoint, Lab, Network, Reply, Result, Subnet, address, address6, runtime, tally};
pub use place::{Place, lab_dir};
pub use process::Process;
pub use wait::{until, within};
