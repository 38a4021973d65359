//! Raft between managers: bytes in, bytes out; what they mean is consensus's.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use mesh_api::proto::{RaftMessage, raft_server::Raft};
use mesh_core::Refusal;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, status_of};
use crate::consensus::{ConsensusError, RaftRpc};

pub(super) struct Service(pub Arc<Shared>);

impl Service {
    async fn handle(&self, rpc: RaftRpc, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let RaftMessage { payload, to } = request.into_inner();
        answer(self.0.consensus.handle(to, rpc, payload.into()).await)
    }
}

fn answer(result: Result<Bytes, ConsensusError>) -> Result<Response<RaftMessage>, Status> {
    let payload = result.map_err(|e| status_of(&Refusal::from(e)))?;
    Ok(Response::new(RaftMessage {
        payload: payload.into(),
        to: 0,
    }))
}

#[tonic::async_trait]
impl Raft for Service {
    async fn append(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.handle(RaftRpc::Append, request).await
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.handle(RaftRpc::Vote, request).await
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.handle(RaftRpc::TransferLeader, request).await
    }

    async fn snapshot(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<RaftMessage>, Status> {
        let mut messages = request.into_inner();
        // For whom it is stands in the first one.
        let first = messages.message().await?.unwrap_or_default();
        let to = first.to;
        let chunks = stream::once(async { Ok(first) })
            .chain(messages)
            .map(|m| m.map(|m| Bytes::from(m.payload)).map_err(|s| s.message().to_owned()));
        answer(self.0.consensus.handle_snapshot(to, Box::pin(chunks)).await)
    }
}
