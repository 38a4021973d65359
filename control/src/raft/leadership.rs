//! Who leads, as this manager sees it, and whether consensus still runs: kept up to date from
//! openraft's metrics by a task that lives as long as the host.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use openraft::{Instant as _, ServerState, async_runtime::watch::WatchReceiver, errors::Fatal};
use tokio::sync::watch;

use super::types::{Metrics, Raft};
use crate::consensus::Leadership;

/// A leader that has not been heard for this long, or has not heard a majority, is none any more.
/// Two and a half of the longest election timeouts.
pub const SILENCE: Duration = Duration::from_secs(2);
/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(500);

/// When a leader's message last arrived.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Option<Instant>>);

impl Heard {
    /// One has arrived.
    pub fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// One has arrived lately.
    pub fn lately(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|at| at.elapsed() < SILENCE)
    }
}

/// Reads the leadership out of the metrics.
pub fn leadership(metrics: &Metrics, heard: &Heard) -> Leadership {
    let membership = &metrics.membership_config;
    let addr = |id: &u64| membership.get_node(id).map(|node| node.addr.clone());
    let with_addr = |id: u64| (id, addr(&id).unwrap_or_default());
    let voters: std::collections::BTreeMap<_, _> = membership.voter_ids().map(with_addr).collect();
    let leads = metrics.state == ServerState::Leader;
    // openraft goes on naming a leader that is gone until there is another, and goes on leading
    // without a majority; nobody would be served by following it.
    let alive = if leads {
        voters.len() == 1 || metrics.last_quorum_acked.is_some_and(|at| at.into_inner().elapsed() < SILENCE)
    } else {
        heard.lately()
    };
    let leader = metrics.current_leader.filter(|_| alive);
    Leadership {
        term: metrics.current_term,
        leader,
        is_leader: leads && alive,
        leader_addr: leader.as_ref().and_then(addr),
        learners: membership.membership().learner_ids().map(with_addr).collect(),
        voters,
    }
}

/// Keeps both watches up to date until consensus stops.
pub async fn follow(raft: Raft, heard: std::sync::Arc<Heard>, leader: watch::Sender<Leadership>, fatal: watch::Sender<Option<String>>) {
    let mut changes = raft.server_metrics();
    let metrics = raft.metrics();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let running = {
            let metrics = metrics.borrow_watched();
            let seen = leadership(&metrics, &heard);
            leader.send_if_modified(|known| std::mem::replace(known, seen.clone()) != seen);
            metrics.running_state.clone()
        };
        match running {
            Ok(()) => {}
            Err(Fatal::Stopped) => return,
            Err(e) => {
                let why = super::host::fatal_text(&e);
                tracing::error!(%why, "consensus has stopped on this manager");
                fatal.send_replace(Some(why));
                return;
            }
        }
        tokio::select! {
            _ = tick.tick() => {}
            changed = changes.changed() => if changed.is_err() {
                // The core is gone; its last words are in the metrics already or come with the tick.
                tick.tick().await;
            },
        }
    }
}
