//! The endpoints of a cluster, found by their id, and by what they are on: node, network and service.
//!
//! Part of [`super::Objects`]. The indexes are derived, and kept exact by every change: only
//! [`Endpoints::insert`] and [`Endpoints::remove`] make one.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use super::{Endpoint, groups::Groups};
use crate::Id;

/// Endpoints by id.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    all: BTreeMap<Id, Arc<Endpoint>>,
    by_node: Groups,
    by_network: Groups,
    by_service: Groups,
}

impl Endpoints {
    /// Puts an endpoint; gives the one that was in its place.
    pub fn insert(&mut self, endpoint: Arc<Endpoint>) -> Option<Arc<Endpoint>> {
        let id = endpoint.id;
        let (node, network, service) = places(&endpoint);
        let former = self.all.insert(id, endpoint);
        let was = former.as_deref().map(places);
        let moved = |to: Option<Id>, from: Option<Option<Id>>| (to != from.flatten()).then_some((to, from.flatten()));
        for (groups, step) in [
            (&mut self.by_node, moved(node, was.map(|w| w.0))),
            (&mut self.by_network, moved(network, was.map(|w| w.1))),
            (&mut self.by_service, moved(service, was.map(|w| w.2))),
        ] {
            let Some((to, from)) = step else { continue };
            from.into_iter().for_each(|from| groups.leave(from, id));
            to.into_iter().for_each(|to| groups.enter(to, id));
        }
        former
    }

    /// Removes an endpoint, and gives it.
    pub fn remove(&mut self, id: Id) -> Option<Arc<Endpoint>> {
        let former = self.all.remove(&id)?;
        let (node, network, service) = places(&former);
        for (groups, group) in [
            (&mut self.by_node, node),
            (&mut self.by_network, network),
            (&mut self.by_service, service),
        ] {
            group.into_iter().for_each(|group| groups.leave(group, id));
        }
        Some(former)
    }

    /// Gives back memory: a map that was filled in order has room for nearly as much again.
    pub(super) fn compact(&mut self) {
        self.all = std::mem::take(&mut self.all).into_iter().collect();
        for groups in [&mut self.by_node, &mut self.by_network, &mut self.by_service] {
            groups.compact();
        }
    }

    /// Those on a node, by id.
    pub fn on_node(&self, node: Id) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        self.of(&self.by_node, node)
    }

    /// Those in a network, by id.
    pub fn in_network(&self, network: Id) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        self.of(&self.by_network, network)
    }

    /// Those that are attached to a service, by id; those that it selects by their labels are not among
    /// them.
    pub fn of_service(&self, service: Id) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        self.of(&self.by_service, service)
    }

    fn of<'a>(&'a self, groups: &'a Groups, id: Id) -> impl Iterator<Item = &'a Arc<Endpoint>> + Clone {
        groups.of(id).iter().filter_map(|id| self.all.get(id))
    }
}

/// Reading is as of any map.
impl Deref for Endpoints {
    type Target = BTreeMap<Id, Arc<Endpoint>>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

/// The indexes follow from the endpoints.
impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl FromIterator<Arc<Endpoint>> for Endpoints {
    fn from_iter<T: IntoIterator<Item = Arc<Endpoint>>>(all: T) -> Self {
        let mut out = Self::default();
        all.into_iter().for_each(|e| drop(out.insert(e)));
        out
    }
}

/// Node, network and service.
fn places(e: &Endpoint) -> (Option<Id>, Option<Id>, Option<Id>) {
    (Some(e.node), Some(e.network), e.service)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn endpoint(id: u64, node: u64, network: u64, service: Option<u64>) -> Arc<Endpoint> {
        let id_of = Id::from_bits;
        let e = serde_json::from_value(serde_json::json!({
            "id": id_of(id), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "e", "labels": {},
            "node": id_of(node), "network": id_of(network), "ip": "10.0.0.9", "mac": "02:00:00:00:00:09",
            "aliases": [], "service": service.map(id_of), "ifname": "eth0", "state": "ready", "slot": 1,
            "sandbox": {"container": "netns:e", "netns": "/run/netns/e", "inode": 5},
        }));
        Arc::new(e.expect("an endpoint"))
    }

    proptest! {
        /// What an index says is what a look at all endpoints says, and it holds nothing else.
        #[test]
        fn indexes_are_exact(steps in proptest::collection::vec((0..12u64, 0..3u64, 0..3u64, 0..4u64, any::<bool>()), 0..80)) {
            let mut all = Endpoints::default();
            for (id, node, network, service, put) in steps {
                if put {
                    all.insert(endpoint(id, node, network, (service > 0).then_some(service)));
                } else {
                    all.remove(Id::from_bits(id));
                }
                for n in (0..4).map(Id::from_bits) {
                    let scan = |is: &dyn Fn(&Endpoint) -> bool| all.values().filter(|e| is(e)).map(|e| e.id).collect::<Vec<_>>();
                    prop_assert_eq!(all.on_node(n).map(|e| e.id).collect::<Vec<_>>(), scan(&|e| e.node == n));
                    prop_assert_eq!(all.in_network(n).map(|e| e.id).collect::<Vec<_>>(), scan(&|e| e.network == n));
                    prop_assert_eq!(all.of_service(n).map(|e| e.id).collect::<Vec<_>>(), scan(&|e| e.service == Some(n)));
                }
                let groups = |of: &dyn Fn(&Endpoint) -> Option<Id>| all.values().filter_map(|e| of(e)).collect::<BTreeSet<_>>().len();
                prop_assert_eq!(all.by_node.len(), groups(&|e| Some(e.node)));
                prop_assert_eq!(all.by_network.len(), groups(&|e| Some(e.network)));
                prop_assert_eq!(all.by_service.len(), groups(&|e| e.service));
            }
        }
    }
}
