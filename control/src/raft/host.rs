//! One manager's part in consensus: the files, openraft, and [`Consensus`] on top of them.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use mesh_core::{command::Command, objects::Objects};
use openraft::{
    BasicNode, Config, ReadPolicy, SnapshotPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError},
    raft::linearizable_read::LinearizerOption,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{broadcast, watch};

use super::{
    leadership::{self, Heard},
    log::{Log, OwnerError},
    machine::{Machine, Published},
    members,
    network::{Ballot, Network},
    snapshot,
    store::StoreError,
    types::{Proposal, Raft, TypeConfig},
};
use crate::{
    consensus::{Applied, Batch, Consensus, ConsensusError, Leadership, RaftRpc, RaftTransport},
    disk::{self, DiskError},
};

/// Time for a command or a read barrier to be confirmed by a majority.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long [`RaftHost::shutdown`] waits for the files to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const LOG_FILE: &str = "log.redb";
const STATE_FILE: &str = "state.redb";
/// What the log is called in errors.
pub const LOG_NAME: &str = "the raft log";
/// What the state is called in errors.
pub const STATE_NAME: &str = "the cluster's state";

/// Why a manager can not take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file can not be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file can be opened, but not be read.
    #[error("{what} in {dir} can not be read; restore it from a backup, or move it away and join again")]
    Store {
        /// Which file.
        what: &'static str,
        /// Directory of the file.
        dir: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The log is another manager's.
    #[error("the raft log in {dir} belongs to the manager with raft id {owner}, not {raft_id}: every manager needs a directory of its own")]
    NotOurs {
        /// Directory of the files.
        dir: String,
        /// Whose it is.
        owner: u64,
        /// Who asked.
        raft_id: u64,
    },
    /// The two files are of different age.
    #[error(
        "the cluster's state in {dir} ends at revision {applied}, but the log begins after {purged}: restore both files from one backup, or move both away and join again"
    )]
    Gap {
        /// Directory of the files.
        dir: String,
        /// Last revision of the state.
        applied: u64,
        /// Last entry that the log does not have any more.
        purged: u64,
    },
    /// openraft refuses.
    #[error("consensus can not be started: {0}")]
    Raft(String),
}

/// A manager's part in consensus.
pub struct RaftHost {
    raft: Raft,
    published: Arc<Published>,
    heard: Arc<Heard>,
    leadership: watch::Receiver<Leadership>,
    fatal: watch::Receiver<Option<String>>,
    files: [watch::Receiver<()>; 2],
    /// Changes of membership come one after the other.
    changing: tokio::sync::Mutex<()>,
}

impl RaftHost {
    /// Opens the files in `dir`, or makes them, and takes part as `raft_id`.
    ///
    /// A manager that was part of a cluster is so again. A new one does nothing until it is either
    /// made the first ([`Self::bootstrap`]) or taken in by the leader ([`Consensus::set_members`]).
    ///
    /// # Errors
    /// [`StartError`]; files that are reported as damaged are not modified.
    pub fn start(dir: &Path, raft_id: u64, transport: Arc<dyn RaftTransport>) -> BoxFuture<'_, Result<Arc<Self>, StartError>> {
        Box::pin(async move {
            let owned = dir.to_path_buf();
            let opened = tokio::task::spawn_blocking(move || open(&owned, raft_id)).await;
            let (log, machine) = opened.map_err(|_| StartError::Raft("opening its files went wrong".into()))??;
            let config = config().validate().map_err(|e| StartError::Raft(e.to_string()))?;
            let published = machine.published().clone();
            let files = [log.closing(), machine.closing()];
            let raft = Raft::new(raft_id, Arc::new(config), Network(transport), log, machine).await;
            let raft = raft.map_err(|e| StartError::Raft(fatal_text(&e)))?;
            let heard = Arc::new(Heard::default());
            let (leader_tx, leadership) = watch::channel(leadership::leadership(&raft.metrics().borrow_watched(), &heard));
            let (fatal_tx, fatal) = watch::channel(None);
            tokio::spawn(leadership::follow(raft.clone(), heard.clone(), leader_tx, fatal_tx));
            Ok(Arc::new(Self {
                raft,
                published,
                heard,
                leadership,
                fatal,
                files,
                changing: tokio::sync::Mutex::new(()),
            }))
        })
    }

    /// Who this manager is in consensus.
    pub fn raft_id(&self) -> u64 {
        *self.raft.node_id()
    }

    /// Whether `dir` has the files of a manager.
    pub fn exists(dir: &Path) -> bool {
        dir.join(LOG_FILE).exists() || dir.join(STATE_FILE).exists()
    }

    /// The raft id that the files in `dir` belong to; `None` when there are none.
    ///
    /// # Errors
    /// The log can not be opened or read.
    pub fn owner(dir: &Path) -> Result<Option<u64>, StartError> {
        Log::owner(&dir.join(LOG_FILE)).map_err(|e| match e {
            OwnerError::Disk(e) => e.into(),
            OwnerError::Store(source) => StartError::Store {
                what: LOG_NAME,
                dir: dir.display().to_string(),
                source,
            },
        })
    }

    /// Makes a cluster of this one manager, reached at `addr` (`host:port`), and waits until it
    /// leads.
    ///
    /// # Errors
    /// [`ConsensusError::Invalid`] when it is part of a cluster already.
    pub async fn bootstrap(&self, addr: &str) -> Result<(), ConsensusError> {
        let members = BTreeMap::from([(*self.raft.node_id(), BasicNode::new(addr))]);
        self.raft.initialize(members).await.map_err(|e| match e {
            RaftError::APIError(InitializeError::NotAllowed(_)) => {
                ConsensusError::Invalid("this manager is part of a cluster already".into())
            }
            RaftError::APIError(e) => ConsensusError::Invalid(e.to_string()),
            RaftError::Fatal(e) => fatal(&e),
        })?;
        let mut leadership = self.leadership.clone();
        let leads = tokio::time::timeout(TIMEOUT, leadership.wait_for(|l| l.is_leader)).await;
        match leads {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ConsensusError::NoQuorum(format!(
                "the first manager did not come to lead within {TIMEOUT:?}"
            ))),
        }
    }

    /// Refuses what is for another raft id. A host that is demoted and promoted again runs under its old one for
    /// a while: what it acknowledged or promised for the new one would be gone with the old log.
    fn check_target(&self, to: u64) -> Result<(), ConsensusError> {
        let own = self.raft_id();
        if to == 0 || to == own {
            return Ok(());
        }
        Err(ConsensusError::Invalid(format!(
            "the message is for the manager with raft id {to}, but this one still has raft id {own}"
        )))
    }

    /// Refuses what would only pile up in the log of a leader that nobody hears.
    fn check_leading(&self) -> Result<(), ConsensusError> {
        let now = leadership::leadership(&self.raft.metrics().borrow_watched(), &self.heard);
        if now.is_leader {
            Ok(())
        } else {
            Err(ConsensusError::NotLeader { leader: now.leader_addr })
        }
    }
}

/// The timings and sizes that meshd runs with.
fn config() -> Config {
    Config {
        cluster_name: "meshd".into(),
        heartbeat_interval: 100,
        election_timeout_min: 400,
        election_timeout_max: 800,
        install_snapshot_timeout: 120_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(5000),
        max_in_snapshot_log_to_keep: 1000,
        // Keeps a message of the largest commands below the 4 MiB that gRPC takes by default.
        max_payload_entries: 128,
        enable_pre_vote: Some(true),
        ..Config::default()
    }
}

fn open(dir: &Path, raft_id: u64) -> Result<(Log, Machine), StartError> {
    let name = dir.display().to_string();
    let path = dir.join(LOG_FILE);
    // The log is made first. Without it the vote is lost, and a second one could be given in a term.
    if !path.exists() && dir.join(STATE_FILE).exists() {
        let why = "it is missing, though the cluster's state is there".into();
        return Err(DiskError::Damaged {
            what: LOG_NAME.into(),
            path,
            why,
        }
        .into());
    }
    let log = disk::open(&path, LOG_NAME, disk::CACHE_BYTES)?;
    let state = disk::open(&dir.join(STATE_FILE), STATE_NAME, disk::CACHE_BYTES)?;
    let failed = |what: &'static str| {
        let dir = name.clone();
        move |source| StartError::Store { what, dir, source }
    };
    let log = Log::load(log, raft_id).map_err(failed(LOG_NAME))?;
    let log = log.map_err(|owner| StartError::NotOurs {
        dir: name.clone(),
        owner,
        raft_id,
    })?;
    let machine = Machine::load(state).map_err(failed(STATE_NAME))?;
    let purged = log.purged().map_err(failed(LOG_NAME))?;
    if purged > machine.last_applied() {
        let index = |l: Option<super::types::LogId>| l.map_or(0, |l| l.index);
        return Err(StartError::Gap {
            dir: name,
            applied: index(machine.last_applied()),
            purged: index(purged),
        });
    }
    Ok((log, machine))
}

fn forward(e: ForwardToLeader<TypeConfig>) -> ConsensusError {
    ConsensusError::NotLeader {
        leader: e.leader_node.map(|n| n.addr),
    }
}

pub(super) fn fatal(e: &Fatal<TypeConfig>) -> ConsensusError {
    ConsensusError::Fatal(fatal_text(e))
}

/// What stopped consensus, in one line. openraft's text has the causes already, and the names of
/// their types.
pub(super) fn fatal_text(e: &Fatal<TypeConfig>) -> String {
    e.to_string().replace("std::io::error::Error: ", "").replace('\n', " ")
}

/// What a failed write means for the caller.
pub(super) fn api_error(e: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ConsensusError {
    match e {
        RaftError::APIError(ClientWriteError::ForwardToLeader(e)) => forward(e),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            ConsensusError::NoQuorum("the leader changed before the command was confirmed".into())
        }
        RaftError::APIError(e) => ConsensusError::Invalid(e.to_string()),
        RaftError::Fatal(e) => fatal(&e),
    }
}

fn decode<T: DeserializeOwned>(what: &str, payload: &[u8]) -> Result<T, ConsensusError> {
    serde_json::from_slice(payload).map_err(|e| ConsensusError::Invalid(format!("the {what} message can not be read: {e}")))
}

fn encode<T: Serialize>(answer: &T) -> Result<Bytes, ConsensusError> {
    let json = serde_json::to_vec(answer).map_err(|e| ConsensusError::Invalid(format!("the answer can not be written: {e}")))?;
    Ok(Bytes::from(json))
}

#[async_trait]
impl Consensus for RaftHost {
    async fn propose(&self, command: Command) -> Result<Applied, ConsensusError> {
        self.check_leading()?;
        let name = command.name();
        match tokio::time::timeout(TIMEOUT, self.raft.client_write(Proposal(command))).await {
            Ok(Ok(done)) => match done.data.0 {
                Some(outcome) => Ok(Applied {
                    revision: done.log_id.index,
                    outcome,
                }),
                None => Err(ConsensusError::Fatal(format!("log entry {} is no command", done.log_id.index))),
            },
            Ok(Err(e)) => Err(api_error(e)),
            Err(_) => Err(ConsensusError::NoQuorum(format!(
                "{name} was not confirmed by a majority of the managers within {TIMEOUT:?}, and may still be carried out"
            ))),
        }
    }

    async fn read_barrier(&self) -> Result<u64, ConsensusError> {
        self.check_leading()?;
        let late = || ConsensusError::NoQuorum(format!("no majority of the managers confirmed the leader within {TIMEOUT:?}"));
        let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(TIMEOUT);
        let confirmed = async {
            let linearizer = self.raft.get_read_linearizer(option).await.map_err(|e| match e {
                RaftError::APIError(LinearizableReadError::ForwardToLeader(e)) => forward(e),
                RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => late(),
                RaftError::Fatal(e) => fatal(&e),
            })?;
            linearizer.await_ready(&self.raft).await.map_err(|e| fatal(&e))
        };
        tokio::time::timeout(TIMEOUT, confirmed).await.unwrap_or_else(|_| Err(late()))?;
        Ok(self.published.view().0)
    }

    fn objects(&self) -> (u64, Arc<Objects>) {
        self.published.view()
    }

    fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.published.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.clone()
    }

    async fn set_members(&self, managers: BTreeMap<u64, String>) -> Result<(), ConsensusError> {
        self.check_leading()?;
        let _turn = self.changing.lock().await;
        members::set(&self.raft, &managers).await
    }

    async fn transfer_leader(&self, to: u64) -> Result<(), ConsensusError> {
        self.check_leading()?;
        let mut leadership = self.leadership.clone();
        let voters = leadership.borrow_and_update().voters.clone();
        let Some(addr) = voters.get(&to) else {
            return Err(ConsensusError::Invalid(format!(
                "no manager with raft id {to} has a vote; those that have: {:?}",
                voters.keys()
            )));
        };
        self.raft.trigger().transfer_leader(to).await.map_err(|e| fatal(&e))?;
        match tokio::time::timeout(TIMEOUT, leadership.wait_for(|l| l.leader == Some(to))).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ConsensusError::NoQuorum(format!("{addr} did not take over within {TIMEOUT:?}"))),
        }
    }

    async fn handle(&self, to: u64, rpc: RaftRpc, payload: Bytes) -> Result<Bytes, ConsensusError> {
        self.check_target(to)?;
        let stopped = |e: RaftError<TypeConfig>| match e {
            RaftError::Fatal(e) => fatal(&e),
            RaftError::APIError(never) => match never {},
        };
        match rpc {
            RaftRpc::Append => {
                let request = decode("append", &payload)?;
                self.heard.now();
                encode(&self.raft.append_entries(request).await.map_err(stopped)?)
            }
            RaftRpc::Vote => match decode("vote", &payload)? {
                Ballot::PreVote(request) => encode(&self.raft.pre_vote(request).await.map_err(stopped)?),
                Ballot::Vote(request) => encode(&self.raft.vote(request).await.map_err(stopped)?),
            },
            RaftRpc::TransferLeader => {
                let request = decode("transfer", &payload)?;
                encode(&self.raft.handle_transfer_leader(request).await.map_err(|e| fatal(&e))?)
            }
        }
    }

    async fn handle_snapshot(&self, to: u64, stream: BoxStream<'static, Result<Bytes, String>>) -> Result<Bytes, ConsensusError> {
        self.check_target(to)?;
        let received = snapshot::decode(stream).await;
        let (vote, snapshot) = received.map_err(|e| ConsensusError::Invalid(super::store::chain(&e)))?;
        encode(&self.raft.install_full_snapshot(vote, snapshot).await.map_err(|e| fatal(&e))?)
    }

    async fn shutdown(&self) {
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!(error = %e, "consensus did not stop in good order");
        }
        // openraft's tasks let go of the files a little later.
        let closed = async {
            for mut file in self.files.clone() {
                while file.changed().await.is_ok() {}
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!("the files of consensus are still open");
        }
    }
}
