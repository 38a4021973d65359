//! Managers in one process, connected by function calls that can be cut.
#![expect(clippy::unwrap_used, reason = "test")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use mesh_control::{
    consensus::{Consensus, ConsensusError, RaftRpc, RaftTransport, TransportError},
    raft::RaftHost,
};
use mesh_core::{
    Id,
    command::{Command, NewNode},
    objects::{Objects, Role},
};
use tempfile::TempDir;

/// Bound of every wait.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The wires between managers.
#[derive(Default)]
pub struct Net {
    hosts: Mutex<HashMap<String, Weak<RaftHost>>>,
    cut: Mutex<BTreeSet<String>>,
    /// Snapshots that were sent.
    pub snapshots: AtomicUsize,
}

/// One manager's end.
pub struct Wire {
    me: String,
    net: Arc<Net>,
}

impl Wire {
    fn host(&self, addr: &str) -> Result<Arc<RaftHost>, TransportError> {
        let cut = self.net.cut.lock().unwrap();
        let host = self.net.hosts.lock().unwrap().get(addr).and_then(Weak::upgrade);
        let connected = !cut.contains(&self.me) && !cut.contains(addr);
        host.filter(|_| connected).ok_or_else(|| TransportError::Unreachable {
            addr: addr.into(),
            why: "cut".into(),
        })
    }

    /// The answer of a call, unless the wire was cut meanwhile.
    fn answer(&self, addr: &str, answer: Result<Bytes, ConsensusError>) -> Result<Bytes, TransportError> {
        self.host(addr)?;
        answer.map_err(|e| TransportError::Failed {
            addr: addr.into(),
            why: e.to_string(),
        })
    }
}

#[async_trait]
impl RaftTransport for Wire {
    async fn call(&self, addr: &str, to: u64, rpc: RaftRpc, payload: Bytes, _timeout: Duration) -> Result<Bytes, TransportError> {
        self.answer(addr, self.host(addr)?.handle(to, rpc, payload).await)
    }

    async fn snapshot(&self, addr: &str, to: u64, stream: BoxStream<'static, Bytes>) -> Result<Bytes, TransportError> {
        self.net.snapshots.fetch_add(1, Ordering::Relaxed);
        let host = self.host(addr)?;
        self.answer(addr, host.handle_snapshot(to, stream.map(Ok).boxed()).await)
    }
}

/// Some managers and their directories.
pub struct Lab {
    pub net: Arc<Net>,
    pub dir: TempDir,
    pub hosts: BTreeMap<u64, Arc<RaftHost>>,
}

pub fn addr(id: u64) -> String {
    format!("192.0.2.{id}:2377")
}

pub fn members(ids: &[u64]) -> BTreeMap<u64, String> {
    ids.iter().map(|id| (*id, addr(*id))).collect()
}

/// A manager's end of a net.
pub fn wire(net: &Arc<Net>, id: u64) -> Arc<dyn RaftTransport> {
    Arc::new(Wire {
        me: addr(id),
        net: net.clone(),
    })
}

/// Starts a manager on a net.
pub async fn start(net: &Arc<Net>, dir: &Path, id: u64) -> Arc<RaftHost> {
    start_at(net, dir, id, &addr(id)).await
}

/// Starts a manager on a net, at the address that another had.
pub async fn start_at(net: &Arc<Net>, dir: &Path, id: u64, at: &str) -> Arc<RaftHost> {
    let wire = Arc::new(Wire {
        me: at.to_owned(),
        net: net.clone(),
    });
    let host = RaftHost::start(&dir.join(id.to_string()), id, wire).await.unwrap();
    net.hosts.lock().unwrap().insert(at.to_owned(), Arc::downgrade(&host));
    host
}

impl Lab {
    /// A cluster of `n`, with the first as its leader.
    pub async fn new(n: u64) -> Self {
        let mut lab = Self {
            net: Arc::default(),
            dir: TempDir::new().unwrap(),
            hosts: BTreeMap::new(),
        };
        lab.add(1).await;
        lab.hosts[&1].bootstrap(&addr(1)).await.unwrap();
        lab.hosts[&1].propose(init()).await.unwrap().outcome.unwrap();
        for id in 2..=n {
            lab.add(id).await;
        }
        let ids: Vec<u64> = (1..=n).collect();
        lab.hosts[&1].set_members(members(&ids)).await.unwrap();
        lab
    }

    pub async fn add(&mut self, id: u64) {
        let host = start(&self.net, self.dir.path(), id).await;
        self.hosts.insert(id, host);
    }

    pub async fn restart(&mut self, id: u64) {
        self.hosts.remove(&id).unwrap().shutdown().await;
        self.add(id).await;
    }

    pub fn cut(&self, id: u64) {
        self.net.cut.lock().unwrap().insert(addr(id));
    }

    pub fn heal(&self) {
        self.net.cut.lock().unwrap().clear();
    }

    /// The leader among `ids`, once they agree on one of them.
    pub async fn leader(&self, ids: &[u64]) -> u64 {
        let mut found = 0;
        until("a leader", || {
            let seen: BTreeSet<_> = ids.iter().map(|id| self.hosts[id].leadership().borrow().leader).collect();
            found = seen.first().copied().flatten().unwrap_or_default();
            seen.len() == 1 && ids.contains(&found) && self.hosts[&found].leadership().borrow().is_leader
        })
        .await;
        found
    }

    /// Waits until all of `ids` have the same objects at the same revision.
    pub async fn agree(&self, ids: &[u64]) -> (u64, Arc<Objects>) {
        let mut agreed = None;
        until("the same objects everywhere", || {
            let mut views = ids.iter().map(|id| self.hosts[id].objects());
            let first = views.next().unwrap();
            let same = views.all(|view| view == first);
            agreed = Some(first);
            same
        })
        .await;
        agreed.unwrap()
    }
}

/// How often a scenario is begun at most.
const TRIES: usize = 10;
/// Managers miss each other after 400 ms.
const STALL: Duration = Duration::from_millis(250);

/// Runs a scenario in which nobody is to miss a leader that is there. On a machine that stands still for a moment they
/// do, and rightly: one that failed after such a moment is begun anew.
pub async fn undisturbed<F: Future<Output = ()> + Send + 'static>(scenario: impl Fn() -> F) {
    for _ in 0..TRIES {
        let longest = Arc::new(Mutex::new(Duration::ZERO));
        let seen = longest.clone();
        let watch = tokio::spawn(async move {
            loop {
                let slept = Instant::now();
                tokio::time::sleep(Duration::from_millis(10)).await;
                let mut longest = seen.lock().unwrap();
                *longest = longest.max(slept.elapsed());
            }
        });
        let outcome = tokio::spawn(scenario()).await;
        watch.abort();
        let Err(failed) = outcome else { return };
        let longest = *longest.lock().unwrap();
        if longest < STALL {
            std::panic::resume_unwind(failed.into_panic());
        }
        println!("begun anew: everything stood still for {longest:?}");
    }
    panic!("{TRIES} times everything stood still");
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn init() -> Command {
    let ip = |s: &str| s.parse().unwrap();
    let node = NewNode {
        id: Id::from_bits(3),
        hostname: "h1".into(),
        role: Role::Manager,
        addr: ip("192.0.2.1"),
        control_port: 2377,
        data_path_addr: ip("192.0.2.1"),
        underlay_mtu: 1500,
        host_routes: vec![],
    };
    Command::Init {
        id: Id::from_bits(1),
        ingress: Id::from_bits(2),
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
        address_pools: vec!["10.0.0.0/8".parse().unwrap()],
        subnet_prefix: 24,
        ca_cert: "cert".into(),
        ca_key: "key".into(),
        worker_secret: "0".into(),
        manager_secret: "0".into(),
        node,
    }
}

pub fn rotate(n: u64) -> Command {
    Command::TokenRotate {
        role: Role::Worker,
        secret: n.to_string(),
    }
}

/// The number of the last [`rotate`] that is applied.
pub fn rotated(objects: &Objects) -> u64 {
    objects.cluster.as_ref().unwrap().worker_secret.trim().parse().unwrap()
}
