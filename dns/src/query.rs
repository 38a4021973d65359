//! The first look at a message that came in: dropped, refused by its header, or a query to answer.
//! Called by the UDP and TCP loops before [`crate::handler`].

use std::net::SocketAddr;

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, OpCode, ResponseCode},
    serialize::binary::{BinDecodable, BinDecoder},
};
use hickory_server::{net::xfer::Protocol, server::Request};

/// What to do with a message.
pub(crate) enum Incoming {
    /// Not even a header, or itself an answer: answering it could start a loop between two servers.
    Drop,
    /// Not a query that can be answered: these bytes are the reply.
    Reject(Vec<u8>),
    /// A query with exactly one question.
    Query(Box<Request>),
}

/// Takes a message apart. The header is judged before the rest is decoded, so that the counts in
/// it cost nothing when they lie.
pub(crate) fn read(bytes: Vec<u8>, source: SocketAddr, protocol: Protocol) -> Incoming {
    let Ok(header) = Header::read(&mut BinDecoder::new(&bytes)) else {
        return Incoming::Drop;
    };
    if header.metadata.message_type == MessageType::Response || source.port() == 0 {
        return Incoming::Drop;
    }
    if header.metadata.op_code != OpCode::Query {
        return reject(&header, ResponseCode::NotImp);
    }
    // RFC 9619: a query has one question.
    if header.counts.queries != 1 {
        return reject(&header, ResponseCode::FormErr);
    }
    match Request::from_bytes(bytes, source, protocol) {
        Ok(request) => Incoming::Query(Box::new(request)),
        Err(_) => reject(&header, ResponseCode::FormErr),
    }
}

/// Only the header goes back: what follows it could not be read.
fn reject(header: &Header, code: ResponseCode) -> Incoming {
    let mut reply = Message::error_msg(header.metadata.id, header.metadata.op_code, code);
    reply.metadata.recursion_desired = header.metadata.recursion_desired;
    reply.to_vec().map_or(Incoming::Drop, Incoming::Reject)
}

/// The largest UDP payload that is sent, whatever the asker would take: it fits an Ethernet frame
/// also inside tunnels (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;

/// The OPT record to answer a query with.
pub(crate) fn edns_for(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD)
        .set_version(0)
        .set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}
