//! The forwarding entries and neighbours of meshd's devices, as they were read last and as meshd itself
//! has changed them since: tables of a large cluster take long to read.
//!
//! Filled by [`crate::dump`], kept up by whoever writes to the kernel, and held against every event
//! that [`crate::monitor`] hears of: one that does not agree ends it, and then all is read again. So does
//! an event that was lost. Nothing is ever taken from an event.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_core::{
    Mac,
    desired::{Fdb, Neigh},
};
use netlink_packet_route::{
    AddressFamily,
    neighbour::{NeighbourMessage, NeighbourState},
};

use crate::{fdb, link::Device, neigh};

/// The rows of one network namespace; none before they were read, and after a doubt.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Option<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    /// Indices of the devices whose rows these are.
    devices: BTreeSet<u32>,
    /// No device that there was when these were read has a larger index.
    newest: u32,
    entries: BTreeSet<Entry>,
    vteps: Vteps,
    neighs: BTreeMap<(u32, IpAddr), Mac>,
}

/// Device, Ethernet address, and the number of the remote VTEP of an entry of a VXLAN device's own.
type Entry = (u32, Mac, u32);

/// In the place of a VTEP's number: it is an entry of the device's bridge.
const BRIDGE: u32 = 0;

/// The remote VTEPs, numbered from 1 on: of a large cluster's entries very many have the same one.
#[derive(Debug, Default)]
struct Vteps {
    all: Vec<IpAddr>,
    numbers: BTreeMap<IpAddr, u32>,
}

impl Vteps {
    /// The number of a VTEP, if it has one.
    fn find(&self, vtep: Option<IpAddr>) -> Option<u32> {
        vtep.map_or(Some(BRIDGE), |vtep| self.numbers.get(&vtep).copied())
    }

    /// Its number, a new one if need be.
    fn number(&mut self, vtep: Option<IpAddr>) -> u32 {
        let Some(vtep) = vtep else { return BRIDGE };
        *self.numbers.entry(vtep).or_insert_with(|| {
            self.all.push(vtep);
            self.all.len() as u32
        })
    }

    /// The VTEP of a number.
    fn of(&self, number: u32) -> Option<IpAddr> {
        self.all.get((number as usize).checked_sub(1)?).copied()
    }
}

/// Smaller than every address that an entry can have.
const FIRST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

impl Rows {
    /// The device is one of these, or may be by now.
    fn has(&self, device: u32) -> bool {
        device > self.newest || self.devices.contains(&device)
    }

    /// The entries for an Ethernet address in a VXLAN device's own table, or in that of its bridge.
    fn of(&self, device: u32, mac: Mac, own: bool) -> Vec<Entry> {
        let all = self.entries.range((device, mac, BRIDGE)..);
        let all = all.take_while(|(d, m, _)| (*d, *m) == (device, mac));
        all.filter(|(_, _, vtep)| (*vtep != BRIDGE) == own).copied().collect()
    }

    fn has_entry(&self, device: u32, mac: Mac, vtep: Option<IpAddr>) -> bool {
        self.vteps
            .find(vtep)
            .is_some_and(|vtep| self.entries.contains(&(device, mac, vtep)))
    }

    fn put(&mut self, device: u32, mac: Mac, vtep: Option<IpAddr>) {
        for former in self.of(device, mac, vtep.is_some()) {
            self.entries.remove(&former);
        }
        self.entries.insert((device, mac, self.vteps.number(vtep)));
    }

    fn remove(&mut self, device: u32, mac: Mac, vtep: Option<IpAddr>) {
        if let Some(vtep) = self.vteps.find(vtep) {
            self.entries.remove(&(device, mac, vtep));
        }
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Option<Rows>> {
        // Every change is one of a set or a map: a panic of a holder leaves no half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Rows)) {
        if let Some(rows) = self.lock().as_mut() {
            change(rows);
        }
    }

    /// All was read, of these devices.
    pub(crate) fn learn(&self, devices: &HashMap<u32, &Device>, newest: u32, fdb: &BTreeSet<Fdb>, neighs: &BTreeSet<Neigh>) {
        let index: HashMap<&str, u32> = devices.iter().map(|(index, d)| (d.name.as_str(), *index)).collect();
        let mut vteps = Vteps::default();
        let entry = |e: &Fdb| Some((*index.get(e.dev.as_str())?, e.mac, vteps.number(e.vtep)));
        let entries = fdb.iter().filter_map(entry).collect();
        let neigh = |n: &Neigh| Some(((*index.get(n.dev.as_str())?, n.ip), n.mac));
        *self.lock() = Some(Rows {
            devices: devices.keys().copied().collect(),
            newest,
            entries,
            vteps,
            neighs: neighs.iter().filter_map(neigh).collect(),
        });
    }

    /// Gives back memory: a set that was filled in order has room for nearly as much again.
    pub(crate) fn compact(&self) {
        self.change(|rows| rows.entries = std::mem::take(&mut rows.entries).into_iter().collect());
    }

    /// What is known may be wrong.
    pub(crate) fn doubt(&self) {
        *self.lock() = None;
    }

    /// The rows on these devices; of the entries only those for an address that one of `of` has too, where
    /// given. `None`: they have to be read.
    pub(crate) fn rows(
        &self,
        devices: &HashMap<u32, &Device>,
        newest: u32,
        of: Option<[&BTreeSet<Fdb>; 2]>,
    ) -> Option<(BTreeSet<Fdb>, BTreeSet<Neigh>)> {
        let mut known = self.lock();
        let rows = known.as_mut()?;
        (rows.devices, rows.newest) = (devices.keys().copied().collect(), newest);
        let name = |index: &u32| Some(devices.get(index)?.name.clone());
        let entry = |(index, mac, vtep): &Entry| {
            Some(Fdb {
                dev: name(index)?,
                mac: *mac,
                vtep: rows.vteps.of(*vtep),
            })
        };
        let fdb = match of {
            None => rows.entries.iter().filter_map(entry).collect(),
            Some(of) => {
                let index: HashMap<&str, u32> = devices.iter().map(|(index, d)| (d.name.as_str(), *index)).collect();
                let wanted = of.into_iter().flatten();
                let found = wanted.filter_map(|e| Some(rows.of(*index.get(e.dev.as_str())?, e.mac, e.vtep.is_some())));
                found.flatten().filter_map(|e| entry(&e)).collect()
            }
        };
        let neighs = rows.neighs.iter().filter_map(|((index, ip), mac)| {
            let (dev, ip, mac) = (name(index)?, *ip, *mac);
            Some(Neigh { dev, ip, mac })
        });
        Some((fdb, neighs.collect()))
    }

    /// An entry was added, in the place of others for the same address.
    pub(crate) fn put(&self, device: u32, e: &Fdb) {
        self.change(|rows| rows.put(device, e.mac, e.vtep));
    }

    /// An entry was removed.
    pub(crate) fn remove(&self, device: u32, e: &Fdb) {
        self.change(|rows| rows.remove(device, e.mac, e.vtep));
    }

    /// A neighbour was added.
    pub(crate) fn put_neigh(&self, device: u32, n: &Neigh) {
        self.change(|rows| {
            rows.neighs.insert((device, n.ip), n.mac);
        });
    }

    /// A neighbour was removed.
    pub(crate) fn remove_neigh(&self, device: u32, n: &Neigh) {
        self.change(|rows| {
            rows.neighs.remove(&(device, n.ip));
        });
    }

    /// A device was removed, and its rows with it.
    pub(crate) fn forget(&self, device: u32) {
        self.change(|rows| {
            let next = device.saturating_add(1);
            let gone: Vec<_> = rows
                .entries
                .range((device, Mac::default(), BRIDGE)..(next, Mac::default(), BRIDGE))
                .copied()
                .collect();
            for entry in gone {
                rows.entries.remove(&entry);
            }
            let gone: Vec<_> = rows.neighs.range((device, FIRST)..(next, FIRST)).map(|(k, _)| *k).collect();
            for key in gone {
                rows.neighs.remove(&key);
            }
        });
    }

    /// Whether an event tells what is known anyway. If not, that ends here. `None`: nothing is known.
    pub(crate) fn agrees(&self, m: &NeighbourMessage, removed: bool) -> Option<bool> {
        let mut known = self.lock();
        let rows = known.as_ref()?;
        let agrees = if m.header.family == AddressFamily::Bridge {
            rows.agree_on_entry(m, removed)
        } else {
            rows.agree_on_neigh(m, removed)
        };
        if !agrees {
            *known = None;
        }
        Some(agrees)
    }
}

impl Rows {
    fn agree_on_entry(&self, m: &NeighbourMessage, removed: bool) -> bool {
        let Some(row) = fdb::row(m) else { return true };
        let device = m.header.ifindex;
        if row.is_put && !removed {
            return !self.has(device) || self.has_entry(device, row.mac, row.vtep);
        }
        self.of(device, row.mac, !row.in_bridge).is_empty()
    }

    fn agree_on_neigh(&self, m: &NeighbourMessage, removed: bool) -> bool {
        let Some(ip) = neigh::ip(m) else { return true };
        let device = m.header.ifindex;
        let known = self.neighs.get(&(device, ip));
        if m.header.state == NeighbourState::Permanent && !removed {
            return !self.has(device) || known.is_some() && known.copied() == neigh::mac(m);
        }
        known.is_none()
    }
}

#[cfg(test)]
mod tests;
