//! Connections to managers: one per manager and purpose, made when first used and again when lost.

use std::{
    collections::HashMap,
    error::Error as _,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::sync::watch;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    identity::IdentityStore,
    tls::{self, ConnectError, Roster, TlsError, connect, io_reason, tls_reason},
};

/// Time for TCP and TLS.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a connection is for. Each has its own, so that a snapshot does not hold up a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Commands, reads, beats.
    Calls,
    /// The stream of changes.
    Watch,
    /// Raft's small messages.
    Raft,
    /// Raft's snapshots.
    Snapshot,
}

/// The connections of a node.
pub struct Channels {
    tls: Arc<ClientConfig>,
    /// For what raft says: a manager that is being demoted takes part in that until its vote is taken away.
    raft: Arc<ClientConfig>,
    name: ServerName<'static>,
    open: Mutex<HashMap<(Purpose, String), Channel>>,
    renewed: watch::Sender<()>,
}

impl Channels {
    /// For a node with an identity.
    ///
    /// # Errors
    /// [`TlsError`] when the identity can not be used.
    pub fn new(identity: &Arc<IdentityStore>) -> Result<Self, TlsError> {
        Self::knowing(identity, None)
    }

    /// As [`Self::new`]; who is no manager by the `roster` is not spoken to, but for raft.
    ///
    /// # Errors
    /// [`TlsError`] when the identity can not be used.
    pub fn knowing(identity: &Arc<IdentityStore>, roster: Option<Roster>) -> Result<Self, TlsError> {
        Ok(Self {
            tls: tls::client_config(identity, roster)?,
            raft: tls::client_config(identity, None)?,
            name: tls::server_name(identity.file().cluster),
            open: Mutex::default(),
            renewed: watch::Sender::new(()),
        })
    }

    /// The channel to a manager (`host:port`). It connects when it is used; an address that is none
    /// fails then.
    pub fn get(&self, purpose: Purpose, addr: &str) -> Channel {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let tls = match purpose {
            Purpose::Calls | Purpose::Watch => &self.tls,
            Purpose::Raft | Purpose::Snapshot => &self.raft,
        };
        open.entry((purpose, addr.to_owned()))
            .or_insert_with(|| lazy(addr, tls.clone(), self.name.clone()))
            .clone()
    }

    /// Makes every connection anew when it is used next; calls under way end on those that they began on. Streams that
    /// never end by themselves look at [`Self::renewals`].
    pub fn renew(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.renewed.send_replace(());
    }

    /// Tells of every [`Self::renew`].
    pub fn renewals(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }
}

fn lazy(addr: &str, tls: Arc<ClientConfig>, name: ServerName<'static>) -> Channel {
    let addr = addr.to_owned();
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (addr, tls, name) = (addr.clone(), tls.clone(), name.clone());
        async move { connect(&addr, tls, name, CONNECT_TIMEOUT).await.map(TokioIo::new) }
    }))
}

/// Settings of every connection. The address is the connector's; the URI only names an authority.
pub(crate) fn endpoint() -> Endpoint {
    Endpoint::from_static("http://manager.mesh")
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
}

/// What a failed call says of its reason, in a few words.
pub fn describe(status: &Status) -> String {
    let mut source = status.source();
    let mut last = None;
    while let Some(e) = source {
        if let Some(e) = e.downcast_ref::<ConnectError>() {
            return e.to_string();
        }
        if let Some(e) = e.downcast_ref::<io::Error>() {
            return match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(tls) => tls_reason(tls),
                None => io_reason(e),
            };
        }
        last = Some(e.to_string());
        source = e.source();
    }
    match last {
        Some(e) if status.message().is_empty() => e,
        Some(e) if !status.message().contains(&e) => format!("{}: {e}", status.message()),
        _ => status.message().to_owned(),
    }
}

/// Whether a call that failed so can not have reached the manager.
pub fn never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(e) = source {
        if e.is::<ConnectError>() {
            return true;
        }
        source = e.source();
    }
    false
}
