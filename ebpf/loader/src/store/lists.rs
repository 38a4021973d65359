//! Services and the lists of their backends, for [`super::Store`].
//!
//! A list is written into words of `MEMBERS` that nobody reads; one update of the service's row makes it
//! valid. [`list`] says how it lies there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::maps::MapError;
use mesh_core::lb::{self, Method, Pool};
use mesh_ebpf_common::{
    list,
    rows::{self, Pair, method},
    spec,
};

use super::{Store, ranges::Ranges, table::Bytes};
use crate::{Error, sys};

/// A set's number without flags.
pub fn base(set: u32) -> u32 {
    set & !(lb::V6 | lb::LOCAL)
}

fn number(m: Method) -> u8 {
    match m {
        Method::Turn => method::TURN,
        Method::Random => method::RANDOM,
        Method::Source => method::SOURCE,
        Method::Flow => method::FLOW,
    }
}

fn named(number: u8) -> Method {
    match number {
        method::RANDOM => Method::Random,
        method::SOURCE => Method::Source,
        method::FLOW => Method::Flow,
        _ => Method::Turn,
    }
}

fn words(row: &rows::Service) -> u32 {
    list::words(row.count, row.members.into())
}

fn put(words: &mut [u64], at: u32, shift: u32, value: u64) {
    if let Some(word) = words.get_mut(at as usize) {
        *word |= value << shift;
    }
}

/// The words of a list, the first of them `turns`, and how many backends its entries name, if that way
/// it takes less room.
fn encode(turns: u64, backends: &[u32]) -> (Vec<u64>, u16) {
    let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
    let mut places = BTreeMap::new();
    let mut members = Vec::new();
    for backend in backends {
        places.entry(*backend).or_insert_with(|| {
            members.push(*backend);
            members.len() as u32 - 1
        });
    }
    let named = u16::try_from(members.len()).ok();
    let named = named
        .filter(|n| list::words(count, (*n).into()) < list::words(count, 0))
        .unwrap_or(0);
    let mut words = vec![0; list::words(count, named.into()) as usize];
    put(&mut words, 0, 0, turns);
    for (place, backend) in (0..).zip(if named == 0 { backends } else { &members }) {
        let (at, shift) = list::member(place);
        put(&mut words, at, shift, (*backend).into());
    }
    for (i, backend) in (0..).zip(backends).filter(|_| named != 0) {
        let (at, shift, _) = list::entry(named.into(), i);
        put(&mut words, at, shift, places[backend].into());
    }
    (words, named)
}

/// And back.
fn decode(words: &[u64], row: &rows::Service) -> Vec<u32> {
    let word = |at: u32| words.get(at as usize).copied().unwrap_or(0);
    let entry = |index| {
        let place = if row.members == 0 {
            index
        } else {
            let (at, shift, mask) = list::entry(row.members.into(), index);
            (word(at) >> shift & mask) as u32
        };
        let (at, shift) = list::member(place);
        (word(at) >> shift) as u32
    };
    (0..row.count).map(entry).collect()
}

impl Store {
    /// Reads all services with their lists.
    pub(super) fn read_services(&mut self) -> Result<(), Error> {
        let rows = self.services.rows()?;
        self.ranges = Ranges::new(self.members.len(), rows.iter().map(|(_, Bytes(s))| (s.first, words(s))));
        for (set, Bytes(row)) in rows {
            let pool = Pool {
                method: named(row.method),
                affinity_secs: row.affinity,
                ranged: row.ranged == 1,
                list: decode(&self.members.read(row.first, words(&row))?, &row),
            };
            self.shadow.services.insert(set, pool);
        }
        for pair in self.stats.pairs()? {
            self.forget(pair.service, [pair.backend])?;
        }
        Ok(())
    }

    pub(super) fn put_service(&mut self, set: u32, pool: &Pool) -> Result<(), Error> {
        let old = self.services.get(&set)?.map(|Bytes(s)| s);
        if old.is_some() && self.shadow.services.get(&set) == Some(pool) {
            return Ok(());
        }
        let turns = match &old {
            Some(old) if old.count != 0 => self.members.read(old.first, 1)?.first().copied(),
            _ => None,
        };
        let (words_of_it, members) = encode(turns.unwrap_or(0), &pool.list);
        let count = u32::try_from(pool.list.len()).unwrap_or(u32::MAX);
        let first = self.room(list::words(count, members.into()))?;
        self.members.write(first, &words_of_it)?;
        let row = rows::Service {
            count,
            first,
            affinity: pool.affinity_secs,
            method: number(pool.method),
            ranged: pool.ranged.into(),
            members,
        };
        if let Err(e) = self.services.put(set, Bytes(row)) {
            self.ranges.give(first, words(&row));
            return Err(e);
        }
        if let Some(old) = old {
            self.ranges.give(old.first, words(&old));
        }
        let former = self.shadow.services.insert(set, pool.clone());
        self.forget(set, former.into_iter().flat_map(|p| p.list))
    }

    pub(super) fn remove_service(&mut self, set: u32) -> Result<(), Error> {
        let old = self.services.get(&set)?;
        self.services.remove(&set)?;
        if let Some(Bytes(old)) = old {
            self.ranges.give(old.first, words(&old));
        }
        let former = self.shadow.services.remove(&set);
        self.forget(set, former.into_iter().flat_map(|p| p.list))
    }

    /// The first of so many words that no program reads.
    fn room(&mut self, size: u32) -> Result<u32, Error> {
        let mut found = self.ranges.take(size);
        if found.is_none() && self.ranges.rest() {
            sys::wait_for_programs();
            self.ranges.wake();
            found = self.ranges.take(size);
        }
        let full = || io::Error::other(format!("no room for a list of {size} words"));
        found.ok_or_else(|| Error::map(spec::MEMBERS.name, "write to", MapError::IoError(full())))
    }

    /// Frees the counters of backends that are in no list of the service any more; its sets share them.
    fn forget(&mut self, set: u32, backends: impl IntoIterator<Item = u32>) -> Result<(), Error> {
        let lists = [0, lb::V6, lb::LOCAL, lb::V6 | lb::LOCAL].map(|flags| self.shadow.services.get(&(base(set) | flags)));
        let mut gone: BTreeSet<u32> = backends.into_iter().collect();
        for backend in lists.into_iter().flatten().flat_map(|p| &p.list) {
            if gone.is_empty() {
                break;
            }
            gone.remove(backend);
        }
        for backend in gone {
            self.stats.release(Pair {
                service: base(set),
                backend,
            })?;
        }
        Ok(())
    }

    /// Words of `MEMBERS` that are in use.
    pub fn words(&self) -> usize {
        self.members.len().saturating_sub(self.ranges.free()) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(backends: &[u32]) -> (usize, u16) {
        let (words, members) = encode(7, backends);
        let row = rows::Service {
            count: backends.len() as u32,
            members,
            ..rows::Service::default()
        };
        assert_eq!(decode(&words, &row), backends);
        assert!(words.is_empty() || words[0] == 7);
        assert_eq!(words.len() as u32, super::words(&row));
        (words.len(), members)
    }

    #[test]
    fn lists_lie_in_few_words() {
        assert_eq!(round(&[]), (0, 0));
        assert_eq!(round(&[9]), (2, 0));
        assert_eq!(round(&[1, 2, 3, u32::MAX]), (3, 0));
        assert_eq!(round(&[5, 5, 6, 5, 5, 6]), (3, 2), "a weight");
        let table = |n: u32, len: u32| (0..len).map(|i| 1000 + (i * i + i / 7) % n).collect::<Vec<_>>();
        assert_eq!(round(&table(4, 16_381)), (1 + 2 + 2048, 4));
        let many: Vec<_> = (0..65_521).map(|i| i % 300).collect();
        assert_eq!(round(&many), (1 + 150 + 16_381, 300));
        assert_eq!(round(&(0..70_000).collect::<Vec<_>>()), (35_001, 0));
    }
}
