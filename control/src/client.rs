//! How a node talks to its cluster: commands, reads, the stream of changes, heartbeats, renewal.
//!
//! Used by the agent on every node, managers too. [`ControlClient`] knows the managers by the
//! identity's list, finds the one that leads, and tries the others when one does not answer.
//!
//! # Repeating commands
//! A command whose answer is lost is sent again. That is safe because the proposer draws the ids: the
//! state answers a `NetworkCreate`, `ServiceCreate` or `EndpointCreate` whose id exists with the object
//! itself, and the other commands have the same effect twice. A removal whose repetition finds nothing
//! left counts as done. Only a `ServiceUpdate` that names a version may answer a conflict
//! although it was carried out: the caller compares.

mod channels;
mod renew;
mod twin;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use mesh_api::{
    proto::{
        BeatRequest, ProposeRequest, QueryRequest, Standing, WatchBatch, WatchRequest, agents_client::AgentsClient,
        control_client::ControlClient as Stub,
    },
    query::{Answer, Query},
};
use mesh_core::{
    Refusal, RefusalKind,
    command::{Command, Outcome, Reply},
    objects::{Change, Role},
};
use rand::seq::SliceRandom as _;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tonic::{Status, transport::Channel};

pub(crate) use channels::endpoint;
pub use channels::{CONNECT_TIMEOUT, Channels, Purpose, describe, never_sent};
use twin::Twin;

use crate::{identity::IdentityStore, server::refusal_of, tls::TlsError};

/// Time for a command or a read, over all managers.
pub const BUDGET: Duration = Duration::from_secs(5);
/// Time for one manager to answer; one that is frozen must not use up the budget.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Time for a manager's removal or demotion of a node, and for one manager's answer to it, which a manager
/// that leaves gets only when its vote is gone: more than the server gives itself for that.
const REMOVAL_BUDGET: Duration = Duration::from_secs(20);
const REMOVAL_ATTEMPT: Duration = Duration::from_secs(16);
/// Time for a heartbeat: the next one is due a second later.
const BEAT: Duration = Duration::from_secs(1);
/// Largest answer to a read, in bytes: a list of 200,000 endpoints.
const MAX_ANSWER: usize = 256 << 20;
/// Largest message of a watch, in bytes: 512 objects, or what one command changed.
const MAX_BATCH: usize = 64 << 20;
/// Hints followed before the next manager is tried: two that point at each other end there.
const HINTS: usize = 3;

/// One message of the stream of changes.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchEvent {
    /// Revision after it.
    pub revision: u64,
    /// The changes; none: a bookmark.
    pub changes: Vec<Change>,
    /// Part of a full list, which replaces what was there once it is complete.
    pub snapshot: bool,
    /// The full list ends here.
    pub complete: bool,
}

/// What a manager said to a call.
enum Said<T> {
    Answer(T),
    /// It does not lead; `host:port` of the one that does.
    AskLeader(String),
}

fn said<T>(leader: String, answer: T) -> Said<T> {
    if leader.is_empty() {
        Said::Answer(answer)
    } else {
        Said::AskLeader(leader)
    }
}

/// A node's way to its managers.
pub struct ControlClient {
    identity: Arc<IdentityStore>,
    channels: Arc<Channels>,
    leader: ArcSwapOption<String>,
    /// The certificate is to be renewed now ([`Self::is_stale`], or `owed`).
    stale: Notify,
    /// Digest of the roots that the cluster trusts, as last heard; `None`: not heard.
    trusted: ArcSwapOption<String>,
    /// How many nodes it has, as last heard.
    nodes: AtomicU32,
    /// A renewal was due and found no manager: the next one that is heard is asked.
    owed: AtomicBool,
    /// Raft id that this node had when its certificate was renewed last: once for each is enough.
    renewed_as: AtomicU64,
    /// Whether this host is the one that counts as the node.
    twin: Twin,
}

impl ControlClient {
    /// For a node with an identity; `channels` may be shared with others.
    pub fn new(identity: Arc<IdentityStore>, channels: Arc<Channels>) -> Self {
        Self {
            identity,
            channels,
            leader: ArcSwapOption::empty(),
            stale: Notify::new(),
            trusted: ArcSwapOption::empty(),
            nodes: AtomicU32::new(0),
            owed: AtomicBool::new(false),
            renewed_as: AtomicU64::new(0),
            twin: Twin::default(),
        }
    }

    /// As [`Self::new`], with connections of its own.
    ///
    /// # Errors
    /// [`TlsError`] when the identity can not be used.
    pub fn connect(identity: Arc<IdentityStore>) -> Result<Self, TlsError> {
        let channels = Arc::new(Channels::new(&identity)?);
        Ok(Self::new(identity, channels))
    }

    /// Has a command carried out: the revision of its entry, and what it answered.
    ///
    /// # Errors
    /// Unavailable when no manager answers in [`BUDGET`], for a manager's removal or demotion of a node in 20 s
    /// (the command may still be carried out),
    /// forbidden or malformed when a manager refuses it unseen. What the state refuses is in the
    /// outcome.
    pub fn propose(&self, command: Command) -> BoxFuture<'_, Result<(u64, Outcome), Refusal>> {
        Box::pin(async move {
            let bytes = encode("command", &command)?;
            let mut doubtful = false;
            let call = |channel| {
                let command = bytes.clone();
                async move {
                    let reply = Stub::new(channel).propose(ProposeRequest { command }).await?.into_inner();
                    Ok(said(reply.leader, (reply.revision, reply.outcome)))
                }
            };
            // A worker can remove itself only.
            let takes_vote = command.leaver().is_some() && self.identity.file().role == Role::Manager;
            let (budget, attempt) = if takes_vote {
                (REMOVAL_BUDGET, REMOVAL_ATTEMPT)
            } else {
                (BUDGET, ATTEMPT)
            };
            let (revision, outcome) = self.ask(budget, attempt, &mut doubtful, call).await?;
            let outcome: Outcome = decode("outcome", &outcome)?;
            Ok((revision, settle(&command, doubtful, outcome)))
        })
    }

    /// Reads, linearizable.
    ///
    /// # Errors
    /// Unavailable when no manager answers in [`BUDGET`]; else the answer's own refusal.
    pub fn query(&self, query: Query) -> BoxFuture<'_, Result<Answer, Refusal>> {
        Box::pin(async move {
            let bytes = encode("query", &query)?;
            let call = |channel| {
                let query = bytes.clone();
                async move {
                    let mut stub = Stub::new(channel).max_decoding_message_size(MAX_ANSWER);
                    let reply = stub.query(QueryRequest { query }).await?.into_inner();
                    Ok(said(reply.leader, reply.answer))
                }
            };
            let answer = self.ask(BUDGET, ATTEMPT, &mut false, call).await?;
            decode::<Result<Answer, Refusal>>("answer", &answer)?
        })
    }

    /// "I am here", and have applied `revision`. Takes note of the managers that the leader names, and has the
    /// certificate renewed when the cluster trusts other roots than this node.
    ///
    /// # Errors
    /// Unavailable when the leader is not reached in a second; forbidden when this node was removed.
    pub fn beat(&self, revision: u64) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let root = self.identity.root();
            let (host, standing) = (self.twin.host(), self.twin.standing());
            let call = |channel| {
                let request = BeatRequest {
                    applied_revision: revision,
                    root: root.clone(),
                    host,
                    standing: standing.into(),
                };
                async move {
                    let reply = AgentsClient::new(channel).beat(request).await?.into_inner();
                    Ok(said(reply.leader, (reply.managers, reply.trust, reply.nodes, reply.other)))
                }
            };
            let (managers, trusted, nodes, other) = self.ask(BEAT, BEAT, &mut false, call).await?;
            self.twin.heard(other, Instant::now());
            self.nodes.store(nodes, Ordering::Relaxed);
            self.trusted.store((!trusted.is_empty()).then(|| Arc::new(trusted)));
            if self.is_stale() || self.owed.load(Ordering::Relaxed) {
                self.stale.notify_one();
            }
            if let Err(error) = self.identity.set_managers(managers) {
                tracing::warn!(%error, "can not keep the list of managers");
            }
            Ok(())
        })
    }

    /// Whether the leader takes this host for the node. Until it does, what this host finds, or misses, is nothing
    /// to tell of the node: another host may have its identity.
    pub fn counts(&self) -> bool {
        self.twin.standing() == Standing::Taken
    }

    /// Returns once [`Self::counts`].
    pub async fn counted(&self) {
        self.twin.taken().await;
    }

    /// Where the other host is that has this node's identity and counts as the node.
    pub fn twin(&self) -> Option<String> {
        self.twin.other()
    }

    /// Follows the changes behind `revision` (0: everything). The stream ends with an error, or
    /// without one when this node has got another certificate: both sides hold it by the one that they had before. The
    /// caller goes on from the last revision it has, after a pause with jitter.
    ///
    /// # Errors
    /// Unavailable when no manager serves it; forbidden when this node was removed.
    pub fn watch(&self, revision: u64) -> BoxFuture<'_, Result<BoxStream<'static, Result<WatchEvent, Refusal>>, Refusal>> {
        Box::pin(async move {
            let cluster = self.identity.file().cluster.to_string();
            let mut reasons = BTreeMap::new();
            let mut renewals = self.channels.renewals();
            for addr in self.managers(false) {
                let mut stub = AgentsClient::new(self.channels.get(Purpose::Watch, &addr)).max_decoding_message_size(MAX_BATCH);
                let request = WatchRequest {
                    revision,
                    cluster: cluster.clone(),
                };
                match timeout(ATTEMPT, stub.watch(request)).await {
                    Ok(Ok(stream)) => {
                        let events = stream.into_inner().map(|batch| event(batch.map_err(|s| lost(&s))?));
                        let renewed = async move { drop(renewals.changed().await) };
                        return Ok(events.take_until(renewed).boxed());
                    }
                    Ok(Err(status)) => match refusal_of(&status) {
                        Some(r) if r.kind != RefusalKind::Unavailable => return Err(r),
                        _ => drop(reasons.insert(addr, describe(&status))),
                    },
                    Err(_) => drop(reasons.insert(addr, no_answer(ATTEMPT))),
                }
            }
            Err(nobody(&reasons))
        })
    }

    /// The managers in the order in which they are tried: the leader, when it matters and is known,
    /// then the others in random order.
    fn managers(&self, leader_first: bool) -> VecDeque<String> {
        let mut managers = self.identity.file().managers;
        managers.shuffle(&mut rand::rng());
        let mut managers = VecDeque::from(managers);
        if leader_first && let Some(leader) = self.leader.load_full() {
            managers.retain(|m| *m != *leader);
            managers.push_front(leader.to_string());
        }
        managers
    }

    /// Asks the managers, again and again within `budget`, until one answers. Sets `doubtful` when
    /// one of them may have got the call and not answered.
    async fn ask<T, F, Fut>(&self, budget: Duration, attempt: Duration, doubtful: &mut bool, call: F) -> Result<T, Refusal>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Said<T>, Status>>,
    {
        let end = Instant::now() + budget;
        let mut reasons = BTreeMap::new();
        let mut pause = Duration::from_millis(50);
        loop {
            let mut queue = self.managers(true);
            let mut hints = 0;
            while let Some(addr) = queue.pop_front() {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(nobody(&reasons));
                }
                let limit = attempt.min(left);
                let reason = match timeout(limit, call(self.channels.get(Purpose::Calls, &addr))).await {
                    Ok(Ok(Said::Answer(answer))) => {
                        self.leader.store(Some(Arc::new(addr)));
                        return Ok(answer);
                    }
                    Ok(Ok(Said::AskLeader(leader))) => {
                        self.leader.store(Some(Arc::new(leader.clone())));
                        if hints < HINTS && leader != addr {
                            hints += 1;
                            queue.retain(|a| *a != leader);
                            queue.push_front(leader.clone());
                        }
                        format!("it names {leader} as the leader")
                    }
                    Ok(Err(status)) => match refusal_of(&status) {
                        Some(r) if r.kind != RefusalKind::Unavailable => return Err(r),
                        refusal => {
                            *doubtful |= !never_sent(&status);
                            refusal.map_or_else(|| describe(&status), |r| r.message)
                        }
                    },
                    Err(_) => {
                        *doubtful = true;
                        // It was cut short by the end of all tries: what it said before tells more.
                        if limit < attempt && reasons.contains_key(&addr) {
                            continue;
                        }
                        no_answer(limit)
                    }
                };
                reasons.insert(addr, reason);
            }
            self.leader.store(None);
            let left = end.saturating_duration_since(Instant::now());
            if left < pause {
                return Err(nobody(&reasons));
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(Duration::from_millis(400));
        }
    }
}

/// A removal that is repeated after a lost answer and finds nothing was carried out the first time.
fn settle(command: &Command, doubtful: bool, outcome: Outcome) -> Outcome {
    use Command as C;
    let removal = matches!(
        command,
        C::NodeRemove { .. } | C::NetworkRemove { .. } | C::ServiceRemove { .. } | C::EndpointRemove { .. }
    );
    match outcome {
        Err(r) if doubtful && removal && r.kind == RefusalKind::NotFound => Ok(Reply::Done),
        outcome => outcome,
    }
}

fn no_answer(limit: Duration) -> String {
    format!("no answer within {} ms", limit.as_millis())
}

fn nobody(reasons: &BTreeMap<String, String>) -> Refusal {
    if reasons.is_empty() {
        return Refusal::unavailable("no manager is known");
    }
    let tried: Vec<String> = reasons.iter().map(|(addr, why)| format!("{addr} ({why})")).collect();
    Refusal::unavailable(format!("no manager answers: tried {}", tried.join(", ")))
}

fn lost(status: &Status) -> Refusal {
    refusal_of(status).unwrap_or_else(|| Refusal::unavailable(format!("the stream of changes ended: {}", describe(status))))
}

fn event(batch: WatchBatch) -> Result<WatchEvent, Refusal> {
    let changes = if batch.changes.is_empty() {
        Vec::new()
    } else {
        decode("change", &batch.changes)?
    };
    Ok(WatchEvent {
        revision: batch.revision,
        changes,
        snapshot: batch.snapshot,
        complete: batch.complete,
    })
}

fn encode<T: serde::Serialize>(what: &str, value: &T) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|e| Refusal::other(format!("can not encode the {what}: {e}")))
}

fn decode<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|e| Refusal::other(format!("can not read the manager's {what}: {e}; is it of another release?")))
}

#[cfg(test)]
mod tests {
    use mesh_core::Id;

    use super::*;

    #[test]
    fn a_repeated_removal_that_finds_nothing_is_done() {
        let gone = || Err(Refusal::not_found("no endpoint"));
        let remove = Command::EndpointRemove { id: Id::from_bits(1) };
        assert_eq!(settle(&remove, true, gone()), Ok(Reply::Done));
        assert_eq!(settle(&remove, false, gone()), gone());
        let set = Command::EndpointSet {
            id: Id::from_bits(1),
            state: mesh_core::objects::EndpointState::Ready,
        };
        assert_eq!(settle(&set, true, gone()), gone());
    }

    #[test]
    fn the_managers_that_were_tried_are_named() {
        let reasons = [
            ("192.168.77.11:2377".into(), "connection refused".into()),
            ("192.168.77.12:2377".into(), "no answer within 2000 ms".into()),
        ];
        let text = nobody(&reasons.into()).message;
        assert_eq!(
            text,
            "no manager answers: tried 192.168.77.11:2377 (connection refused), 192.168.77.12:2377 (no answer within 2000 ms)"
        );
    }
}
