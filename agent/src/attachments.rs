//! Which attachments somebody waits for, and which were given up.
//!
//! An attachment is a command that comes back as intent, and both ways can break: the command may be
//! carried out though its caller was told that no manager answers, and the removal of a failed one may
//! not get through. [`crate::app`] says here what it waits for and what it gave up;
//! [`crate::session`] removes what is given up as soon as a manager answers.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_core::{
    Id,
    objects::{Endpoint, EndpointState, Labels},
};
use tokio::sync::Notify;

/// A command that no manager confirmed may be carried out until then: one that was cut off may have it
/// in its log, and come back.
const LATEST: Duration = Duration::from_secs(24 * 3600);

/// This host's attachments that are not a matter of course.
#[derive(Default)]
pub struct Attachments {
    sets: Mutex<Sets>,
    given_up: Notify,
}

#[derive(Default)]
struct Sets {
    /// Somebody waits for these, with the labels that they are to have.
    awaited: BTreeMap<Id, Labels>,
    /// Their callers were told that they failed, at that time.
    abandoned: BTreeMap<Id, Instant>,
}

impl Sets {
    fn give_up(&mut self, ids: &[Id]) {
        let now = Instant::now();
        // Those that never came to exist are nobody's to settle.
        self.abandoned.retain(|_, since| now - *since < LATEST);
        self.abandoned.extend(ids.iter().map(|id| (*id, now)));
    }
}

impl Attachments {
    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody waits for an endpoint, until the guard is dropped.
    pub fn await_one(&self, id: Id, labels: &Labels) -> Awaited<'_> {
        self.sets().awaited.insert(id, labels.clone());
        Awaited { all: self, id }
    }

    /// An endpoint must not stay, should it exist, or come to exist.
    pub fn abandon(&self, id: Id) {
        self.sets().give_up(&[id]);
        self.given_up.notify_one();
    }

    /// As [`Self::abandon`], of all that are waited for and have all these labels.
    pub fn abandon_awaited(&self, labels: &Labels) {
        let mut sets = self.sets();
        let found: Vec<Id> = sets
            .awaited
            .iter()
            .filter(|(_, has)| has_all(has, labels))
            .map(|(id, _)| *id)
            .collect();
        sets.give_up(&found);
        drop(sets);
        if !found.is_empty() {
            self.given_up.notify_one();
        }
    }

    /// An endpoint that was given up does not exist any more.
    pub fn settled(&self, id: Id) {
        self.sets().abandoned.remove(&id);
    }

    /// Whether an endpoint of this host is nobody's. One that is still starting while nobody waits
    /// is from before a restart: whoever asked for it has seen the connection to meshd break, and
    /// no success was ever reported. One that an engine takes over is starting until it has.
    pub fn is_stray(&self, e: &Endpoint) -> bool {
        let sets = self.sets();
        let is_unfinished = e.state == EndpointState::Starting && e.sandbox.handover.is_none();
        sets.abandoned.contains_key(&e.id) || (is_unfinished && !sets.awaited.contains_key(&e.id))
    }

    /// Waits until one is given up.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

/// `labels` are all among `has`.
pub fn has_all(has: &Labels, labels: &Labels) -> bool {
    labels.iter().all(|(k, v)| has.get(k) == Some(v))
}

/// Somebody waits.
pub struct Awaited<'a> {
    all: &'a Attachments,
    id: Id,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.all.sets().awaited.remove(&self.id);
        self.all.given_up.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: u64, state: &str) -> Endpoint {
        serde_json::from_value(serde_json::json!({
            "id": Id::from_bits(n), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "e", "labels": {},
            "node": Id::from_bits(1), "network": Id::from_bits(2), "ip": "10.0.0.9", "mac": "02:00:00:00:00:09",
            "aliases": [], "service": null, "ifname": "eth0", "state": state, "slot": 1,
            "sandbox": {"container": "netns:e", "netns": "/run/netns/e", "inode": 5},
        }))
        .unwrap()
    }

    #[test]
    fn what_nobody_waits_for_is_stray_until_it_was_ready() {
        let all = Attachments::default();
        let (starting, ready) = (endpoint(7, "starting"), endpoint(7, "ready"));
        assert!(all.is_stray(&starting), "from before a restart");
        let waiting = all.await_one(starting.id, &Labels::new());
        assert!(!all.is_stray(&starting));
        drop(waiting);
        assert!(all.is_stray(&starting) && !all.is_stray(&ready));
        all.abandon(ready.id);
        assert!(all.is_stray(&ready), "too late: its caller was told that it failed");
        all.settled(ready.id);
        assert!(!all.is_stray(&ready));
    }

    #[test]
    fn what_is_under_way_is_given_up_by_its_labels() {
        let all = Attachments::default();
        let labels = |v: &str| Labels::from([("container".to_owned(), v.to_owned()), ("x".to_owned(), "y".to_owned())]);
        let _one = all.await_one(Id::from_bits(1), &labels("a"));
        let _two = all.await_one(Id::from_bits(2), &labels("b"));
        all.abandon_awaited(&Labels::from([("container".to_owned(), "a".to_owned())]));
        assert!(all.is_stray(&endpoint(1, "ready")) && !all.is_stray(&endpoint(2, "ready")));
    }
}
