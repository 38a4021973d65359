//! Signals as a queue that says where each came from, and the end of a child among them.
//!
//! The command shares meshctl's process group and terminal, so what the terminal sends (Ctrl-C,
//! Ctrl-Z, a new size) reaches it by itself; only what somebody sent to meshctl is passed on.

use std::io;

use nix::{
    errno::Errno,
    libc::SI_KERNEL,
    sys::{
        signal::{SigSet, Signal, kill, raise},
        signalfd::{SfdFlags, SignalFd, siginfo},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::sync::mpsc;

use super::Error;

const TAKEN: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGALRM,
    Signal::SIGCHLD,
];

/// The queue.
pub struct Signals(mpsc::UnboundedReceiver<Arrived>);

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Which one.
    pub signal: Signal,
    /// From the kernel, as for a key on the terminal, and so to the whole process group.
    pub to_group: bool,
}

impl Signals {
    /// From now on signals wait here; they are blocked, also in programs that are started. To be called while the process has one thread: others would still be interrupted.
    pub fn take() -> Result<Self, Error> {
        let mask: SigSet = TAKEN.into_iter().collect();
        let (tell, told) = mpsc::unbounded_channel();
        let take = || {
            mask.thread_block()?;
            let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
            // Ends with the process, or when nobody listens any more.
            std::thread::Builder::new().name("signals".into()).spawn(move || read(&fd, &tell))
        };
        take().map_err(Error::io("receive signals"))?;
        Ok(Self(told))
    }

    /// Waits for the next.
    pub async fn next(&mut self) -> Result<Arrived, Error> {
        let next = self.0.recv().await;
        next.ok_or_else(|| Error::io("read signals")(io::Error::from(io::ErrorKind::UnexpectedEof)))
    }
}

fn read(fd: &SignalFd, tell: &mpsc::UnboundedSender<Arrived>) {
    loop {
        match fd.read_signal() {
            Ok(Some(info)) => {
                if tell.send(Arrived::from(&info)).is_err() {
                    return;
                }
            }
            Ok(None) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

impl From<&siginfo> for Arrived {
    fn from(info: &siginfo) -> Self {
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        Self {
            // Only those of the mask arrive, and all of them are known.
            signal: Signal::try_from(number).unwrap_or(Signal::SIGCHLD),
            to_group: info.ssi_code == SI_KERNEL,
        }
    }
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// A signal has stopped it.
    Stopped,
    /// It ended with this exit code: as a shell has it, 128+N after signal N.
    Ended(u8),
}

/// Looks at a child; once, for one that has ended.
pub fn look(pid: Pid) -> Result<State, Error> {
    match waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
        Ok(WaitStatus::Exited(_, code)) => Ok(State::Ended(u8::try_from(code).unwrap_or(u8::MAX))),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ok(State::Ended(after(signal))),
        Ok(WaitStatus::Stopped(..)) => Ok(State::Stopped),
        Ok(_) | Err(Errno::EINTR) => Ok(State::Running),
        Err(e) => Err(Error::io("wait for the command")(e)),
    }
}

/// The exit code after a signal.
pub fn after(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}

/// Passes a signal on. One that has ended meanwhile needs none.
pub fn pass(pid: Pid, signal: Signal) -> Result<(), Error> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::io(format!("send {signal} to the command"))(e)),
    }
}

/// Stops this process as its child was stopped, so that the shell takes the terminal back, and lets the
/// child go on with it. Without a terminal nobody would let them go on.
pub fn stop_with(pid: Pid) -> Result<(), Error> {
    if std::fs::File::open("/dev/tty").is_ok() {
        raise(Signal::SIGSTOP).map_err(Error::io("stop with the command"))?;
        pass(pid, Signal::SIGCONT)?;
    }
    Ok(())
}
