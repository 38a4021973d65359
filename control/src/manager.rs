//! A manager: consensus, its services, and the leader's duties, wired together.
//!
//! Called by the agent on nodes whose role is manager. Tasks: the accept loop and its handshakes
//! (`server::listen`), tonic's server, the feed of the watches, the leader's duties, and the look at this manager's own
//! certificate. All end with [`Manager::shutdown`].

mod own;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use ipnet::IpNet;
use jiff::Timestamp;
use mesh_core::{
    Id,
    command::{Command, NewNode},
    objects::Role,
};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    client::Channels,
    consensus::Consensus,
    health::{Health, lead::Duties, probe::Prober},
    identity::{Identity, IdentityStore, NodeFile},
    join::Joining,
    pki::{self, Authority, PkiError},
    roots,
    server::{self, Limits, Roll, Shared, listen},
    tls::{self, TlsError},
    token, watch,
    watch::Ring,
};

/// How long connections may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(1);

/// A manager could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The port can not be listened on.
    #[error("can not listen on {addr}; is it another meshd's, or another program's?")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The identity can not be used.
    #[error("can not use this node's certificates")]
    Tls(#[from] TlsError),
}

/// A cluster to be made.
#[derive(Clone, Debug)]
pub struct Founding {
    /// The first node.
    pub node: Joining,
    /// Pools that subnets are taken from.
    pub address_pools: Vec<IpNet>,
    /// Prefix length of a subnet from the pools.
    pub subnet_prefix: u8,
}

impl Founding {
    /// Makes the cluster's authority, the first manager's identity, and the command that begins the
    /// state. The caller keeps the identity, starts consensus with raft id 1 as the only voter, and
    /// proposes the command.
    ///
    /// # Errors
    /// [`PkiError`] when there is no randomness.
    pub fn found(self) -> Result<(Identity, Command), PkiError> {
        let random_id = || Id::from_bits(rand::random());
        let (cluster, node) = (random_id(), random_id());
        let authority = Authority::create(cluster)?;
        let key_pem = pki::new_key()?;
        let cert_pem = authority.sign(&pki::signing_request(&key_pem)?, node, Role::Manager, 1)?;
        let Joining {
            hostname,
            addr,
            control_port,
            data_path_addr,
            underlay_mtu,
            host_routes,
        } = self.node;
        let file = NodeFile {
            cluster,
            node,
            raft_id: 1,
            role: Role::Manager,
            managers: vec![SocketAddr::new(addr, control_port).to_string()],
            addr,
            control_port,
        };
        let identity = Identity {
            file,
            ca_pem: authority.cert_pem().to_owned(),
            cert_pem,
            key_pem,
        };
        let command = Command::Init {
            id: cluster,
            ingress: random_id(),
            at: Timestamp::now(),
            address_pools: self.address_pools,
            subnet_prefix: self.subnet_prefix,
            ca_cert: authority.cert_pem().to_owned(),
            ca_key: authority.key_pem().to_owned(),
            worker_secret: token::new_secret(),
            manager_secret: token::new_secret(),
            node: NewNode {
                id: node,
                hostname,
                role: Role::Manager,
                addr,
                control_port,
                data_path_addr,
                underlay_mtu,
                host_routes,
            },
        };
        Ok((identity, command))
    }
}

/// What a manager is made of.
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How much it takes on.
    pub limits: Limits,
    /// This node.
    pub identity: Arc<IdentityStore>,
    /// Connections to the other managers, shared with [`crate::transport::GrpcTransport`].
    pub channels: Arc<Channels>,
    /// The replicated state.
    pub consensus: Arc<dyn Consensus>,
    /// How data planes are probed.
    pub prober: Arc<dyn Prober>,
}

/// A running manager.
pub struct Manager {
    addr: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Manager {
    /// Listens and serves.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn start(config: Config) -> BoxFuture<'static, Result<Self, ManagerError>> {
        Box::pin(async move {
            let Config {
                listen,
                limits,
                identity,
                channels,
                consensus,
                prober,
            } = config;
            // Before anybody is let in, or asked.
            own::revive(&identity, consensus.as_ref(), &channels, SystemTime::now());
            let tls = tls::server_config(&identity)?;
            let failed = |source| ManagerError::Listen { addr: listen, source };
            let listener = TcpListener::bind(listen).await.map_err(failed)?;
            let addr = listener.local_addr().map_err(failed)?;
            let file = identity.file();
            let stop = CancellationToken::new();
            let mut tasks = JoinSet::new();

            // Subscribed before the revision is read: between the two nothing is missed.
            let batches = consensus.subscribe();
            let ring = Arc::new(Ring::new(consensus.objects().0));
            let roll = Arc::new(Roll::new(consensus.clone()));
            let feed = watch::feed(ring.clone(), roll.clone(), consensus.clone(), batches);
            tasks.spawn(run_until(stop.clone(), feed));

            let (health, heard) = (Arc::new(Mutex::new(Health::default())), Arc::new(Notify::new()));
            let duties = Duties {
                consensus: consensus.clone(),
                own: file.node,
                raft_id: file.raft_id,
                health: health.clone(),
                heard: heard.clone(),
                prober,
            };
            tasks.spawn(duties.run(stop.clone()));

            let (whose, store, open) = (identity.clone(), consensus.clone(), channels.clone());
            tasks.spawn(run_until(
                stop.clone(),
                async move { own::keep(&whose, store.as_ref(), &open).await },
            ));

            let connections = ReceiverStream::new(listen::accept(listener, tls, identity.clone(), limits, stop.clone()));
            let shared = Arc::new(Shared {
                consensus,
                identity,
                channels,
                ring,
                health,
                heard,
                trust: roots::Known::default(),
                stop: stop.clone(),
            });
            tasks.spawn(async move {
                if let Err(error) = server::serve(shared, roll, connections).await {
                    tracing::error!(%error, "the control plane's server ended");
                }
            });
            tracing::info!(%addr, "control plane listens");
            Ok(Self { addr, stop, tasks })
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends the watches, waits a moment for calls under way, and closes what is left. Consensus is
    /// the caller's to shut down afterwards.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run_until(stop: CancellationToken, task: impl Future<Output = ()>) {
    stop.run_until_cancelled(task).await;
}
