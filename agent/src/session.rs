//! The agent's side of the control plane: what a host that belongs to a cluster keeps doing.
//!
//! Five loops, started by [`crate::membership`] and ended with it: `watch` fills the ledger, `beat`
//! says "I am here", `report` tells the managers what changed on this host, `settle` moves this
//! host's endpoints on in their life, and one renews the certificate. None touches the kernel.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::StreamExt;
use mesh_control::client::ControlClient;
use mesh_core::{
    Id, Refusal, RefusalKind,
    command::Command,
    objects::{EndpointState, Node},
};
use mesh_overlay::HostFacts;
use rand::Rng;
use tokio::{sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    events::EventLog,
    execute::chain,
    ledger::{Ledger, LedgerError},
    reconcile::Applied,
};

const BEAT: Duration = Duration::from_secs(1);
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
    /// Told when something happened after which meshd can not go on.
    pub fatal: tokio::sync::mpsc::Sender<String>,
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
        loop {
            match self.follow(&mut backoff).await {
                Ok(()) => {}
                Err(Ended::Ledger(e)) => {
                    drop(self.fatal.send(chain(&e)).await);
                    return;
                }
                Err(Ended::Watch(e)) => tracing::warn!(error = %e.message, "no news from the managers; going on from the ledger"),
            }
            backoff.wait().await;
        }
    }

    async fn follow(&self, backoff: &mut Backoff) -> Result<(), Ended> {
        self.ledger.begin();
        let head = self.ledger.view().head;
        let mut batches = self.client.watch(head.revision).await.map_err(Ended::Watch)?;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(Ended::Watch)?;
            backoff.reset();
            let revision = batch.revision;
            let news = self
                .ledger
                .receive(revision, batch.changes, batch.snapshot, batch.complete)
                .map_err(Ended::Ledger)?;
            self.events.record(revision, &news);
        }
        Ok(())
    }

    async fn beat(self) {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let revision = self.applied.borrow().revision;
            if let Err(e) = self.client.beat(revision).await {
                tracing::debug!(error = %e.message, "heartbeat not taken");
            }
        }
    }

    /// Tells the managers when the underlay's MTU or the host's routes are not what they know.
    async fn report(mut self) {
        let mut ledger = self.ledger.subscribe();
        let mut backoff = Backoff::default();
        loop {
            let facts = self.applied.borrow_and_update().facts.clone();
            let known = self.ledger.view().objects.nodes.get(&self.node).cloned();
            if let (Some(facts), Some(known)) = (facts, known)
                && differs(&known, &facts)
            {
                let report = Command::NodeReport {
                    id: self.node,
                    addr: known.addr,
                    data_path_addr: known.data_path_addr,
                    underlay_mtu: facts.mtu,
                    host_routes: facts.routes,
                };
                if let Err(e) = self.client.propose(report).await.and_then(|(_, outcome)| outcome.map(drop)) {
                    tracing::debug!(error = %e.message, "report not taken");
                    backoff.wait().await;
                    continue;
                }
                backoff.reset();
            }
            tokio::select! {
                _ = self.applied.changed() => {}
                _ = ledger.changed() => {}
            }
        }
    }

    /// An endpoint whose interface is in place becomes ready; one whose container is gone is
    /// removed.
    async fn settle(mut self) {
        let mut backoff = Backoff::default();
        let mut done = BTreeSet::new();
        loop {
            let applied = self.applied.borrow_and_update().clone();
            let view = self.ledger.view();
            let mine = view.objects.endpoints.values().filter(|e| e.node == self.node);
            let mut todo = Vec::new();
            for e in mine.filter(|e| e.version <= applied.revision) {
                if applied.gone.contains(&e.id) {
                    todo.push(Command::EndpointRemove { id: e.id });
                } else if e.state == EndpointState::Starting && !applied.failed.contains_key(&e.id) {
                    todo.push(Command::EndpointSet {
                        id: e.id,
                        state: EndpointState::Ready,
                    });
                }
            }
            done.retain(|id| view.objects.endpoints.contains_key(id));
            todo.retain(|c| !matches!(c, Command::EndpointSet { id, .. } if done.contains(id)));
            let asked = futures::future::join_all(todo.iter().map(|c| self.client.propose(c.clone()))).await;
            let mut failed = false;
            for (command, answer) in todo.iter().zip(asked) {
                match answer.and_then(|(_, outcome)| outcome) {
                    Ok(_) => {
                        if let Command::EndpointSet { id, .. } = command {
                            done.insert(*id);
                        }
                    }
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
            if self.applied.changed().await.is_err() {
                return;
            }
        }
    }
}

fn differs(known: &Node, facts: &HostFacts) -> bool {
    known.underlay_mtu != facts.mtu || known.host_routes != facts.routes
}

enum Ended {
    Watch(Refusal),
    Ledger(LedgerError),
}

/// Waits that grow, each of a random length so that ten thousand agents do not come back at once.
#[derive(Default)]
struct Backoff(Option<Duration>);

impl Backoff {
    fn reset(&mut self) {
        self.0 = None;
    }

    async fn wait(&mut self) {
        let next = self.0.map_or(RETRY_FIRST, |d| (d * 2).min(RETRY_LAST));
        self.0 = Some(next);
        let wait = rand::rng().random_range(next / 2..=next);
        sleep(wait).await;
    }
}
