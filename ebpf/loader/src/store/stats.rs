//! Counters of each backend of each service, for [`super::Store`].
//!
//! A host gives flows to few of a large cluster's backends, and the counters' memory grows with its
//! CPUs: the programs take a row of `STATS` out of `STAT_FREE` when they first need one. The row of a
//! backend that is in no list any more is held (see [`held`](super::held)) until no flow names it, and its
//! backend gets it back if it returns before.

use std::collections::BTreeSet;

use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray, PerCpuValues, Queue},
    util::nr_cpus,
};
use mesh_ebpf_common::{
    rows::{self, Pair},
    spec,
};

use super::{
    Stat,
    held::Held,
    table::{Bytes, Table},
};
use crate::{Error, sys};

/// The counters, and whose they are.
pub struct Stats {
    counters: PerCpuArray<MapData, Bytes<rows::Stat>>,
    rows: Table<Bytes<Pair>, u32>,
    free: Queue<MapData, u32>,
    held: Held,
    /// A program or a migration may have given rows to pairs in no list.
    changed: bool,
}

/// Of so many rows one is to be free: else held ones are given out although flows may count in them.
const FREE: usize = 8;

fn failed(name: &'static str, doing: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::map(name, doing, source)
}

impl Stats {
    /// Takes the maps out of the object, and finds rows that a program or loader that was stopped has
    /// lost.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut take = |name| ebpf.take_map(name).ok_or(Error::NotInObject { name });
        let counters = take(spec::STATS.name)?.try_into().map_err(failed(spec::STATS.name, "open"))?;
        let free = take(spec::STAT_FREE.name)?
            .try_into()
            .map_err(failed(spec::STAT_FREE.name, "open"))?;
        let mut stats = Self {
            counters,
            rows: Table::take(ebpf, &spec::STAT_ROWS)?,
            free,
            held: Held::default(),
            changed: false,
        };
        stats.find()?;
        Ok(stats)
    }

    fn find(&mut self) -> Result<(), Error> {
        let mut known = vec![false; self.counters.len() as usize];
        let mut waiting = self.drain()?;
        if !waiting.is_empty() {
            // A program that has just taken one puts it where it is found below, or back.
            sys::wait_for_programs();
            waiting.extend(self.drain()?);
        }
        let owned = self.rows.rows()?.into_iter().map(|(_, row)| row);
        for row in owned.chain(waiting.iter().copied()).chain([0]) {
            if let Some(known) = known.get_mut(row as usize) {
                *known = true;
            }
        }
        let lost: Vec<u32> = (0..).zip(known).filter(|(_, known)| !known).map(|(row, _)| row).collect();
        // Those of a new map are zero.
        let first = waiting.is_empty() && lost.len() + 1 == self.counters.len() as usize;
        for row in waiting {
            self.push(row)?;
        }
        for row in lost {
            if first {
                self.push(row)?;
            } else {
                self.held.hold(row, None);
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<Vec<u32>, Error> {
        let mut rows = Vec::new();
        while let Some(row) = self.pop()? {
            rows.push(row);
        }
        Ok(rows)
    }

    fn pop(&mut self) -> Result<Option<u32>, Error> {
        match self.free.pop(0) {
            Ok(row) => Ok(Some(row)),
            Err(MapError::ElementNotFound) => Ok(None),
            Err(source) => Err(failed(spec::STAT_FREE.name, "read")(source)),
        }
    }

    fn push(&mut self, row: u32) -> Result<(), Error> {
        self.free.push(row, 0).map_err(failed(spec::STAT_FREE.name, "write to"))
    }

    fn clear(&mut self, row: u32) -> Result<(), Error> {
        let io = |source| failed(spec::STATS.name, "write to")(MapError::IoError(source));
        let cpus = nr_cpus().map_err(|(_, source)| io(source))?;
        let zero = PerCpuValues::try_from(vec![Bytes(rows::Stat::default()); cpus]).map_err(io)?;
        self.counters.set(row, zero, 0).map_err(failed(spec::STATS.name, "write to"))
    }

    /// Who has rows.
    pub fn pairs(&self) -> Result<Vec<Pair>, Error> {
        Ok(self.rows.rows()?.into_iter().map(|(Bytes(pair), _)| pair).collect())
    }

    /// The row of a backend of a set, as the programs find it; 0: there is no room.
    pub fn row(&mut self, pair: Pair) -> Result<u32, Error> {
        self.changed = true;
        self.restore(pair)?;
        if let Some(row) = self.rows.get(&Bytes(pair))? {
            return Ok(row);
        }
        let Some(row) = self.pop()? else { return Ok(0) };
        self.rows.put_new(Bytes(pair), row)?;
        match self.rows.get(&Bytes(pair))? {
            Some(found) if found == row => Ok(row),
            // A program was first.
            found => {
                self.push(row)?;
                Ok(found.unwrap_or(0))
            }
        }
    }

    /// Takes the row away from a backend that is in none of the set's lists any more.
    pub fn release(&mut self, pair: Pair) -> Result<(), Error> {
        // Programs that have just read the former list may still take one for it.
        self.changed = true;
        let Some(row) = self.rows.get(&Bytes(pair))? else {
            return Ok(());
        };
        self.rows.remove(&Bytes(pair))?;
        self.held.hold(row, Some(pair));
        Ok(())
    }

    /// Those of a set's backends whose rows are held.
    pub fn released(&self, service: u32) -> impl Iterator<Item = u32> {
        self.held.backends(service)
    }

    /// Gives a backend that comes back its row again, unless it has one.
    pub fn restore(&mut self, pair: Pair) -> Result<(), Error> {
        let Some(row) = self.held.of(pair) else { return Ok(()) };
        // Whoever wanted it may not get as far as to list it.
        self.changed = true;
        self.rows.put_new(Bytes(pair), row)?;
        if self.rows.get(&Bytes(pair))? == Some(row) {
            self.held.returned(pair);
        }
        Ok(())
    }

    /// True once after pairs in no list may have got rows.
    pub fn changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Rows are held, or may be to be.
    pub fn due(&self) -> bool {
        self.changed || self.held.len() > 0
    }

    /// See [`Held::all`].
    pub fn held(&self) -> (BTreeSet<u32>, u64) {
        self.held.all()
    }

    /// Gives out the rows that no flow names, of those held before `mark`.
    pub fn free_unnamed(&mut self, rows: &BTreeSet<u32>, mark: u64) -> Result<(), Error> {
        let rows = self.held.unnamed(rows, mark);
        self.give_out(&rows)
    }

    /// Gives out the oldest of the rows that are held, if few are free.
    pub fn free_oldest(&mut self) -> Result<(), Error> {
        let all = self.counters.len() as usize;
        let free = all.saturating_sub(1 + self.rows.rows()?.len() + self.held.len());
        let rows = self.held.oldest((all / FREE).saturating_sub(free));
        self.give_out(&rows)
    }

    fn give_out(&mut self, rows: &[u32]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        // A row that was taken for lost may have been a program's that was about to give it to a pair.
        let owned: BTreeSet<u32> = self.rows.rows()?.into_iter().map(|(_, row)| row).collect();
        for row in rows.iter().filter(|row| !owned.contains(row)) {
            self.clear(*row)?;
            self.push(*row)?;
        }
        Ok(())
    }

    /// What was counted; first in the row of those that had no room.
    pub fn read(&self) -> Result<Vec<Stat>, Error> {
        let mut rows = self.rows.rows()?;
        rows.sort_unstable_by_key(|(Bytes(pair), _)| *pair);
        let nobody = (Bytes(Pair::default()), 0);
        std::iter::once(nobody)
            .chain(rows)
            .map(|(Bytes(pair), row)| {
                let mut sum = Stat {
                    service: pair.service,
                    backend: pair.backend,
                    ..Stat::default()
                };
                for Bytes(s) in self.counters.get(&row, 0).map_err(failed(spec::STATS.name, "read"))?.iter() {
                    sum.flows += s.flows;
                    sum.packets += s.packets;
                    sum.bytes += s.bytes;
                    sum.reply_packets += s.reply_packets;
                    sum.reply_bytes += s.reply_bytes;
                }
                Ok(sum)
            })
            .collect()
    }
}
