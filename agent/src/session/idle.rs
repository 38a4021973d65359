//! What was made for a container engine that never came for it: interfaces that it does not take, and
//! addresses that it asked for and does not use. Kept by [`super::Session`]'s `settle`.
//!
//! The clock is this meshd's: after a restart it begins anew, so that an engine that is slow is never
//! robbed, and what is left over goes in the end.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use mesh_core::{
    Id,
    command::Command,
    objects::{Endpoint, Objects},
};
use tokio::time::Instant;

use crate::reconcile::Applied;

/// Docker takes an interface within a second, more when the host is overloaded.
const PATIENCE: Duration = Duration::from_secs(60);

/// Since when something waits.
#[derive(Default)]
pub struct Idle {
    endpoints: BTreeMap<Id, Instant>,
    addresses: BTreeMap<(Id, IpAddr), Instant>,
}

impl Idle {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.addresses.is_empty()
    }

    /// Takes note of what waits on `node` now, and says what has waited for too long.
    pub fn overdue(&mut self, node: Id, objects: &Objects, applied: &Applied, now: Instant) -> Vec<Command> {
        let waits = |e: &Endpoint| {
            let is_unused = applied.waiting.contains(&e.id) || applied.failed.contains_key(&e.id);
            e.sandbox.handover.is_some() && is_unused
        };
        let endpoints = objects.endpoints.on_node(node).filter(|e| waits(e)).map(|e| e.id);
        let networks = objects.networks.values();
        let addresses = networks.flat_map(|n| n.reserved.iter().filter(|(_, of)| **of == node).map(|(ip, _)| (n.id, *ip)));
        let endpoints = note(&mut self.endpoints, endpoints.collect(), now);
        let addresses = note(&mut self.addresses, addresses.collect(), now);
        let remove = endpoints.into_iter().map(|id| Command::EndpointRemove { id });
        let release = addresses.into_iter().map(|(network, ip)| Command::AddressRelease {
            network: network.to_string(),
            node,
            ip,
            with_endpoint: false,
        });
        remove.chain(release).collect()
    }
}

fn note<K: Ord + Copy>(since: &mut BTreeMap<K, Instant>, here: Vec<K>, now: Instant) -> Vec<K> {
    since.retain(|k, _| here.contains(k));
    for k in here {
        since.entry(k).or_insert(now);
    }
    let is_overdue = |since: &Instant| now.duration_since(*since) >= PATIENCE;
    since.iter().filter(|(_, s)| is_overdue(s)).map(|(k, _)| *k).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_never_overdue() {
        let (mut since, start) = (BTreeMap::new(), Instant::now());
        assert!(note(&mut since, vec![1, 2], start).is_empty());
        assert!(note(&mut since, vec![2], start + PATIENCE / 2).is_empty());
        assert!(note(&mut since, vec![1, 2, 3], start + PATIENCE - Duration::from_millis(1)).is_empty());
        assert_eq!(note(&mut since, vec![1, 2, 3], start + PATIENCE), [2]);
        assert_eq!(note(&mut since, vec![1], start + PATIENCE * 3), [1]);
        assert!(note(&mut since, vec![], start + PATIENCE * 3).is_empty() && since.is_empty());
    }
}
