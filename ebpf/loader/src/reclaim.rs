//! The tables of flows from the outside: rows of flows that are over are removed, live ones counted.
//!
//! The programs never remove a row that both ends of a flow were heard of; the loader does, a part of
//! the table at a time. While no loader runs, the tables fill up, and new flows then stay where a
//! flood may displace them.

use std::path::Path;

use aya::maps::MapData;
use mesh_ebpf_common::{
    flow::{closed, idle, stale},
    rows::{Flow, FlowKey, Plain, Reply, UDP},
    spec,
};

use crate::{Error, sys};

/// Rows that are read at once.
const BATCH: usize = 4096;
/// Rows that one call looks at, per table.
pub const PART: usize = 65_536;
/// A UDP flow, which has no end, is taken for a live one so long.
const UDP_LIVE_NS: u64 = 5 * 1_000_000_000;

/// One table, opened a second time by its pin.
pub struct Rows {
    name: &'static str,
    map: MapData,
    cursor: Option<u32>,
}

impl Rows {
    /// Opens it at its pin in `maps`.
    pub fn open(maps: &Path, name: &'static str) -> Result<Self, Error> {
        let map = MapData::from_pin(maps.join(name)).map_err(|source| Error::map(name, "open pinned", source))?;
        Ok(Self { name, map, cursor: None })
    }

    /// Begins at the start again.
    pub fn rewind(&mut self) {
        self.cursor = None;
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::map(self.name, "read", aya::maps::MapError::IoError(source))
    }

    /// Looks at up to `limit` rows, from where the last call stopped; true at the end of the table.
    pub fn scan<V: Plain + Default>(&mut self, limit: usize, mut look: impl FnMut(&FlowKey, &V)) -> Result<bool, Error> {
        let (mut keys, mut values) = (vec![FlowKey::default(); BATCH], vec![V::default(); BATCH]);
        let mut seen = 0;
        while seen < limit {
            let (count, next) = sys::lookup_batch(&self.map, self.cursor, &mut keys, &mut values).map_err(|e| self.failed(e))?;
            for (key, value) in keys.iter().zip(&values).take(count) {
                look(key, value);
            }
            seen += count;
            self.cursor = next;
            if next.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn count<V: Plain + Default>(&mut self) -> Result<u64, Error> {
        let (mut n, cursor) = (0, self.cursor.take());
        self.scan::<V>(usize::MAX, |_, _| n += 1)?;
        self.cursor = cursor;
        Ok(n)
    }
}

/// The tables of flows.
pub struct Reclaim {
    flows: Rows,
    flows_kept: Rows,
    replies: Rows,
    replies_kept: Rows,
}

impl Reclaim {
    /// Opens them at their pins in `maps`.
    pub fn open(maps: &Path) -> Result<Self, Error> {
        Ok(Self {
            flows: Rows::open(maps, spec::FLOWS.name)?,
            flows_kept: Rows::open(maps, spec::FLOWS_KEPT.name)?,
            replies: Rows::open(maps, spec::REPLIES.name)?,
            replies_kept: Rows::open(maps, spec::REPLIES_KEPT.name)?,
        })
    }

    /// Removes rows of flows that are over, in a part of each table; how many.
    pub fn run(&mut self) -> Result<u64, Error> {
        let now = sys::boot_ns();
        let mut over = Vec::new();
        // A flow's row is of use as long as its way back: its client may send again what was lost.
        self.flows_kept.scan(PART, |key, f: &Flow| {
            if stale(key.proto, f.bits, f.last_seen, now) {
                over.push(*key);
            }
        })?;
        let mut removed = self.remove(&over, true)?;
        over.clear();
        self.replies_kept.scan(PART, |key, r: &Reply| {
            if stale(key.proto, r.bits, r.last_seen, now) {
                over.push(*key);
            }
        })?;
        removed += self.remove(&over, false)?;
        Ok(removed)
    }

    fn remove(&self, keys: &[FlowKey], flows: bool) -> Result<u64, Error> {
        let table = if flows { &self.flows_kept } else { &self.replies_kept };
        for key in keys {
            sys::delete(&table.map, key).map_err(|e| table.failed(e))?;
        }
        Ok(keys.len() as u64)
    }

    /// Flows of the backend `slot` that are not over.
    pub fn live(&mut self, slot: u32) -> Result<u64, Error> {
        let now = sys::boot_ns();
        let mut n = 0;
        for table in [&mut self.flows, &mut self.flows_kept] {
            let cursor = table.cursor.take();
            table.scan(usize::MAX, |key, f: &Flow| {
                let quiet = if key.proto == UDP {
                    now.saturating_sub(f.last_seen) > UDP_LIVE_NS
                } else {
                    closed(f.bits) || idle(key.proto, f.bits, f.last_seen, now)
                };
                n += u64::from(f.backend == slot && !quiet);
            })?;
            table.cursor = cursor;
        }
        Ok(n)
    }

    /// Rows in each table, by its name.
    pub fn counts(&mut self) -> Result<[(&'static str, u64); 4], Error> {
        Ok([
            (self.flows.name, self.flows.count::<Flow>()?),
            (self.flows_kept.name, self.flows_kept.count::<Flow>()?),
            (self.replies.name, self.replies.count::<Reply>()?),
            (self.replies_kept.name, self.replies_kept.count::<Reply>()?),
        ])
    }
}
