//! Managers and nodes on loopback, each with a port, a directory and real consensus of its own.

use std::{
    net::{IpAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use mesh_api::query::Query;
use mesh_control::{
    client::{Channels, ControlClient},
    consensus::Consensus,
    health::probe::IcmpProber,
    identity::IdentityStore,
    join::{self, Enrolled, Joining},
    manager::{Config, Founding, Manager},
    raft::RaftHost,
    server::Limits,
    transport::GrpcTransport,
};
use mesh_core::{
    Refusal, RefusalKind,
    objects::{Objects, Role},
};
use tempfile::TempDir;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A manager.
pub struct Host {
    pub identity: Arc<IdentityStore>,
    pub raft: Arc<RaftHost>,
    pub client: ControlClient,
    pub manager: Manager,
    _dir: TempDir,
}

/// A node that is no manager: an identity and a client.
pub struct Worker {
    pub identity: Arc<IdentityStore>,
    pub client: ControlClient,
    _dir: TempDir,
}

/// What host `n` says of itself.
pub fn joining(n: u8) -> Joining {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Joining {
        hostname: format!("h{n}"),
        addr: [127, 0, 0, 1].into(),
        control_port: port,
        data_path_addr: IpAddr::from([192, 0, 2, n]),
        underlay_mtu: 1500,
        host_routes: Vec::new(),
    }
}

impl Host {
    /// A new cluster's first manager.
    pub async fn found(n: u8) -> Self {
        let founding = Founding {
            node: joining(n),
            address_pools: vec!["10.200.0.0/14".parse().unwrap()],
            subnet_prefix: 24,
        };
        let (identity, init) = founding.found().unwrap();
        let dir = TempDir::new().unwrap();
        let identity = IdentityStore::create(dir.path(), identity).unwrap();
        let host = Self::start(dir, identity).await;
        host.raft.bootstrap(&host.addr()).await.unwrap();
        host.raft.propose(init).await.unwrap().outcome.unwrap();
        host
    }

    /// Another manager of the cluster that `seed` manages.
    pub async fn join(seed: &Host, n: u8) -> Self {
        let enrolled = join::enroll(&seed.token(Role::Manager).await, &seed.addr(), joining(n))
            .await
            .unwrap();
        let dir = TempDir::new().unwrap();
        let identity = IdentityStore::create(dir.path(), enrolled.identity).unwrap();
        Self::start(dir, identity).await
    }

    async fn start(dir: TempDir, identity: Arc<IdentityStore>) -> Self {
        let file = identity.file();
        let channels = Arc::new(Channels::new(&identity).unwrap());
        let transport = Arc::new(GrpcTransport::new(channels.clone()));
        let raft = RaftHost::start(dir.path(), file.raft_id, transport).await.unwrap();
        let config = Config {
            listen: (file.addr, file.control_port).into(),
            limits: Limits::default(),
            identity: identity.clone(),
            channels: channels.clone(),
            consensus: raft.clone(),
            prober: Arc::new(IcmpProber),
        };
        let manager = Manager::start(config).await.unwrap();
        Self {
            client: ControlClient::new(identity.clone(), channels),
            identity,
            raft,
            manager,
            _dir: dir,
        }
    }

    pub fn addr(&self) -> String {
        let file = self.identity.file();
        format!("{}:{}", file.addr, file.control_port)
    }

    pub async fn token(&self, role: Role) -> String {
        self.client.query(Query::Token(role)).await.unwrap().token.unwrap()
    }

    pub async fn enroll(&self, n: u8) -> Result<Enrolled, Refusal> {
        join::enroll(&self.token(Role::Worker).await, &self.addr(), joining(n)).await
    }

    pub async fn worker(&self, n: u8) -> Worker {
        Worker::of(self.enroll(n).await.unwrap())
    }

    /// Waits until the objects are as they should be.
    pub async fn until(&self, what: &str, fits: impl Fn(&Objects) -> bool) {
        let mut batches = self.raft.subscribe();
        let wait = async {
            while !fits(&self.raft.objects().1) {
                let _ = batches.recv().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}: {:?}", self.raft.objects().1.nodes));
    }

    pub async fn stop(self) {
        self.manager.shutdown().await;
        self.raft.shutdown().await;
    }
}

impl Worker {
    pub fn of(enrolled: Enrolled) -> Self {
        let dir = TempDir::new().unwrap();
        let identity = IdentityStore::create(dir.path(), enrolled.identity).unwrap();
        Self {
            client: ControlClient::connect(identity.clone()).unwrap(),
            identity,
            _dir: dir,
        }
    }

    /// One heartbeat. It has a second, which a first connection may not be made in: repeated as meshd does.
    pub async fn beat(&self, applied: u64) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while let Err(e) = self.client.beat(applied).await {
            let may_be_repeated = e.kind == RefusalKind::Unavailable && tokio::time::Instant::now() < end;
            assert!(may_be_repeated, "{e}");
        }
    }

    /// Heartbeats as meshd sends them, until `seen` is over.
    pub async fn beats_until(&self, applied: u64, seen: impl Future<Output = ()>) {
        let beats = async {
            loop {
                self.beat(applied).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            () = seen => {}
            () = beats => {}
        }
    }
}
