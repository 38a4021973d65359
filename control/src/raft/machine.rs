//! The replicated objects, in `state.redb`: every batch of entries is one transaction with the
//! last applied entry and the membership, so that an entry is never applied twice or skipped.
//!
//! The file is read once, at start; from then on [`mesh_core::state::State`] in memory is what
//! commands are applied to, and a copy of its objects is what everybody else reads.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use futures::{Stream, StreamExt};
use mesh_core::{
    objects::{Change, Kind, Object, Objects},
    state::State,
};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use super::{
    host::STATE_NAME,
    snapshot,
    store::{File, META, StoreError, blocking, decode, encode, get_meta, put_meta},
    types::{Entry, LogId, Membership, Response, Snapshot, SnapshotMeta, TypeConfig},
};
use crate::{consensus::Batch, disk};

/// Objects by `kind/id`, sealed JSON.
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const APPLIED: &str = "applied";
/// Entries that one transaction takes at most.
const MAX_BATCH: usize = 512;
/// Batches that a receiver may be behind before it lags.
const BACKLOG: usize = 4096;

/// Up to where the log is applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    last: Option<LogId>,
    membership: Membership,
}

impl Position {
    fn revision(&self) -> u64 {
        self.last.map_or(0, |l| l.index)
    }
}

/// The applied objects as readers see them, and who follows them.
pub struct Published {
    view: RwLock<(u64, Arc<Objects>)>,
    batches: broadcast::Sender<Batch>,
}

impl Published {
    /// The objects and their revision.
    pub fn view(&self) -> (u64, Arc<Objects>) {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows the changes.
    pub fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.batches.subscribe()
    }

    /// Shows entries that are on disk: first to readers, then to followers.
    fn publish(&self, batches: Vec<Batch>) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        for batch in &batches {
            view.0 = batch.revision;
            if !batch.changes.is_empty() {
                let objects = Arc::make_mut(&mut view.1);
                batch.changes.iter().for_each(|change| objects.apply(change));
            }
        }
        drop(view);
        for batch in batches {
            // An error only says that nobody follows.
            let _ = self.batches.send(batch);
        }
    }
}

/// The state machine.
pub struct Machine {
    db: Arc<File>,
    state: State,
    position: Position,
    published: Arc<Published>,
    /// The last snapshot that was built or taken in; shared with the builders.
    snapshot: Arc<Mutex<Option<Snapshot>>>,
}

impl Machine {
    /// Reads the state of an open file.
    pub fn load(db: Database) -> Result<Self, StoreError> {
        let txn = disk::begin_write(&db)?;
        let mut objects = Objects::default();
        let position = {
            for row in txn.open_table(OBJECTS)?.iter()? {
                let (key, stored) = row?;
                let object: Object = decode(key.value(), key.value().as_bytes(), stored.value())?;
                let (kind, id) = object.key();
                objects.apply(&Change {
                    kind,
                    id,
                    object: Some(object),
                });
            }
            get_meta::<Position>(&txn.open_table(META)?, APPLIED)?.unwrap_or_default()
        };
        // Makes the tables of a new file.
        txn.commit()?;
        let view = RwLock::new((position.revision(), Arc::new(objects.clone())));
        let published = Arc::new(Published {
            view,
            batches: broadcast::Sender::new(BACKLOG),
        });
        Ok(Self {
            db: Arc::new(File::new(db)),
            state: State::from_objects(objects),
            position,
            published,
            snapshot: Arc::default(),
        })
    }

    /// What readers see.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// For [`super::RaftHost::shutdown`] to see when the file is closed.
    pub fn closing(&self) -> watch::Receiver<()> {
        self.db.closing()
    }

    /// Last entry that is applied.
    pub fn last_applied(&self) -> Option<LogId> {
        self.position.last
    }

    /// Applies entries that arrived together: in memory, then on disk, then for all to see.
    async fn apply_batch(&mut self, batch: Vec<(Entry, Option<ApplyResponder<TypeConfig>>)>) -> io::Result<()> {
        let mut applied = Vec::with_capacity(batch.len());
        let mut answers = Vec::with_capacity(batch.len());
        for (entry, responder) in batch {
            let revision = entry.log_id.index;
            let (answer, changes) = match entry.payload {
                EntryPayload::Blank => (None, vec![]),
                EntryPayload::Normal(proposal) => {
                    let (outcome, changes) = self.state.apply(revision, &proposal.0);
                    (Some(outcome), changes)
                }
                EntryPayload::Membership(membership) => {
                    self.position.membership = Membership::new(Some(entry.log_id), membership);
                    (None, vec![])
                }
            };
            self.position.last = Some(entry.log_id);
            applied.push(Batch {
                revision,
                changes: Arc::new(changes),
            });
            answers.extend(responder.map(|r| (r, Response(answer))));
        }
        let (db, position, changes) = (self.db.clone(), self.position.clone(), applied.clone());
        blocking(STATE_NAME, move || {
            let txn = disk::begin_write(&db)?;
            write_changes(&txn, changes.iter().flat_map(|b| b.changes.iter()))?;
            put_meta(&mut txn.open_table(META)?, APPLIED, &position)?;
            Ok(txn.commit()?)
        })
        .await?;
        self.published.publish(applied);
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }
}

fn write_changes<'a>(txn: &WriteTransaction, changes: impl Iterator<Item = &'a Change>) -> Result<(), StoreError> {
    let mut table = txn.open_table(OBJECTS)?;
    for change in changes {
        let key = object_key(change.kind, change.id);
        match &change.object {
            Some(object) => drop(table.insert(key.as_str(), encode(&key, key.as_bytes(), object)?.as_slice())?),
            None => drop(table.remove(key.as_str())?),
        }
    }
    Ok(())
}

fn object_key(kind: Kind, id: mesh_core::Id) -> String {
    let kind = match kind {
        Kind::Cluster => "cluster",
        Kind::Node => "node",
        Kind::Network => "network",
        Kind::Service => "service",
        Kind::Endpoint => "endpoint",
    };
    format!("{kind}/{id}")
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Arc<Objects>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok((self.position.last, self.position.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() >= MAX_BATCH {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.apply_batch(batch).await }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta {
            last_log_id: self.position.last,
            last_membership: self.position.membership.clone(),
        };
        // Nothing is applied while this runs, so what is published is the state at `meta`.
        Builder {
            taken: Snapshot {
                meta,
                snapshot: self.published.view().1,
            },
            current: self.snapshot.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, objects: Arc<Objects>) -> io::Result<()> {
        let position = Position {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        let (db, position_on_disk, all) = (self.db.clone(), position.clone(), objects.clone());
        let (_, before) = self.published.view();
        let changes = blocking(STATE_NAME, move || {
            let txn = disk::begin_write(&db)?;
            txn.open_table(OBJECTS)?.retain(|_, _| false)?;
            let puts: Vec<_> = all.iter().map(snapshot::put).collect();
            write_changes(&txn, puts.iter())?;
            put_meta(&mut txn.open_table(META)?, APPLIED, &position_on_disk)?;
            txn.commit()?;
            Ok(snapshot::diff(&before, &all))
        })
        .await?;
        self.state = State::from_objects(Objects::clone(&objects));
        self.position = position;
        self.published.publish(vec![Batch {
            revision: self.position.revision(),
            changes: Arc::new(changes),
        }]);
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Snapshot {
            meta: meta.clone(),
            snapshot: objects,
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// A snapshot that was taken and only waits to be called the current one. It is not written down:
/// the state itself is on disk, and after a restart openraft asks for a new one.
pub struct Builder {
    taken: Snapshot,
    current: Arc<Mutex<Option<Snapshot>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Arc<Objects>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.taken.clone());
        Ok(self.taken.clone())
    }
}
