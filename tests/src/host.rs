//! A host of the lab that looks like a machine of its own to what runs there: its /run, /var/lib, bpffs and
//! name. For daemons that are started as they are on real hosts, with the paths of real hosts.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Stdio},
};

use crate::{Lab, Place, Result, lab_dir};

/// $0 is a directory for it, $1 its name, $2 the lab's directory; the rest is what it becomes. The lab finds
/// meshd's socket where it expects it.
const SPACE: &str = r#"
    hostname "$1"
    mkdir -p "$0/run" "$2/$1/run"
    mount -t tmpfs host "$0/run"
    mkdir -p "$0/run/netns" "$0/run/meshd"
    mount --rbind /run/netns "$0/run/netns"
    mount --bind "$2/$1/run" "$0/run/meshd"
    case $2 in /run/*)
        mkdir -p "$0$2"
        mount --bind "$2" "$0$2"
    esac
    mount --rbind "$0/run" /run
    mount -t tmpfs host /var/lib
    mount -t bpf host /sys/fs/bpf
    # As systemd has it; the lab's own mounts are not among these.
    mount --make-rshared /
    log=$0/log
    shift 2
    exec "$@" >"$log" 2>&1"#;

/// A daemon on such a host; killed when dropped. Containers are ended by `scripts/lab down`, by their cgroup.
pub struct Host<'a> {
    lab: &'a Lab,
    name: String,
    dir: PathBuf,
    daemon: Child,
}

impl<'a> Host<'a> {
    /// A directory of the lab's for the daemon `what` on `host`.
    pub fn dir(host: &str, what: &str) -> Result<PathBuf> {
        let dir = lab_dir().join(host).join(what);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// The cgroup of which `scripts/lab down` ends all processes.
    pub fn cgroup() -> String {
        format!("/lab{}", lab_dir().display().to_string().replace('/', "-"))
    }

    /// Starts `daemon` on a host of the lab, with `dir` for its files.
    pub fn start(lab: &'a Lab, name: &str, dir: PathBuf, daemon: &[&str]) -> Result<Self> {
        let (at, lab_dir) = (dir.display().to_string(), lab_dir().display().to_string());
        let words = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-ec", SPACE];
        let mut command = lab.command(Place::Host(name), &[&words[..], &[&at, name, &lab_dir], daemon].concat())?;
        let daemon = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let name = name.to_owned();
        Ok(Self { lab, name, dir, daemon })
    }

    /// A command in its mount namespace; words are split at spaces.
    pub fn inside(&self, command: &str) -> Result<String> {
        let command = format!("nsenter -t {} -m -- {command}", self.daemon.id());
        self.lab.at(Place::Host(&self.name), &command)?.ok()
    }

    /// A path of the host's, as this process sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.daemon.id()))
    }

    /// What the daemon said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // Nothing is left to do about it.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
