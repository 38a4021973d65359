//! What keeps new flows from an endpoint: the one rule, for the balancers and the names of every host
//! ([`crate::intent`]) and for the catalog, which says why.

use super::{Availability, Dataplane, Endpoint, EndpointState, Health, Node};
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
    /// Its container's own check fails, or has not succeeded yet.
    Unhealthy,
    /// Its container was asked to stop.
    Stopping,
    /// Its weight is 0.
    Weightless,
}

/// Whose turn it is to be given new flows: of a service's endpoints, those of the first that any is of, by their
/// weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Those that nothing keeps flows from.
    Fit,
    /// Those whose containers were asked to stop: they may well go on serving until they end.
    Stopping,
    /// Those whose containers' checks fail: a check may be wrong, and where all fail nothing is better.
    Unhealthy,
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
            (EndpointState::Ready, Some(_)) if self.health == Health::Unwell => Some(Obstacle::Unhealthy),
            (EndpointState::Ready, Some(_)) if self.stopping.is_some() => Some(Obstacle::Stopping),
            (EndpointState::Ready, Some(_)) => (self.weight == 0).then_some(Obstacle::Weightless),
        }
    }

    /// When it is its turn; `None`: never. What its weight is does not matter here. The rest is as for
    /// [`Self::obstacle`].
    pub fn turn(&self, node: Option<&Node>, here: Option<Id>) -> Option<Turn> {
        match self.obstacle(node, here) {
            None | Some(Obstacle::Weightless) => Some(Turn::Fit),
            Some(Obstacle::Stopping) => Some(Turn::Stopping),
            Some(Obstacle::Unhealthy) => Some(Turn::Unhealthy),
            Some(Obstacle::Starting | Obstacle::Draining | Obstacle::Unreachable | Obstacle::NodeDrains) => None,
        }
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
        let both = |e: &Endpoint, n: Option<&Node>| (e.obstacle(n, None), e.turn(n, None));
        let never = |o| (Some(o), None);
        assert_eq!(both(&e, Some(&node)), (None, Some(Turn::Fit)));
        e.weight = 0;
        assert_eq!(both(&e, Some(&node)), (Some(Obstacle::Weightless), Some(Turn::Fit)));
        e.stopping = Some(Box::new(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(both(&e, Some(&node)), (Some(Obstacle::Stopping), Some(Turn::Stopping)));
        e.health = Health::Overruled;
        assert_eq!(both(&e, Some(&node)), (Some(Obstacle::Stopping), Some(Turn::Stopping)));
        e.health = Health::Unwell;
        assert_eq!(both(&e, Some(&node)), (Some(Obstacle::Unhealthy), Some(Turn::Unhealthy)));
        e.weight = 3;
        assert_eq!(both(&e, Some(&leaving)), never(Obstacle::NodeDrains));
        leaving.dataplane = Dataplane::Unreachable;
        for away in [Some(&leaving), Some(&silent), None] {
            assert_eq!(both(&e, away), never(Obstacle::Unreachable));
        }
        assert_eq!(
            e.turn(Some(&silent), Some(silent.id)),
            Some(Turn::Unhealthy),
            "a host always reaches its own"
        );
        e.state = EndpointState::Draining;
        assert_eq!(both(&e, None), never(Obstacle::Draining));
        e.state = EndpointState::Starting;
        assert_eq!(both(&e, None), never(Obstacle::Starting));
    }
}
