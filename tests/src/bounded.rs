//! A process that is ended when it takes too long.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Command, Output, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(5);

/// What a command says, and how it ends. After `seconds` it is ended, with what it has started: by TERM, and by
/// KILL when that does not help.
pub fn output(seconds: u64, command: &mut Command) -> io::Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (done, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for (wait, signal) in [(Duration::from_secs(seconds), Signal::SIGTERM), (GRACE, Signal::SIGKILL)] {
                if over.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                // It may have ended just now.
                let _ = killpg(group, signal);
            }
        });
        let output = child.wait_with_output();
        drop(done);
        output
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, time::Instant};

    use super::*;

    #[test]
    fn says_what_it_said() -> io::Result<()> {
        let done = output(60, Command::new("sh").args(["-c", "echo a; echo b >&2; exit 3"]))?;
        assert_eq!(
            (done.status.code(), &*done.stdout, &*done.stderr),
            (Some(3), &b"a\n"[..], &b"b\n"[..])
        );
        Ok(())
    }

    #[test]
    fn is_ended_with_what_it_started() -> io::Result<()> {
        let began = Instant::now();
        let done = output(1, Command::new("sh").args(["-c", "sleep 1000 & echo a; sleep 1000"]))?;
        assert_eq!((done.status.signal(), &*done.stdout), (Some(15), &b"a\n"[..]));
        assert!(began.elapsed() < Duration::from_secs(500));
        Ok(())
    }
}
