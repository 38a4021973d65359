//! The ledger: this host's copy of the objects, on disk, and thereby what it must look like.
//!
//! The session writes what the control plane streams; the reconcile loop and the local API read.
//! A host whose managers are all gone goes on from here, also after a restart. It is one redb
//! file; every batch is one durable transaction, so it is always at one revision.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_control::disk::{self, DiskError};
use mesh_core::{
    Id,
    objects::{Change, Kind, Object, Objects},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const HEAD: &str = "head";

/// The ledger can not be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file can not be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What is in it is not what was written.
    #[error("ledger {path} is damaged: {why}; move it away, and it is fetched again from a manager")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A write failed.
    #[error("cannot write the ledger {path}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
}

/// What the ledger is at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The cluster; `None` before the host belongs to one.
    pub cluster: Option<Id>,
    /// Revision of the objects; 0 before the first full list.
    pub revision: u64,
}

/// A consistent view.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Cluster and revision.
    pub head: Head,
    /// The objects.
    pub objects: Arc<Objects>,
}

/// The ledger.
pub struct Ledger {
    path: String,
    db: Database,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

struct Inner {
    view: View,
    /// A full list that is still arriving.
    arriving: Option<Vec<Change>>,
}

impl Ledger {
    /// Opens the ledger or makes an empty one.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let db = disk::open(path, "ledger")?;
        let path = path.display().to_string();
        let view = read(&db).map_err(|why| LedgerError::Damaged { path: path.clone(), why })?;
        let changed = watch::Sender::new(view.head.revision);
        Ok(Self {
            path,
            db,
            inner: Mutex::new(Inner { view, arriving: None }),
            changed,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a plain assignment after the disk has it: a panic elsewhere in a holder
        // leaves no half of one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds.
    pub fn view(&self) -> View {
        self.lock().view.clone()
    }

    /// Revisions as they come; also told when the cluster changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Forgets everything and belongs to `cluster` from now on.
    pub fn reset(&self, cluster: Option<Id>) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        let head = Head { cluster, revision: 0 };
        self.write(&head, &[], true)?;
        *inner = Inner {
            view: View {
                head,
                objects: Arc::default(),
            },
            arriving: None,
        };
        self.changed.send_replace(0);
        Ok(())
    }

    /// A watch begins: half a list of the one before is no part of its.
    pub fn begin(&self) {
        self.lock().arriving = None;
    }

    /// Takes in one batch of a watch: changes on top of what is there, or a part of a full list
    /// which replaces it once it is complete. Returns what really changed, for the event stream.
    pub fn receive(&self, revision: u64, changes: Vec<Change>, snapshot: bool, complete: bool) -> Result<Vec<Change>, LedgerError> {
        let mut inner = self.lock();
        let head = Head {
            cluster: inner.view.head.cluster,
            revision,
        };
        if snapshot {
            let arriving = inner.arriving.get_or_insert_default();
            arriving.extend(changes);
            if !complete {
                return Ok(Vec::new());
            }
            let all = inner.arriving.take().unwrap_or_default();
            let mut objects = Objects::default();
            all.iter().for_each(|c| objects.apply(c));
            let news = difference(&inner.view.objects, &objects);
            self.write(&head, &all, true)?;
            inner.view = View {
                head,
                objects: Arc::new(objects),
            };
            self.changed.send_replace(revision);
            return Ok(news);
        }
        inner.arriving = None;
        if revision <= inner.view.head.revision {
            return Ok(Vec::new());
        }
        self.write(&head, &changes, false)?;
        // Copies the maps only while somebody still holds the last view.
        let objects = Arc::make_mut(&mut inner.view.objects);
        changes.iter().for_each(|c| objects.apply(c));
        inner.view.head = head;
        self.changed.send_replace(revision);
        Ok(changes)
    }

    fn write(&self, head: &Head, changes: &[Change], replace: bool) -> Result<(), LedgerError> {
        let attempt = || -> Result<(), redb::Error> {
            let txn = disk::begin_write(&self.db)?;
            if replace {
                txn.delete_table(OBJECTS)?;
            }
            {
                let mut table = txn.open_table(OBJECTS)?;
                for change in changes {
                    let key = key(change.kind, change.id);
                    match &change.object {
                        Some(object) => drop(table.insert(key.as_str(), sealed(&key, object)?.as_slice())?),
                        None => drop(table.remove(key.as_str())?),
                    }
                }
                txn.open_table(META)?.insert(HEAD, sealed(HEAD, head)?.as_slice())?;
            }
            txn.commit()?;
            Ok(())
        };
        attempt().map_err(|source| LedgerError::Write {
            path: self.path.clone(),
            source: Box::new(source),
        })
    }
}

fn sealed<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, redb::Error> {
    let json = serde_json::to_vec(value).map_err(|e| redb::Error::Io(e.into()))?;
    Ok(disk::seal(key.as_bytes(), &json))
}

fn key(kind: Kind, id: Id) -> String {
    let kind = match kind {
        Kind::Cluster => "cluster",
        Kind::Node => "node",
        Kind::Network => "network",
        Kind::Service => "service",
        Kind::Endpoint => "endpoint",
    };
    format!("{kind}/{id}")
}

fn read(db: &Database) -> Result<View, String> {
    let attempt = || -> Result<View, Box<dyn std::error::Error>> {
        let txn = db.begin_read()?;
        let mut view = View::default();
        let table = match txn.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(view),
            Err(e) => return Err(e.into()),
        };
        if let Some(head) = table.get(HEAD)? {
            view.head = serde_json::from_slice(disk::unseal(HEAD.as_bytes(), head.value())?)?;
        }
        let mut objects = Objects::default();
        for row in txn.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let object: Object = serde_json::from_slice(disk::unseal(key.value().as_bytes(), value.value())?)?;
            let (kind, id) = object.key();
            objects.apply(&Change {
                kind,
                id,
                object: Some(object),
            });
        }
        view.objects = Arc::new(objects);
        Ok(view)
    };
    attempt().map_err(|e| e.to_string())
}

/// What leads from one set of objects to another.
fn difference(old: &Objects, new: &Objects) -> Vec<Change> {
    let map = |o: &Objects| o.iter().map(|o| (o.key(), o)).collect::<std::collections::BTreeMap<_, _>>();
    let (old, new) = (map(old), map(new));
    let gone = old.keys().filter(|k| !new.contains_key(*k)).map(|(kind, id)| Change {
        kind: *kind,
        id: *id,
        object: None,
    });
    let put = new.iter().filter(|(k, o)| old.get(*k) != Some(*o));
    gone.chain(put.map(|((kind, id), o)| Change {
        kind: *kind,
        id: *id,
        object: Some(o.clone()),
    }))
    .collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use mesh_core::objects::{Labels, Network};

    use super::*;

    fn put(n: u64, name: &str) -> Change {
        let network = Network {
            id: Id::from_bits(n),
            version: n,
            created_at: Timestamp::UNIX_EPOCH,
            name: name.to_owned(),
            labels: Labels::new(),
            driver: "overlay".to_owned(),
            subnets: vec![],
            vni: 4096,
            mtu: None,
            internal: false,
            attachable: false,
            ingress: false,
            options: Labels::new(),
        };
        Change {
            kind: Kind::Network,
            id: network.id,
            object: Some(Object::Network(Arc::new(network))),
        }
    }

    fn gone(n: u64) -> Change {
        Change {
            kind: Kind::Network,
            id: Id::from_bits(n),
            object: None,
        }
    }

    fn names(ledger: &Ledger) -> Vec<String> {
        ledger.view().objects.networks.values().map(|n| n.name.clone()).collect()
    }

    #[test]
    fn keeps_what_it_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.redb");
        let ledger = Ledger::open(&path).unwrap();
        ledger.reset(Some(Id::from_bits(1))).unwrap();
        ledger.receive(5, vec![put(1, "a"), put(9, "gone since")], true, false).unwrap();
        assert_eq!(ledger.view().head.revision, 0, "half a list is no list");
        ledger.begin();
        ledger.receive(5, vec![put(1, "a"), put(2, "b")], true, false).unwrap();
        assert_eq!(ledger.receive(5, vec![put(3, "c")], true, true).unwrap().len(), 3);
        ledger.receive(6, vec![gone(1)], false, false).unwrap();
        assert_eq!(ledger.receive(6, vec![gone(2)], false, false).unwrap(), [], "told twice, done once");
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(names(&ledger), ["b", "c"]);
        assert_eq!(
            ledger.view().head,
            Head {
                cluster: Some(Id::from_bits(1)),
                revision: 6
            }
        );
        let news = ledger.receive(9, vec![put(3, "c"), put(4, "d")], true, true).unwrap();
        assert_eq!(news, [gone(2), put(4, "d")], "a full list tells only what is new");
        assert_eq!(names(&ledger), ["c", "d"]);
    }

    #[test]
    fn a_damaged_ledger_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.redb");
        Ledger::open(&path).unwrap().reset(Some(Id::from_bits(1))).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for damage in [&b"not a ledger"[..], &bytes[..bytes.len() / 2], &[]] {
            std::fs::write(&path, damage).unwrap();
            let error = Ledger::open(&path).err().unwrap().to_string();
            assert!(
                error.contains("ledger.redb") && error.contains("damaged") && !error.contains('\n'),
                "{error}"
            );
            assert_eq!(std::fs::read(&path).unwrap(), damage, "and left as it was");
        }
    }
}
