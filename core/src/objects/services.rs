//! The services of a cluster, found by their id, by their name, and by the networks that they are on.
//!
//! Part of [`super::Objects`]. The indexes are derived, and kept exact by every change: only
//! [`Services::insert`] and [`Services::remove`] make one.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hasher as _},
    ops::Deref,
    sync::Arc,
};

use super::{Service, groups::Groups};
use crate::Id;

/// Services by id.
#[derive(Clone, Debug, Default)]
pub struct Services {
    all: BTreeMap<Id, Arc<Service>>,
    /// By the digest of the name: the names themselves would take several times the room.
    by_name: BTreeSet<(u64, Id)>,
    by_network: Groups,
    /// Of them, those that choose endpoints by labels.
    selecting: Groups,
}

impl Services {
    /// Puts a service; gives the one that was in its place.
    pub fn insert(&mut self, service: Arc<Service>) -> Option<Arc<Service>> {
        let former = self.remove(service.id);
        self.by_name.insert((digest(&service.name), service.id));
        for network in networks(&service) {
            self.by_network.enter(network, service.id);
            if !service.selector.is_empty() {
                self.selecting.enter(network, service.id);
            }
        }
        self.all.insert(service.id, service);
        former
    }

    /// Removes a service, and gives it.
    pub fn remove(&mut self, id: Id) -> Option<Arc<Service>> {
        let former = self.all.remove(&id)?;
        self.by_name.remove(&(digest(&former.name), id));
        for network in networks(&former) {
            self.by_network.leave(network, id);
            self.selecting.leave(network, id);
        }
        Some(former)
    }

    /// Gives back memory.
    pub(super) fn compact(&mut self) {
        self.all = std::mem::take(&mut self.all).into_iter().collect();
        self.by_name = std::mem::take(&mut self.by_name).into_iter().collect();
        self.by_network.compact();
        self.selecting.compact();
    }

    /// The one with a name, which has no case; of several, that with the lowest id.
    pub fn named(&self, name: &str) -> Option<&Arc<Service>> {
        let digest = digest(name);
        let near = self.by_name.range((digest, Id::from_bits(0))..=(digest, Id::from_bits(u64::MAX)));
        near.filter_map(|(_, id)| self.all.get(id))
            .find(|s| s.name.eq_ignore_ascii_case(name))
    }

    /// Those that are on a network or have a virtual address there, by id.
    pub fn in_network(&self, network: Id) -> impl Iterator<Item = &Arc<Service>> + Clone {
        self.by_network.of(network).iter().filter_map(|id| self.all.get(id))
    }

    /// Of [`Self::in_network`], those that choose endpoints by labels.
    pub fn selecting_in(&self, network: Id) -> impl Iterator<Item = &Arc<Service>> + Clone {
        self.selecting.of(network).iter().filter_map(|id| self.all.get(id))
    }

    /// Some service chooses endpoints by labels.
    pub fn are_selecting(&self) -> bool {
        !self.selecting.is_empty()
    }
}

/// What names that differ in case only have in common.
fn digest(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.bytes().for_each(|b| hasher.write_u8(b.to_ascii_lowercase()));
    hasher.finish()
}

/// The networks of a service; some may come twice.
fn networks(s: &Service) -> impl Iterator<Item = Id> + '_ {
    s.networks.iter().copied().chain(s.vips.iter().map(|v| v.network))
}

/// Reading is as of any map.
impl Deref for Services {
    type Target = BTreeMap<Id, Arc<Service>>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

/// The indexes follow from the services.
impl PartialEq for Services {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl FromIterator<Arc<Service>> for Services {
    fn from_iter<T: IntoIterator<Item = Arc<Service>>>(all: T) -> Self {
        let mut out = Self::default();
        all.into_iter().for_each(|s| drop(out.insert(s)));
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn service(id: u64, name: &str, on: &BTreeSet<u64>, vip: Option<u64>, selects: bool) -> Arc<Service> {
        let id_of = Id::from_bits;
        let vips = vip.map(|network| json!({"network": id_of(network), "ip": "10.0.0.9", "slot": 1}));
        let s = serde_json::from_value(json!({
            "id": id_of(id), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": name, "labels": {},
            "networks": on.iter().map(|n| id_of(*n)).collect::<Vec<_>>(), "endpoint_mode": "vip", "algorithm": "rr", "ports": [],
            "vips": vips.into_iter().collect::<Vec<_>>(), "slot": 1, "drain_secs": 10,
            "selector": if selects { json!({"a": "b"}) } else { json!({}) },
        }));
        Arc::new(s.expect("a service"))
    }

    proptest! {
        /// What an index says is what a look at all services says, and it holds nothing else.
        #[test]
        fn indexes_are_exact(steps in proptest::collection::vec(
            (0..8u64, "[aAb]", proptest::collection::btree_set(0..4u64, 0..3), proptest::option::of(0..4u64), any::<bool>(), any::<bool>()),
            0..60,
        )) {
            let mut all = Services::default();
            for (id, name, on, vip, selects, put) in steps {
                if put {
                    all.insert(service(id, &name, &on, vip, selects));
                } else {
                    all.remove(Id::from_bits(id));
                }
                let mut groups = (BTreeSet::new(), BTreeSet::new());
                for s in all.values() {
                    groups.0.extend(networks(s));
                    groups.1.extend(networks(s).filter(|_| !s.selector.is_empty()));
                }
                for n in (0..5).map(Id::from_bits) {
                    let scan = |is: &dyn Fn(&Service) -> bool| {
                        let there = all.values().filter(|s| networks(s).any(|on| on == n) && is(s));
                        there.map(|s| s.id).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(all.in_network(n).map(|s| s.id).collect::<Vec<_>>(), scan(&|_| true));
                    prop_assert_eq!(all.selecting_in(n).map(|s| s.id).collect::<Vec<_>>(), scan(&|s| !s.selector.is_empty()));
                }
                for name in ["a", "B", "c"] {
                    let scan = all.values().find(|s| s.name.eq_ignore_ascii_case(name));
                    prop_assert_eq!(all.named(name).map(|s| s.id), scan.map(|s| s.id));
                }
                prop_assert_eq!(all.by_name.len(), all.len());
                prop_assert_eq!(all.are_selecting(), !groups.1.is_empty());
                prop_assert_eq!((all.by_network.len(), all.selecting.len()), (groups.0.len(), groups.1.len()));
            }
        }
    }
}
