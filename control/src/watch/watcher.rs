//! One agent's stream.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use mesh_api::proto::WatchBatch;
use mesh_core::{Id, Refusal};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{After, Encoded, Ring, Snapshot};
use crate::{authz, consensus::Consensus, server::status_of};

/// A bookmark is sent at least this often, less up to a fifth.
const BOOKMARK: Duration = Duration::from_secs(5);
/// How long a manager that is behind the agent may take to catch up with it.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How long a manager that hears no leader goes on serving. Consensus itself calls a leader lost only
/// after two seconds; a new one is elected within this, if there can be one.
const LEADERLESS: Duration = Duration::from_secs(1);
/// Batches taken from the ring at a time.
const TAKE: usize = 64;

/// Where one agent is in the stream.
pub struct Watcher {
    ring: Arc<Ring>,
    consensus: Arc<dyn Consensus>,
    node: Id,
    /// Revision that the agent has, or is about to have; `None`: a full list comes first.
    cursor: Option<u64>,
    pending: VecDeque<Arc<Encoded>>,
    listing: Option<(Arc<Snapshot>, usize)>,
    bookmark: Instant,
    stop: CancellationToken,
    /// A leader was there when the stream began.
    begun: bool,
    ended: bool,
}

impl Watcher {
    /// A stream for `node`, which has `revision`; 0: nothing.
    pub fn new(ring: Arc<Ring>, consensus: Arc<dyn Consensus>, node: Id, revision: u64, stop: CancellationToken) -> Self {
        let cursor = (revision > 0).then_some(revision);
        Self {
            ring,
            consensus,
            node,
            cursor,
            pending: VecDeque::new(),
            listing: None,
            bookmark: next_bookmark(),
            stop,
            begun: false,
            ended: false,
        }
    }

    /// The messages, each made when the agent has room for it.
    pub fn stream(self) -> impl Stream<Item = Result<WatchBatch, Status>> + Send + 'static {
        stream::unfold(self, |mut watcher| async move {
            if watcher.ended {
                return None;
            }
            let item = watcher.next().await.map_err(|refusal| status_of(&refusal));
            watcher.ended = item.is_err();
            Some((item, watcher))
        })
    }

    async fn next(&mut self) -> Result<WatchBatch, Refusal> {
        if !self.begun {
            self.begin().await?;
        }
        loop {
            if self.stop.is_cancelled() {
                return Err(stopping());
            }
            if let Some(batch) = self.next_of_list() {
                return Ok(batch);
            }
            if let Some(batch) = self.pending.pop_front() {
                return self.send(&batch);
            }
            let Some(cursor) = self.cursor else {
                self.list().await?;
                continue;
            };
            let mut head = self.ring.head();
            match self.ring.after(cursor, TAKE) {
                After::TooOld => self.cursor = None,
                After::Batches(batches) if !batches.is_empty() => self.pending.extend(batches),
                // Made on another manager, and not here yet.
                After::Batches(_) if cursor > *head.borrow() && cursor > self.consensus.objects().0 => self.catch_up(cursor).await?,
                After::Batches(_) => {
                    let arrived = head.wait_for(|head| *head > cursor);
                    tokio::select! {
                        () = self.stop.cancelled() => return Err(stopping()),
                        () = self.leaderless() => return Err(cut_off()),
                        () = sleep_until(self.bookmark) => {
                            self.bookmark = next_bookmark();
                            return Ok(WatchBatch { revision: cursor, ..WatchBatch::default() });
                        }
                        arrived = arrived => { arrived.map_err(|_| stopping())?; }
                    }
                }
            }
        }
    }

    /// Waits a moment for a leader: a manager that is cut off has nothing to say, and agents must not
    /// take its old news for the present.
    async fn begin(&mut self) -> Result<(), Refusal> {
        let mut leadership = self.consensus.leadership();
        let led = tokio::time::timeout(LEADERLESS, leadership.wait_for(|l| l.leader.is_some()));
        tokio::select! {
            () = self.stop.cancelled() => Err(stopping()),
            led = led => match led {
                Ok(Ok(_)) => {
                    self.begun = true;
                    Ok(())
                }
                Ok(Err(_)) => Err(stopping()),
                Err(_) => Err(cut_off()),
            },
        }
    }

    /// Returns once no leader has been heard for too long.
    async fn leaderless(&self) {
        let mut leadership = self.consensus.leadership();
        loop {
            if leadership.wait_for(|l| l.leader.is_none()).await.is_err() {
                // Consensus ends, and the ring says so.
                return std::future::pending().await;
            }
            let led = leadership.wait_for(|l| l.leader.is_some());
            if tokio::time::timeout(LEADERLESS, led).await.is_err() {
                return;
            }
        }
    }

    fn send(&mut self, batch: &Encoded) -> Result<WatchBatch, Refusal> {
        if batch.removed.contains(&self.node) {
            return Err(authz::removed(self.node));
        }
        self.cursor = Some(batch.revision);
        self.bookmark = next_bookmark();
        Ok(message(batch.revision, &batch.changes))
    }

    /// Begins a full list.
    async fn list(&mut self) -> Result<(), Refusal> {
        let snapshot = self.ring.snapshot(&*self.consensus).await;
        if snapshot.chunks.is_empty() {
            return Err(Refusal::unavailable("this manager could not make the list: ask another"));
        }
        // Removed before the list was made: no later batch would say so.
        if !self.consensus.objects().1.nodes.contains_key(&self.node) {
            return Err(authz::removed(self.node));
        }
        self.cursor = Some(snapshot.revision);
        self.listing = Some((snapshot, 0));
        Ok(())
    }

    fn next_of_list(&mut self) -> Option<WatchBatch> {
        let (snapshot, at) = self.listing.as_mut()?;
        let chunk = snapshot.chunks.get(*at)?.clone();
        *at += 1;
        let (revision, complete) = (snapshot.revision, *at == snapshot.chunks.len());
        if complete {
            self.listing = None;
            self.bookmark = next_bookmark();
        }
        Some(WatchBatch {
            snapshot: true,
            complete,
            ..message(revision, &chunk)
        })
    }

    async fn catch_up(&self, revision: u64) -> Result<(), Refusal> {
        let mut head = self.ring.head();
        let caught_up = tokio::time::timeout(CATCH_UP, head.wait_for(|head| *head >= revision));
        tokio::select! {
            () = self.stop.cancelled() => Err(stopping()),
            done = caught_up => match done {
                Ok(Ok(_)) => Ok(()),
                _ => Err(Refusal::unavailable(format!("this manager has not reached revision {revision}: ask another"))),
            },
        }
    }
}

fn stopping() -> Refusal {
    Refusal::unavailable("this manager is stopping: ask another")
}

fn cut_off() -> Refusal {
    Refusal::unavailable("this manager hears no leader: ask another")
}

fn message(revision: u64, changes: &Bytes) -> WatchBatch {
    WatchBatch {
        revision,
        changes: changes.to_vec(),
        snapshot: false,
        complete: false,
    }
}

/// Spread, so that ten thousand agents are not written to in one instant.
fn next_bookmark() -> Instant {
    Instant::now() + BOOKMARK.mul_f64(rand::random_range(0.8..1.0))
}
