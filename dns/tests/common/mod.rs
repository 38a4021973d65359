//! What the DNS's tests share: tables on loopback addresses, askers, and resolvers that misbehave.

#![expect(clippy::unwrap_used, reason = "test")]
#![expect(dead_code, reason = "every test file uses a part of it")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};
use mesh_core::{
    Id,
    names::{Listener, NameTable, Zone},
};
use mesh_dns::{Config, Dns};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

/// What no answer may take longer than.
pub const BOUND: Duration = Duration::from_secs(8);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A loopback network of this test's own: `127.a.b.0/24`.
#[derive(Clone, Copy)]
pub struct Net(u8, u8);

impl Net {
    pub fn new() -> Self {
        let [a, b] = rand::random::<[u8; 2]>();
        Self(a.clamp(1, 254), b)
    }

    pub fn ip(self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, self.0, self.1, host).into()
    }

    /// A port that is free for UDP and TCP at all of the network's addresses.
    pub fn port(self) -> u16 {
        loop {
            let tcp = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let port = tcp.local_addr().unwrap().port();
            if std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
                return port;
            }
        }
    }
}

/// A DNS that listens at `net.ip(1)` (network 1, `shop`, with a way out) and `net.ip(2)` (network 2,
/// `lab`, internal); `net.ip(10)` is on `shop`, `net.ip(11)` on both, `net.ip(12)` on `lab`.
pub struct Fixture {
    pub dns: Arc<Dns>,
    pub net: Net,
    pub port: u16,
    pub upstream_port: u16,
    pub table: NameTable,
    pub dir: tempfile::TempDir,
}

impl Fixture {
    /// With `resolvers` in resolv.conf.
    pub async fn new(resolvers: &[IpAddr]) -> Self {
        let net = Net::new();
        Self::at(net, net.port(), resolvers).await
    }

    pub async fn at(net: Net, upstream_port: u16, resolvers: &[IpAddr]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_resolv_conf(dir.path(), resolvers);
        let port = net.port();
        let config = Config {
            resolv_conf: dir.path().join("resolv.conf"),
            port,
            upstream_port,
            ttl: 5,
        };
        let dns = Arc::new(Dns::new(config));
        let table = table(net);
        dns.swap(Arc::new(table.clone())).await.unwrap();
        Self {
            dns,
            net,
            port,
            upstream_port,
            table,
            dir,
        }
    }

    pub fn gateway(&self, host: u8) -> SocketAddr {
        (self.net.ip(host), self.port).into()
    }

    /// Asks as the container at `asker` over UDP without EDNS.
    pub async fn ask(&self, asker: u8, name: &str, kind: RecordType) -> Message {
        self.send(asker, &query(name, kind)).await
    }

    /// Sends `message` from `net.ip(asker)` to the gateway of its network.
    pub async fn send(&self, asker: u8, message: &Message) -> Message {
        let gateway = self.gateway(if asker == 12 { 2 } else { 1 });
        udp(self.net.ip(asker), gateway, message).await
    }

    pub async fn swap(&mut self, change: impl FnOnce(&mut NameTable)) {
        change(&mut self.table);
        self.dns.swap(Arc::new(self.table.clone())).await.unwrap();
    }
}

pub fn table(net: Net) -> NameTable {
    let [shop, lab] = [1, 2].map(Id::from_bits);
    let names = |list: &[(&str, &[&str])]| {
        list.iter()
            .map(|(n, a)| ((*n).to_owned(), a.iter().map(|a| ip(a)).collect()))
            .collect()
    };
    let many: Vec<String> = (1..=100).map(|n| format!("10.1.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let shop_names = names(&[
        ("web", &["10.1.0.5"]),
        ("tasks.web", &["10.1.0.6", "10.1.0.7"]),
        ("dual", &["10.1.0.8", "fd00::8"]),
        ("many", &many),
        ("gone", &[]),
    ]);
    let reverse = [(ip("10.1.0.6"), "web-1".to_owned()), (ip("fd00::8"), "dual".to_owned())].into();
    let lab_zone = Zone {
        network: "lab".into(),
        names: names(&[("secret", &["10.2.0.5"])]),
        reverse: [(ip("10.2.0.5"), "secret".to_owned())].into(),
    };
    let listener = |network, forward| Listener {
        network,
        dev: "lo".into(),
        forward,
    };
    NameTable {
        listeners: [(net.ip(1), listener(shop, true)), (net.ip(2), listener(lab, false))].into(),
        zones: [
            (
                shop,
                Zone {
                    network: "shop".into(),
                    names: shop_names,
                    reverse,
                },
            ),
            (lab, lab_zone),
        ]
        .into(),
        clients: [(net.ip(10), vec![shop]), (net.ip(11), vec![shop, lab]), (net.ip(12), vec![lab])].into(),
    }
}

pub fn write_resolv_conf(dir: &Path, resolvers: &[IpAddr]) {
    let text: String = resolvers.iter().map(|r| format!("nameserver {r}\n")).collect();
    std::fs::write(dir.join("new"), text).unwrap();
    std::fs::rename(dir.join("new"), dir.join("resolv.conf")).unwrap();
}

pub fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

pub fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

/// Sends bytes and returns what comes back, if anything does before `patience` is over.
pub async fn exchange(from: IpAddr, to: SocketAddr, bytes: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((from, 0)).await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0; 65535];
    let length = timeout(patience, socket.recv(&mut buffer)).await.ok()?.ok()?;
    buffer.truncate(length);
    Some(buffer)
}

pub async fn udp(from: IpAddr, to: SocketAddr, message: &Message) -> Message {
    let bytes = exchange(from, to, &message.to_vec().unwrap(), BOUND)
        .await
        .expect("an answer in time");
    let limit = message.edns.as_ref().map_or(512, |e| e.max_payload().max(512));
    assert!(
        bytes.len() <= usize::from(limit),
        "{} bytes, and {limit} would be taken",
        bytes.len()
    );
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.edns.is_some(), message.edns.is_some(), "OPT is answered with OPT");
    answer
}

/// Opens a connection from `from`.
pub async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    timeout(BOUND, socket.connect(to)).await.unwrap().unwrap()
}

pub async fn write(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    stream
        .write_all(&[&(bytes.len() as u16).to_be_bytes(), &bytes[..]].concat())
        .await
        .unwrap();
}

pub async fn read(stream: &mut TcpStream) -> Message {
    let read = async {
        let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    };
    timeout(BOUND, read).await.expect("an answer in time")
}

pub async fn tcp(from: IpAddr, to: SocketAddr, message: &Message) -> Message {
    let mut stream = connect(from, to).await;
    write(&mut stream, message).await;
    read(&mut stream).await
}

/// The addresses in an answer, sorted.
pub fn addresses(message: &Message) -> Vec<String> {
    let mut out: Vec<_> = message
        .answers
        .iter()
        .filter_map(|r| r.data.ip_addr())
        .map(|a| a.to_string())
        .collect();
    out.sort();
    out
}

pub fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

/// Asserts that an answer says no, for a short time.
pub fn assert_negative(message: &Message, expected: ResponseCode) {
    assert_eq!(code(message), expected);
    assert!(message.answers.is_empty() && message.metadata.authoritative && !message.metadata.truncation);
    let [soa] = &message.authorities[..] else {
        panic!("one SOA: {message:?}")
    };
    let RData::SOA(data) = &soa.data else {
        panic!("one SOA: {message:?}")
    };
    assert!(soa.ttl <= 2 && data.minimum <= 2, "absence is forgotten quickly");
    assert!(soa.name.zone_of(message.queries[0].name()), "the SOA's owner is above the name");
}

/// How a query came to a resolver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Udp,
    Tcp,
}

/// A resolver that answers as it is told: each query with the datagrams that `behave` returns.
pub struct Resolver {
    pub asked: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Resolver {
    pub async fn new(at: SocketAddr, behave: impl Fn(&Message, Via) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::slow(at, Duration::ZERO, behave).await
    }

    /// Answers after `delay`.
    pub async fn slow(at: SocketAddr, delay: Duration, behave: impl Fn(&Message, Via) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let behave = Arc::new(behave);
        let udp = Arc::new(UdpSocket::bind(at).await.unwrap());
        let tcp = TcpListener::bind(at).await.unwrap();
        let (counter, answer) = (asked.clone(), behave.clone());
        let datagrams = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
                let (udp, answer, query) = (udp.clone(), answer.clone(), Message::from_vec(&buffer[..length]).unwrap());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    for bytes in answer(&query, Via::Udp) {
                        udp.send_to(&bytes, from).await.unwrap();
                    }
                });
            }
        });
        let streams = tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let query = read(&mut stream).await;
                for bytes in behave(&query, Via::Tcp) {
                    stream
                        .write_all(&[&(bytes.len() as u16).to_be_bytes(), &bytes[..]].concat())
                        .await
                        .unwrap();
                }
            }
        });
        Self {
            asked,
            tasks: vec![datagrams, streams],
        }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|t| t.abort());
    }
}

/// The answer to `query` with a code and A records.
pub fn respond(query: &Message, code: ResponseCode, addresses: &[IpAddr]) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.response_code = code;
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.iter().cloned());
    if let Some(edns) = &query.edns {
        answer.set_edns(edns.clone());
    }
    for address in addresses {
        let mut record = Record::from_rdata(query.queries[0].name().clone(), 77, RData::from(*address));
        record.dns_class = DNSClass::IN;
        answer.add_answer(record);
    }
    answer
}

/// A resolver's behaviour: always this code and these addresses.
pub fn always(code: ResponseCode, addresses: Vec<IpAddr>) -> impl Fn(&Message, Via) -> Vec<Vec<u8>> {
    move |query, _| vec![respond(query, code, &addresses).to_vec().unwrap()]
}
