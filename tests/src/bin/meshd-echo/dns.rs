//! A one-question DNS client, and a DNS server with a handful of IPv4 records: the lab's outside world, to which the hosts'
//! resolv.conf points, so that forwarding can be tested without leaving the machine.

use std::{
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record as DnsRecord, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::Failure;

/// Seconds.
const TTL: u32 = 5;

/// A name and its address.
#[derive(Clone)]
pub struct Record {
    name: Name,
    addr: Ipv4Addr,
}

impl FromStr for Record {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("{why}: use NAME=ADDR, like outside.example=198.51.100.1");
        let (name, addr) = s.split_once('=').ok_or_else(|| wrong(format!("{s:?} has no '='")))?;
        let mut name = Name::from_ascii(name).map_err(|e| wrong(e.to_string()))?;
        name.set_fqdn(true);
        Ok(Self {
            name,
            addr: addr.parse().map_err(|_| wrong(format!("{addr:?} is not an IPv4 address")))?,
        })
    }
}

/// Answers every datagram.
pub async fn serve_udp(socket: UdpSocket, records: Arc<[Record]>) -> Result<(), Failure> {
    let mut buffer = [0; 4096];
    loop {
        let (n, client) = socket.recv_from(&mut buffer).await?;
        if let Some(answer) = answer(&buffer[..n], &records) {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// Answers every connection (RFC 7766).
pub async fn serve_tcp(listener: TcpListener, records: Arc<[Record]>) -> Result<(), Failure> {
    loop {
        let (stream, _) = listener.accept().await?;
        let records = records.clone();
        tokio::spawn(async move { queries(stream, &records).await.ok() });
    }
}

async fn queries(mut stream: TcpStream, records: &[Record]) -> std::io::Result<()> {
    loop {
        let mut query = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut query).await?;
        let Some(answer) = answer(&query, records) else { return Ok(()) };
        // An answer is never longer than its question by more than one record.
        stream.write_u16(answer.len() as u16).await?;
        stream.write_all(&answer).await?;
    }
}

/// None for what is no query.
fn answer(query: &[u8], records: &[Record]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let asked = query.queries.first()?.clone();
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(asked.clone());
    let found = records.iter().find(|r| r.name == *asked.name());
    match found {
        Some(r) if asked.query_type() == RecordType::A => {
            answer.add_answer(DnsRecord::from_rdata(asked.name().clone(), TTL, RData::A(r.addr.into())));
        }
        Some(_) => {}
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.to_vec().ok()
}

/// One question to `server`, and its answer as a line of JSON: `rcode`, `answers` (in presentation
/// format), `soa` (the authority section has one), `truncated`.
pub fn ask(server: SocketAddr, name: &str, kind: &str) -> Result<String, Failure> {
    let mut asked = Name::from_ascii(name)?;
    asked.set_fqdn(true);
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(asked, RecordType::from_str(&kind.to_ascii_uppercase())?));
    let any: SocketAddr = if server.is_ipv4() {
        ([0u8; 4], 0).into()
    } else {
        ([0u8; 16], 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(server)?;
    socket.send(&query.to_vec()?)?;
    let mut buffer = [0; 65536];
    let n = socket.recv(&mut buffer).map_err(|e| format!("no answer from {server}: {e}"))?;
    let answer = Message::from_vec(&buffer[..n])?;
    if answer.metadata.id != query.metadata.id {
        return Err(format!("{server} answered another question").into());
    }
    let line = serde_json::json!({
        "rcode": format!("{:?}", answer.metadata.response_code),
        "answers": answer.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>(),
        "soa": answer.authorities.iter().any(|r| r.record_type() == RecordType::SOA),
        "truncated": answer.metadata.truncation,
    });
    Ok(line.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, kind: RecordType) -> Message {
        let records = ["outside.example=198.51.100.1".parse().expect("a record")];
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        let answer = answer(&query.to_vec().expect("a message"), &records).expect("an answer");
        Message::from_vec(&answer).expect("a message")
    }

    #[test]
    fn dns_answers_what_it_has() {
        let got = ask("Outside.Example.", RecordType::A);
        assert_eq!(got.metadata.response_code, ResponseCode::NoError);
        assert_eq!(got.answers.len(), 1);
        assert_eq!(ask("outside.example.", RecordType::AAAA).answers.len(), 0);
        assert_eq!(ask("other.example.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn dns_records_are_read_or_refused() {
        assert!("a=1.2.3.4".parse::<Record>().is_ok());
        for wrong in ["a", "a=", "a=1.2.3", "=..", "a=::1"] {
            assert!(wrong.parse::<Record>().is_err(), "{wrong}");
        }
    }
}
