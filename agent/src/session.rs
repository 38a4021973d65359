//! The agent's side of the control plane: what a host that belongs to a cluster keeps doing.
//!
//! Five loops, started by [`crate::membership`] and ended with it: `watch` fills the ledger, `beat`
//! says "I am here", `report` tells the managers what changed on this host, `settle` moves this
//! host's endpoints on in their life, and one renews the certificate. None touches the kernel.

mod idle;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::StreamExt;
use mesh_api::query::Query;
use mesh_control::client::ControlClient;
use mesh_core::{
    Id, Refusal, RefusalKind,
    command::Command,
    objects::{EndpointState, Node, Object, Role},
};
use rand::Rng;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::idle::Idle;
use crate::{
    attachments::Attachments,
    cri::Pods,
    events::EventLog,
    ledger::Ledger,
    reconcile::{Applied, HostState},
};

const BEAT: Duration = Duration::from_secs(1);
/// How long a host's addresses and routes may go on changing before they are told.
const SETTLING: Duration = Duration::from_millis(200);
/// Pause after a report.
const REPORT_GAP: Duration = Duration::from_secs(2);
/// How often it is looked whether an engine still lets something wait, while one does.
const IDLE_LOOK: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(3);

/// What the loops share.
#[derive(Clone)]
pub struct Session {
    /// This node.
    pub node: Id,
    /// The managers.
    pub client: Arc<ControlClient>,
    /// Where the objects go.
    pub ledger: Arc<Ledger>,
    /// Where news go.
    pub events: Arc<EventLog>,
    /// Outcome of the reconcile loop.
    pub applied: watch::Receiver<Applied>,
    /// Attachments that are waited for or given up.
    pub attachments: Arc<Attachments>,
    /// Told of the pods that come.
    pub pods: Arc<Pods>,
}

impl Session {
    /// Starts the loops on `tracker`.
    pub fn start(self, tracker: &TaskTracker, stop: &CancellationToken) {
        let s = self;
        tracker.spawn(stop.clone().run_until_cancelled_owned(s.clone().watch()));
        tracker.spawn(stop.clone().run_until_cancelled_owned(s.clone().beat()));
        tracker.spawn(stop.clone().run_until_cancelled_owned(s.clone().report()));
        let client = s.client.clone();
        tracker.spawn(stop.clone().run_until_cancelled_owned(async move { client.keep_renewed().await }));
        tracker.spawn(stop.clone().run_until_cancelled_owned(s.settle()));
    }

    async fn watch(self) {
        let mut backoff = Backoff::default();
        let mut said = String::new();
        loop {
            let before = self.ledger.view().head.revision;
            if let Err(e) = self.follow(&mut backoff).await {
                // Said once, however long it lasts.
                if e.message != said || self.ledger.view().head.revision != before {
                    tracing::warn!(error = %e.message, "no news from the managers; going on from the ledger");
                }
                said = e.message;
            }
            backoff.wait().await;
        }
    }

    async fn follow(&self, backoff: &mut Backoff) -> Result<(), Refusal> {
        self.ledger.begin();
        let head = self.ledger.view().head;
        let mut batches = self.client.watch(head.revision).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            backoff.reset();
            let revision = batch.revision;
            let news = self.ledger.receive(revision, batch.changes, batch.snapshot, batch.complete);
            self.events.record(revision, &news);
            self.pods.note(self.node, news.iter().map(|n| &n.change));
        }
        Ok(())
    }

    async fn beat(mut self) {
        let mut told = 0;
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.owes(told) => {}
            }
            let revision = self.applied.borrow().revision;
            match self.client.beat(revision).await {
                Ok(()) => told = revision,
                Err(e) => tracing::debug!(error = %e.message, "heartbeat not taken"),
            }
        }
    }

    /// Returns once this host has let go of an endpoint that drains, later than in revision `told`:
    /// whoever removes it waits to hear so.
    async fn owes(&mut self, told: u64) {
        while self.applied.changed().await.is_ok() {
            let now = self.applied.borrow_and_update().revision;
            let view = self.ledger.view();
            let mut leaving = view.objects.endpoints.values().filter(|e| e.is_leaving());
            if leaving.any(|e| told < e.version && e.version <= now) {
                return;
            }
        }
        // meshd is stopping; the beat goes on by the clock.
        std::future::pending().await
    }

    /// Tells the managers when this host's address, its underlay's MTU or its routes are not what
    /// they know. What changes in quick succession is told once.
    async fn report(mut self) {
        let mut ledger = self.ledger.subscribe();
        let mut backoff = Backoff::default();
        loop {
            if self.news().is_some() {
                sleep(SETTLING).await;
            }
            self.applied.mark_unchanged();
            ledger.mark_unchanged();
            if self.news().is_some() {
                // The addresses of a copy of this host are not the node's.
                self.client.counted().await;
            }
            if let Some(report) = self.news() {
                if let Err(e) = self.client.propose(report).await.and_then(|(_, outcome)| outcome.map(drop)) {
                    tracing::debug!(error = %e.message, "report not taken");
                    backoff.wait().await;
                    continue;
                }
                backoff.reset();
                // A host whose routes never rest must not keep the managers busy.
                sleep(REPORT_GAP).await;
                continue;
            }
            tokio::select! {
                _ = self.applied.changed() => {}
                _ = ledger.changed() => {}
            }
        }
    }

    /// What the managers do not know yet.
    fn news(&self) -> Option<Command> {
        let state = self.applied.borrow().host.clone()?;
        let known = self.ledger.view().objects.nodes.get(&self.node).cloned()?;
        report_of(&known, &state)
    }

    /// An endpoint whose interface is in place becomes ready; one whose container is gone, that was
    /// given up, or that its engine does not take, is removed. So are addresses that were promised to
    /// an engine and came to nothing.
    async fn settle(mut self) {
        let mut backoff = Backoff::default();
        let mut done = BTreeSet::new();
        let mut idle = Idle::default();
        loop {
            let applied = self.applied.borrow_and_update().clone();
            let view = self.ledger.view();
            let mine = view.objects.endpoints.on_node(self.node);
            let (mut todo, mut failed) = (idle.overdue(self.node, &view.objects, &applied, Instant::now()), false);
            for e in mine {
                let current = e.version <= applied.revision;
                if current && applied.gone.contains(&e.id) {
                    todo.push(Command::EndpointRemove { id: e.id });
                } else if self.attachments.is_stray(e) {
                    match self.is_still_stray(e.id).await {
                        Ok(true) => todo.push(Command::EndpointRemove { id: e.id }),
                        Ok(false) => {}
                        Err(error) => {
                            failed = true;
                            tracing::debug!(endpoint = %e.id, error = %error.message, "not known whether it was given up");
                        }
                    }
                } else if !current {
                    // The kernel has not been brought to it.
                } else if e.state == EndpointState::Starting && !applied.failed.contains_key(&e.id) && !applied.waiting.contains(&e.id) {
                    todo.push(Command::EndpointSet {
                        id: e.id,
                        state: EndpointState::Ready,
                    });
                }
            }
            if !self.client.counts() {
                // On a copy of this host no container is there that the node has.
                let all = todo.len();
                todo.retain(|c| matches!(c, Command::EndpointSet { .. }));
                failed |= todo.len() < all;
            }
            done.retain(|id| view.objects.endpoints.contains_key(id));
            todo.retain(|c| !matches!(c, Command::EndpointSet { id, .. } if done.contains(id)));
            let asked = futures::future::join_all(todo.iter().map(|c| self.client.propose(c.clone()))).await;
            for (command, answer) in todo.iter().zip(asked) {
                match answer.and_then(|(_, outcome)| outcome) {
                    Ok(_) => match command {
                        Command::EndpointSet { id, .. } => drop(done.insert(*id)),
                        Command::EndpointRemove { id } => self.attachments.settled(*id),
                        _ => {}
                    },
                    Err(Refusal {
                        kind: RefusalKind::NotFound,
                        ..
                    }) => {}
                    Err(e) => {
                        failed = true;
                        tracing::debug!(command = command.name(), error = %e.message, "not taken");
                    }
                }
            }
            if failed {
                backoff.wait().await;
                continue;
            }
            backoff.reset();
            tokio::select! {
                changed = self.applied.changed() => if changed.is_err() { return },
                () = self.attachments.given_up() => {}
                () = sleep(IDLE_LOOK), if !idle.is_empty() => {}
            }
        }
    }
}

impl Session {
    /// Asks the managers: the ledger may be older than what they have, and an endpoint that was
    /// starting there be ready for long.
    async fn is_still_stray(&self, id: Id) -> Result<bool, Refusal> {
        match self.client.query(Query::Endpoint(id.to_string())).await {
            Ok(answer) => Ok(answer.objects.iter().any(|o| match o {
                Object::Endpoint(e) => e.id == id && self.attachments.is_stray(e),
                _ => false,
            })),
            Err(e) if e.kind == RefusalKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The report of a host that is not as the managers know it.
fn report_of(known: &Node, now: &HostState) -> Option<Command> {
    // A manager's own address is in the raft membership and in its identity: it stays. A worker is
    // never called, and where its one address served for both, it moves with the data path.
    let moves = known.role == Role::Worker && known.addr == known.data_path_addr;
    let addr = if moves { now.data_path_addr } else { known.addr };
    let same = known.addr == addr
        && known.data_path_addr == now.data_path_addr
        && known.underlay_mtu == now.facts.mtu
        && known.underlay_mac == now.facts.mac
        && known.host_routes == now.facts.routes;
    (!same).then(|| Command::NodeReport {
        id: known.id,
        addr,
        data_path_addr: now.data_path_addr,
        underlay_mtu: now.facts.mtu,
        underlay_mac: now.facts.mac,
        host_routes: now.facts.routes.clone(),
    })
}

/// Waits that grow, each of a random length so that ten thousand agents do not come back at once.
#[derive(Default)]
pub(crate) struct Backoff(Option<Duration>);

impl Backoff {
    /// The next wait is a short one again.
    pub(crate) fn reset(&mut self) {
        self.0 = None;
    }

    /// Waits, longer each time, [`RETRY_LAST`] at most.
    pub(crate) async fn wait(&mut self) {
        let next = self.0.map_or(RETRY_FIRST, |d| (d * 2).min(RETRY_LAST));
        self.0 = Some(next);
        let wait = rand::rng().random_range(next / 2..=next);
        sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use mesh_overlay::HostFacts;

    use super::*;

    fn node(role: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "id": Id::from_bits(1), "version": 1, "created_at": "2026-01-01T00:00:00Z", "hostname": "h1", "labels": {},
            "role": role, "raft_id": 0, "availability": "active", "addr": "192.0.2.1", "control_port": 2377,
            "data_path_addr": "192.0.2.1", "underlay_mtu": 1500, "ingress_ip": "10.0.0.2", "host_routes": [],
            "state": "ready", "dataplane": "reachable",
        }))
        .unwrap()
    }

    #[test]
    fn an_address_that_changed_is_told() {
        let mut now = HostState {
            data_path_addr: [192, 0, 2, 1].into(),
            facts: HostFacts {
                uplink: "eth0".to_owned(),
                mtu: 1500,
                mac: None,
                segment: None,
                addrs: Vec::new(),
                routes: Vec::new(),
            },
        };
        let told = |role, now: &HostState| match report_of(&node(role), now) {
            Some(Command::NodeReport {
                addr,
                data_path_addr,
                underlay_mtu,
                ..
            }) => Some((addr.to_string(), data_path_addr.to_string(), underlay_mtu)),
            _ => None,
        };
        assert_eq!(told("worker", &now), None);
        now.facts.mtu = 1400;
        assert_eq!(told("worker", &now), Some(("192.0.2.1".into(), "192.0.2.1".into(), 1400)));
        now.data_path_addr = [192, 0, 2, 9].into();
        assert_eq!(told("worker", &now), Some(("192.0.2.9".into(), "192.0.2.9".into(), 1400)));
        assert_eq!(told("manager", &now), Some(("192.0.2.1".into(), "192.0.2.9".into(), 1400)));
    }
}
