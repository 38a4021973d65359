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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

    #[test]
    fn each_script_tells_what_it_does() {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
        for script in fs::read_dir(scripts).unwrap().map(|entry| entry.unwrap().path()) {
            let about = script.metadata().unwrap();
            if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
                continue;
            }
            // With nothing done: not even its packages are looked for.
            let told = Command::new(&script).arg("--help").env("PATH", "/usr/bin:/bin").output().unwrap();
            let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
            assert!(told.status.success() && err.is_empty(), "{}: {err}", script.display());
            assert!(
                out.lines().count() > 1 && !out.contains("shellcheck"),
                "{}: {out}",
                script.display()
            );
        }
    }
}
