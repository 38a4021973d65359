//! What another version of meshd has left: its attachments are taken over one by one, each by the
//! program of this version, once the tables of this version are filled; its flows go along. Nothing is
//! without a program in between.
//!
//! Called by the loader. A shape of rows that a release has had is described here for as long as hosts
//! may be upgraded from it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};
use mesh_ebpf_common::{
    flow::{REPLIED, stale},
    rows::{Addr, Affinity, AffinityKey, Flow, FlowKey, Plain, Reply, Socket, SocketKey, UNCOUNTED},
    spec::{self, MapSpec},
};

use crate::{Error, store::Store, sys};

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
pub fn flows(former: &[PathBuf], maps: &Path, store: &mut Store) -> Result<u64, Error> {
    let mut rows = 0;
    for version in former {
        let old = version.join("maps");
        if version.ends_with("v2") {
            rows += flows_of_2(&old, maps)?;
        } else if version.ends_with("v3") || version.ends_with("v4") {
            rows += flows_of_4(&old, maps, store)?;
        }
    }
    Ok(rows)
}

fn flows_of_2(old: &Path, maps: &Path) -> Result<u64, Error> {
    let now = sys::boot_ns();
    let flows = copy(&old.join("FLOWS"), maps, &spec::FLOWS_KEPT, |key: &FlowKey, f: &Flow2| {
        Ok((!stale(key.proto, f.bits, f.last_seen, now)).then(|| Flow::from(*f)))
    })?;
    let replies = copy(&old.join("REPLIES"), maps, &spec::REPLIES_KEPT, |key: &FlowKey, r: &Reply2| {
        Ok((!stale(key.proto, r.bits, r.last_seen, now)).then(|| Reply::from(*r)))
    })?;
    Ok(flows + replies)
}

/// The rows of versions 3 and 4 have today's shape; which row of `STATS` is whose has changed.
fn flows_of_4(old: &Path, maps: &Path, store: &mut Store) -> Result<u64, Error> {
    let (now, mut rows) = (sys::boot_ns(), 0);
    let mut stats = BTreeMap::from([(UNCOUNTED, UNCOUNTED), (0, 0)]);
    for table in [&spec::FLOWS_KEPT, &spec::FLOWS] {
        rows += copy(&old.join(table.name), maps, table, |key: &FlowKey, f: &Flow| {
            if stale(key.proto, f.bits, f.last_seen, now) {
                return Ok(None);
            }
            let stat = match stats.get(&f.stat) {
                Some(stat) => *stat,
                None => *stats.entry(f.stat).or_insert(store.stat_row(f.service, f.backend)?),
            };
            Ok(Some(Flow { stat, ..*f }))
        })?;
    }
    for table in [&spec::REPLIES_KEPT, &spec::REPLIES] {
        rows += copy(&old.join(table.name), maps, table, |key: &FlowKey, r: &Reply| {
            let stat = stats.get(&r.stat).copied().unwrap_or(UNCOUNTED);
            Ok((!stale(key.proto, r.bits, r.last_seen, now)).then_some(Reply { stat, ..*r }))
        })?;
    }
    rows += copy(
        &old.join(spec::AFFINITY.name),
        maps,
        &spec::AFFINITY,
        |_: &AffinityKey, a: &Affinity| Ok(Some(*a)),
    )?;
    rows += copy(&old.join(spec::SOCKETS.name), maps, &spec::SOCKETS, |_: &SocketKey, s: &Socket| {
        Ok(Some(*s))
    })?;
    Ok(rows)
}

/// Copies what `convert` makes of the rows pinned at `from` into the map `to`, where they are not yet; how
/// many.
fn copy<K: Plain + Default, O: Plain + Default, N: Plain>(
    from: &Path,
    maps: &Path,
    to: &MapSpec,
    mut convert: impl FnMut(&K, &O) -> Result<Option<N>, Error>,
) -> Result<u64, Error> {
    if !from.exists() {
        return Ok(0);
    }
    let open = |pin: PathBuf| MapData::from_pin(pin).map_err(|source| Error::map(to.name, "open pinned", source));
    let info = MapInfo::from_pin(from).map_err(|source| Error::map(to.name, "open pinned", source))?;
    if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<O>() {
        tracing::warn!(map = %from.display(), "its rows have a shape that no release had: they are lost");
        return Ok(0);
    }
    let (old, new) = (open(from.to_owned())?, open(maps.join(to.name))?);
    let failed = |source| Error::map(to.name, "copy", aya::maps::MapError::IoError(source));
    let (mut keys, mut values) = (vec![K::default(); BATCH], vec![O::default(); BATCH]);
    let (mut cursor, mut rows) = (None, 0);
    loop {
        let (count, next) = sys::lookup_batch(&old, cursor, &mut keys, &mut values).map_err(failed)?;
        for (key, value) in keys.iter().zip(&values).take(count) {
            if let Some(row) = convert(key, value)? {
                sys::put_new(&new, key, &row).map_err(failed)?;
                rows += 1;
            }
        }
        if next.is_none() {
            return Ok(rows);
        }
        cursor = next;
    }
}
