//! The host's place in a cluster: made, joined, taken up again after a restart, left.
//!
//! Holds what exists only inside a cluster: the identity, the client of the managers, on managers
//! the control plane itself, and the session's loops. Called by the local API and by [`crate::run`].
//! [`role`] follows what the cluster makes of this host later: a manager, or a worker again.

mod address;
pub mod role;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use mesh_api::{
    query::Query,
    rest::{InitReply, InitRequest, JoinReply, JoinRequest},
};
use mesh_control::{
    authz,
    client::{Channels, ControlClient},
    consensus::{Consensus, Leadership},
    health::probe::IcmpProber,
    identity::{IdentityStore, NodeFile},
    join,
    manager::{self, Founding, Manager},
    raft::RaftHost,
    server::Limits,
    tls::Roster,
    transport::GrpcTransport,
};
use mesh_core::{Id, Refusal, command::Command, objects::Role};
use tokio::{
    sync::{Mutex, RwLock, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attachments::Attachments,
    config::{self, Config},
    cri::Pods,
    events::EventLog,
    execute::chain,
    founding,
    ledger::Ledger,
    reconcile::{Applied, Member, Request},
    session::Session,
};

/// How long a host that has been taken in may need for its first full list and pass.
const SETTLE_TIME: Duration = Duration::from_secs(15);

/// How long consensus may take to tell what is in its log.
const LOG_TIME: Duration = Duration::from_secs(1);

/// What a host has while it is in a cluster.
struct Joined {
    identity: Arc<IdentityStore>,
    channels: Arc<Channels>,
    client: Arc<ControlClient>,
    manager: Option<Hosted>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A manager's control plane.
struct Hosted {
    manager: Manager,
    consensus: Arc<RaftHost>,
}

impl Hosted {
    async fn end(self) {
        self.manager.shutdown().await;
        self.consensus.shutdown().await;
    }
}

/// The host's place in a cluster.
pub struct Membership {
    config: Config,
    ledger: Arc<Ledger>,
    events: Arc<EventLog>,
    applied: watch::Receiver<Applied>,
    attachments: Arc<Attachments>,
    pods: Arc<Pods>,
    requests: mpsc::Sender<Request>,
    member: watch::Sender<Option<Member>>,
    fatal: mpsc::Sender<String>,
    joined: RwLock<Option<Joined>>,
    /// Held while the place changes: one init, join or leave at a time.
    changing: Mutex<()>,
}

/// What a host's place in a cluster works with.
pub struct Parts {
    /// This host's copy of the objects.
    pub ledger: Arc<Ledger>,
    /// News.
    pub events: Arc<EventLog>,
    /// Outcome of the reconcile loop.
    pub applied: watch::Receiver<Applied>,
    /// Attachments that are waited for or given up.
    pub attachments: Arc<Attachments>,
    /// Pods that came.
    pub pods: Arc<Pods>,
    /// To the reconcile loop.
    pub requests: mpsc::Sender<Request>,
    /// Tells the reconcile loop who this host is.
    pub member: watch::Sender<Option<Member>>,
    /// Told when something happened after which meshd can not go on.
    pub fatal: mpsc::Sender<String>,
}

impl Membership {
    /// A host that is in no cluster, until [`Self::resume`] finds that it is.
    pub fn new(config: &Config, parts: Parts) -> Self {
        let Parts {
            ledger,
            events,
            applied,
            attachments,
            pods,
            requests,
            member,
            fatal,
        } = parts;
        Self {
            config: config.clone(),
            ledger,
            events,
            applied,
            attachments,
            pods,
            requests,
            member,
            fatal,
            joined: RwLock::new(None),
            changing: Mutex::new(()),
        }
    }

    /// The client of the managers, inside a cluster.
    pub async fn client(&self) -> Option<Arc<ControlClient>> {
        self.joined.read().await.as_ref().map(|j| j.client.clone())
    }

    /// Who leads, and the last entry that is applied, where this host is a manager.
    pub async fn leadership(&self) -> Option<(Leadership, u64)> {
        let joined = self.joined.read().await;
        let consensus = &joined.as_ref()?.manager.as_ref()?.consensus;
        let leadership = consensus.leadership().borrow().clone();
        Some((leadership, consensus.objects().0))
    }

    /// This node, inside a cluster.
    pub async fn node(&self) -> Option<Id> {
        self.identity().await.map(|i| i.node)
    }

    /// Who this host is, inside a cluster.
    pub async fn identity(&self) -> Option<NodeFile> {
        self.joined.read().await.as_ref().map(|j| j.identity.file())
    }

    fn raft_dir(&self) -> PathBuf {
        self.config.data_dir.join("raft")
    }

    /// Goes on where meshd stopped.
    pub async fn resume(&self) -> Result<(), Refusal> {
        if founding::is_unfinished(&self.config.data_dir) {
            tracing::warn!("meshd ended while it made a cluster: what it had begun is undone");
            return match self.remove_files().as_slice() {
                [] => Ok(()),
                errors => Err(Refusal::other(format!(
                    "a cluster was half made when meshd ended, and can not be undone: {}",
                    errors.join("; ")
                ))),
            };
        }
        let Some(identity) = IdentityStore::load(&self.config.data_dir).map_err(other)? else {
            return Ok(());
        };
        let file = identity.file();
        self.ledger.resume(file.cluster, file.node);
        // The data plane needs no manager: it goes on from the ledger at once.
        self.member.send_replace(Some(Member {
            cluster: file.cluster,
            node: file.node,
        }));
        let channels = self.channels(&identity)?;
        let manager = self.manager_for(&identity, &channels).await?;
        if let Some(hosted) = &manager {
            know_managers(&identity, &hosted.consensus).await;
        }
        self.enter(identity, channels, manager).await;
        Ok(())
    }

    /// The connections to the managers, which are those that the ledger has for managers. Its objects say for certain
    /// that one was demoted; without any, or with those of another cluster, the certificate alone decides.
    fn channels(&self, identity: &Arc<IdentityStore>) -> Result<Arc<Channels>, Refusal> {
        let ledger = self.ledger.clone();
        let roster = Roster::new(move |name| {
            let view = ledger.view();
            match view.head.cluster {
                Some(cluster) if cluster == name.cluster => authz::may_manage(name, view.head.revision, &view.objects),
                _ => Ok(()),
            }
        });
        Channels::knowing(identity, Some(roster)).map(Arc::new).map_err(other)
    }

    /// The control plane, on nodes that host it.
    async fn manager_for(&self, identity: &Arc<IdentityStore>, channels: &Arc<Channels>) -> Result<Option<Hosted>, Refusal> {
        // What a demotion that was cut off has left, [`role`] removes: only the cluster knows whether it counts.
        if !role::hosts(&identity.file()) {
            return Ok(None);
        }
        let consensus = self.raft(identity, channels).await?;
        self.manage(identity, channels, consensus).await.map(Some)
    }

    async fn raft(&self, identity: &Arc<IdentityStore>, channels: &Arc<Channels>) -> Result<Arc<RaftHost>, Refusal> {
        let transport = Arc::new(GrpcTransport::new(channels.clone()));
        let host = RaftHost::start(&self.raft_dir(), identity.file().raft_id, transport)
            .await
            .map_err(other)?;
        let (mut fatal, to) = (host.fatal(), self.fatal.clone());
        tokio::spawn(async move {
            if let Ok(why) = fatal.wait_for(Option::is_some).await.map(|w| w.clone()) {
                drop(to.send(why.unwrap_or_default()).await);
            }
        });
        Ok(host)
    }

    async fn manage(&self, identity: &Arc<IdentityStore>, channels: &Arc<Channels>, consensus: Arc<RaftHost>) -> Result<Hosted, Refusal> {
        let config = manager::Config {
            listen: SocketAddr::new(identity.file().addr, self.config.control_port),
            limits: Limits::default(),
            identity: identity.clone(),
            channels: channels.clone(),
            consensus: consensus.clone(),
            prober: Arc::new(IcmpProber),
        };
        match Manager::start(config).await {
            Ok(manager) => Ok(Hosted { manager, consensus }),
            Err(e) => {
                consensus.shutdown().await;
                Err(other(e))
            }
        }
    }

    /// Starts what a host does inside a cluster.
    async fn enter(&self, identity: Arc<IdentityStore>, channels: Arc<Channels>, manager: Option<Hosted>) {
        let file = identity.file();
        let client = Arc::new(ControlClient::new(identity.clone(), channels.clone()));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let session = Session {
            node: file.node,
            client: client.clone(),
            ledger: self.ledger.clone(),
            events: self.events.clone(),
            applied: self.applied.clone(),
            attachments: self.attachments.clone(),
            pods: self.pods.clone(),
        };
        session.start(&tasks, &stop);
        tasks.close();
        self.member.send_replace(Some(Member {
            cluster: file.cluster,
            node: file.node,
        }));
        *self.joined.write().await = Some(Joined {
            identity,
            channels,
            client,
            manager,
            stop,
            tasks,
        });
    }

    /// Makes a cluster with this host as its first manager.
    pub async fn init(&self, request: InitRequest) -> Result<InitReply, Refusal> {
        let _one = self.changing.lock().await;
        self.check_free().await?;
        let node = self.describe(request.advertise_addr, request.data_path_addr, None).await?;
        let (hostname, address) = (node.hostname.clone(), SocketAddr::new(node.addr, node.control_port).to_string());
        let address_pools = if request.default_addr_pools.is_empty() {
            config::default_pools()
        } else {
            request.default_addr_pools
        };
        let subnet_prefix = request.subnet_size.unwrap_or(config::DEFAULT_SUBNET_PREFIX);
        let (identity, command) = Founding {
            node,
            address_pools,
            subnet_prefix,
        }
        .found()
        .map_err(other)?;
        // Checked before anything is on disk: a refused init leaves the host as it was.
        mesh_core::state::State::default().apply(1, &command).0?;
        let file = identity.file.clone();
        self.clear().await?;
        let found = async {
            founding::begin(&self.config.data_dir)
                .map_err(|e| Refusal::other(format!("cannot write {}: {e}", self.config.data_dir.join(founding::FILE).display())))?;
            let identity = IdentityStore::create(&self.config.data_dir, identity).map_err(other)?;
            let channels = self.channels(&identity)?;
            let consensus = self.raft(&identity, &channels).await?;
            let hosted = self.manage(&identity, &channels, consensus.clone()).await?;
            let begin = async {
                consensus.bootstrap(&address).await?;
                consensus.propose(command).await?.outcome
            };
            let begun = match begin.await {
                Ok(_) => founding::end(&self.config.data_dir).map_err(other),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = begun {
                hosted.end().await;
                return Err(refusal);
            }
            Ok((identity, channels, hosted))
        };
        let (identity, channels, hosted) = self.or_forget(found.await)?;
        self.ledger.reset(Some((file.cluster, file.node)));
        self.enter(identity, channels, Some(hosted)).await;
        self.settled().await?;
        let worker_token = self
            .client()
            .await
            .ok_or_else(|| Refusal::unavailable("meshd is stopping"))?
            .query(Query::Token(Role::Worker))
            .await?
            .token;
        Ok(InitReply {
            cluster: file.cluster,
            node: file.node,
            hostname,
            address,
            worker_token: worker_token.unwrap_or_default(),
        })
    }

    /// Joins a cluster as what the token says.
    pub async fn join(&self, request: JoinRequest) -> Result<JoinReply, Refusal> {
        let _one = self.changing.lock().await;
        self.check_free().await?;
        let target = join::manager_addr(&request.manager)?;
        let joining = self.describe(request.advertise_addr, request.data_path_addr, Some(&target)).await?;
        self.clear().await?;
        let enrolled = join::enroll(&request.token, &target, joining).await?;
        let file = enrolled.identity.file.clone();
        let identity = match IdentityStore::create(&self.config.data_dir, enrolled.identity) {
            Ok(identity) => identity,
            // Without the identity this host can not even take itself off the list again.
            Err(e) => {
                return self.or_forget(Err(Refusal::other(format!(
                    "{}; {} is on the list of nodes now: remove it there (meshctl node rm {}) before it joins again",
                    chain(&e),
                    file.node,
                    file.node
                ))));
            }
        };
        let enter = async {
            let channels = self.channels(&identity)?;
            let manager = self.manager_for(&identity, &channels).await?;
            Ok((channels, manager))
        };
        let (channels, manager) = match enter.await {
            Ok(entered) => entered,
            Err(refusal) => {
                let refusal = self.withdraw(&identity, refusal).await;
                return self.or_forget(Err(refusal));
            }
        };
        self.ledger.reset(Some((file.cluster, file.node)));
        self.enter(identity, channels, manager).await;
        self.settled().await?;
        Ok(JoinReply {
            cluster: file.cluster,
            node: file.node,
            role: file.role,
        })
    }

    /// Takes a node off the list again whose host could not enter the cluster: why, and what is left
    /// of it.
    async fn withdraw(&self, identity: &Arc<IdentityStore>, refusal: Refusal) -> Refusal {
        let node = identity.file().node;
        let remove = Command::NodeRemove {
            node: node.to_string(),
            force: true,
        };
        let told = match ControlClient::connect(identity.clone()) {
            Ok(client) => client.propose(remove).await.and_then(|(_, outcome)| outcome.map(drop)),
            Err(e) => Err(other(e)),
        };
        match told {
            Ok(()) => refusal,
            Err(e) => Refusal::new(
                refusal.kind,
                format!(
                    "{}; node {node} is still on the list ({}): remove it there (meshctl node rm {node})",
                    refusal.message, e.message
                ),
            ),
        }
    }

    /// Makes room: what an earlier cluster left in this host's kernel would be in the way.
    async fn clear(&self) -> Result<(), Refusal> {
        let (to, answer) = oneshot::channel();
        let gone = || Refusal::unavailable("meshd is stopping");
        self.requests.send(Request::Clear(to)).await.map_err(|_| gone())?;
        match answer.await.map_err(|_| gone())?.as_slice() {
            [] => Ok(()),
            errors => Err(Refusal::other(format!(
                "an earlier cluster left something on this host that can not be removed: {}",
                errors.join("; ")
            ))),
        }
    }

    /// Takes back what a failed init or join left on disk.
    fn or_forget<T>(&self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if result.is_err() {
            for error in self.remove_files() {
                tracing::error!(%error, "a failed attempt left something behind");
            }
        }
        result
    }

    /// Leaves the cluster and removes everything from this host. A manager that others need, and a
    /// host with containers attached, leave only by force; so does one that reaches no manager.
    pub async fn leave(&self, force: bool) -> Result<(), Refusal> {
        let _one = self.changing.lock().await;
        let Some(file) = self.identity().await else {
            return Err(Refusal::conflict("this host belongs to no cluster"));
        };
        let view = self.ledger.view();
        let here: Vec<_> = view.objects.endpoints.on_node(file.node).map(|e| e.name.clone()).take(5).collect();
        if !here.is_empty() && !force {
            return Err(Refusal::conflict(format!(
                "containers are attached here ({}): disconnect them first, or use --force",
                here.join(", ")
            )));
        }
        // The node stays where another host counts as it: this one was copied from that.
        if let Some(client) = self.client().await
            && client.twin().is_none()
        {
            let told = client
                .propose(Command::NodeRemove {
                    node: file.node.to_string(),
                    force: true,
                })
                .await;
            if let Err(refusal) = told.and_then(|(_, outcome)| outcome)
                && !force
            {
                return Err(Refusal::new(
                    refusal.kind,
                    format!("{} (--force leaves all the same)", refusal.message),
                ));
            }
        }
        if let Some(joined) = self.joined.write().await.take() {
            joined.end().await;
        }
        self.member.send_replace(None);
        let (to, answer) = oneshot::channel();
        let gone = || Refusal::unavailable("meshd is stopping");
        self.requests.send(Request::Teardown(to)).await.map_err(|_| gone())?;
        let mut errors = answer.await.map_err(|_| gone())?;
        self.ledger.reset(None);
        errors.extend(self.remove_files());
        match errors.as_slice() {
            [] => Ok(()),
            errors => Err(Refusal::other(format!(
                "this host has left, but not all could be removed: {}",
                errors.join("; ")
            ))),
        }
    }

    /// Ends what runs inside the cluster, for a meshd that stops; the place itself stays.
    pub async fn stop(&self) {
        if let Some(joined) = self.joined.write().await.take() {
            joined.end().await;
        }
    }

    async fn check_free(&self) -> Result<(), Refusal> {
        match self.identity().await {
            Some(file) => Err(Refusal::conflict(format!(
                "this host is node {} of cluster {} already: leave it first (meshctl leave)",
                file.node, file.cluster
            ))),
            None if RaftHost::exists(&self.raft_dir()) => Err(Refusal::conflict(format!(
                "{} holds a manager's copy of a cluster's state without the identity that goes with it: restore {}, or move it away",
                self.raft_dir().display(),
                self.config.data_dir.join("identity").display()
            ))),
            None => Ok(()),
        }
    }

    /// Waits until the first full list is here and the kernel has been brought to it.
    async fn settled(&self) -> Result<(), Refusal> {
        let mut applied = self.applied.clone();
        let result = match timeout(SETTLE_TIME, applied.wait_for(|a| a.revision > 0 && a.errors.is_empty())).await {
            Ok(Ok(_)) => return Ok(()),
            _ => self.applied.borrow().errors.first().cloned(),
        };
        let why = result.unwrap_or_else(|| "no list of objects has come from a manager".to_owned());
        Err(Refusal::other(format!(
            "this host is in the cluster, but its network is not up yet ({why}); it is tried again: see meshctl status"
        )))
    }

    /// Removes a manager's copy of the cluster's state.
    fn remove_raft(&self) -> Result<(), String> {
        match std::fs::remove_dir_all(self.raft_dir()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("cannot remove {}: {e}", self.raft_dir().display())),
            _ => Ok(()),
        }
    }

    fn remove_files(&self) -> Vec<String> {
        let mut errors: Vec<String> = IdentityStore::remove(&self.config.data_dir)
            .err()
            .map(|e| chain(&e))
            .into_iter()
            .collect();
        errors.extend(self.remove_raft().err());
        // Last: as long as something is left, it is known why.
        if errors.is_empty()
            && let Err(e) = founding::end(&self.config.data_dir)
        {
            errors.push(format!(
                "cannot remove {}: {e}",
                self.config.data_dir.join(founding::FILE).display()
            ));
        }
        errors
    }
}

impl Joined {
    async fn end(self) {
        self.stop.cancel();
        self.tasks.wait().await;
        if let Some(hosted) = self.manager {
            hosted.end().await;
        }
    }
}

/// Adds the managers in a restarted manager's log to those that its last heartbeat named: it may have ended
/// before one named the newest, and if it was demoted meanwhile, it hears of that only from them.
async fn know_managers(identity: &IdentityStore, consensus: &RaftHost) {
    let mut leadership = consensus.leadership();
    // Consensus tells what it has read a moment after it began; one that was never taken in has nothing.
    let Ok(Ok(read)) = timeout(LOG_TIME, leadership.wait_for(|l| !l.voters.is_empty()))
        .await
        .map(|r| r.map(|l| l.clone()))
    else {
        return;
    };
    let all = identity.file().managers.into_iter().chain(read.voters.into_values()).collect();
    if let Err(error) = identity.set_managers(all) {
        tracing::warn!(%error, "can not keep the list of managers");
    }
}

fn other(e: impl std::error::Error) -> Refusal {
    Refusal::other(chain(&e))
}
