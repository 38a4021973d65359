//! The stream of changes to agents: a ring of recent batches, and a cursor into it for every agent.
//!
//! [`Ring`] is fed by [`feed`] and shared by all agents; each batch is encoded once. An agent's
//! stream is pulled by its connection's flow control, so the ring is its queue: an agent that falls
//! behind the ring's end gets the whole list again. Cluster objects, which carry secrets, are never
//! in here. Served by `server::agents`, read by `client`.

mod watcher;

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock, Weak},
};

use bytes::Bytes;
use mesh_core::{
    Id,
    objects::{Change, Kind, Object},
};
use tokio::sync::{broadcast::error::RecvError, watch};

use crate::{
    consensus::{Batch, Consensus},
    server::Roll,
};

pub use watcher::Watcher;

/// Changes that the ring keeps.
const KEEP: usize = 10_000;
/// Objects in one message of a full list.
const CHUNK: usize = 512;

/// One batch as it is sent.
#[derive(Debug)]
pub struct Encoded {
    /// Revision after it.
    pub revision: u64,
    /// `Vec<Change>` as JSON; empty when there is nothing for agents in it.
    pub changes: Bytes,
    /// Nodes that it removes.
    pub removed: Vec<Id>,
    weight: usize,
}

/// The whole list at a revision, encoded.
#[derive(Debug)]
pub struct Snapshot {
    /// Its revision.
    pub revision: u64,
    /// `Vec<Change>` as JSON, in the order in which objects refer to each other; at least one.
    pub chunks: Vec<Bytes>,
}

/// What the ring has behind a revision.
#[derive(Debug)]
pub enum After {
    /// Not all of it any more: a full list is needed.
    TooOld,
    /// All of it, or the first part.
    Batches(Vec<Arc<Encoded>>),
}

#[derive(Debug)]
struct Kept {
    /// Every batch with a higher revision is here.
    floor: u64,
    batches: VecDeque<Arc<Encoded>>,
    weight: usize,
}

/// The recent batches.
#[derive(Debug)]
pub struct Ring {
    kept: RwLock<Kept>,
    head: watch::Sender<u64>,
    keep: usize,
    /// The last full list, as long as an agent is being sent it. The lock also makes sure that a
    /// thousand agents that return together have it encoded once.
    snapshot: tokio::sync::Mutex<Weak<Snapshot>>,
}

impl Ring {
    /// An empty ring at a revision.
    pub fn new(revision: u64) -> Self {
        Self::with_room(revision, KEEP)
    }

    fn with_room(revision: u64, keep: usize) -> Self {
        let kept = Kept {
            floor: revision,
            batches: VecDeque::new(),
            weight: 0,
        };
        Self {
            kept: RwLock::new(kept),
            head: watch::Sender::new(revision),
            keep,
            snapshot: tokio::sync::Mutex::default(),
        }
    }

    /// Follows the ring's last revision.
    pub fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Takes in a batch; one that is not newer than the last is known already.
    pub fn push(&self, batch: &Batch) {
        if batch.revision <= *self.head.borrow() {
            return;
        }
        let encoded = encode(batch);
        {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            kept.weight += encoded.weight;
            kept.batches.push_back(Arc::new(encoded));
            while kept.weight > self.keep
                && let Some(old) = kept.batches.pop_front()
            {
                kept.weight -= old.weight;
                kept.floor = old.revision;
            }
        }
        self.head.send_replace(batch.revision);
    }

    /// Forgets everything: what happened up to `revision` was not seen.
    pub fn reset(&self, revision: u64) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        *kept = Kept {
            floor: revision,
            batches: VecDeque::new(),
            weight: 0,
        };
        drop(kept);
        self.head.send_replace(revision);
    }

    /// Up to `most` batches behind a revision, oldest first.
    pub fn after(&self, revision: u64, most: usize) -> After {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        if revision < kept.floor {
            return After::TooOld;
        }
        let from = kept.batches.partition_point(|b| b.revision <= revision);
        After::Batches(kept.batches.range(from..).take(most).cloned().collect())
    }

    /// A full list that the ring goes on from.
    pub async fn snapshot(&self, consensus: &dyn Consensus) -> Arc<Snapshot> {
        let mut last = self.snapshot.lock().await;
        let floor = self.kept.read().unwrap_or_else(PoisonError::into_inner).floor;
        if let Some(snapshot) = last.upgrade()
            && snapshot.revision >= floor
        {
            return snapshot;
        }
        // The maps are let go before the long part, so that the next change need not copy them.
        let (revision, objects) = {
            let (revision, all) = consensus.objects();
            (
                revision,
                all.iter().filter(|o| !matches!(o, Object::Cluster(_))).collect::<Vec<_>>(),
            )
        };
        let encoding = tokio::task::spawn_blocking(move || Snapshot {
            revision,
            chunks: encode_all(objects),
        });
        // The task does not panic and is not aborted; if it were, the agent would ask again.
        let snapshot = Arc::new(encoding.await.unwrap_or(Snapshot {
            revision: 0,
            chunks: Vec::new(),
        }));
        *last = Arc::downgrade(&snapshot);
        snapshot
    }
}

fn json(changes: &[&Change]) -> Bytes {
    // Objects are plain data with string keys: they always have a JSON form.
    serde_json::to_vec(changes).unwrap_or_default().into()
}

fn encode(batch: &Batch) -> Encoded {
    let shown: Vec<&Change> = batch.changes.iter().filter(|c| c.kind != Kind::Cluster).collect();
    let removed = shown
        .iter()
        .filter(|c| c.kind == Kind::Node && c.object.is_none())
        .map(|c| c.id)
        .collect();
    let changes = if shown.is_empty() { Bytes::new() } else { json(&shown) };
    Encoded {
        revision: batch.revision,
        changes,
        removed,
        weight: shown.len().max(1),
    }
}

fn encode_all(objects: Vec<Object>) -> Vec<Bytes> {
    let change = |object: Object| {
        let (kind, id) = object.key();
        Change {
            kind,
            id,
            object: Some(object),
        }
    };
    let changes: Vec<Change> = objects.into_iter().map(change).collect();
    if changes.is_empty() {
        return vec![Bytes::new()];
    }
    changes.chunks(CHUNK).map(|c| json(&c.iter().collect::<Vec<_>>())).collect()
}

/// Keeps a ring and a roll up to date until consensus ends. `batches` is a subscription that was
/// made before the ring's first revision was read.
pub async fn feed(ring: Arc<Ring>, roll: Arc<Roll>, consensus: Arc<dyn Consensus>, mut batches: tokio::sync::broadcast::Receiver<Batch>) {
    loop {
        match batches.recv().await {
            Ok(batch) => {
                roll.note(&batch);
                ring.push(&batch);
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "the watches fell behind: every agent gets a full list");
                batches = consensus.subscribe();
                ring.reset(consensus.objects().0);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
