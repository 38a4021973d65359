//! What keeps new flows from an endpoint: the one rule, for the balancers and the names of every host
//! ([`crate::intent`]) and for the catalog, which says why.

use super::{Availability, Dataplane, Endpoint, EndpointState, Node};
use crate::Id;

/// Why an endpoint is given no new flow. Of several, the one that weighs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It is being attached.
    Starting,
    /// It was told to drain.
    Draining,
    /// Its node's data plane does not answer.
    Unreachable,
    /// Its node drains.
    NodeDrains,
    /// Its container was asked to stop. It may well go on serving until it ends: where nobody else takes flows, it
    /// still gets them, by its weight.
    Stopping,
    /// Its weight is 0.
    Weightless,
}

impl Endpoint {
    /// What keeps new flows from it. `node` is the one that it is on, `here` the one that asks, which reaches its own endpoints
    /// whatever others say.
    pub fn obstacle(&self, node: Option<&Node>, here: Option<Id>) -> Option<Obstacle> {
        let node = node.filter(|n| here == Some(n.id) || n.dataplane == Dataplane::Reachable);
        match (self.state, node) {
            (EndpointState::Starting, _) => Some(Obstacle::Starting),
            (EndpointState::Draining, _) => Some(Obstacle::Draining),
            (EndpointState::Ready, None) => Some(Obstacle::Unreachable),
            (EndpointState::Ready, Some(n)) if n.availability == Availability::Drain => Some(Obstacle::NodeDrains),
            (EndpointState::Ready, Some(_)) if self.stopping.is_some() => Some(Obstacle::Stopping),
            (EndpointState::Ready, Some(_)) => self.weightless(),
        }
    }

    /// [`Self::obstacle`] where nobody else takes flows: that it is stopping is none then.
    pub fn obstacle_for_last(&self, node: Option<&Node>, here: Option<Id>) -> Option<Obstacle> {
        match self.obstacle(node, here) {
            Some(Obstacle::Stopping) => self.weightless(),
            obstacle => obstacle,
        }
    }

    fn weightless(&self) -> Option<Obstacle> {
        (self.weight == 0).then_some(Obstacle::Weightless)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_obstacle_is_named_and_the_heaviest_first() {
        let node: Node = serde_json::from_value(json!({
            "id": Id::from_bits(1), "version": 1, "created_at": "2026-01-01T00:00:00Z", "hostname": "h1", "labels": {},
            "role": "worker", "raft_id": 0, "availability": "active", "addr": "192.0.2.1", "control_port": 2377,
            "data_path_addr": "192.0.2.1", "underlay_mtu": 1500, "ingress_ip": "10.0.0.2", "host_routes": [],
            "state": "ready", "dataplane": "reachable",
        }))
        .expect("a node");
        let mut e: Endpoint = serde_json::from_value(json!({
            "id": Id::from_bits(9), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "e", "labels": {}, "node": node.id,
            "network": Id::from_bits(2), "ip": "10.1.0.2", "mac": "02:6d:00:00:00:01", "aliases": [], "service": null,
            "sandbox": {"container": "c", "netns": "/x", "inode": 1}, "ifname": "eth0", "state": "ready", "slot": 1,
        }))
        .expect("an endpoint");
        let mut silent = node.clone();
        silent.dataplane = Dataplane::Unreachable;
        let mut leaving = node.clone();
        leaving.availability = Availability::Drain;
        let both = |e: &Endpoint, n: Option<&Node>| (e.obstacle(n, None), e.obstacle_for_last(n, None));
        let twice = |o| (Some(o), Some(o));
        assert_eq!(both(&e, Some(&node)), (None, None));
        e.weight = 0;
        assert_eq!(both(&e, Some(&node)), twice(Obstacle::Weightless));
        e.stopping = Some(Box::new(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(both(&e, Some(&node)), (Some(Obstacle::Stopping), Some(Obstacle::Weightless)));
        e.weight = 3;
        assert_eq!(both(&e, Some(&node)), (Some(Obstacle::Stopping), None));
        assert_eq!(both(&e, Some(&leaving)), twice(Obstacle::NodeDrains));
        leaving.dataplane = Dataplane::Unreachable;
        for away in [Some(&leaving), Some(&silent), None] {
            assert_eq!(both(&e, away), twice(Obstacle::Unreachable));
        }
        assert_eq!(
            e.obstacle_for_last(Some(&silent), Some(silent.id)),
            None,
            "a host always reaches its own"
        );
        e.state = EndpointState::Draining;
        assert_eq!(both(&e, None), twice(Obstacle::Draining));
        e.state = EndpointState::Starting;
        assert_eq!(both(&e, None), twice(Obstacle::Starting));
    }
}
