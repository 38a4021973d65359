//! The file system of containers of real runtimes, made of what this machine has: nothing is pulled.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use crate::{Result, place::programs};

/// Programs that containers find beside meshd-echo, all of busybox.
const APPLETS: [&str; 11] = [
    "sh", "sleep", "ip", "ping", "cat", "nslookup", "hostname", "true", "kill", "touch", "rm",
];

/// A root filesystem as an archive, for the caller to remove: busybox, meshd-echo and the libraries that it needs.
pub fn image() -> Result<PathBuf> {
    let made = tempfile::tempdir()?;
    let (root, bin) = (made.path(), made.path().join("bin"));
    fs::create_dir_all(&bin)?;
    fs::copy("/bin/busybox", bin.join("busybox"))?;
    for applet in APPLETS {
        symlink("busybox", bin.join(applet))?;
    }
    let echo = programs()?.join("meshd-echo");
    fs::copy(&echo, bin.join("meshd-echo"))?;
    let libraries = Command::new("ldd").arg(&echo).output()?;
    for path in String::from_utf8_lossy(&libraries.stdout)
        .split_ascii_whitespace()
        .filter(|w| w.starts_with('/'))
    {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        fs::copy(path, to)?;
    }
    let archive = tempfile::Builder::new().prefix("mesh-image-").suffix(".tar").tempfile()?;
    let done = Command::new("tar")
        .arg("-C")
        .arg(root)
        .arg("-cf")
        .arg(archive.path())
        .arg(".")
        .status()?;
    if done.success() {
        Ok(archive.keep()?.1)
    } else {
        Err("tar failed".into())
    }
}
