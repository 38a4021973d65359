//! Sockets that connect: the hooks of a cgroup, asked by real sockets of a namespace of their own.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    time::{Duration, Instant},
};

use mesh_core::{
    action::BpfAction,
    lb::{self, Hook, Namespace, Program, Row},
    objects::Protocol,
};
use support::{
    Ns,
    table::at,
    world::{OTHER_IP, OTHER_IP6, V4, V6, VIP_OTHER, World, turn},
};

/// The attachments are at the root of all cgroups: they end with the test.
struct Host(World);

const HOOK: Hook = Hook {
    program: Program::Sockets,
    dev: String::new(),
};

impl Host {
    fn new() -> Self {
        let mut w = World::new();
        for ip in [V4.a, V4.b, OTHER_IP.into(), V6.a, OTHER_IP6.into()] {
            own(ip);
        }
        w.loader.apply(&BpfAction::Attach(HOOK)).unwrap();
        Self(w)
    }

    /// Tells whose backends 3 and 4 are.
    fn others(&mut self) {
        let tables = self.0.loader.observe().unwrap().0;
        for slot in [3, 4] {
            let backend = lb::Backend {
                node: Some(OTHER_IP.into()),
                ..tables.backends[&slot]
            };
            self.0.put(Row::Backend(slot, Some(backend)));
        }
    }

    fn this(&mut self, value: Option<Namespace>) {
        self.0.put(Row::Namespace(cookie(), value));
    }

    /// What was counted since the last call.
    fn counted(&self, before: &mut BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
        let all: BTreeMap<_, _> = self.0.loader.counters().unwrap().into_iter().collect();
        let grown = all.iter().map(|(k, n)| (*k, n - before.get(k).unwrap_or(&0)));
        let grown = grown.filter(|(k, n)| *n > 0 && k.starts_with("socket")).collect();
        *before = all;
        grown
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let done = self.0.loader.apply(&BpfAction::Detach(HOOK));
        assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
    }
}

/// Makes it an address of this host.
fn own(ip: IpAddr) {
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let done = Command::new("ip")
        .args(["addr", "add", &format!("{ip}/{bits}"), "dev", "lo", "nodad"])
        .status();
    assert!(done.unwrap().success());
    // The kernel makes an IPv6 address usable in its own time.
    let listener = TcpListener::bind(at(ip, 0)).unwrap();
    let own = listener.local_addr().unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(e) = connect(own) {
        assert!(Instant::now() < end, "{own}: {e}");
    }
}

/// SO_NETNS_COOKIE of this thread's namespace.
fn cookie() -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (mut cookie, mut len) = (0u64, 8u32);
    // SAFETY: eight writable bytes, and their number.
    #[expect(unsafe_code, reason = "the standard library does not know this option")]
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    assert_eq!(ret, 0, "{}", std::io::Error::last_os_error());
    cookie
}

fn one(name: &'static str) -> BTreeMap<&'static str, u64> {
    [(name, 1)].into()
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(2))
}

/// Who connects to `asked` talks with `listener`, and is told that it talks with `asked`.
fn reaches(asked: SocketAddr, listener: &TcpListener) {
    let mut client = connect(asked).unwrap_or_else(|e| panic!("{asked}: {e}"));
    let (mut server, peer) = listener.accept().unwrap();
    assert_eq!(client.peer_addr().unwrap(), asked);
    assert_eq!(peer, {
        let own = client.local_addr().unwrap();
        SocketAddr::new(own.ip().to_canonical(), own.port())
    });
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn a_container_reaches_the_vips_of_its_networks() {
    let mut host = Host::new();
    let mut seen = BTreeMap::new();
    let (four, six) = (
        TcpListener::bind(at(V4.a, 7000)).unwrap(),
        TcpListener::bind(at(V6.a, 7000)).unwrap(),
    );
    let asked = at(V4.vip2, 7000);
    assert_eq!(connect(asked).unwrap_err().kind(), ErrorKind::NetworkUnreachable, "not known yet");
    host.counted(&mut seen);
    host.this(Some(Namespace {
        host: false,
        networks: [9999, 4097].into(),
    }));
    reaches(asked, &four);
    assert_eq!(host.counted(&mut seen), one("socket_connected"));
    reaches(at(V6.vip2, 7000), &six);
    assert_eq!(host.counted(&mut seen), one("socket_connected"));
    let IpAddr::V4(vip) = V4.vip2 else { return };
    reaches(at(vip.to_ipv6_mapped().into(), 7000), &four);
    assert_eq!(host.counted(&mut seen), one("socket_connected"));
    // Another port of the backend, at which nobody listens: its own refusal.
    assert_eq!(connect(at(V4.vip2, 7001)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(host.counted(&mut seen), one("socket_connected"));
    // Left as they are: another network's, one without backends, published ports, datagrams, the rest.
    for asked in [
        at(VIP_OTHER.into(), 7000),
        at(V4.vip_empty, 7000),
        at(V6.vip_empty, 7000),
        at(V4.node, 8080),
    ] {
        assert_eq!(connect(asked).unwrap_err().kind(), ErrorKind::NetworkUnreachable, "{asked}");
    }
    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    assert_eq!(udp.send_to(b"x", asked).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
    reaches(at(V4.a, 7000), &four);
    assert_eq!(host.counted(&mut seen), BTreeMap::new());
    // What it has stays; what it opens does not, once its network is gone.
    host.this(Some(Namespace {
        host: false,
        networks: [9999].into(),
    }));
    assert_eq!(connect(asked).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
    // In turn.
    host.this(Some(Namespace {
        host: false,
        networks: [4097].into(),
    }));
    host.0.put(Row::Service(5, Some(turn(&[1, 2]))));
    let other = TcpListener::bind(at(V4.b, 7000)).unwrap();
    for listener in [&four, &other, &four, &other]
        .into_iter()
        .cycle()
        .skip(usize::from(first_of(asked, &four, &other)))
        .take(6)
    {
        reaches(asked, listener);
    }
    let stats = host.0.loader.stats().unwrap();
    let flows: u64 = stats.iter().filter(|s| s.service == 5).map(|s| s.flows).sum();
    assert!(flows >= 7, "{stats:?}");
}

/// Connects once; 1 if the next turn is the second listener's.
fn first_of(asked: SocketAddr, first: &TcpListener, second: &TcpListener) -> u8 {
    let _stream = connect(asked).unwrap();
    first.set_nonblocking(true).unwrap();
    let was_first = first.accept().is_ok();
    first.set_nonblocking(false).unwrap();
    if !was_first {
        second.accept().unwrap();
    }
    was_first.into()
}

#[test]
fn the_host_reaches_published_ports() {
    let mut host = Host::new();
    let mut seen = BTreeMap::new();
    let here = TcpListener::bind(at(V4.a, 8000)).unwrap();
    let localhost = IpAddr::from([127, 0, 0, 1]);
    let localhost6: IpAddr = "::1".parse().unwrap();
    assert_eq!(connect(at(localhost, 8080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    host.this(Some(Namespace {
        host: true,
        networks: [].into(),
    }));
    host.counted(&mut seen);
    for asked in [localhost, IpAddr::from([127, 9, 9, 9]), V4.node, V4.node2, localhost6, V6.node] {
        reaches(at(asked, 8080), &here);
        assert_eq!(host.counted(&mut seen), one("socket_connected"), "{asked}");
    }
    // 0.0.0.0 and :: are this host.
    for any in ["0.0.0.0", "::"] {
        let any: IpAddr = any.parse().unwrap();
        let stream = connect(at(any, 8080)).unwrap();
        drop((here.accept().unwrap(), stream));
        assert_eq!(host.counted(&mut seen), one("socket_connected"), "{any}");
    }
    // No backend.
    for asked in [at(localhost, 9090), at(V4.node, 9090), at(localhost6, 9090)] {
        assert_eq!(connect(asked).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(host.counted(&mut seen), one("socket_refused"), "{asked}");
    }
    // Backends on another node: that one chooses.
    let there = TcpListener::bind(at(OTHER_IP.into(), 80)).unwrap();
    host.others();
    reaches(at(localhost, 80), &there);
    reaches(at(V4.node, 80), &there);
    reaches(at(localhost6, 80), &there);
    host.counted(&mut seen);
    // Left as they are.
    let own = TcpListener::bind(at(localhost, 22)).unwrap();
    reaches(at(localhost, 22), &own);
    for asked in [at(V4.client, 8080), at(V4.vip2, 8080)] {
        assert_eq!(connect(asked).unwrap_err().kind(), ErrorKind::NetworkUnreachable, "{asked}");
    }
    reaches(at(V4.a, 8000), &here);
    assert_eq!(host.counted(&mut seen), BTreeMap::new());
    // Another namespace is nobody's.
    let other = Ns::new();
    assert_eq!(
        other.run(move || connect(at(localhost, 8080)).unwrap_err().kind()),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(host.counted(&mut seen), BTreeMap::new());
    host.this(None);
    assert_eq!(connect(at(localhost, 8080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(host.counted(&mut seen), BTreeMap::new());
}

/// A service in networks of IPv6 only.
#[test]
fn the_host_reaches_backends_of_ipv6_only() {
    let mut host = Host::new();
    let mut seen = BTreeMap::new();
    let here = TcpListener::bind(at(V6.a, 8000)).unwrap();
    let there = TcpListener::bind(at(OTHER_IP6.into(), 8080)).unwrap();
    host.others();
    host.this(Some(Namespace {
        host: true,
        networks: [].into(),
    }));
    for set in [2, 2 | lb::V6] {
        host.0.put(Row::Service(set, Some(turn(&[]))));
    }
    host.counted(&mut seen);
    let localhost6: IpAddr = "::1".parse().unwrap();
    let asked = [localhost6, V6.node, V6.node2].map(|ip| at(ip, 8080));
    // Nobody is there.
    assert_eq!(connect(asked[1]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(host.counted(&mut seen), one("socket_refused"));
    // One of them is here; on another node that one chooses.
    for (backend, listener) in [(1, &here), (3, &there)] {
        host.0.put(Row::Service(2 | lb::V6, Some(turn(&[backend]))));
        for asked in asked {
            reaches(asked, listener);
            assert_eq!(host.counted(&mut seen), one("socket_connected"), "{asked}");
        }
    }
    // Nobody serves IPv4.
    for asked in [at(V4.node, 8080), at([127, 0, 0, 1].into(), 8080)] {
        assert_eq!(connect(asked).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(host.counted(&mut seen), one("socket_refused"), "{asked}");
    }
}

#[test]
fn datagrams_of_the_host() {
    let mut host = Host::new();
    let mut seen = BTreeMap::new();
    host.this(Some(Namespace {
        host: true,
        networks: [].into(),
    }));
    host.counted(&mut seen);
    let servers = [V4.a, V4.b].map(|ip| UdpSocket::bind(at(ip, 5300)).unwrap());
    for s in &servers {
        s.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    // Asks, and is answered by the one that got it; whose turn it was.
    let ask = |client: &UdpSocket, to: Option<SocketAddr>, which: usize| {
        let sent = match to {
            Some(to) => client.send_to(b"question", to),
            None => client.send(b"question"),
        };
        assert_eq!(sent.unwrap(), 8);
        let mut buf = [0; 32];
        let (len, from) = support::received(&servers[which], &mut buf).unwrap();
        servers[which].send_to(&buf[..len], from).unwrap();
        let (len, from) = support::received(client, &mut buf).unwrap();
        assert_eq!(&buf[..len], b"question");
        from
    };
    let new = |any: &str| {
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    };
    for asked in [IpAddr::from([127, 0, 0, 1]), V4.node] {
        let any = "0.0.0.0:0";
        let client = new(any);
        let asked = at(asked, 8080);
        assert_eq!(ask(&client, Some(asked), 0), asked, "shown as what was asked");
        assert_eq!(ask(&client, Some(asked), 0), asked);
        assert_eq!(host.counted(&mut seen), [("socket_sent", 2)].into(), "{asked}");
        let client = new(any);
        client.connect(asked).unwrap();
        assert_eq!(client.peer_addr().unwrap(), asked);
        assert_eq!(ask(&client, None, 0), asked);
        assert_eq!(host.counted(&mut seen), one("socket_connected"), "{asked}");
    }
    // An IPv6 socket that connects reaches an IPv4 address; the kernel lets no other one be sent there.
    let asked = at("::1".parse().unwrap(), 8080);
    let client = new("[::]:0");
    let six = UdpSocket::bind(at(V6.a, 5300)).unwrap();
    six.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert_eq!(client.send_to(b"x", asked).unwrap(), 1);
    assert_eq!(support::received(&six, &mut [0; 4]).unwrap().0, 1);
    assert_eq!(host.counted(&mut seen), one("socket_sent"));
    host.0.put(Row::Service(2 | lb::V6, None));
    let client = new("[::]:0");
    assert_eq!(client.send_to(b"x", asked).unwrap(), 1);
    assert_eq!(host.counted(&mut seen), BTreeMap::new());
    let client = new("[::]:0");
    client.connect(asked).unwrap();
    assert_eq!(client.peer_addr().unwrap(), asked);
    assert_eq!(ask(&client, None, 0), asked);
    assert_eq!(host.counted(&mut seen), one("socket_connected"));
    // One socket stays with its backend while that takes new flows; others get theirs.
    host.0.put(Row::Service(2, Some(turn(&[1, 2]))));
    let asked = at(V4.node, 8080);
    let clients: Vec<_> = (0..4).map(|_| new("0.0.0.0:0")).collect();
    let first = |client: &UdpSocket| {
        client.send_to(b"x", asked).unwrap();
        let mut buf = [0; 4];
        servers.iter().for_each(|s| s.set_nonblocking(true).unwrap());
        let which = support::wait("a datagram", || servers.iter().position(|s| s.recv_from(&mut buf).is_ok()));
        servers.iter().for_each(|s| s.set_nonblocking(false).unwrap());
        which
    };
    let got: Vec<_> = clients.iter().map(first).collect();
    assert_eq!(got.iter().sum::<usize>(), 2, "in turn: {got:?}");
    for (client, which) in clients.iter().zip(&got) {
        for _ in 0..3 {
            assert_eq!(ask(client, Some(asked), *which), asked);
        }
    }
    let tables = host.0.loader.observe().unwrap().0;
    let going = lb::Backend {
        accepting: false,
        ..tables.backends[&2]
    };
    host.0.put(Row::Service(2, Some(turn(&[1]))));
    host.0.put(Row::Backend(2, Some(going)));
    for client in &clients {
        assert_eq!(ask(client, Some(asked), 0), asked, "moved on");
    }
    // Nobody: as if there were no hook; nothing listens there.
    host.counted(&mut seen);
    let nobody = new("0.0.0.0:0");
    nobody.send_to(b"x", at(IpAddr::from([127, 0, 0, 1]), 9090)).unwrap();
    assert_eq!(host.counted(&mut seen), BTreeMap::new());
    assert_eq!(nobody.connect(at(V4.node, 9090)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(host.counted(&mut seen), one("socket_refused"));
}

/// Services that have one port each at an address of its own: the backend's node learns by the source which was asked.
#[test]
fn a_bound_port_is_asked_for_from_its_address() {
    let mut host = Host::new();
    let mut seen = BTreeMap::new();
    host.others();
    host.this(Some(Namespace {
        host: true,
        networks: [].into(),
    }));
    for ip in [V4.node, V6.node] {
        own(ip);
    }
    let port = |service, target| lb::Published {
        service,
        target,
        direct: false,
    };
    for proto in [Protocol::Tcp, Protocol::Udp] {
        host.0.put(Row::Published((proto, 73), Some(port(0, 0))));
        for ip in [V4.node, V6.node] {
            host.0.put(Row::Bound((ip, proto, 73), Some(port(1, 8000))));
        }
        host.0.put(Row::Bound((V4.node2, proto, 73), Some(port(2, 8000))));
    }
    let there: [IpAddr; 2] = [OTHER_IP.into(), OTHER_IP6.into()];
    let listeners = there.map(|ip| TcpListener::bind(at(ip, 73)).unwrap());
    host.counted(&mut seen);
    let IpAddr::V4(four) = V4.node else { return };
    for (asked, listener, source) in [
        (V4.node, &listeners[0], V4.node),
        (four.to_ipv6_mapped().into(), &listeners[0], V4.node),
        (V6.node, &listeners[1], V6.node),
    ] {
        let client = connect(at(asked, 73)).unwrap_or_else(|e| panic!("{asked}: {e}"));
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), source, "{asked}");
        assert_eq!(client.peer_addr().unwrap(), at(asked, 73));
        assert_eq!(host.counted(&mut seen), one("socket_connected"), "{asked}");
    }
    // Backends of this host are reached as ever.
    let here = TcpListener::bind(at(V4.a, 8000)).unwrap();
    reaches(at(V4.node2, 73), &here);
    assert_ne!(connect(at(V4.node2, 73)).unwrap().local_addr().unwrap().ip(), V4.node2);
    // Nobody has it at localhost.
    assert_eq!(
        connect(at([127, 0, 0, 1].into(), 73)).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    host.counted(&mut seen);
    let servers = there.map(|ip| UdpSocket::bind(at(ip, 73)).unwrap());
    for (asked, server, any) in [(V4.node, &servers[0], "0.0.0.0:0"), (V6.node, &servers[1], "[::]:0")] {
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let from = || support::received(server, &mut [0; 4]).unwrap().1.ip();
        let client = UdpSocket::bind(any).unwrap();
        for _ in 0..2 {
            client.send_to(b"x", at(asked, 73)).unwrap();
            assert_eq!(from(), asked);
        }
        assert_eq!(host.counted(&mut seen), [("socket_sent", 2)].into(), "{asked}");
        // One that has a port already can be given no source: its backend is here, or nowhere.
        let client = UdpSocket::bind(any).unwrap();
        assert_eq!(client.connect(at(asked, 73)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(host.counted(&mut seen), one("socket_refused"), "{asked}");
        // It may have the right one.
        let client = UdpSocket::bind(at(asked, 0)).unwrap();
        client.connect(at(asked, 73)).unwrap();
        client.send(b"x").unwrap();
        assert_eq!(from(), asked);
        assert_eq!(host.counted(&mut seen), one("socket_connected"), "{asked}");
    }
}
