//! Where a command runs in the lab. What scenarios ask for most is asked here without `scripts/lab`, whose
//! `exec`, `sh` and `client` do the same: a shell costs more than most questions.

use std::{
    env,
    ffi::OsString,
    iter,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Result, runtime};

/// A place in the lab.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In a host's namespace.
    Host(&'a str),
    /// In a container.
    In(&'a str),
    /// On the client machine, which is no node.
    Client,
}

/// A container of plain namespaces: its own host name, too.
const NAMED: &str = r#"hostname "$0" && exec "$@""#;

impl Place<'_> {
    /// A process that becomes `command`, there.
    pub(crate) fn command(&self, command: &[&str]) -> Result<Command> {
        let mut made = match self {
            Self::Host(host) => {
                let (mut made, of) = (entering(&format!("mesh-{host}")), lab_dir().join(host));
                let docker = format!("unix://{}", of.join("docker/docker.sock").display());
                made.env("MESHD_SOCKET", of.join("run/meshd.sock")).env("DOCKER_HOST", docker);
                made
            }
            Self::Client => entering("mesh-client"),
            Self::In(container) if runtime() == "netns" => {
                let mut made = Command::new("ip");
                made.args(["netns", "exec", container, "unshare", "--uts", "--", "sh", "-c", NAMED, container]);
                made.env("MESH_ENDPOINT", container);
                made
            }
            Self::In(container) => {
                let mut made = Command::new(script());
                made.args(["sh", container, "--"]);
                made
            }
        };
        made.args(command).env("PATH", path()?);
        Ok(made)
    }

    /// How `scripts/lab` calls it, for messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Host(host) => format!("exec {host} --"),
            Self::In(container) => format!("sh {container} --"),
            Self::Client => "client --".to_owned(),
        }
    }
}

fn entering(namespace: &str) -> Command {
    let mut made = Command::new("nsenter");
    made.arg(format!("--net=/run/netns/{namespace}")).arg("--");
    made
}

/// Where the lab keeps its files.
pub fn lab_dir() -> PathBuf {
    env::var_os("MESH_LAB_DIR").map_or_else(|| "/run/mesh-lab".into(), PathBuf::from)
}

/// `scripts/lab`.
pub(crate) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lab")
}

/// Where `scripts/lab` takes its programs from.
pub(crate) fn programs() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("MESH_LAB_BIN") {
        return Ok(dir.into());
    }
    // target/release/deps/TEST
    let test = env::current_exe()?;
    Ok(test.ancestors().nth(2).ok_or("the test is nowhere")?.to_owned())
}

/// PATH as `scripts/lab` sets it.
fn path() -> Result<OsString> {
    let given = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin".into(), "/sbin".into()];
    Ok(env::join_paths(
        iter::once(programs()?).chain(env::split_paths(&given)).chain(more),
    )?)
}
