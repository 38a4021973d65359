//! The file system of containers of real runtimes, made of what this machine has: nothing is pulled.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Result;

/// Programs that containers find beside meshd-echo, all of busybox.
const APPLETS: [&str; 9] = ["sh", "sleep", "ip", "ping", "cat", "nslookup", "hostname", "true", "kill"];

/// A root filesystem as an archive: busybox, meshd-echo and the libraries that it needs.
pub fn image() -> Result<PathBuf> {
    let root = std::env::temp_dir().join(format!("mesh-image-{}", std::process::id()));
    let (bin, archive) = (root.join("bin"), root.with_extension("tar"));
    fs::create_dir_all(&bin)?;
    fs::copy("/bin/busybox", bin.join("busybox"))?;
    for applet in APPLETS {
        symlink("busybox", bin.join(applet))?;
    }
    let echo = echo()?;
    fs::copy(&echo, bin.join("meshd-echo"))?;
    let libraries = Command::new("ldd").arg(&echo).output()?;
    for path in String::from_utf8_lossy(&libraries.stdout)
        .split_ascii_whitespace()
        .filter(|w| w.starts_with('/'))
    {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap_or(&root))?;
        fs::copy(path, to)?;
    }
    let done = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg(".")
        .status()?;
    fs::remove_dir_all(&root)?;
    if done.success() { Ok(archive) } else { Err("tar failed".into()) }
}

/// Where `scripts/lab` takes its programs from.
fn echo() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("MESH_LAB_BIN") {
        return Ok(Path::new(&dir).join("meshd-echo"));
    }
    // target/release/deps/TEST
    let test = std::env::current_exe()?;
    let dir = test.ancestors().nth(2).ok_or("the test is nowhere")?;
    Ok(dir.join("meshd-echo"))
}
