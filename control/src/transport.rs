//! Raft's messages between managers, over mTLS: [`RaftTransport`] for consensus, answered by the
//! Raft service of `server`. Snapshots have a connection of their own.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use mesh_api::proto::{RaftMessage, raft_client::RaftClient};
use tonic::{Status, transport::Channel};

use crate::{
    client::{Channels, Purpose, describe, never_sent},
    consensus::{RaftRpc, RaftTransport, TransportError},
};

/// Largest answer, in bytes; raft's answers are a few hundred.
const MAX_ANSWER: usize = 1 << 20;

/// [`RaftTransport`] over a node's connections.
pub struct GrpcTransport {
    channels: Arc<Channels>,
}

impl GrpcTransport {
    /// Over these connections.
    pub fn new(channels: Arc<Channels>) -> Self {
        Self { channels }
    }

    fn client(&self, purpose: Purpose, addr: &str) -> RaftClient<Channel> {
        RaftClient::new(self.channels.get(purpose, addr)).max_decoding_message_size(MAX_ANSWER)
    }
}

fn failed(addr: &str, status: &Status) -> TransportError {
    let (addr, why) = (addr.to_owned(), describe(status));
    if never_sent(status) {
        TransportError::Unreachable { addr, why }
    } else {
        TransportError::Failed { addr, why }
    }
}

/// A snapshot's chunks as messages; a type with a name, because the compiler can not see through a
/// mapped trait object here (rust-lang/rust#102211).
struct Messages {
    to: u64,
    chunks: BoxStream<'static, Bytes>,
}

impl Stream for Messages {
    type Item = RaftMessage;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RaftMessage>> {
        let to = self.to;
        self.chunks
            .poll_next_unpin(cx)
            .map(|chunk| chunk.map(|c| RaftMessage { payload: c.into(), to }))
    }
}

#[async_trait]
impl RaftTransport for GrpcTransport {
    async fn call(&self, addr: &str, to: u64, rpc: RaftRpc, payload: Bytes, timeout: Duration) -> Result<Bytes, TransportError> {
        let mut client = self.client(Purpose::Raft, addr);
        let message = RaftMessage {
            payload: payload.into(),
            to,
        };
        let call = async {
            match rpc {
                RaftRpc::Append => client.append(message).await,
                RaftRpc::Vote => client.vote(message).await,
                RaftRpc::TransferLeader => client.transfer_leader(message).await,
            }
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().payload.into()),
            Ok(Err(status)) => Err(failed(addr, &status)),
            Err(_) => Err(TransportError::Timeout {
                addr: addr.to_owned(),
                after: timeout,
            }),
        }
    }

    async fn snapshot(&self, addr: &str, to: u64, stream: BoxStream<'static, Bytes>) -> Result<Bytes, TransportError> {
        match self.client(Purpose::Snapshot, addr).snapshot(Messages { to, chunks: stream }).await {
            Ok(reply) => Ok(reply.into_inner().payload.into()),
            Err(status) => Err(failed(addr, &status)),
        }
    }
}
