//! One call at a time for a container: two ADDs that race must not undo each other's work.
//!
//! The turn is a lock on one byte of a file beside meshd's socket, the byte that the container's id
//! hashes to. It ends with the process, however that ends, and leaves nothing.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::naming::hash;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// A container's turn, for as long as this lives.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another call has it.
    #[error("another call for this container has not ended")]
    Taken,
    /// The file can not be locked.
    #[error("the lock file beside meshd's socket cannot be used")]
    File(#[source] io::Error),
}

/// Waits for a container's turn until `deadline`.
pub fn take(socket: &Path, container: &str, deadline: Instant) -> Result<Turn, Error> {
    let path = socket.with_file_name("cni.lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(Error::File)?;
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: hash(container).into(),
        l_len: 1,
        l_pid: 0,
    };
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(Turn(file)),
            Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < deadline => pause(PAUSE),
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(Error::Taken),
            Err(e) => return Err(Error::File(e.into())),
        }
    }
}

/// Between the looks of a bounded wait.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here that it could block")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_container_one_turn() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("meshd.sock");
        let soon = || Instant::now() + Duration::from_millis(30);
        let first = take(&socket, "a", soon()).unwrap();
        assert!(matches!(take(&socket, "a", soon()), Err(Error::Taken)));
        let other = take(&socket, "b", soon()).unwrap();
        drop(first);
        take(&socket, "a", soon()).unwrap();
        drop(other);
        let none = take(Path::new("/no/such/dir/meshd.sock"), "a", soon());
        assert!(matches!(none, Err(Error::File(_))));
    }
}
