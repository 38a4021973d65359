//! Services and the lists of their members, for [`super::Store`].
//!
//! A short list is in the service's row. A longer one is written as a second one beside the valid one; one
//! update of the service's row makes it valid.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::lb::{self, Method, Pool};
use mesh_ebpf_common::rows::{self, FEW, Members, PART, Pair, method};

use super::{Store, table::Bytes};
use crate::Error;

/// Parts of a list that are rows of `MEMBERS`.
fn parts(count: u32) -> u32 {
    if count <= FEW { 0 } else { count.div_ceil(PART) }
}

/// As many as a row has room for.
fn filled<const N: usize>(backends: &[u32]) -> [u32; N] {
    let mut row = [0; N];
    for (member, backend) in row.iter_mut().zip(backends) {
        *member = *backend;
    }
    row
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
        let mut lists: BTreeMap<u32, BTreeMap<u32, Members>> = BTreeMap::new();
        for (key, Bytes(members)) in self.members.rows()? {
            let Bytes(k) = key;
            match valid.get(&k.service) {
                Some(s) if s.bank == k.bank && k.part < parts(s.count) => {
                    lists.entry(k.service).or_default().insert(k.part, members);
                }
                // Left by a loader that was stopped between writing a list and making it valid.
                _ => self.members.remove(&key)?,
            }
        }
        for (set, row) in valid {
            let long = lists.remove(&set).unwrap_or_default().into_values();
            let short = (row.count <= FEW).then_some(row.members);
            let all = long.flat_map(|part| part.0).chain(short.into_iter().flatten());
            let pool = Pool {
                method: named(row.method),
                affinity_secs: row.affinity,
                ranged: row.ranged == 1,
                list: all.take(row.count as usize).collect(),
            };
            self.shadow.services.insert(set, pool);
        }
        self.forget_unlisted()
    }

    /// Takes the counters of backends that are in no list away from them.
    pub(super) fn forget_unlisted(&mut self) -> Result<(), Error> {
        let mut counted: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for pair in self.stats.pairs()? {
            counted.entry(pair.service).or_default().push(pair.backend);
        }
        for (service, backends) in counted {
            self.forget(service, backends)?;
        }
        Ok(())
    }

    pub(super) fn put_service(&mut self, set: u32, pool: &Pool) -> Result<(), Error> {
        let old = self.services.get(&set)?.map(|Bytes(s)| s);
        if old.is_some() && self.shadow.services.get(&set) == Some(pool) {
            return Ok(());
        }
        let count = u32::try_from(pool.list.len()).unwrap_or(u32::MAX);
        let bank = old.map_or(0, |s| s.bank ^ 1);
        for (part, backends) in (0..parts(count)).zip(pool.list.chunks(PART as usize)) {
            let key = rows::MemberKey { service: set, bank, part };
            if let Err(e) = self.members.put(Bytes(key), Bytes(Members(filled(backends)))) {
                // Nothing names what was written, and others may need the room.
                self.remove_list(set, bank, parts(count))?;
                return Err(e);
            }
        }
        self.restore(set, pool)?;
        let row = rows::Service {
            // Turns that are taken between this look and the next line are taken twice.
            turn: self.services.get(&set)?.map_or(0, |Bytes(s)| s.turn),
            count,
            bank,
            affinity: pool.affinity_secs,
            method: number(pool.method),
            ranged: pool.ranged.into(),
            zero: [0; 2],
            members: if parts(count) == 0 { filled(&pool.list) } else { [0; FEW as usize] },
        };
        self.services.put(set, Bytes(row))?;
        let former = self.shadow.services.insert(set, pool.clone());
        if let Some(old) = old {
            self.remove_list(set, old.bank, parts(old.count))?;
        }
        self.forget(set, former.into_iter().flat_map(|p| p.list))
    }

    /// Removes the rows of a list.
    fn remove_list(&mut self, service: u32, bank: u32, parts: u32) -> Result<(), Error> {
        for part in 0..parts {
            self.members.remove(&Bytes(rows::MemberKey { service, bank, part }))?;
        }
        Ok(())
    }

    /// Gives backends that come back their counters, before a program gives them new ones.
    fn restore(&mut self, set: u32, pool: &Pool) -> Result<(), Error> {
        let service = base(set);
        let mut back: BTreeSet<u32> = self.stats.released(service).collect();
        if !back.is_empty() {
            let list: BTreeSet<u32> = pool.list.iter().copied().collect();
            back.retain(|backend| list.contains(backend));
        }
        for backend in back {
            self.stats.restore(Pair { service, backend })?;
        }
        Ok(())
    }

    /// Rows of `MEMBERS` that are in use.
    pub fn members(&self) -> usize {
        let rows = self
            .shadow
            .services
            .values()
            .map(|p| parts(u32::try_from(p.list.len()).unwrap_or(u32::MAX)));
        rows.map(|parts| parts as usize).sum()
    }

    /// Takes away the counters of those of `backends` that are in no list of the service any more.
    fn forget(&mut self, set: u32, backends: impl IntoIterator<Item = u32>) -> Result<(), Error> {
        let service = base(set);
        let mut gone: BTreeSet<u32> = backends.into_iter().collect();
        for flags in [0, lb::V6, lb::LOCAL, lb::V6 | lb::LOCAL] {
            if gone.is_empty() {
                break;
            }
            for backend in self.shadow.services.get(&(service | flags)).into_iter().flat_map(|p| &p.list) {
                gone.remove(backend);
            }
        }
        for backend in gone {
            self.stats.release(Pair { service, backend })?;
        }
        Ok(())
    }

    pub(super) fn remove_service(&mut self, set: u32) -> Result<(), Error> {
        let old = self.services.get(&set)?;
        self.services.remove(&set)?;
        let former = self.shadow.services.remove(&set);
        if let Some(Bytes(old)) = old {
            self.remove_list(set, old.bank, parts(old.count))?;
        }
        self.forget(set, former.into_iter().flat_map(|p| p.list))
    }
}
