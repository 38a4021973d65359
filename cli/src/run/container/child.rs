//! The process that becomes the command, as meshctl sees it.

use std::{
    fs::File,
    future::Future,
    io::{self, PipeWriter, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, id},
};

use nix::{
    sys::signal::{Signal, raise},
    unistd::Pid,
};
use tokio::{io::AsyncReadExt, net::unix::pipe};

use super::{
    Error, REENTRY, cgroup,
    setup::{Identity, Setup},
    signals::{self, Signals, State},
};
use crate::args::run::Run;

/// The process.
pub struct Child {
    pid: Pid,
    /// It says here that its namespaces exist; the other end stays open until it has opened it too.
    ready: Option<(OwnedFd, PipeWriter)>,
    /// It waits here for its [`Setup`]. Closed without one, it ends.
    setup: File,
    /// Its end, for it to open.
    _setup_end: OwnedFd,
}

impl Child {
    /// Starts it in `cgroup`. It waits for [`Child::begin`] before it becomes the command.
    pub fn start(args: &Run, identity: Option<&Identity>, cgroup: &Path) -> Result<Self, Error> {
        let pipe = || io::pipe().map_err(Error::io("make a pipe"));
        let ((ready, ready_end), (setup_end, setup)) = (pipe()?, pipe()?);
        let mut command = Command::new("/proc/self/exe");
        // It opens its ends of the pipes by way of this process: what it inherited would reach the command.
        command.args([REENTRY, "init"]).arg(id().to_string());
        command
            .arg(ready_end.as_raw_fd().to_string())
            .arg(setup_end.as_raw_fd().to_string());
        command.args(&args.command).arg0("meshctl");
        if let Some(identity) = identity {
            command.envs(identity.variables());
        }
        command.envs(args.env.iter().cloned());
        if let Some(dir) = &args.workdir {
            command.current_dir(dir);
        }
        let child = command.spawn().map_err(Error::io("start a process"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|e| Error::io("start a process")(io::Error::other(e)))?);
        cgroup::enter(cgroup, pid.as_raw())?;
        Ok(Self {
            pid,
            ready: Some((ready.into(), ready_end)),
            setup: OwnedFd::from(setup).into(),
            _setup_end: setup_end.into(),
        })
    }

    /// Its process id, which the command keeps.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until its namespaces exist.
    pub fn ready(&mut self) -> impl Future<Output = io::Result<()>> + use<> {
        let ready = self.ready.take();
        async move {
            let Some((read, end)) = ready else { return Ok(()) };
            let read = pipe::Receiver::from_owned_fd(read)?.read_u8().await;
            drop(end);
            read.map(drop)
        }
    }

    /// Waits for `work`, unless a signal or the end of the process comes first: then the exit code.
    pub async fn until<T>(&self, signals: &mut Signals, work: impl Future<Output = T>) -> Result<Result<T, u8>, Error> {
        let mut work = std::pin::pin!(work);
        loop {
            let arrived = tokio::select! {
                done = &mut work => return Ok(Ok(done)),
                arrived = signals.next() => arrived?,
            };
            match arrived.signal {
                Signal::SIGCHLD => match signals::look(self.pid)? {
                    State::Ended(code) => return Ok(Err(code)),
                    State::Running | State::Stopped => {}
                },
                Signal::SIGTSTP => raise(Signal::SIGSTOP).map_err(Error::io("stop"))?,
                Signal::SIGWINCH | Signal::SIGCONT => {}
                signal => return Ok(Err(signals::after(signal))),
            }
        }
    }

    /// Lets it become the command.
    pub fn begin(mut self, setup: &Setup) -> Result<Begun, Error> {
        let bytes = serde_json::to_vec(setup).map_err(|e| Error::io("write the setup")(io::Error::other(e)))?;
        self.setup.write_all(&bytes).map_err(Error::io("tell the new process its setup"))?;
        Ok(Begun(self.pid))
    }
}

/// The process as the command.
pub struct Begun(Pid);

impl Begun {
    /// Passes signals on until the command ends: its exit code.
    pub async fn ended(self, signals: &mut Signals) -> Result<u8, Error> {
        let Self(pid) = self;
        loop {
            let arrived = signals.next().await?;
            if arrived.signal == Signal::SIGCHLD {
                match signals::look(pid)? {
                    State::Running => {}
                    State::Stopped => signals::stop_with(pid)?,
                    State::Ended(code) => return Ok(code),
                }
            } else if !arrived.to_group {
                signals::pass(pid, arrived.signal)?;
            }
        }
    }
}
