//! The service DNS as the agent holds it: one table, and a listener for each gateway address.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex as Lock, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use mesh_core::names::NameTable;
use tokio::sync::Mutex;

use crate::{
    forward::Forwarder,
    handler::Shared,
    limit::Limiter,
    listen::{ListenError, Open},
    resolv::ResolvConf,
    stats::{Counters, Stats},
    view::View,
};

/// The longest that an asker may remember an address, in seconds: what DESIGN allows.
pub const LONGEST_TTL: u32 = 5;
/// TCP connections at the same time, in all and from one asker.
const CONNECTIONS: usize = 512;
const CONNECTIONS_PER_ASKER: usize = 32;

/// How the DNS is to work.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the host's resolvers are named; read again when it changes.
    pub resolv_conf: PathBuf,
    /// How long an asker may remember an address, in seconds; more than [`LONGEST_TTL`] counts as that.
    pub ttl: u32,
    /// The port to listen at.
    pub port: u16,
    /// The port of the host's resolvers.
    pub upstream_port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            ttl: LONGEST_TTL,
            port: 53,
            upstream_port: 53,
        }
    }
}

/// The service DNS of this host. Dropping it closes its listeners.
pub struct Dns {
    shared: Arc<Shared>,
    port: u16,
    connections: Arc<Limiter>,
    serial: AtomicU32,
    /// Held for a whole swap: two at once would open the same address twice.
    swapping: Mutex<()>,
    open: Lock<BTreeMap<IpAddr, Open>>,
}

/// Gateway addresses that could not be listened at. The new table is in use and the other addresses
/// work.
#[derive(Debug)]
pub struct SwapError {
    /// One for each address.
    pub failed: Vec<ListenError>,
}

impl fmt::Display for SwapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service DNS does not answer at every gateway address")?;
        // One error has one source; these are several, and each is to be named with its own.
        for (i, error) in self.failed.iter().enumerate() {
            write!(f, "{} {error} ({})", if i == 0 { ":" } else { ";" }, error.source)?;
        }
        Ok(())
    }
}

impl std::error::Error for SwapError {}

impl Dns {
    /// A DNS that listens nowhere yet. Sockets are made by [`Dns::swap`], in the network namespace
    /// that its caller's thread is in, and for forwarding in that of tokio's threads.
    pub fn new(config: Config) -> Self {
        let counters = Arc::<Counters>::default();
        let shared = Shared {
            view: ArcSwap::from_pointee(View::new(Arc::default(), 0)),
            forwarder: Forwarder::new(ResolvConf::new(config.resolv_conf, config.upstream_port)),
            counters,
            ttl: config.ttl.min(LONGEST_TTL),
        };
        Self {
            shared: Arc::new(shared),
            port: config.port,
            connections: Limiter::new(CONNECTIONS, CONNECTIONS_PER_ASKER),
            serial: AtomicU32::new(0),
            swapping: Mutex::default(),
            open: Lock::default(),
        }
    }

    /// Answers from `table` from now on. Gateway addresses that are new in it are listened at, those
    /// gone are closed; the others are not touched, and lose no query.
    ///
    /// Must be called within tokio. Swapping the same table in again tries those that failed again.
    ///
    /// # Errors
    ///
    /// [`SwapError`] with every address that cannot be listened at; all else has been done.
    pub async fn swap(&self, table: Arc<NameTable>) -> Result<(), SwapError> {
        let _only = self.swapping.lock().await;
        let serial = self.serial.fetch_add(1, Relaxed).wrapping_add(1);
        // The table first: a listener must not answer from one that does not know its network.
        self.shared.view.store(Arc::new(View::new(table.clone(), serial)));
        let useless: Vec<Open> = {
            let mut open = self.open();
            let stays = |address: &IpAddr, open: &Open| table.listeners.get(address).is_some_and(|l| open.serves(&l.dev));
            open.extract_if(.., |address, open| !stays(address, open))
                .map(|(_, open)| open)
                .collect()
        };
        for open in useless {
            open.close().await;
        }
        let mut failed = Vec::new();
        for (address, listener) in &table.listeners {
            if self.open().contains_key(address) {
                continue;
            }
            match Open::new(SocketAddr::new(*address, self.port), &listener.dev, &self.shared, &self.connections) {
                Ok(open) => _ = self.open().insert(*address, open),
                Err(error) => failed.push(error),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(SwapError { failed }) }
    }

    /// The table that is answered from, without the listeners that are not open.
    pub fn current(&self) -> Arc<NameTable> {
        let view = self.shared.view.load();
        let open = self.open();
        let table = view.table();
        view.without_unbound(|address| {
            table
                .listeners
                .get(&address)
                .is_some_and(|l| open.get(&address).is_some_and(|open| open.serves(&l.dev)))
        })
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// Closes all listeners, drops the queries under way and forgets the table.
    pub async fn shutdown(&self) {
        let _only = self.swapping.lock().await;
        self.shared
            .view
            .store(Arc::new(View::new(Arc::default(), self.serial.load(Relaxed))));
        let all = std::mem::take(&mut *self.open());
        for open in all.into_values() {
            open.close().await;
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Open>> {
        // Every change is one call: a panic elsewhere leaves the map whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
