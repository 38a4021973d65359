//! Labels of pods. Container runtimes tell CNI plugins a pod's name and namespace and no label, so meshd
//! asks them at their CRI sockets. Started by [`crate::run`]; told of pods by [`crate::session`].
//!
//! An attachment never waits for this: containerd lists a pod only after its network is there. Nothing is
//! remembered either: a pod's labels never change at its runtime, so asking again after a restart finds
//! what is missing, and only that is proposed.

mod labels;
mod runtime;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{
    Id, RefusalKind,
    command::{Command, Learnt},
    labels::{CNI_CONTAINER, POD_NAME, POD_NAMESPACE},
    objects::{Change, Endpoint, EndpointState, Kind, Labels, Object},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use self::runtime::Runtime;
use crate::{app::App, execute::chain};

/// Between two questions about a pod that is not known yet: containerd needs some 100 ms to list it.
const ASK_FIRST: Duration = Duration::from_millis(100);
const ASK_LAST: Duration = Duration::from_secs(10);
/// A pod that a runtime which answers has not known for so long is not its own.
const PATIENCE: Duration = Duration::from_secs(300);

/// This host's endpoints that pods have, as they come.
#[derive(Default)]
pub struct Pods {
    came: Mutex<BTreeSet<Id>>,
    news: Notify,
}

impl Pods {
    fn came(&self) -> MutexGuard<'_, BTreeSet<Id>> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of the pods' endpoints on `node` that are among `changes`.
    pub fn note<'a>(&self, node: Id, changes: impl IntoIterator<Item = &'a Change>) {
        let endpoints = changes
            .into_iter()
            .filter(|c| c.kind == Kind::Endpoint)
            .filter_map(|c| match &c.object {
                Some(Object::Endpoint(e)) => Some(e.as_ref()),
                _ => None,
            });
        self.add(node, endpoints);
    }

    fn add<'a>(&self, node: Id, endpoints: impl Iterator<Item = &'a Endpoint>) {
        let pods: Vec<_> = endpoints.filter(|e| e.node == node && pod(e).is_some()).map(|e| e.id).collect();
        if !pods.is_empty() {
            self.came().extend(pods);
            self.news.notify_one();
        }
    }
}

/// The pod that an endpoint is of, by the id of its sandbox. The namespace tells pods from what Podman
/// runs, which names them alike.
fn pod(e: &Endpoint) -> Option<&str> {
    let is_pod = e.labels.contains_key(POD_NAME) && e.labels.contains_key(POD_NAMESPACE);
    e.labels.get(CNI_CONTAINER).filter(|_| is_pod).map(String::as_str)
}

/// How far the asking for one endpoint is.
struct Open {
    /// A runtime answered, and did not know the pod, first then.
    unknown: Option<Instant>,
    next: Instant,
    pause: Duration,
}

impl Open {
    fn new(now: Instant) -> Self {
        Self {
            unknown: None,
            next: now,
            pause: ASK_FIRST,
        }
    }

    fn later(&mut self) {
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(ASK_LAST);
    }
}

/// Runs until meshd stops.
pub async fn run(app: Arc<App>, pods: Arc<Pods>) {
    let runtimes: Vec<_> = app.config.cri_sockets.iter().map(|s| Runtime::at(s)).collect();
    if runtimes.is_empty() {
        return;
    }
    // Those from before a restart; what the ledger on disk lacks comes from the managers.
    if let Ok(node) = app.own_node().await {
        let objects = app.ledger.view().objects;
        pods.add(node, objects.endpoints.values().map(AsRef::as_ref));
    }
    let mut asking = Asking::default();
    loop {
        let next = asking.open.values().map(|o| o.next).min();
        tokio::select! {
            () = pods.news.notified() => {
                let came = std::mem::take(&mut *pods.came());
                asking.add(came, Instant::now());
            }
            // Nobody waits for that branch without one.
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        asking.round(&app, &runtimes).await;
    }
}

/// Which pods are asked about.
#[derive(Default)]
struct Asking {
    open: BTreeMap<Id, Open>,
    /// Nothing more is to be learnt of these.
    done: BTreeSet<Id>,
    /// What was said last of runtimes that do not answer.
    said: String,
}

impl Asking {
    fn add(&mut self, came: BTreeSet<Id>, now: Instant) {
        for id in came.into_iter().filter(|id| !self.done.contains(id)) {
            self.open.entry(id).or_insert_with(|| Open::new(now));
        }
    }

    /// Asks about those whose time has come.
    async fn round(&mut self, app: &App, runtimes: &[Runtime]) {
        let objects = app.ledger.view().objects;
        self.done.retain(|id| objects.endpoints.contains_key(id));
        // One that is still being attached comes again when it is ready.
        let is_there = |id: &Id| objects.endpoints.get(id).filter(|e| e.state != EndpointState::Starting);
        self.open.retain(|id, _| is_there(id).is_some());
        let now = Instant::now();
        let due = self
            .open
            .iter()
            .filter(|(_, o)| o.next <= now)
            .filter_map(|(id, _)| is_there(id).cloned());
        let due: Vec<Arc<Endpoint>> = due.collect();
        if due.is_empty() {
            return;
        }
        let sandboxes: BTreeSet<String> = due.iter().filter_map(|e| pod(e).map(str::to_owned)).collect();
        let (told, answered) = self.ask(runtimes, &sandboxes).await;
        let learnt = due.iter().map(async |e| match pod(e).and_then(|p| told.get(p)) {
            Some(labels) => learn(app, e, labels).await,
            None => Outcome::Unknown,
        });
        for (e, outcome) in due.iter().zip(futures::future::join_all(learnt).await) {
            let Some(open) = self.open.get_mut(&e.id) else { continue };
            let is_over = match outcome {
                Outcome::Done => true,
                Outcome::Later => false,
                Outcome::Unknown if answered => {
                    let since = *open.unknown.get_or_insert(now);
                    let is_over = now.duration_since(since) >= PATIENCE;
                    if is_over {
                        tracing::warn!(endpoint = %e.id, name = e.name, "no container runtime knows this pod: it has no labels of its own");
                    }
                    is_over
                }
                Outcome::Unknown => false,
            };
            if is_over {
                self.open.remove(&e.id);
                self.done.insert(e.id);
            } else {
                open.later();
            }
        }
    }

    /// What the runtimes tell of these sandboxes, and whether any answered.
    async fn ask(&mut self, runtimes: &[Runtime], sandboxes: &BTreeSet<String>) -> (BTreeMap<String, Labels>, bool) {
        let answers = futures::future::join_all(runtimes.iter().map(|r| r.labels(sandboxes))).await;
        let (mut told, mut answered, mut why) = (BTreeMap::new(), false, Vec::new());
        for answer in answers {
            match answer {
                Ok(labels) => {
                    answered = true;
                    told.extend(labels);
                }
                Err(e) => why.push(chain(&e)),
            }
        }
        // Said once, however long it lasts; a host has one runtime, and not the others.
        let why = if answered { String::new() } else { why.join("; ") };
        if why != self.said && !why.is_empty() {
            tracing::warn!("no container runtime tells the labels of pods: {why}");
        }
        self.said = why;
        (told, answered)
    }
}

/// What came of asking for one.
enum Outcome {
    /// Its labels are known, or never will be.
    Done,
    /// No manager took them.
    Later,
    /// Nobody knows it.
    Unknown,
}

async fn learn(app: &App, e: &Endpoint, told: &Labels) -> Outcome {
    let (all, left_out) = labels::joined(&e.labels, told);
    if !left_out.is_empty() {
        tracing::warn!(endpoint = %e.id, name = &*e.name, ?left_out, "labels of a pod that endpoints cannot have are left out");
    }
    if all == *e.labels {
        return Outcome::Done;
    }
    let learnt = Learnt {
        labels: Some(all),
        ..Learnt::default()
    };
    match app.propose(Command::EndpointLearn { id: e.id, learnt }).await {
        Ok(_) => Outcome::Done,
        Err(refusal) if refusal.kind == RefusalKind::Unavailable => Outcome::Later,
        // It is gone.
        Err(refusal) if refusal.kind == RefusalKind::NotFound => Outcome::Done,
        Err(refusal) => {
            tracing::warn!(endpoint = %e.id, error = %refusal.message, "a pod's labels are passed over");
            Outcome::Done
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: u64, node: u64, labels: &[(&str, &str)]) -> Change {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let e: Endpoint = serde_json::from_value(serde_json::json!({
            "id": Id::from_bits(n), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "e", "labels": labels,
            "node": Id::from_bits(node), "network": Id::from_bits(2), "ip": "10.0.0.9", "mac": "02:00:00:00:00:09",
            "aliases": [], "service": null, "ifname": "eth0", "state": "ready", "slot": 1,
            "sandbox": {"container": "netns:e", "netns": "/run/netns/e", "inode": 5},
        }))
        .unwrap();
        Change {
            kind: Kind::Endpoint,
            id: e.id,
            object: Some(Object::Endpoint(Arc::new(e))),
        }
    }

    #[test]
    fn only_this_hosts_pods_are_asked_about() {
        let here = Id::from_bits(1);
        let all = [(POD_NAME, "web-0"), (POD_NAMESPACE, "shop"), (CNI_CONTAINER, "s1")];
        let pods = Pods::default();
        pods.note(
            here,
            &[
                endpoint(1, 1, &all),
                endpoint(2, 9, &all),
                // Podman's.
                endpoint(3, 1, &[(POD_NAME, "web"), (CNI_CONTAINER, "s2")]),
                endpoint(4, 1, &all[..2]),
                Change {
                    kind: Kind::Endpoint,
                    id: Id::from_bits(5),
                    object: None,
                },
            ],
        );
        assert_eq!(*pods.came(), BTreeSet::from([Id::from_bits(1)]));
    }

    #[test]
    fn what_was_learnt_is_not_asked_for_again() {
        let (a, b, now) = (Id::from_bits(1), Id::from_bits(2), Instant::now());
        let mut asking = Asking::default();
        asking.done.insert(a);
        asking.add(BTreeSet::from([a, b]), now);
        assert_eq!(asking.open.keys().copied().collect::<Vec<_>>(), [b]);
        let open = asking.open.get_mut(&b).unwrap();
        for _ in 0..20 {
            open.later();
        }
        assert_eq!(open.pause, ASK_LAST);
        // A change of the endpoint does not begin it anew.
        asking.add(BTreeSet::from([b]), now);
        assert_eq!(asking.open[&b].pause, ASK_LAST);
    }
}
