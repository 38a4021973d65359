//! Services and the lists of their members, for [`super::Store`].
//!
//! A list is written as a second one beside the valid one; one update of the service's row makes it
//! valid. Every backend of every service has a row of `STATS` of its own, which it keeps while it is in
//! the list; freed rows are given out again as late as possible, for flows that still count in them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_core::lb::{self, Method, Pool};
use mesh_ebpf_common::rows::{self, PART, method};

use super::{Store, compact, table::Bytes};
use crate::Error;

/// A service without flags, and a backend.
type Pair = (u32, u32);

/// Rows of `STATS`.
#[derive(Debug, Default)]
pub struct Stats {
    given: BTreeMap<Pair, Given>,
    free: VecDeque<u32>,
}

/// What a pair has; there are very many.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    /// 0: there was no room.
    row: u32,
    /// Sets that name the pair, a bit for each: that of each family, everywhere and on this host.
    sets: u8,
}

impl Stats {
    /// Row 0 is for those that find no room.
    pub fn new(capacity: u32) -> Self {
        Self {
            free: (1..capacity).collect(),
            ..Self::default()
        }
    }

    /// Who has which row.
    pub fn pairs(&self) -> impl Iterator<Item = (Pair, u32)> {
        let all = self.given.iter().map(|(pair, given)| (*pair, given.row));
        all.filter(|(_, row)| *row != 0)
    }

    /// Gives back memory.
    pub fn compact(&mut self) {
        compact(&mut self.given);
    }

    /// The row of a pair; 0: it has none.
    pub fn row(&self, set: u32, backend: u32) -> u32 {
        self.given.get(&(base(set), backend)).map_or(0, |given| given.row)
    }

    fn adopt(&mut self, set: u32, backend: u32, row: u32) {
        let given = self.given.entry((base(set), backend)).or_default();
        given.sets |= bit(set);
        if row != 0 {
            given.row = row;
        }
    }

    /// Once all are adopted: their rows are not free.
    fn adopted(&mut self) {
        let taken: BTreeSet<u32> = self.pairs().map(|(_, row)| row).collect();
        self.free.retain(|row| !taken.contains(row));
    }

    /// The row, and whether it was given out just now.
    fn take(&mut self, set: u32, backend: u32) -> (u32, bool) {
        let given = self.given.entry((base(set), backend)).or_default();
        given.sets |= bit(set);
        if given.row != 0 {
            return (given.row, false);
        }
        given.row = self.free.pop_front().unwrap_or(0);
        (given.row, given.row != 0)
    }

    fn release(&mut self, set: u32, backend: u32) {
        let pair = (base(set), backend);
        let Some(given) = self.given.get_mut(&pair) else { return };
        given.sets &= !bit(set);
        if given.sets == 0 {
            self.free.extend(Some(given.row).filter(|row| *row != 0));
            self.given.remove(&pair);
        }
    }
}

/// Which of the four sets of its number this is: [`lb::V6`] and [`lb::LOCAL`] are the two highest bits.
fn bit(set: u32) -> u8 {
    const { assert!(lb::V6 | lb::LOCAL == 3 << 30) };
    1 << (set >> 30)
}

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

impl Store {
    /// Reads all services with their valid lists.
    pub(super) fn read_services(&mut self) -> Result<(), Error> {
        let valid: BTreeMap<u32, rows::Service> = self.services.rows()?.into_iter().map(|(set, Bytes(s))| (set, s)).collect();
        let mut lists: BTreeMap<u32, BTreeMap<u32, rows::Members>> = BTreeMap::new();
        for (key, Bytes(members)) in self.members.rows()? {
            let Bytes(k) = key;
            match valid.get(&k.service) {
                Some(s) if s.bank == k.bank && k.part < s.count.div_ceil(PART) => {
                    lists.entry(k.service).or_default().insert(k.part, members);
                }
                // Left by a loader that was stopped between writing a list and making it valid.
                _ => self.members.remove(&key)?,
            }
        }
        for (set, row) in valid {
            let parts = lists.remove(&set).unwrap_or_default().into_values();
            let members: Vec<rows::Member> = parts.flat_map(|part| part.0).take(row.count as usize).collect();
            for m in &members {
                self.stats.adopt(set, m.backend, m.stat);
            }
            let pool = Pool {
                method: named(row.method),
                affinity_secs: row.affinity,
                ranged: row.ranged == 1,
                list: members.iter().map(|m| m.backend).collect(),
            };
            self.shadow.services.insert(set, pool);
        }
        self.stats.adopted();
        Ok(())
    }

    pub(super) fn put_service(&mut self, set: u32, pool: &Pool) -> Result<(), Error> {
        let old = self.services.get(&set)?.map(|Bytes(s)| s);
        if old.is_some() && self.shadow.services.get(&set) == Some(pool) {
            return Ok(());
        }
        let bank = old.map_or(0, |s| s.bank ^ 1);
        let mut count = 0;
        for (part, backends) in (0..).zip(pool.list.chunks(PART as usize)) {
            let mut row = rows::Members::default();
            for (member, backend) in row.0.iter_mut().zip(backends) {
                let (stat, fresh) = self.stats.take(set, *backend);
                if fresh {
                    self.clear_stat(stat)?;
                }
                *member = rows::Member { backend: *backend, stat };
                count += 1;
            }
            self.members.put(Bytes(rows::MemberKey { service: set, bank, part }), Bytes(row))?;
        }
        let row = rows::Service {
            // Turns that are taken between this look and the next line are taken twice.
            turn: self.services.get(&set)?.map_or(0, |Bytes(s)| s.turn),
            count,
            bank,
            affinity: pool.affinity_secs,
            method: number(pool.method),
            ranged: pool.ranged.into(),
            zero: [0; 2],
        };
        self.services.put(set, Bytes(row))?;
        let former = self.shadow.services.insert(set, pool.clone());
        self.forget(set, former, &pool.list);
        old.map_or(Ok(()), |old| self.remove_list(set, &old))
    }

    /// Removes the list that a service's former row named.
    fn remove_list(&mut self, service: u32, old: &rows::Service) -> Result<(), Error> {
        for part in 0..old.count.div_ceil(PART) {
            let bank = old.bank;
            self.members.remove(&Bytes(rows::MemberKey { service, bank, part }))?;
        }
        Ok(())
    }

    /// Rows of `MEMBERS` that are in use.
    pub fn members(&self) -> usize {
        self.shadow.services.values().map(|p| p.list.len().div_ceil(PART as usize)).sum()
    }

    /// Frees the rows of `STATS` of backends that are no longer in the list.
    fn forget(&mut self, set: u32, former: Option<Pool>, list: &[u32]) {
        let stay: BTreeSet<_> = list.iter().collect();
        for backend in former.into_iter().flat_map(|p| p.list) {
            if !stay.contains(&backend) {
                self.stats.release(set, backend);
            }
        }
    }

    pub(super) fn remove_service(&mut self, set: u32) -> Result<(), Error> {
        let old = self.services.get(&set)?;
        self.services.remove(&set)?;
        let former = self.shadow.services.remove(&set);
        self.forget(set, former, &[]);
        old.map_or(Ok(()), |Bytes(old)| self.remove_list(set, &old))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_statistics_are_shared_by_families_and_rest_when_freed() {
        let mut s = Stats::new(4);
        assert_eq!(s.take(7, 1), (1, true));
        assert_eq!(s.take(7 | lb::V6, 1), (1, false), "the same backend of the same service");
        assert_eq!(s.take(8, 1), (2, true), "of another service");
        s.release(7, 1);
        assert_eq!(s.take(7, 1), (1, false), "still in use");
        s.release(7, 1);
        s.release(7 | lb::V6, 1);
        assert_eq!(s.take(9, 9), (3, true), "the freed one comes last");
        assert_eq!(s.take(9, 10), (1, true));
        assert_eq!(s.take(9, 11), (0, false), "no room");
        s.release(9, 11);
        assert_eq!(s.pairs().count(), 3);
    }

    #[test]
    fn rows_of_statistics_are_taken_over() {
        let mut s = Stats::new(4);
        s.adopt(7, 1, 1);
        s.adopt(7 | lb::LOCAL, 1, 1);
        s.adopted();
        assert_eq!(s.take(7, 1), (1, false));
        assert_eq!(s.take(7, 2), (2, true));
    }
}
