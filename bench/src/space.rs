//! Namespaces of the bench's own, which leave nothing behind, and sandboxes for containers.

use std::{process::Command, sync::mpsc::channel};

use mesh_core::objects::{Place, Sandbox};
use mesh_overlay::netns;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

use crate::Failure;

/// Puts the calling thread, and what it starts from now on, into a network and a mount namespace of its own.
pub fn enter() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|e| format!("cannot make namespaces: {e} (is this root?)"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(())
}

/// A command; it must succeed.
pub fn sh(line: &str) -> Result<(), Failure> {
    let out = Command::new("sh").args(["-c", line]).output()?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&out.stderr).trim()).into())
}

/// An empty network namespace for a container. It is that of a thread that sleeps until the bench ends.
pub fn sandbox(n: usize) -> Result<Sandbox, Failure> {
    let (ready, made) = channel();
    std::thread::spawn(move || {
        let path = unshare(CloneFlags::CLONE_NEWNET).map(|()| format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid()));
        drop(ready.send(path));
        loop {
            std::thread::park();
        }
    });
    let path = made.recv()?.map_err(|e| format!("cannot make a network namespace: {e}"))?;
    let inode = netns::inode(&path)?;
    let place = Place {
        container: format!("netns:c{n}"),
        cookie: netns::cookie(&path)?,
        netns: path,
        ..Place::default()
    };
    Ok(Sandbox::new(inode, place))
}

/// Resident memory of this process in bytes.
pub fn rss() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}
