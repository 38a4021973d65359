//! Encodes answers and sends them: hickory-server's [`ResponseHandler`] for our UDP and TCP loops.
//!
//! hickory's own handle loses the OPT record when it cuts an answer, and writes a log line for every
//! query; this one keeps the OPT record's room, and counts.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    ProtoError,
    op::{Edns, Header, HeaderCounts, MessageType, Metadata, ResponseCode},
    rr::Record,
    serialize::binary::{BinEncodable, BinEncoder},
};
use hickory_server::{
    net::NetError,
    server::{Request, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponse,
};
use tokio::{
    io::AsyncWriteExt,
    net::{UdpSocket, tcp::OwnedWriteHalf},
    sync::Mutex,
    time::timeout,
};

use crate::{
    query::{UDP_PAYLOAD, edns_for},
    stats::{Counters, count},
    wire,
};

/// How long an asker may take to read its answer from a TCP connection.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where an answer goes.
#[derive(Clone)]
pub(crate) enum Way {
    /// From this socket to this asker.
    Udp(Arc<UdpSocket>, SocketAddr),
    /// Down this connection, if it is still good.
    Tcp(Arc<Mutex<Option<OwnedWriteHalf>>>),
}

impl Way {
    /// Sends an encoded message.
    pub(crate) async fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Udp(socket, asker) => socket.send_to(bytes, asker).await.map(|_| ()),
            Self::Tcp(writer) => {
                let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
                // One write: two would wait for each other (Nagle and delayed acknowledgements).
                let framed = [&length.to_be_bytes(), bytes].concat();
                let mut held = writer.lock().await;
                let writer = held.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
                let written = timeout(WRITE_TIMEOUT, writer.write_all(&framed))
                    .await
                    .map_err(Into::into)
                    .flatten();
                if written.is_err() {
                    // Part of a message may have gone out: nothing can follow it.
                    *held = None;
                }
                written
            }
        }
    }

    /// True until sending over a connection has failed.
    pub(crate) async fn is_good(&self) -> bool {
        match self {
            Self::Udp(..) => true,
            Self::Tcp(writer) => writer.lock().await.is_some(),
        }
    }
}

/// The way back for one query's answer.
#[derive(Clone)]
pub(crate) struct Reply {
    way: Way,
    /// The OPT record to answer with, if the query had one.
    edns: Option<Edns>,
    /// The question section as it came.
    question: Box<[u8]>,
    /// The longest message that the asker takes, in bytes.
    limit: u16,
    counters: Arc<Counters>,
}

impl Reply {
    /// The answer to `request` goes this `way`.
    pub(crate) fn new(way: Way, request: &Request, counters: Arc<Counters>) -> Self {
        let asked = request.edns.as_ref();
        let limit = match &way {
            Way::Udp(..) => asked.map_or(512, Edns::max_payload).clamp(512, UDP_PAYLOAD),
            Way::Tcp(..) => u16::MAX,
        };
        Self {
            way,
            edns: asked.map(edns_for),
            question: request.queries.as_bytes().into(),
            limit,
            counters,
        }
    }
}

#[async_trait::async_trait]
impl ResponseHandler for Reply {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let asked = *response.metadata();
        let (info, bytes) = match self.encode(response) {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(%error, "cannot encode an answer, answering SERVFAIL");
                failure(asked)?
            }
        };
        self.way.send(&bytes).await?;
        Ok(info)
    }
}

impl Reply {
    fn encode<'a>(
        &self,
        mut response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<(ResponseInfo, Vec<u8>), ProtoError> {
        let code = response.metadata().response_code;
        // The upper bits of the code go into the OPT record, RFC 6891 §6.1.3.
        response.metadata_mut().response_code = ResponseCode::from_low(code.low());
        // Added behind what fits, so that its room is never taken.
        let opt = match self.edns.clone() {
            Some(mut edns) => edns.set_rcode_high(code.high()).to_bytes()?,
            None => Vec::new(),
        };
        let room = usize::from(self.limit).saturating_sub(opt.len());
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::try_from(usize::from(u16::MAX).saturating_sub(opt.len())).unwrap_or(u16::MAX));
        wire::expect_question(&mut encoder, &self.question);
        let info = response.destructive_emit(&mut encoder)?;
        let end = encoder.offset();
        bytes.truncate(end);
        if wire::cut(&mut bytes, room) {
            count(&self.counters.truncated);
        }
        if !opt.is_empty() {
            wire::add(&mut bytes, &opt);
        }
        Ok((info, bytes))
    }
}

/// SERVFAIL without anything else.
fn failure(asked: Metadata) -> Result<(ResponseInfo, Vec<u8>), ProtoError> {
    let mut metadata = Metadata::new(asked.id, MessageType::Response, asked.op_code);
    metadata.response_code = ResponseCode::ServFail;
    let header = Header {
        metadata,
        counts: HeaderCounts::default(),
    };
    Ok((header.into(), header.to_bytes()?))
}
