//! Endpoints that Docker has forgotten: a dockerd that is killed between making an endpoint and writing
//! that down does not know of it later, and one that gives an endpoint up while no meshd answers says so
//! only once. Called by [`super::learn`].
//!
//! Only endpoints whose container is not known are judged: one that was found runs, and goes when it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::{Id, objects::Endpoint};

use super::{
    engine::{Engine, EngineError},
    learn::remove,
};
use crate::app::App;

/// Between two questions.
const ASK: Duration = Duration::from_secs(5);
/// Docker writes an endpoint down within milliseconds of its making, later when its disk is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Since when the engine has not known what.
#[derive(Default)]
pub struct Forgotten {
    asked: Option<Instant>,
    since: BTreeMap<Id, Instant>,
}

impl Forgotten {
    /// Asks about those of `mine` whose container is not known, and removes what the engine has not known
    /// for long.
    ///
    /// # Errors
    /// When the engine does not say; what it had not known by then counts anew.
    pub async fn remove(&mut self, app: &App, engine: &Engine, mine: &[Arc<Endpoint>]) -> Result<(), EngineError> {
        let open: Vec<_> = mine.iter().filter(|e| app.is_made(e) && !e.sandbox.is_known()).collect();
        if open.is_empty() {
            self.since.clear();
            return Ok(());
        }
        if self.asked.is_some_and(|at| at.elapsed() < ASK) {
            return Ok(());
        }
        let now = Instant::now();
        self.asked = Some(now);
        let driver = app.config.docker_plugin.as_ref().map(|p| p.driver());
        let known = match engine.endpoints_of(&driver.unwrap_or_default()).await {
            Ok(known) => known,
            Err(e) => {
                self.since.clear();
                return Err(e);
            }
        };
        let overdue = self.overdue(&open, known.as_ref(), now);
        remove(app, &overdue, "docker does not know it").await;
        Ok(())
    }

    /// Takes note of what is not among `known`, and says what has not been for too long. An engine without
    /// a network of the driver is not the one that asked for the endpoints.
    fn overdue(&mut self, open: &[&Arc<Endpoint>], known: Option<&BTreeSet<String>>, now: Instant) -> Vec<Id> {
        let Some(known) = known else {
            self.since.clear();
            return Vec::new();
        };
        let is_known = |e: &Endpoint| e.sandbox.handover.as_ref().is_none_or(|h| known.contains(&h.endpoint));
        let strange: BTreeSet<Id> = open.iter().filter(|e| !is_known(e)).map(|e| e.id).collect();
        self.since.retain(|id, _| strange.contains(id));
        for id in strange {
            self.since.entry(id).or_insert(now);
        }
        let is_overdue = |since: &Instant| now.duration_since(*since) >= PATIENCE;
        self.since.iter().filter(|(_, s)| is_overdue(s)).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: u64, theirs: &str) -> Arc<Endpoint> {
        let e = serde_json::from_value(serde_json::json!({
            "id": Id::from_bits(n), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "e", "labels": {},
            "node": Id::from_bits(1), "network": Id::from_bits(2), "ip": "10.0.0.9", "mac": "02:00:00:00:00:09",
            "aliases": [], "service": null, "ifname": "eth0", "state": "starting", "slot": 1,
            "sandbox": {"container": "docker:x", "netns": "", "inode": 0, "handover": {"endpoint": theirs}},
        }));
        Arc::new(e.unwrap())
    }

    #[test]
    fn only_what_was_never_known_meanwhile_is_forgotten() {
        let (a, b) = (endpoint(1, "a"), endpoint(2, "b"));
        let (all, start) = ([&a, &b], Instant::now());
        let mut forgotten = Forgotten::default();
        let known = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>());
        let mut look = |ids: Option<BTreeSet<String>>, after: Duration| forgotten.overdue(&all, ids.as_ref(), start + after);
        assert!(look(known(&["b"]), Duration::ZERO).is_empty());
        assert!(look(known(&[]), PATIENCE / 2).is_empty());
        assert_eq!(look(known(&[]), PATIENCE), [a.id]);
        assert!(look(known(&["a"]), PATIENCE).is_empty());
        assert_eq!(look(known(&["a"]), PATIENCE * 2), [b.id]);
        // Another engine, or one that has lost its network: nothing can be said.
        assert!(look(None, PATIENCE * 3).is_empty());
        assert!(look(known(&[]), PATIENCE * 3).is_empty());
    }
}
