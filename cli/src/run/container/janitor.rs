//! The process that ends what a command leaves in its cgroup, and removes the cgroup.
//!
//! It waits for the end of meshctl's side of a pipe, which comes whatever ends meshctl, SIGKILL included.
//! No signal but SIGKILL reaches it, and it is in no process group that others kill.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Command, ExitCode, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::SigSet,
    unistd::{Pid, chdir},
};

use super::{
    Error, REENTRY, cgroup,
    signals::{self, Signals, State},
};

/// The janitor as meshctl sees it, with the cgroup that it looks after.
pub struct Janitor {
    child: process::Child,
    cgroup: PathBuf,
}

impl Janitor {
    /// Makes the cgroup, and starts it.
    pub fn start() -> Result<Self, Error> {
        let cgroup = cgroup::make(process::id())?;
        let child = Command::new("/proc/self/exe")
            .args([REENTRY, "janitor"])
            .arg(&cgroup)
            .arg0("meshctl")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Ok(Self { child, cgroup }),
            Err(e) => {
                // Nothing is in it.
                let _ = std::fs::remove_dir(&cgroup);
                Err(Error::io("start a process")(e))
            }
        }
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Has everything in the cgroup ended, and the cgroup removed; false when that lasts longer than `limit`, or
    /// cannot be told.
    pub async fn finish(mut self, signals: &mut Signals, limit: Duration) -> bool {
        drop(self.child.stdin.take());
        let Ok(pid) = i32::try_from(self.child.id()) else { return false };
        let pid = Pid::from_raw(pid);
        let ended = async {
            loop {
                match signals::look(pid) {
                    Ok(State::Ended(code)) => return code == 0,
                    Ok(_) => {}
                    Err(_) => return false,
                }
                // The end of any child; other signals come too late to matter.
                if signals.next().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(limit, ended).await.unwrap_or(false)
    }
}

/// `CGROUP`; the pipe is its standard input.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(dir) = args.next().map(PathBuf::from) else {
        return ExitCode::FAILURE;
    };
    let prepared = SigSet::all().thread_block().and_then(|()| chdir("/"));
    let waited = io::copy(&mut io::stdin().lock(), &mut io::sink());
    let ended = cgroup::end(&dir);
    if prepared.is_ok() && waited.is_ok() && ended.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
