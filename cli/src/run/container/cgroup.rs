//! The command's cgroup: a child of meshctl's own in the unified hierarchy (cgroup v2), wherever that
//! is mounted. No controller is enabled in it; it is what tells the command's processes from others.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;

/// Between two looks, should the kernel's notice be missed.
const LOOK_AGAIN_MS: u16 = 1000;

/// Makes a cgroup for the command of the process `owner`.
pub fn make(owner: u32) -> Result<PathBuf, Error> {
    let read = |path: &str| fs::read_to_string(path).map_err(Error::io(format!("read {path}")));
    let parent = parent(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?).ok_or(Error::NoCgroups)?;
    let dir = parent.join(format!("mesh-run-{owner}"));
    let make = || fs::create_dir(&dir);
    let made = match make() {
        // A former owner of this process id was killed together with its janitor.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fs::remove_dir(&dir).and_then(|()| make()),
        made => made,
    };
    made.map_err(Error::io(format!("make the cgroup {}", dir.display())))?;
    Ok(dir)
}

/// Moves a process into it.
pub fn enter(dir: &Path, pid: i32) -> Result<(), Error> {
    fs::write(dir.join("cgroup.procs"), pid.to_string()).map_err(Error::io(format!("move a process to the cgroup {}", dir.display())))
}

/// Kills every process in it, however fast they fork (cgroup.kill, Linux 5.14), and removes it when
/// they are gone.
pub fn end(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.kill"), "1")?;
    let path = dir.join("cgroup.events");
    loop {
        // Every change of it is a notice of priority (Documentation/admin-guide/cgroup-v2.rst); reading
        // it takes the former ones.
        let events = File::open(&path)?;
        if !io::read_to_string(&events)?.contains("populated 1") {
            break;
        }
        poll(
            &mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)],
            PollTimeout::from(LOOK_AGAIN_MS),
        )?;
    }
    remove(dir)
}

/// Removes a cgroup with those that the command made in it.
fn remove(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Where a process with these `/proc/self/mountinfo` and `/proc/self/cgroup` is in the unified
/// hierarchy (proc_pid_mountinfo(5), cgroups(7)).
fn parent(mountinfo: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        let below = own.strip_prefix(root.trim_end_matches('/')).unwrap_or("");
        // A cgroup outside of what this namespace sees begins with "/..": the root has to do then.
        let below = if below.split('/').any(|part| part == "..") { "" } else { below };
        Some(Path::new(point).join(below.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_place() {
        let unified = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let plain = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let part = "30 23 0:26 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let old = "29 23 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        for (mounts, own, place) in [
            (format!("{old}{unified}"), "8:cpu:/a\n0::/\n", Some("/sys/fs/cgroup/unified")),
            (
                plain.to_owned(),
                "0::/system.slice/web.service\n",
                Some("/sys/fs/cgroup/system.slice/web.service"),
            ),
            (part.to_owned(), "0::/docker/x/y\n", Some("/sys/fs/cgroup/y")),
            (plain.to_owned(), "0::/../other\n", Some("/sys/fs/cgroup")),
            (old.to_owned(), "8:cpu:/a\n0::/\n", None),
            (plain.to_owned(), "8:cpu:/a\n", None),
            ("nonsense".to_owned(), "0::/", None),
        ] {
            assert_eq!(parent(&mounts, own), place.map(PathBuf::from), "{mounts}{own}");
        }
    }
}
