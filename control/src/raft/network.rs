//! openraft's outgoing messages, as JSON on a [`RaftTransport`].

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use mesh_core::objects::Objects;
use openraft::{
    BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    snapshot,
    types::{Snapshot, TypeConfig, Vote},
};
use crate::consensus::{RaftRpc, RaftTransport, TransportError};

/// Time that a manager has to write entries to its disk and say so. openraft's own limit is one
/// heartbeat, which a slow disk exceeds.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);

/// What travels as [`RaftRpc::Vote`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ballot {
    /// Whether a vote would be given (PreVote, Raft thesis 9.6).
    PreVote(VoteRequest<TypeConfig>),
    /// A request for a vote.
    Vote(VoteRequest<TypeConfig>),
}

/// Makes a [`Peer`] for every manager.
pub struct Network(pub Arc<dyn RaftTransport>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer {
            id: target,
            addr: node.addr.clone(),
            transport: self.0.clone(),
        }
    }
}

/// Another manager.
pub struct Peer {
    id: u64,
    addr: String,
    transport: Arc<dyn RaftTransport>,
}

impl Peer {
    async fn call<A: DeserializeOwned>(
        &self,
        rpc: RaftRpc,
        request: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let payload = serde_json::to_vec(request).map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
        let call = self.transport.call(&self.addr, self.id, rpc, Bytes::from(payload), timeout);
        let answer = match tokio::time::timeout(timeout, call).await {
            Ok(answer) => answer.map_err(rpc_error)?,
            Err(_) => {
                return Err(rpc_error(TransportError::Timeout {
                    addr: self.addr.clone(),
                    after: timeout,
                }));
            }
        };
        serde_json::from_slice(&answer).map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }
}

/// openraft backs off only from those it can not reach.
fn rpc_error(e: TransportError) -> RPCError<TypeConfig> {
    match e {
        TransportError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&e)),
        e => RPCError::Network(NetworkError::new(&e)),
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Arc<Objects>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = if rpc.entries.is_empty() {
            option.hard_ttl()
        } else {
            APPEND_TIMEOUT
        };
        self.call(RaftRpc::Append, &rpc, timeout).await
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(RaftRpc::Vote, &Ballot::Vote(rpc), option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(RaftRpc::Vote, &Ballot::PreVote(rpc), option.soft_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(RaftRpc::TransferLeader, &req, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let chunks = snapshot::encode(vote, snapshot).map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
        let send = self.transport.snapshot(&self.addr, self.id, chunks.boxed());
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = tokio::time::timeout(option.soft_ttl(), send) => answer,
        };
        let late = || TransportError::Timeout {
            addr: self.addr.clone(),
            after: option.soft_ttl(),
        };
        let answer = answer.unwrap_or_else(|_| Err(late())).map_err(rpc_error)?;
        serde_json::from_slice(&answer).map_err(|e| StreamingError::Network(NetworkError::new(&e)))
    }
}
