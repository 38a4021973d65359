//! Which nodes are heard, and whose data plane answers: the leader's judgement.
//!
//! [`Health`] is the pure part: it is told of heartbeats and probe answers, and says what to record.
//! [`lead`] runs it on the leader, together with the voters' list; [`probe`] asks kernels over the
//! ingress network. A data plane works on without its meshd, so a node whose meshd is gone goes on
//! getting flows as long as its kernel answers.

pub mod lead;
pub mod probe;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_api::proto::Standing;
use mesh_core::{
    Id,
    objects::{Dataplane, Node, NodeState},
};

/// How often the leader looks, and probes a silent node.
pub const STEP: Duration = Duration::from_millis(250);
/// Silence after which a node is down, and its data plane needs the word of a probe.
pub const SILENCE: Duration = Duration::from_secs(3);
/// Silence after which probing begins, so that there are answers when it is needed.
pub const SUSPICION: Duration = Duration::from_secs(1);
/// How old the last probe answer of a silent node may be.
pub const ANSWER: Duration = Duration::from_millis(1500);
/// How long a node that has just joined may take to its first heartbeat.
pub const JOINING: Duration = Duration::from_secs(10);
/// A gap between two steps that is so long that this manager, not the nodes, was away.
const STALL: Duration = Duration::from_secs(1);

/// What to record of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The node.
    pub id: Id,
    /// Whether its meshd is heard.
    pub state: NodeState,
    /// Whether its data plane answers.
    pub dataplane: Dataplane,
}

#[derive(Clone, Debug)]
struct Track {
    /// Since when silence counts: this manager began to listen, or the node joined.
    since: Instant,
    beat: Option<Instant>,
    answer: Option<Instant>,
    /// Revision that it said it has applied.
    applied: u64,
    /// Fingerprint of the root that it said its certificate is of.
    root: String,
    /// The host that counts as the node.
    host: Option<Host>,
}

/// A host with a node's identity.
#[derive(Clone, Copy, Debug)]
struct Host {
    number: u64,
    heard: Instant,
    /// A leader before this one took it for the node too.
    confirmed: bool,
}

impl Track {
    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.beat.map_or(self.since, |beat| beat.max(self.since)))
    }

    fn heard(&self, now: Instant) -> bool {
        self.beat.is_some_and(|beat| now.saturating_duration_since(beat) <= SILENCE)
    }

    fn answered(&self, now: Instant) -> bool {
        self.answer.is_some_and(|answer| now.saturating_duration_since(answer) <= ANSWER)
    }
}

/// What is known of the nodes since this manager leads.
#[derive(Debug, Default)]
pub struct Health {
    tracks: BTreeMap<Id, Track>,
    last_step: Option<Instant>,
}

impl Health {
    /// Forgets everything: leadership was gained, and every node has its time again.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// A heartbeat of a node that has applied `revision`.
    pub fn beat(&mut self, id: Id, now: Instant, revision: u64) {
        let track = self.track(id, now);
        (track.beat, track.applied) = (Some(now), revision);
    }

    /// A node says which root its certificate is of.
    pub fn certified(&mut self, id: Id, now: Instant, root: &str) {
        let track = self.track(id, now);
        if track.root != root {
            root.clone_into(&mut track.root);
        }
    }

    /// Whether the host that beats as a node counts as that node. A disk may be copied with the node's identity on
    /// it: the host that was there first stays the node for as long as it is heard.
    pub fn admit(&mut self, id: Id, now: Instant, number: u64, standing: Standing) -> bool {
        if number == 0 {
            return true;
        }
        let track = self.track(id, now);
        let recent = |at: Instant| now.saturating_duration_since(at) <= SILENCE;
        let confirmed = standing == Standing::Taken;
        let refused = match track.host {
            Some(host) if host.number == number => false,
            // Of two that this leader knows nothing of, the one that another leader took is the node.
            Some(host) => recent(host.heard) && (host.confirmed || !confirmed),
            // The one that was there first may not have spoken to this leader yet.
            None => standing == Standing::Refused && recent(track.since),
        };
        if refused {
            return false;
        }
        if track.host.is_some_and(|host| host.number != number) {
            tracing::info!(node = %id, "another host, or the same one restarted, has the node's identity now");
        }
        track.host = Some(Host {
            number,
            heard: now,
            confirmed,
        });
        true
    }

    /// Fingerprints of the roots that the nodes have said their certificates are of.
    pub fn roots(&self) -> BTreeMap<Id, String> {
        self.tracks.iter().map(|(id, t)| (*id, t.root.clone())).collect()
    }

    /// The nodes that are heard and do not say which root their certificate is of: their release can not.
    pub fn rootless(&self) -> Vec<Id> {
        let silent = self.tracks.iter().filter(|(_, t)| t.beat.is_some() && t.root.is_empty());
        silent.map(|(id, _)| *id).collect()
    }

    /// The revisions that nodes have said to have applied.
    pub fn applied(&self) -> BTreeMap<Id, u64> {
        let heard = self.tracks.iter().filter(|(_, t)| t.beat.is_some());
        heard.map(|(id, t)| (*id, t.applied)).collect()
    }

    /// A node's data plane answered a probe.
    pub fn answered(&mut self, id: Id, now: Instant) {
        self.track(id, now).answer = Some(now);
    }

    fn track(&mut self, id: Id, now: Instant) -> &mut Track {
        self.tracks.entry(id).or_insert(Track {
            since: now,
            beat: None,
            answer: None,
            applied: 0,
            root: String::new(),
            host: None,
        })
    }

    /// What has changed: a verdict for every node of which something else is recorded. The node
    /// `own` is this manager, and always well.
    pub fn step(&mut self, now: Instant, own: Id, nodes: &BTreeMap<Id, Arc<Node>>) -> Vec<Verdict> {
        if self.last_step.is_some_and(|last| now.saturating_duration_since(last) > STALL) {
            // Beats that came meanwhile may not have been read yet.
            for track in self.tracks.values_mut() {
                track.since = now;
            }
        }
        self.last_step = Some(now);
        self.tracks.retain(|id, _| nodes.contains_key(id));
        nodes.values().filter_map(|node| self.judge(now, own, node)).collect()
    }

    fn judge(&mut self, now: Instant, own: Id, node: &Node) -> Option<Verdict> {
        let track = self.track(node.id, now).clone();
        let heard = node.id == own || track.heard(now);
        let grace = if node.state == NodeState::Unknown { JOINING } else { SILENCE };
        let silent = track.silence(now) > grace;
        // In between (just elected, just joined) what is recorded stays.
        let state = match (heard, silent) {
            (true, _) => NodeState::Ready,
            (false, true) => NodeState::Down,
            (false, false) => node.state,
        };
        let dataplane = match (heard || track.answered(now), silent) {
            (true, _) => Dataplane::Reachable,
            (false, true) => Dataplane::Unreachable,
            (false, false) => node.dataplane,
        };
        (state != node.state || dataplane != node.dataplane).then_some(Verdict {
            id: node.id,
            state,
            dataplane,
        })
    }

    /// The nodes to be probed now, by their address in the ingress network.
    pub fn suspects(&self, now: Instant, own: Id, nodes: &BTreeMap<Id, Arc<Node>>) -> Vec<(Id, IpAddr)> {
        let suspect = |n: &&Arc<Node>| n.id != own && self.tracks.get(&n.id).is_some_and(|t| t.silence(now) > SUSPICION);
        nodes.values().filter(suspect).map(|n| (n.id, n.ingress_ip)).collect()
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
