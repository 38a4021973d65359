//! What another version of meshd has left: its attachments are taken over one by one, each by the
//! program of this version, once the tables of this version are filled; its flows go along. Nothing is
//! without a program in between.
//!
//! Called by the loader. A shape of rows that a release has had is described here for as long as hosts
//! may be upgraded from it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};
use mesh_ebpf_common::{
    flow::{REPLIED, stale},
    rows::{Addr, Flow, FlowKey, Plain, Reply, UNCOUNTED},
    spec,
};

use crate::{Error, sys};

/// Rows that are read at once.
const BATCH: usize = 4096;

/// A flow of version 2.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Flow2 {
    last_seen: u64,
    backend: u32,
    bits: u32,
    service: u32,
    cport: u16,
    target: u16,
    entry: [u8; 6],
    kind: u8,
    zero: u8,
}

/// A way back of version 2.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Reply2 {
    last_seen: u64,
    bits: u32,
    dport: u16,
    cport: u16,
    dst: Addr,
    entry: [u8; 6],
    kind: u8,
    zero: u8,
}

// SAFETY: `repr(C)` with integer fields only, whose sizes add up to the type's.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for Flow2 {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for Reply2 {}
const _: () = assert!(size_of::<Flow2>() == 32 && size_of::<Reply2>() == 40);

impl From<Flow2> for Flow {
    fn from(f: Flow2) -> Self {
        Self {
            last_seen: f.last_seen,
            backend: f.backend,
            bits: f.bits | REPLIED,
            service: f.service,
            client: 0,
            stat: UNCOUNTED,
            cport: f.cport,
            target: f.target,
            entry: f.entry,
            kind: f.kind,
            zero: 0,
        }
    }
}

impl From<Reply2> for Reply {
    fn from(r: Reply2) -> Self {
        Self {
            last_seen: r.last_seen,
            bits: r.bits | REPLIED,
            client: 0,
            stat: UNCOUNTED,
            dport: r.dport,
            cport: r.cport,
            dst: r.dst,
            entry: r.entry,
            kind: r.kind,
            zero: 0,
        }
    }
}

/// Puts the attachment that a former version has pinned as `name` where this version looks for it.
/// True if there was one.
pub fn take_link(former: &[PathBuf], to: &Path, name: &str) -> Result<bool, Error> {
    for version in former {
        let from = version.join("links").join(name);
        if from.exists() {
            let failed = |source| Error::Path {
                doing: "take over",
                path: from.clone(),
                source,
            };
            fs::rename(&from, to.join(name)).map_err(failed)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies the flows of former versions into the tables of this one, where they are not yet; how many
/// rows there were. What is over is left.
pub fn flows(former: &[PathBuf], maps: &Path) -> Result<u64, Error> {
    let mut rows = 0;
    for version in former.iter().filter(|v| v.ends_with("v2")) {
        let old = version.join("maps");
        rows += copy::<Flow2, Flow>(&old.join("FLOWS"), maps, spec::FLOWS_KEPT.name, |f| (f.bits, f.last_seen))?;
        rows += copy::<Reply2, Reply>(&old.join("REPLIES"), maps, spec::REPLIES_KEPT.name, |r| (r.bits, r.last_seen))?;
    }
    Ok(rows)
}

fn copy<O: Plain + Default, N: Plain + From<O>>(
    from: &Path,
    maps: &Path,
    to: &'static str,
    life: impl Fn(&O) -> (u32, u64),
) -> Result<u64, Error> {
    if !from.exists() {
        return Ok(0);
    }
    let open = |pin: PathBuf| MapData::from_pin(pin).map_err(|source| Error::map(to, "open pinned", source));
    let info = MapInfo::from_pin(from).map_err(|source| Error::map(to, "open pinned", source))?;
    if info.key_size() as usize != size_of::<FlowKey>() || info.value_size() as usize != size_of::<O>() {
        tracing::warn!(map = %from.display(), "its rows have a shape that no release had: its flows are lost");
        return Ok(0);
    }
    let (old, new) = (open(from.to_owned())?, open(maps.join(to))?);
    let failed = |source| Error::map(to, "copy", aya::maps::MapError::IoError(source));
    let (mut keys, mut values) = (vec![FlowKey::default(); BATCH], vec![O::default(); BATCH]);
    let (now, mut cursor, mut rows) = (sys::boot_ns(), None, 0);
    loop {
        let (count, next) = sys::lookup_batch(&old, cursor, &mut keys, &mut values).map_err(failed)?;
        for (key, value) in keys.iter().zip(&values).take(count) {
            let (bits, last_seen) = life(value);
            if !stale(key.proto, bits, last_seen, now) {
                sys::put_new(&new, key, &N::from(*value)).map_err(failed)?;
                rows += 1;
            }
        }
        if next.is_none() {
            return Ok(rows);
        }
        cursor = next;
    }
}
