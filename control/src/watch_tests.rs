//! Whatever the batches, the interruptions and the ring's size: an agent ends with what is there,
//! and sees every change once and in order.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use mesh_api::proto::WatchBatch;
use mesh_core::{
    Refusal,
    command::Command,
    objects::{Availability, Cluster, Dataplane, Node, NodeState, Objects, Role},
};
use proptest::prelude::*;
use tokio::sync::{broadcast, watch as signal};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::*;
use crate::{
    consensus::{Applied, ConsensusError, Leadership, RaftRpc},
    server::refusal_of,
};

const AGENT: u64 = 1;

fn id(n: u64) -> Id {
    Id::from_bits(n)
}

fn node(n: u64, version: u64) -> Change {
    let node = Node {
        id: id(n),
        version,
        created_at: Default::default(),
        hostname: format!("h{n}"),
        labels: Default::default(),
        role: Role::Worker,
        raft_id: 0,
        availability: Availability::Active,
        addr: [10, 0, 0, 1].into(),
        control_port: 2377,
        data_path_addr: [10, 0, 0, 1].into(),
        underlay_mtu: 1500,
        underlay_mac: None,
        ingress_ip: [10, 1, 0, 1].into(),
        host_routes: Vec::new(),
        state: NodeState::Ready,
        dataplane: Dataplane::Reachable,
    };
    Change {
        kind: Kind::Node,
        id: id(n),
        object: Some(Object::Node(Arc::new(node))),
    }
}

fn gone(n: u64) -> Change {
    Change {
        kind: Kind::Node,
        id: id(n),
        object: None,
    }
}

fn secret(version: u64) -> Change {
    let cluster = Cluster {
        id: id(7),
        version,
        created_at: Default::default(),
        address_pools: Vec::new(),
        subnet_prefix: 24,
        ca_cert: "SECRET".into(),
        ca_key: "SECRET".into(),
        former_roots: Vec::new(),
        worker_secret: "SECRET".into(),
        manager_secret: "SECRET".into(),
        next_vni: 1,
        next_slot: 1,
    };
    Change {
        kind: Kind::Cluster,
        id: id(7),
        object: Some(Object::Cluster(Arc::new(cluster))),
    }
}

/// The state of a manager that is driven by hand: what is applied is there, and is told to the ring
/// when the test says so.
struct Hand {
    state: Mutex<(u64, Arc<Objects>)>,
    batches: broadcast::Sender<Batch>,
    leadership: signal::Sender<Leadership>,
}

/// As a manager sees it that hears this leader.
fn led_by(leader: Option<u64>) -> Leadership {
    Leadership {
        leader,
        ..Leadership::default()
    }
}

impl Hand {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new((0, Arc::default())),
            batches: broadcast::Sender::new(16),
            leadership: signal::Sender::new(led_by(Some(1))),
        })
    }

    fn apply(&self, revision: u64, changes: Vec<Change>) -> Batch {
        let mut state = self.state.lock().unwrap();
        let objects = Arc::make_mut(&mut state.1);
        changes.iter().for_each(|c| objects.apply(c));
        state.0 = revision;
        Batch {
            revision,
            changes: Arc::new(changes),
        }
    }
}

#[async_trait]
impl Consensus for Hand {
    fn objects(&self) -> (u64, Arc<Objects>) {
        self.state.lock().unwrap().clone()
    }
    fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.batches.subscribe()
    }
    fn leadership(&self) -> signal::Receiver<Leadership> {
        self.leadership.subscribe()
    }
    fn fatal(&self) -> signal::Receiver<Option<String>> {
        signal::channel(None).1
    }
    async fn propose(&self, _: Command) -> Result<Applied, ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    async fn read_barrier(&self) -> Result<u64, ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    async fn set_members(&self, _: BTreeMap<u64, String>) -> Result<(), ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    async fn transfer_leader(&self, _: u64) -> Result<(), ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    async fn handle(&self, _: u64, _: RaftRpc, _: Bytes) -> Result<Bytes, ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    async fn handle_snapshot(&self, _: u64, _: BoxStream<'static, Result<Bytes, String>>) -> Result<Bytes, ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    async fn shutdown(&self) {}
}

type Stream = BoxStream<'static, Result<WatchBatch, Status>>;

/// What an agent keeps, by the rules of the protocol.
#[derive(Default)]
struct Agent {
    revision: u64,
    objects: Objects,
    listing: Option<Objects>,
    /// Versions of each node that arrived since the last full list.
    seen: BTreeMap<Id, u64>,
}

impl Agent {
    fn take(&mut self, batch: WatchBatch) {
        let text = String::from_utf8_lossy(&batch.changes);
        assert!(!text.contains("SECRET"));
        let changes: Vec<Change> = if batch.changes.is_empty() {
            Vec::new()
        } else {
            serde_json::from_slice(&batch.changes).unwrap()
        };
        if batch.snapshot {
            let listing = self.listing.get_or_insert_default();
            changes.iter().for_each(|c| listing.apply(c));
            if batch.complete {
                assert!(batch.revision >= self.revision, "a list never goes back");
                self.objects = self.listing.take().unwrap();
                self.revision = batch.revision;
                self.seen.clear();
            }
            return;
        }
        assert!(batch.revision >= self.revision);
        assert!(changes.is_empty() || batch.revision > self.revision, "no change twice");
        for change in &changes {
            if let Some(Object::Node(n)) = &change.object {
                let before = self.seen.insert(n.id, n.version);
                assert!(before.is_none_or(|v| v < n.version), "in order, once");
                assert_eq!(n.version, batch.revision);
            }
            self.objects.apply(change);
        }
        self.revision = batch.revision;
    }

    async fn until(&mut self, stream: &mut Stream, revision: u64) {
        while self.revision < revision {
            let next = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap();
            self.take(next.unwrap().unwrap());
        }
    }
}

fn watcher(ring: &Arc<Ring>, hand: &Arc<Hand>, revision: u64) -> Stream {
    Watcher::new(ring.clone(), hand.clone(), id(AGENT), revision, CancellationToken::new())
        .stream()
        .boxed()
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Do {
    /// A command that changes these nodes (`false`: removes), and perhaps the cluster object.
    Change(Vec<(u64, bool)>, bool),
    /// The agent reads up to what is there.
    Read,
    /// The agent reads a few messages, perhaps half of a list, and loses the connection.
    Break(usize),
    /// The manager missed some batches.
    Lag,
}

fn steps() -> impl Strategy<Value = Vec<Do>> {
    let change = (prop::collection::vec((2u64..9, any::<bool>()), 0..4), any::<bool>()).prop_map(|(c, s)| Do::Change(c, s));
    prop::collection::vec(
        prop_oneof![6 => change, 2 => Just(Do::Read), 2 => (0usize..4).prop_map(Do::Break), 1 => Just(Do::Lag)],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn resumes_are_exact(history in steps(), room in 1usize..12) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let hand = Hand::new();
            let mut revision = 3;
            hand.apply(revision, vec![node(AGENT, revision), secret(revision)]);
            let ring = Arc::new(Ring::with_room(revision, room));
            let mut agent = Agent::default();
            let mut stream = watcher(&ring, &hand, 0);
            for step in history {
                match step {
                    Do::Change(nodes, with_secret) => {
                        // Entries of raft's own use up revisions too.
                        revision += 1 + u64::from(with_secret);
                        let mut changes: BTreeMap<u64, Change> = BTreeMap::new();
                        for (n, put) in nodes {
                            changes.insert(n, if put { node(n, revision) } else { gone(n) });
                        }
                        let mut changes: Vec<Change> = changes.into_values().collect();
                        changes.extend(with_secret.then(|| secret(revision)));
                        ring.push(&hand.apply(revision, changes));
                    }
                    Do::Read => agent.until(&mut stream, revision).await,
                    Do::Break(most) => {
                        for _ in 0..most {
                            if agent.revision >= revision {
                                break;
                            }
                            agent.take(stream.next().await.unwrap().unwrap());
                        }
                        agent.listing = None;
                        stream = watcher(&ring, &hand, agent.revision);
                    }
                    Do::Lag => {
                        revision += 1;
                        hand.apply(revision, vec![node(2, revision)]);
                        ring.reset(revision);
                    }
                }
            }
            agent.until(&mut stream, revision).await;
            let mut expected = (*hand.objects().1).clone();
            expected.cluster = None;
            assert_eq!(agent.objects, expected);
        });
    }
}

#[tokio::test]
async fn a_long_list_comes_in_parts_and_is_encoded_once() {
    let hand = Hand::new();
    hand.apply(5, (1..=1100).map(|n| node(n, 5)).collect());
    let ring = Arc::new(Ring::new(5));
    let (mut a, mut b) = (watcher(&ring, &hand, 0), watcher(&ring, &hand, 0));
    let mut parts = Vec::new();
    for _ in 0..3 {
        let part = a.next().await.unwrap().unwrap();
        assert!(part.snapshot && part.revision == 5);
        let changes: Vec<Change> = serde_json::from_slice(&part.changes).unwrap();
        parts.push((changes.len(), part.complete));
        if parts.len() == 1 {
            // Somebody else comes while this one is being served, after a change: same list, then the change.
            ring.push(&hand.apply(6, vec![gone(1100)]));
            assert!(b.next().await.unwrap().unwrap().revision == 5);
        }
    }
    assert_eq!(parts, [(512, false), (512, false), (76, true)]);
    let mut agent = Agent::default();
    agent.until(&mut b, 6).await;
    let next = a.next().await.unwrap().unwrap();
    assert!(!next.snapshot && next.revision == 6);
}

#[tokio::test]
async fn bookmarks_come_without_changes() {
    let hand = Hand::new();
    hand.apply(5, vec![node(AGENT, 5)]);
    let ring = Arc::new(Ring::new(5));
    let mut stream = watcher(&ring, &hand, 5);
    let began = tokio::time::Instant::now();
    let bookmark = stream.next().await.unwrap().unwrap();
    assert_eq!(
        bookmark,
        WatchBatch {
            revision: 5,
            ..WatchBatch::default()
        }
    );
    assert!(began.elapsed() > Duration::from_millis(3900));
    // An entry without changes moves the revision on at once.
    ring.push(&hand.apply(8, Vec::new()));
    assert_eq!(
        stream.next().await.unwrap().unwrap(),
        WatchBatch {
            revision: 8,
            ..WatchBatch::default()
        }
    );
}

#[tokio::test]
async fn an_agent_that_is_ahead_waits_for_the_manager_or_is_sent_away() {
    let hand = Hand::new();
    hand.apply(5, vec![node(AGENT, 5)]);
    let ring = Arc::new(Ring::new(5));
    let mut ahead = watcher(&ring, &hand, 7);
    let feeder = ring.clone();
    let (state, late) = (hand.clone(), Duration::from_secs(1));
    let apply = async {
        tokio::time::sleep(late).await;
        for revision in 6..=8 {
            feeder.push(&state.apply(revision, vec![node(2, revision)]));
        }
    };
    let (first, ()) = tokio::join!(ahead.next(), apply);
    assert_eq!(first.unwrap().unwrap().revision, 8, "6 and 7 it has");
    let refusal = refusal_of(&watcher(&ring, &hand, 100).next().await.unwrap().unwrap_err()).unwrap();
    assert_eq!(
        refusal,
        Refusal::unavailable("this manager has not reached revision 100: ask another")
    );
}

#[tokio::test]
async fn a_removed_node_is_told_and_let_go() {
    let hand = Hand::new();
    hand.apply(5, vec![node(AGENT, 5), node(2, 5)]);
    let ring = Arc::new(Ring::new(5));
    let (mut live, mut late) = (watcher(&ring, &hand, 5), watcher(&ring, &hand, 0));
    ring.push(&hand.apply(6, vec![gone(AGENT)]));
    for stream in [&mut live, &mut late] {
        let refusal = refusal_of(&stream.next().await.unwrap().unwrap_err()).unwrap();
        assert_eq!(refusal, authz_removed());
        assert!(stream.next().await.is_none(), "and nothing after it");
    }
}

fn authz_removed() -> Refusal {
    crate::authz::removed(id(AGENT))
}

#[tokio::test]
async fn a_stopping_manager_ends_its_streams() {
    let hand = Hand::new();
    hand.apply(5, vec![node(AGENT, 5)]);
    let stop = CancellationToken::new();
    let mut stream = Watcher::new(Arc::new(Ring::new(5)), hand, id(AGENT), 5, stop.clone())
        .stream()
        .boxed();
    stop.cancel();
    assert_eq!(
        refusal_of(&stream.next().await.unwrap().unwrap_err()).unwrap().kind,
        mesh_core::RefusalKind::Unavailable
    );
    assert!(stream.next().await.is_none());
}

/// A follower that is cut off must not pass for one to which nothing happens.
#[tokio::test]
async fn a_manager_that_hears_no_leader_ends_its_streams() {
    let hand = Hand::new();
    hand.apply(5, vec![node(AGENT, 5)]);
    let ring = Arc::new(Ring::new(5));
    let mut stream = watcher(&ring, &hand, 4);
    assert!(stream.next().await.unwrap().unwrap().snapshot);
    // An election in time is none of the agents' business.
    let election = async {
        for leader in [None, Some(2), None, Some(3)] {
            hand.leadership.send_replace(led_by(leader));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (bookmark, ()) = tokio::join!(stream.next(), election);
    assert_eq!(bookmark.unwrap().unwrap().revision, 5);
    hand.leadership.send_replace(led_by(None));
    let cut_off = Refusal::unavailable("this manager hears no leader: ask another");
    let end = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap();
    assert_eq!(refusal_of(&end.unwrap().unwrap_err()).unwrap(), cut_off);
    assert!(stream.next().await.is_none());
    let refused = watcher(&ring, &hand, 5).next().await.unwrap().unwrap_err();
    assert_eq!(refusal_of(&refused).unwrap(), cut_off);
}
