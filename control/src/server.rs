//! The services of a manager on 2377/tcp: Enrollment, Control, Agents and Raft.
//!
//! Started by [`crate::manager`]. A call passes [`listen`] (TLS, limits), [`gate`] (who may call
//! what), and then one of the handlers here, each a thin layer over consensus.

mod agents;
mod certify;
mod control;
mod enroll;
pub mod gate;
pub mod listen;
mod raft;
mod status;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_api::{
    proto::{agents_server::AgentsServer, control_server::ControlServer, enrollment_server::EnrollmentServer, raft_server::RaftServer},
    query::Manager,
};
use mesh_core::{
    Refusal,
    objects::{Node, Objects, Role},
};
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

pub use self::{
    gate::{Gate, Roll},
    listen::{Limits, Peer},
    status::{refusal_of, status_of},
};
use crate::{
    authz::Member,
    client::Channels,
    consensus::{Consensus, ConsensusError, Leadership},
    health::Health,
    identity::IdentityStore,
    pki::NodeName,
    roots,
    watch::Ring,
};

/// Largest request of a node, in bytes: commands are small, host routes the longest part.
const MAX_REQUEST: usize = 1 << 20;
/// Largest message between managers, in bytes: a batch of log entries.
const MAX_RAFT: usize = 128 << 20;
/// Requests at a time on one connection.
const MAX_STREAMS: u32 = 256;

/// What the handlers work with.
pub struct Shared {
    /// The replicated state.
    pub consensus: Arc<dyn Consensus>,
    /// This node.
    pub identity: Arc<IdentityStore>,
    /// Connections to the other managers.
    pub channels: Arc<Channels>,
    /// Recent changes.
    pub ring: Arc<Ring>,
    /// Heartbeats.
    pub health: Arc<Mutex<Health>>,
    /// Woken when a node is heard again.
    pub heard: Arc<Notify>,
    /// What the cluster trusts.
    pub trust: roots::Known,
    /// Ends the watches.
    pub stop: CancellationToken,
}

/// `host:port` of a node's control plane.
pub fn control_addr(node: &Node) -> String {
    SocketAddr::new(node.addr, node.control_port).to_string()
}

/// `host:port` of every manager.
pub fn manager_addrs(all: &Objects) -> Vec<String> {
    all.nodes
        .values()
        .filter(|n| n.role == Role::Manager)
        .map(|n| control_addr(n))
        .collect()
}

/// The managers as users see them.
pub fn managers(all: &Objects, leadership: &Leadership) -> Vec<Manager> {
    let manager = |n: &Arc<Node>| Manager {
        node: n.id,
        hostname: n.hostname.clone(),
        addr: control_addr(n),
        leader: leadership.leader == Some(n.raft_id),
        voter: leadership.voters.contains_key(&n.raft_id),
    };
    all.nodes.values().filter(|n| n.role == Role::Manager).map(manager).collect()
}

impl Shared {
    /// Who leads, when it is another manager that is known.
    fn leader_elsewhere(&self) -> Option<String> {
        let leadership = self.consensus.leadership();
        let now = leadership.borrow();
        if now.is_leader { None } else { now.leader_addr.clone() }
    }

    /// Who is to be asked instead; `None` when this manager leads, and knows all that was committed.
    ///
    /// # Errors
    /// Unavailable while nobody leads.
    async fn elsewhere(&self) -> Result<Option<String>, Status> {
        if let Some(leader) = self.leader_elsewhere() {
            return Ok(Some(leader));
        }
        match self.consensus.read_barrier().await {
            Ok(_) => Ok(None),
            Err(e) => hint(e).map(Some),
        }
    }

    /// What nodes have said of themselves.
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller, as the gate found it.
fn member<T>(request: &Request<T>) -> Result<Member, Status> {
    request.extensions().get::<Member>().copied().ok_or_else(unknown_caller)
}

/// What the caller's certificate says.
fn name<T>(request: &Request<T>) -> Result<NodeName, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.and_then(|p| p.name).ok_or_else(unknown_caller)
}

fn unknown_caller() -> Status {
    status_of(&Refusal::forbidden("the caller is not known"))
}

/// `Ok(leader)` when another manager is to be asked, else the refusal.
fn hint(e: ConsensusError) -> Result<String, Status> {
    match e {
        ConsensusError::NotLeader { leader: Some(leader) } => Ok(leader),
        e => Err(status_of(&e.into())),
    }
}

/// JSON of something that always has one.
fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(value).map_err(|e| Status::internal(format!("can not encode the answer: {e}")))
}

/// Reads the JSON inside a request.
fn read_json<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(bytes).map_err(|e| status_of(&Refusal::malformed(format!("the {what} can not be read: {e}"))))
}

/// Serves connections until `shared.stop`, and then until they have ended.
///
/// # Errors
/// tonic's, when a connection could not be set up at all.
pub async fn serve(
    shared: Arc<Shared>,
    roll: Arc<Roll>,
    connections: ReceiverStream<std::io::Result<listen::PeerStream>>,
) -> Result<(), tonic::transport::Error> {
    let stop = shared.stop.clone();
    tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .concurrency_limit_per_connection(MAX_STREAMS as usize)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(64))
        .layer(Gate(roll))
        .add_service(EnrollmentServer::new(enroll::Service(shared.clone())).max_decoding_message_size(MAX_REQUEST))
        .add_service(ControlServer::new(control::Service(shared.clone())).max_decoding_message_size(MAX_REQUEST))
        .add_service(AgentsServer::new(agents::Service(shared.clone())).max_decoding_message_size(MAX_REQUEST))
        .add_service(RaftServer::new(raft::Service(shared)).max_decoding_message_size(MAX_RAFT))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await
}
