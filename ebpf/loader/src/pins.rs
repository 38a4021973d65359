//! The pin directory: `<bpffs>/vN/maps/<MAP>`, `<bpffs>/vN/links/<program>-<ifindex>` and
//! `<bpffs>/vN/sockets/<hook>`.
//!
//! The version N changes whenever the shape or meaning of a map does; what is pinned under another one
//! goes on until the programs of this one have taken its place ([`crate::migrate`]).

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, util::nr_cpus};
use mesh_ebpf_common::{
    rows::Stat,
    spec::{self, MapSpec},
};
use nix::{
    mount::{MsFlags, mount, umount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{Error, hooks};

/// The version of the pins.
const VERSION: &str = "v5";
/// Where a bpffs is mounted by custom.
const USUAL: &str = "/sys/fs/bpf";

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Path { doing, path, source }
}

/// Directory of the maps' pins.
pub fn maps(bpffs: &Path) -> PathBuf {
    bpffs.join(VERSION).join("maps")
}

/// Directory of the attachments' pins.
pub fn links(bpffs: &Path) -> PathBuf {
    bpffs.join(VERSION).join("links")
}

/// Directory of the pins of the sockets' hooks.
pub fn sockets(bpffs: &Path) -> PathBuf {
    bpffs.join(VERSION).join("sockets")
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    let fs = statfs(path)
        .map_err(io::Error::from)
        .map_err(failed("ask the file system of", path))?;
    Ok(fs.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs(path: &Path) -> Result<(), Error> {
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(io::Error::from)
        .map_err(failed("mount a bpffs at", path))
}

/// Makes the directories, and a bpffs below them where there is none.
pub fn prepare(bpffs: &Path) -> Result<(), Error> {
    // In sysfs no directory can be made: there the bpffs belongs to the directory above.
    let usual = Path::new(USUAL);
    if bpffs.starts_with(usual) && usual.exists() && !is_bpffs(usual)? {
        mount_bpffs(usual)?;
    }
    fs::create_dir_all(bpffs).map_err(failed("make directory", bpffs))?;
    if !is_bpffs(bpffs)? {
        mount_bpffs(bpffs)?;
    }
    for dir in [maps(bpffs), links(bpffs), sockets(bpffs)] {
        fs::create_dir_all(&dir).map_err(failed("make directory", &dir))?;
    }
    Ok(())
}

/// What the statistics of all CPUs may take together, in bytes.
const STATS_BYTES: usize = 24 << 20;

/// The least that an LRU map has room for: every CPU keeps some rows of it in reserve.
const YOUNG: u32 = 8192;

/// The map with the size that is wanted on this host.
pub fn sized(spec: MapSpec, flow_table_size: u32) -> MapSpec {
    let is = |maps: &[MapSpec]| maps.iter().any(|m| m.name == spec.name);
    let max_entries = if is(&[spec::FLOWS_KEPT, spec::REPLIES_KEPT]) {
        flow_table_size
    } else if is(&[spec::FLOWS, spec::REPLIES, spec::AFFINITY, spec::SOCKETS]) {
        (flow_table_size / 8).max(YOUNG)
    } else if is(&[spec::STATS, spec::STAT_ROWS, spec::STAT_FREE]) {
        let row = size_of::<Stat>() * nr_cpus().unwrap_or(1);
        u32::try_from(STATS_BYTES / row).map_or(spec.max_entries, |rows| rows.clamp(1024, spec.max_entries))
    } else {
        spec.max_entries
    };
    MapSpec { max_entries, ..spec }
}

/// Refuses a pinned map of another shape, which aya would take without a look.
pub fn check(dir: &Path, spec: &MapSpec) -> Result<(), Error> {
    let pin = dir.join(spec.name);
    if !pin.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&pin).map_err(|source| Error::map(spec.name, "open pinned", source))?;
    let kind = info
        .map_type()
        .map_err(|source| Error::map(spec.name, "read the type of", source))?;
    for (what, found, wanted) in [
        ("type", kind as u32, spec.kind as u32),
        ("key size", info.key_size(), spec.key_size),
        ("value size", info.value_size(), spec.value_size),
        ("capacity", info.max_entries(), spec.max_entries),
        ("flags", info.map_flags(), spec.flags),
    ] {
        if found != wanted {
            return Err(Error::MapShape {
                name: spec.name,
                what,
                found,
                wanted,
            });
        }
    }
    Ok(())
}

/// See [`crate::Loader::cleanup`].
pub fn cleanup(bpffs: &Path) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    let mut first = None;
    if !bpffs.exists() || !is_bpffs(bpffs)? {
        return Ok(removed);
    }
    for version in versions(bpffs)? {
        remove_version(&version, &mut removed, &mut first);
    }
    // Only what can have been mounted for us alone: a mount point is another device than its parent.
    let own = fs::metadata(bpffs).map_err(failed("look at", bpffs))?.dev();
    let parent = bpffs.parent().and_then(|p| fs::metadata(p).ok()).map(|m| m.dev());
    if bpffs != Path::new(USUAL) && parent.is_some_and(|p| p != own) {
        match umount(bpffs) {
            Ok(()) => removed.push(format!("mount {}", bpffs.display())),
            Err(e) => drop(first.get_or_insert(failed("unmount", bpffs)(e.into()))),
        }
    } else if bpffs != Path::new(USUAL) && fs::remove_dir(bpffs).is_ok() {
        removed.push(bpffs.display().to_string());
    }
    first.map_or(Ok(removed), Err)
}

/// Directories of other versions of meshd, the latest first.
pub fn former(bpffs: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut former = versions(bpffs)?;
    former.retain(|v| !v.ends_with(VERSION));
    let number = |v: &PathBuf| v.file_name().and_then(|n| n.to_str()?.get(1..)?.parse::<u64>().ok());
    former.sort_by_key(number);
    former.reverse();
    Ok(former)
}

/// Detaches and removes what is left of other versions.
pub fn retire(former: &[PathBuf]) -> Result<(), Error> {
    let (mut removed, mut first) = (Vec::new(), None);
    for version in former {
        tracing::info!(pins = %version.display(), "removing what is left of another version");
        remove_version(version, &mut removed, &mut first);
    }
    first.map_or(Ok(()), Err)
}

/// Removes the pins of one version, going on after a failure.
fn remove_version(version: &Path, removed: &mut Vec<String>, first: &mut Option<Error>) {
    for pin in entries(&version.join("links")).unwrap_or_default() {
        if let Err(e) = hooks::remove(&pin) {
            first.get_or_insert(e);
        }
        removed.push(pin.display().to_string());
    }
    let files = ["sockets", "maps"].map(|dir| entries(&version.join(dir)).unwrap_or_default());
    for pin in files.into_iter().flatten() {
        match fs::remove_file(&pin) {
            Ok(()) => removed.push(pin.display().to_string()),
            Err(e) => drop(first.get_or_insert(failed("remove", &pin)(e))),
        }
    }
    for dir in [
        version.join("links"),
        version.join("sockets"),
        version.join("maps"),
        version.to_owned(),
    ] {
        match fs::remove_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => drop(first.get_or_insert(failed("remove", &dir)(e))),
            _ => {}
        }
    }
}

/// Directories of every version of meshd; a bpffs also shows files of the kernel's own.
fn versions(bpffs: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(entries(bpffs)?.into_iter().filter(|p| is_version(p)).collect())
}

fn is_version(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix('v'));
    name.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = fs::read_dir(dir).map_err(failed("list", dir))?;
    read.map(|e| e.map(|e| e.path()).map_err(failed("list", dir))).collect()
}
