//! What the leader does besides leading: it judges the nodes' health, and keeps the list of voters
//! in step with the nodes that are managers.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use mesh_core::{
    Id,
    command::Command,
    objects::{Objects, Role},
};
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{Health, STEP, Verdict, probe::Prober};
use crate::{
    consensus::{Consensus, Leadership},
    roots,
    server::control_addr,
};

/// Liveness proposals at a time.
const PROPOSALS: usize = 64;
/// Probes at a time.
const PROBES: usize = 1024;

/// What the duties need.
#[derive(Clone)]
pub struct Duties {
    /// The replicated state.
    pub consensus: Arc<dyn Consensus>,
    /// This node.
    pub own: Id,
    /// Its raft id.
    pub raft_id: u64,
    /// Heartbeats.
    pub health: Arc<Mutex<Health>>,
    /// Woken when a node that was down is heard.
    pub heard: Arc<Notify>,
    /// Asks kernels.
    pub prober: Arc<dyn Prober>,
}

impl Duties {
    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs both duties whenever this manager leads, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut leadership = self.consensus.leadership();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                led = leadership.wait_for(|l| l.is_leader) => if led.is_err() { return },
            }
            self.health().reset();
            let mut lost = self.consensus.leadership();
            tokio::select! {
                () = stop.cancelled() => return,
                gone = lost.wait_for(|l| !l.is_leader) => if gone.is_err() { return },
                () = self.judge() => {}
                () = self.enlist() => {}
            }
        }
    }

    async fn judge(&self) {
        let mut tick = interval(STEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let probing = Arc::new(Mutex::new(HashSet::new()));
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.heard.notified() => {}
            }
            let now = Instant::now();
            let (verdicts, suspects, source) = {
                let (_, all) = self.consensus.objects();
                let mut health = self.health();
                let source = all.nodes.get(&self.own).map(|n| n.ingress_ip);
                (
                    health.step(now, self.own, &all.nodes),
                    health.suspects(now, self.own, &all.nodes),
                    source,
                )
            };
            if let Some(source) = source {
                self.probe(source, suspects, &probing);
            }
            self.forget_roots().await;
            stream::iter(verdicts).for_each_concurrent(PROPOSALS, |v| self.record(v)).await;
        }
    }

    /// Ends the rotation of the cluster's root once nobody needs the former one.
    async fn forget_roots(&self) {
        let (_, all) = self.consensus.objects();
        if all.cluster.as_ref().is_none_or(|c| c.former_roots.is_empty()) {
            return;
        }
        let said = self.health().roots();
        let over = roots::forgettable(&all, &said, Timestamp::now());
        drop(all);
        if over.is_empty() {
            return;
        }
        match self.consensus.propose(Command::CaForget { roots: over }).await {
            Ok(_) => tracing::info!("a former root of the cluster is trusted no more"),
            // The next step says it again, here or at the next leader.
            Err(error) => tracing::warn!(%error, "can not have a former root forgotten"),
        }
    }

    async fn record(&self, verdict: Verdict) {
        let Verdict { id, state, dataplane } = verdict;
        tracing::info!(node = %id, ?state, ?dataplane, "node's health changed");
        match self.consensus.propose(Command::NodeLiveness { id, state, dataplane }).await {
            // Removed meanwhile.
            Ok(applied) => drop(
                applied
                    .outcome
                    .inspect_err(|refusal| tracing::debug!(%refusal, "health not recorded")),
            ),
            // The next step says it again, here or at the next leader.
            Err(error) => tracing::warn!(node = %id, %error, "can not record a node's health"),
        }
    }

    /// Starts a probe of every suspect that none is under way for.
    fn probe(&self, source: IpAddr, suspects: Vec<(Id, IpAddr)>, probing: &Arc<Mutex<HashSet<Id>>>) {
        for (id, target) in suspects {
            let mut under_way = probing.lock().unwrap_or_else(PoisonError::into_inner);
            if under_way.len() >= PROBES || !under_way.insert(id) {
                continue;
            }
            let (duties, probing) = (self.clone(), probing.clone());
            tokio::spawn(async move {
                if duties.prober.probe(source, target).await {
                    duties.health().answered(id, Instant::now());
                }
                probing.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            });
        }
    }

    async fn enlist(&self) {
        let mut tick = interval(STEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let leadership = self.consensus.leadership();
        let mut complaint = String::new();
        loop {
            tick.tick().await;
            let managers = managers(&self.consensus.objects().1);
            let now = leadership.borrow().clone();
            let step = next(&managers, &now, self.raft_id);
            let done = match &step {
                Step::Nothing => continue,
                Step::Members => {
                    let differ = self.differ(&managers);
                    tokio::select! {
                        done = self.consensus.set_members(managers.clone()) => done,
                        // One that has left must not wait until another one has caught up.
                        () = differ => continue,
                    }
                }
                Step::HandOver(to) => self.consensus.transfer_leader(*to).await,
            };
            match done {
                Ok(()) => {
                    tracing::info!(?step, "managers changed");
                    complaint.clear();
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != complaint {
                        tracing::warn!(?step, %error, "can not change the managers; trying on");
                        complaint = text;
                    }
                }
            }
        }
    }
}

impl Duties {
    /// Returns once the managers are others than `before`.
    async fn differ(&self, before: &BTreeMap<u64, String>) {
        let mut batches = self.consensus.subscribe();
        while managers(&self.consensus.objects().1) == *before {
            if let Err(RecvError::Closed) = batches.recv().await {
                // Consensus has ended, and its own answer says so.
                return std::future::pending().await;
            }
        }
    }
}

/// What brings the voters nearer to the managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Members,
    /// This manager was removed: another one must lead to take its vote away.
    HandOver(u64),
}

/// Raft id and `host:port` of the nodes that are managers.
pub fn managers(all: &Objects) -> BTreeMap<u64, String> {
    all.nodes
        .values()
        .filter(|n| n.role == Role::Manager)
        .map(|n| (n.raft_id, control_addr(n)))
        .collect()
}

fn next(managers: &BTreeMap<u64, String>, now: &Leadership, own: u64) -> Step {
    // A cluster without managers can not be asked for: the list is not here yet.
    if managers.is_empty() || (*managers == now.voters && now.learners.is_empty()) {
        return Step::Nothing;
    }
    if managers.contains_key(&own) {
        return Step::Members;
    }
    match managers.keys().find(|id| now.voters.contains_key(id)) {
        Some(to) => Step::HandOver(*to),
        None => Step::Members,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_voters_follow_the_managers() {
        let list = |ids: &[u64]| ids.iter().map(|id| (*id, format!("h{id}:2377"))).collect::<BTreeMap<_, _>>();
        let now = |voters: &[u64], learners: &[u64]| Leadership {
            voters: list(voters),
            learners: list(learners),
            ..Leadership::default()
        };
        let cases = [
            (list(&[1]), now(&[1], &[]), Step::Nothing),
            (list(&[]), now(&[1], &[]), Step::Nothing),
            (list(&[1, 7]), now(&[1], &[]), Step::Members),
            (list(&[1, 7]), now(&[1], &[7]), Step::Members),
            (list(&[1]), now(&[1, 7], &[]), Step::Members),
            (list(&[7, 9]), now(&[1, 7], &[9]), Step::HandOver(7)),
            (list(&[9]), now(&[1], &[]), Step::Members),
            ([(1, "elsewhere:2377".to_owned())].into(), now(&[1], &[]), Step::Members),
        ];
        for (managers, now, step) in cases {
            assert_eq!(next(&managers, &now, 1), step, "{managers:?} {now:?}");
        }
    }
}
