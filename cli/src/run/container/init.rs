//! The process that makes the namespaces, waits for the endpoint, and becomes the command.
//!
//! Runs alone in its process, before any thread: `unshare` acts on a thread, and what it makes here the
//! command must have. It ends with meshctl: by the pipe that it reads as long as it waits, then by the
//! signal that the kernel sends when the parent ends.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal},
    },
    unistd::{getppid, sethostname},
};

use super::{Error, files, setup::Setup};
use crate::failure::say;

/// Exit codes of shells (POSIX 2.8.2): not found, and found but not to be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

/// `PARENT READY-FD SETUP-FD CMD…`; returns only when there is no command.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match become_command(args.collect()) {
        Ok(never) => match never {},
        Err(Ended::Alone) => ExitCode::FAILURE,
        Err(Ended::Failed(e)) => {
            say(&e.one_line());
            ExitCode::FAILURE
        }
        Err(Ended::NotRun(program, e)) => {
            say(&format!("cannot run {program:?}: {e}"));
            ExitCode::from(if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN })
        }
    }
}

/// Why there is no command.
enum Ended {
    /// meshctl has gone, or given up: nobody wants it any more.
    Alone,
    /// The kernel refuses.
    Failed(Error),
    /// The command cannot be run.
    NotRun(OsString, io::Error),
}

impl From<Error> for Ended {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

fn become_command(args: Vec<OsString>) -> Result<Infallible, Ended> {
    let [parent, ready, setup, program, rest @ ..] = args.as_slice() else {
        return Err(Ended::Alone);
    };
    end_with_parent(parent)?;
    // What meshctl takes in another way, the command takes as every program does.
    SigSet::empty().thread_set_mask().map_err(Error::io("unblock signals"))?;
    let end = |fd: &OsString| format!("/proc/{}/fd/{}", parent.display(), fd.display());
    let mut ready = OpenOptions::new().write(true).open(end(ready)).map_err(|_| Ended::Alone)?;
    let mut setup = File::open(end(setup)).map_err(|_| Ended::Alone)?;

    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).map_err(Error::io("make namespaces"))?;
    ready.write_all(b".").map_err(|_| Ended::Alone)?;
    drop(ready);

    let mut bytes = Vec::new();
    setup.read_to_end(&mut bytes).map_err(Error::io("read the setup"))?;
    let setup: Setup = serde_json::from_slice(&bytes).map_err(|_| Ended::Alone)?;
    sethostname(&setup.hostname).map_err(Error::io(format!("set the host name {:?}", setup.hostname)))?;
    files::cover(&setup)?;
    if let Some(identity) = &setup.identity {
        identity.take_on().map_err(Error::io(format!("become user {}", identity.uid)))?;
        // The kernel forgets the signal with a change of user (prctl(2)).
        end_with_parent(parent)?;
    }
    let error = Command::new(program).args(rest).exec();
    Err(Ended::NotRun(program.clone(), error))
}

/// Has the kernel end this process when meshctl ends, should it not have ended already.
fn end_with_parent(parent: &OsString) -> Result<(), Ended> {
    set_pdeathsig(Signal::SIGKILL).map_err(Error::io("tie the command to meshctl"))?;
    let still = parent.to_str().is_some_and(|p| p == getppid().to_string());
    if still { Ok(()) } else { Err(Ended::Alone) }
}
