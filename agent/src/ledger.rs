//! The ledger: this host's copy of the objects, and thereby what it must look like.
//!
//! The session writes what the control plane streams; the reconcile loop and the local API read.
//! What counts is in memory. [`keeper`] writes it to disk behind, so that a host whose managers are
//! all gone goes on from here after a restart too. The file ([`file`]) is always at one revision,
//! though maybe an older one: what is missing in it comes from the managers again.

mod file;
mod keeper;

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_control::disk::DiskError;
use mesh_core::{
    Id,
    objects::{Change, Object, Objects},
    part::Touched,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::keeper::Unsaved;

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file can not be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What is in it is not what was written.
    #[error("ledger {path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A damaged file can not be moved out of the way.
    #[error("ledger {path} is damaged and can not be moved away")]
    Stuck {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
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
    /// This host's node in it; `None` in what an earlier release wrote.
    #[serde(default)]
    pub node: Option<Id>,
    /// Revision of the objects; 0 before the first full list.
    pub revision: u64,
}

impl Head {
    /// Leaves out of a change what this host never asks.
    fn keeps(&self, change: &mut Change) {
        if let (Some(node), Some(Object::Endpoint(e))) = (self.node, &mut change.object)
            && e.node != node
        {
            Arc::make_mut(e).seen_from(node);
        }
    }
}

/// A consistent view.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Cluster and revision.
    pub head: Head,
    /// The objects.
    pub objects: Arc<Objects>,
}

/// A change, with what there was before it.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// What is now.
    pub change: Change,
    /// What was; `None`: it is new.
    pub before: Option<Object>,
}

impl News {
    /// A change that is about to be applied to `objects`.
    fn of(objects: &Objects, change: Change) -> Self {
        let before = objects.get(change.kind, change.id);
        Self { change, before }
    }
}

/// The ledger.
pub struct Ledger {
    shared: Arc<Shared>,
    changed: watch::Sender<u64>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

/// What the ledger and its keeper share.
#[derive(Default)]
struct Shared {
    /// Held for moments only, never while the disk works.
    inner: Mutex<Inner>,
    /// Something is to be written, or was.
    news: Condvar,
}

#[derive(Default)]
struct Inner {
    view: View,
    /// A full list that is still arriving.
    arriving: Option<Vec<Change>>,
    unsaved: Unsaved,
    /// What changed since the reconcile loop looked last.
    touched: Touched,
    /// A write is under way.
    writing: bool,
    /// Why the file is behind.
    trouble: Option<String>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a plain assignment: a panic elsewhere in a holder leaves no half of one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Opens the ledger or makes an empty one. A damaged one is moved to `PATH.damaged` and begun
    /// anew: the managers have all that was in it, and until they answer nothing is changed here.
    ///
    /// # Errors
    /// [`LedgerError`] when the file can not be used.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let (file, view) = file::open_anew(path)?;
        let mut file = Some(file);
        let path = path.to_owned();
        Ok(Self::kept_by(view, move |head, changes, whole| {
            // After an error redb wants to be opened again.
            let open = match file.take() {
                Some(open) => open,
                None => file::open_anew(&path)?.0,
            };
            open.write(head, changes, whole)?;
            file = Some(open);
            Ok(())
        }))
    }

    /// A ledger that `write` brings to disk.
    fn kept_by(view: View, write: impl FnMut(&Head, &[Change], bool) -> Result<(), LedgerError> + Send + 'static) -> Self {
        let changed = watch::Sender::new(view.head.revision);
        let inner = Inner {
            view,
            touched: Touched::everything(),
            ..Inner::default()
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            news: Condvar::new(),
        });
        let keeper = keeper::start(shared.clone(), write)
            .inspect_err(|error| tracing::error!(%error, "no thread for the ledger: it is not kept on disk"))
            .ok();
        Self { shared, changed, keeper }
    }

    /// What it holds.
    pub fn view(&self) -> View {
        self.shared.lock().view.clone()
    }

    /// What it holds, and what changed since the last call of this: for the reconcile loop alone.
    pub fn look(&self) -> (View, Touched) {
        let mut inner = self.shared.lock();
        (inner.view.clone(), std::mem::take(&mut inner.touched))
    }

    /// Revisions as they come; also told when the cluster changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Why the file does not keep up with what is held; `None` when it does.
    pub fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    /// Waits until everything is on disk, for `limit` at most.
    pub fn flush(&self, limit: Duration) {
        let busy = |inner: &mut Inner| inner.writing || (inner.unsaved != Unsaved::Nothing && inner.trouble.is_none());
        drop(self.shared.news.wait_timeout_while(self.shared.lock(), limit, busy));
    }

    /// Forgets everything and belongs to a cluster, as this node of it, from now on.
    pub fn reset(&self, member: Option<(Id, Id)>) {
        let mut inner = self.shared.lock();
        inner.view = View {
            head: Head {
                cluster: member.map(|m| m.0),
                node: member.map(|m| m.1),
                revision: 0,
            },
            objects: Arc::default(),
        };
        inner.arriving = None;
        inner.unsaved = Unsaved::Whole;
        inner.touched = Touched::everything();
        self.told(inner, 0);
    }

    /// Goes on as this node of a cluster, with what it holds if that is of this cluster.
    pub fn resume(&self, cluster: Id, node: Id) {
        let mut inner = self.shared.lock();
        if inner.view.head.cluster == Some(cluster) {
            inner.view.head.node = Some(node);
        } else {
            drop(inner);
            self.reset(Some((cluster, node)));
        }
    }

    /// A watch begins: half a list of the one before is no part of its.
    pub fn begin(&self) {
        self.shared.lock().arriving = None;
    }

    /// Takes in one batch of a watch: changes on top of what is there, or a part of a full list
    /// which replaces it once it is complete. Returns what really changed, for the event stream.
    pub fn receive(&self, revision: u64, mut changes: Vec<Change>, snapshot: bool, complete: bool) -> Vec<News> {
        let mut guard = self.shared.lock();
        let inner = &mut *guard;
        changes.iter_mut().for_each(|c| inner.view.head.keeps(c));
        if snapshot {
            let arriving = inner.arriving.get_or_insert_default();
            arriving.extend(changes);
            if !complete {
                return Vec::new();
            }
            let mut objects = Objects::default();
            inner.arriving.take().unwrap_or_default().iter().for_each(|c| objects.apply(c));
            objects.compact();
            let changes = difference(&inner.view.objects, &objects);
            changes.iter().for_each(|c| inner.touched.note(&inner.view.objects, c));
            let news = changes.into_iter().map(|c| News::of(&inner.view.objects, c)).collect();
            inner.view.head.revision = revision;
            inner.view.objects = Arc::new(objects);
            inner.unsaved = Unsaved::Whole;
            self.told(guard, revision);
            return news;
        }
        inner.arriving = None;
        if revision <= inner.view.head.revision {
            return Vec::new();
        }
        // Copies the maps only while somebody still holds the last view.
        let objects = Arc::make_mut(&mut inner.view.objects);
        inner.unsaved.add(&changes);
        let mut news = Vec::with_capacity(changes.len());
        for change in changes {
            inner.touched.note(objects, &change);
            let new = News::of(objects, change);
            objects.apply(&new.change);
            news.push(new);
        }
        inner.view.head.revision = revision;
        self.told(guard, revision);
        news
    }

    fn told(&self, inner: MutexGuard<'_, Inner>, revision: u64) {
        drop(inner);
        self.shared.news.notify_all();
        self.changed.send_replace(revision);
    }
}

impl Drop for Ledger {
    /// Writes what is left and closes the file.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.news.notify_all();
        if let Some(keeper) = self.keeper.take() {
            // It catches what a write does wrong; there is nothing to add here.
            drop(keeper.join());
        }
    }
}

/// All objects, as changes.
fn puts(objects: &Objects) -> Vec<Change> {
    let put = |object: Object| {
        let (kind, id) = object.key();
        Change {
            kind,
            id,
            object: Some(object),
        }
    };
    objects.iter().map(put).collect()
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
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use jiff::Timestamp;
    use mesh_core::objects::{Kind, Labels, Network};

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
            reserved: Default::default(),
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
        ledger.reset(Some((Id::from_bits(1), Id::from_bits(2))));
        ledger.receive(5, vec![put(1, "a"), put(9, "gone since")], true, false);
        assert_eq!(ledger.view().head.revision, 0, "half a list is no list");
        ledger.begin();
        ledger.receive(5, vec![put(1, "a"), put(2, "b")], true, false);
        assert_eq!(ledger.receive(5, vec![put(3, "c")], true, true).len(), 3);
        ledger.receive(6, vec![gone(1)], false, false);
        assert!(ledger.receive(6, vec![gone(2)], false, false).is_empty(), "told twice, done once");
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(names(&ledger), ["b", "c"]);
        assert_eq!(
            ledger.view().head,
            Head {
                cluster: Some(Id::from_bits(1)),
                node: Some(Id::from_bits(2)),
                revision: 6
            }
        );
        let news = ledger.receive(9, vec![put(3, "c"), put(4, "d")], true, true);
        let told: Vec<_> = news.iter().map(|n| n.change.clone()).collect();
        assert_eq!(told, [gone(2), put(4, "d")], "a full list tells only what is new");
        assert_eq!(news[0].before, put(2, "b").object);
        assert_eq!(news[1].before, None);
        assert_eq!(names(&ledger), ["c", "d"]);
    }

    /// What only the node of an endpoint asks is not kept for those of other nodes, however it came.
    #[test]
    fn keeps_sandboxes_of_its_own_node_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.redb");
        let put = |n: u64, node: u64| {
            let object: Object = serde_json::from_value(serde_json::json!({ "endpoint": {
                "id": Id::from_bits(n), "version": 1, "created_at": "2026-01-01T00:00:00Z", "name": "e", "labels": {},
                "node": Id::from_bits(node), "network": Id::from_bits(9), "ip": "10.0.0.9", "mac": "02:00:00:00:00:09",
                "aliases": [], "service": null, "ifname": "eth0", "state": "ready", "slot": 1,
                "sandbox": {"container": "netns:e", "netns": "/run/netns/e", "inode": 5},
            }}))
            .unwrap();
            let (kind, id) = object.key();
            Change {
                kind,
                id,
                object: Some(object),
            }
        };
        let ledger = Ledger::open(&path).unwrap();
        ledger.reset(Some((Id::from_bits(1), Id::from_bits(2))));
        ledger.receive(1, vec![put(1, 2), put(2, 3)], true, true);
        ledger.receive(2, vec![put(3, 3)], false, false);
        let places = |ledger: &Ledger| -> Vec<_> {
            let view = ledger.view();
            let all = view.objects.endpoints.values();
            all.map(|e| (e.sandbox.inode, e.sandbox.netns.clone(), e.ifname.to_string()))
                .collect()
        };
        let (here, there) = ((5, "/run/netns/e".into(), "eth0".into()), (5, String::new(), String::new()));
        let kept = [here, there.clone(), there];
        assert_eq!(places(&ledger), kept);
        drop(ledger);
        assert_eq!(places(&Ledger::open(&path).unwrap()), kept);
    }

    #[test]
    fn a_damaged_ledger_is_moved_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.redb");
        Ledger::open(&path).unwrap().reset(Some((Id::from_bits(1), Id::from_bits(2))));
        let bytes = std::fs::read(&path).unwrap();
        for damage in [&b"not a ledger"[..], &bytes[..bytes.len() / 2], &[]] {
            std::fs::write(&path, damage).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            assert_eq!(ledger.view().head, Head::default());
            let aside = dir.path().join("ledger.redb.damaged");
            assert_eq!(std::fs::read(&aside).unwrap(), damage, "and left as it was");
            ledger.receive(3, vec![put(1, "a")], true, true);
            drop(ledger);
            assert_eq!(names(&Ledger::open(&path).unwrap()), ["a"]);
        }
    }

    /// A full disk costs nothing but the file's being behind.
    #[test]
    fn goes_on_while_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.redb");
        let (full, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_full, tried, at) = (full.clone(), tries.clone(), path.clone());
        let ledger = Ledger::kept_by(View::default(), move |head, changes, whole| {
            tried.fetch_add(1, Relaxed);
            if is_full.load(Relaxed) {
                return Err(LedgerError::Write {
                    path: "ledger".into(),
                    source: Box::new(redb::Error::Io(std::io::ErrorKind::StorageFull.into())),
                });
            }
            file::File::open(&at)?.0.write(head, changes, whole)
        });
        let patience = Duration::from_secs(20);
        ledger.receive(5, vec![put(1, "a"), put(2, "b")], true, true);
        ledger.flush(patience);
        full.store(true, Relaxed);
        ledger.receive(6, vec![put(3, "c")], false, false);
        ledger.flush(patience);
        assert!(ledger.trouble().unwrap().contains("cannot write the ledger"), "said");
        assert_eq!(names(&ledger), ["a", "b", "c"], "and held all the same");
        // Killed now, it goes on from what is on disk, and is told the rest again.
        let copy = dir.path().join("copy.redb");
        std::fs::copy(&path, &copy).unwrap();
        let stale = Ledger::open(&copy).unwrap();
        assert_eq!((stale.view().head.revision, names(&stale)), (5, vec!["a".into(), "b".into()]));
        assert_eq!(stale.receive(6, vec![put(3, "c")], false, false).len(), 1);
        stale.receive(7, vec![gone(1)], false, false);
        assert_eq!(names(&stale), ["b", "c"]);
        // Room again: the file catches up with all that it missed, without anything new.
        ledger.receive(7, vec![gone(1)], false, false);
        full.store(false, Relaxed);
        let waited = ledger
            .shared
            .news
            .wait_timeout_while(ledger.shared.lock(), patience, |inner| inner.trouble.is_some());
        assert!(!waited.unwrap().1.timed_out(), "never tried again");
        assert!(tries.load(Relaxed) < 10, "tried in a hurry");
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!((ledger.view().head.revision, names(&ledger)), (7, vec!["b".into(), "c".into()]));
    }

    /// Whoever reads never waits for the disk.
    #[test]
    fn a_slow_disk_holds_up_nobody() {
        let (enter, entered) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let ledger = Ledger::kept_by(View::default(), move |_, _, _| {
            enter.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        });
        ledger.receive(1, vec![put(1, "a")], true, true);
        entered.recv().unwrap();
        ledger.receive(2, vec![put(2, "b")], false, false);
        assert_eq!(names(&ledger), ["a", "b"]);
        release.send(()).unwrap();
        release.send(()).unwrap();
    }
}
