//! Two hosts, a client, and containers, as namespaces on one underlay; devices as overlay makes them.
#![expect(unsafe_code, reason = "an ioctl that no crate in use wraps")]
#![expect(clippy::unwrap_used, reason = "test")]

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use mesh_core::{
    Mac,
    action::BpfAction,
    lb::{self, Hook, Program, Row},
    objects::Protocol,
};
use mesh_loader::{Loader, Options};

use super::{
    Ns,
    world::{tables_rows, turn},
};

pub const CLIENT: &str = "192.168.77.200";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// VXLAN network identifier of the containers' network.
const NETWORK: u32 = 4097;
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 100);
pub const VIP_EMPTY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 101);

pub fn node(i: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10 + i as u8)
}

fn ingress(i: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, i as u8)
}

/// Container `i` has slot `i`; 1 and 3 are on host 1, 2 and 4 on host 2.
pub fn container(i: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 10 + i as u8)
}

fn host_of(i: u32) -> usize {
    if i % 2 == 1 { 1 } else { 2 }
}

fn mac(ip: Ipv4Addr) -> Mac {
    Mac::for_ip(IpAddr::V4(ip))
}

pub struct Host {
    pub ns: Ns,
    loader: Arc<Mutex<Option<Loader>>>,
    opts: Options,
    tables: lb::Tables,
}

impl Host {
    /// Runs `f` with the loader, in the host's namespace.
    pub fn with<T: Send + 'static>(&self, f: impl FnOnce(&mut Loader) -> T + Send + 'static) -> T {
        let loader = self.loader.clone();
        self.ns.run(move || f(loader.lock().unwrap().as_mut().unwrap()))
    }

    pub fn put(&self, row: Row) {
        self.with(move |l| l.apply(&BpfAction::Row(row)).unwrap());
    }

    /// Ends the loader and starts another one.
    pub fn restart(&self) {
        let (loader, opts, want) = (self.loader.clone(), self.opts.clone(), self.tables.clone());
        self.ns.run(move || {
            drop(loader.lock().unwrap().take());
            let mut new = Loader::open(&opts).unwrap();
            let (seen, hooks) = new.observe().unwrap();
            assert_eq!((seen, hooks.len()), (want, 7));
            *loader.lock().unwrap() = Some(new);
        });
    }

    pub fn count(&self, name: &'static str) -> u64 {
        self.with(move |l| l.counters().unwrap().into_iter().find(|c| c.0 == name).unwrap().1)
    }
}

pub struct Lab {
    pub client: Ns,
    pub hosts: [Host; 2],
    pub containers: Vec<Ns>,
    _underlay: Ns,
    _dir: tempfile::TempDir,
}

/// Published: 80/tcp and 53/udp by containers 1 and 2 at port 8000, 81/tcp by 2, 82/tcp by 1, 9090 by
/// none. VIP: containers 1 and 2.
fn tables(host: usize) -> lb::Tables {
    let port = |service, target| lb::Published {
        service,
        target,
        direct: false,
    };
    let backend = |i| lb::Backend {
        ip4: Some(container(i)),
        ip6: None,
        mac: mac(container(i)),
        node: None,
        local: host_of(i) == host,
        accepting: true,
    };
    let local = |i| lb::Local {
        slot: i,
        ip4: Some(container(i)),
        ip6: None,
        mac: mac(container(i)),
        gateway_mac: mac(GATEWAY),
        network: NETWORK,
        vxlan: "mx-1".into(),
        segment: false,
        queued: false,
    };
    let vip = |service| lb::Vip { service, network: NETWORK };
    lb::Tables {
        ingress_ip: None,
        bound: Default::default(),
        sources: Default::default(),
        namespaces: Default::default(),
        ingress_mac: mac(ingress(host)),
        ingress_dev: "mx-ing".into(),
        uplink: "up0".into(),
        ingress_mtu: 1450,
        node_addrs: [node(host).into()].into(),
        published: [
            ((Protocol::Tcp, 80), port(1, 8000)),
            ((Protocol::Udp, 53), port(1, 8000)),
            ((Protocol::Tcp, 81), port(2, 8000)),
            ((Protocol::Tcp, 82), port(4, 8000)),
            ((Protocol::Tcp, 9090), port(3, 1)),
            ((Protocol::Udp, 9090), port(3, 1)),
        ]
        .into(),
        vips: [(VIP.into(), vip(1)), (VIP_EMPTY.into(), vip(3))].into(),
        services: [(1, turn(&[1, 2])), (2, turn(&[2])), (3, turn(&[])), (4, turn(&[1]))].into(),
        backends: [(1, backend(1)), (2, backend(2))].into(),
        locals: (1..=4)
            .filter(|i| host_of(*i) == host)
            .map(|i| (format!("mv-{i}"), local(i)))
            .collect(),
        networks: [("mx-1".to_owned(), NETWORK)].into(),
        peers: [mac(ingress(3 - host))].into(),
        nodes: Default::default(),
        remotes: Default::default(),
        ranges: Default::default(),
        neighbors: Default::default(),
    }
}

/// ETHTOOL_STXCSUM: `off` makes a device get finished checksums, as from a wire.
fn offload(dev: &str, on: bool) {
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    let mut value = Value {
        cmd: 0x17,
        data: on.into(),
    };
    // SAFETY: zeroes are a valid ifreq; the pointers live until the call returns.
    let ret = unsafe {
        let mut req: libc::ifreq = std::mem::zeroed();
        for (to, from) in req.ifr_name.iter_mut().zip(dev.bytes()) {
            *to = from as libc::c_char;
        }
        req.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut req)
    };
    assert_eq!(ret, 0, "ETHTOOL_STXCSUM {dev}: {}", std::io::Error::last_os_error());
}

impl Lab {
    /// `checksums_left`: senders leave checksums to their devices, which pass them on unfinished, as
    /// veths do by default.
    pub fn new(checksums_left: bool) -> Self {
        let underlay = Ns::new();
        underlay.ip("link add br0 type bridge && ip link set br0 up");
        let client = Ns::new();
        let dir = tempfile::tempdir().unwrap();
        let plug = |ns: &Ns, name: &str, addr: &str| {
            ns.ip(&format!("link add up0 type veth peer name {name}"));
            ns.ip(&format!("link set {name} netns {}", underlay.path));
            ns.ip(&format!("addr add {addr}/24 dev up0 && ip link set up0 up"));
            underlay.ip(&format!("link set {name} master br0 up"));
            if !checksums_left {
                ns.run(|| offload("up0", false));
            }
        };
        plug(&client, "client", CLIENT);
        let containers: Vec<_> = (1..=4).map(|_| Ns::new()).collect();
        let hosts = [1, 2].map(|h| {
            let ns = Ns::new();
            plug(&ns, &format!("h{h}"), &node(h).to_string());
            let other = node(3 - h);
            ns.ip(&format!(
                "link add mx-ing address {} type vxlan id 4096 dstport 4789 local {} nolearning",
                mac(ingress(h)),
                node(h)
            ));
            ns.ip(&format!(
                "link set mx-ing up && bridge fdb add {} dev mx-ing dst {other}",
                mac(ingress(3 - h))
            ));
            ns.ip(&format!(
                "link add mb-1 address {} mtu 1450 type bridge && ip addr add {GATEWAY}/24 dev mb-1",
                mac(GATEWAY)
            ));
            ns.ip(&format!(
                "link add mx-1 type vxlan id {NETWORK} dstport 4789 local {} nolearning",
                node(h)
            ));
            ns.ip("link set mb-1 up && ip link set mx-1 master mb-1 up");
            for i in 1..=4 {
                let (c, addr, lladdr) = (&containers[i as usize - 1], container(i), mac(container(i)));
                if host_of(i) != h {
                    for dev in ["mx-ing", "mx-1"] {
                        ns.sh(&format!("bridge fdb add {lladdr} dev {dev} dst {other}"));
                    }
                    ns.sh(&format!("bridge fdb add {lladdr} dev mx-1 master static"));
                    continue;
                }
                ns.ip(&format!(
                    "link add mv-{i} mtu 1450 type veth peer name eth0 address {lladdr} mtu 1450 netns {}",
                    c.path
                ));
                ns.ip(&format!("link set mv-{i} master mb-1 up"));
                c.ip(&format!(
                    "addr add {addr}/24 dev eth0 && ip link set eth0 up && ip route add default via {GATEWAY}"
                ));
                for j in (1..=4).filter(|j| *j != i) {
                    c.ip(&format!("neigh add {} lladdr {} dev eth0", container(j), mac(container(j))));
                }
                if !checksums_left {
                    c.run(|| offload("eth0", false));
                }
            }
            let opts = Options {
                flow_table_size: 4096,
                ..Options::new(dir.path().join(format!("bpf{h}")))
            };
            let (tables, loader) = (tables(h), Arc::new(Mutex::new(None)));
            let host = Host { ns, loader, opts, tables };
            let (loader, opts, tables) = (host.loader.clone(), host.opts.clone(), host.tables.clone());
            host.ns.run(move || {
                let mut l = Loader::open(&opts).unwrap();
                for row in tables_rows(&tables) {
                    l.apply(&BpfAction::Row(row)).unwrap();
                }
                let mut hooks = vec![
                    (Program::FromUplink, "up0".to_owned()),
                    (Program::FromOverlay, "mx-ing".to_owned()),
                    (Program::FromNetwork, "mx-1".to_owned()),
                ];
                for dev in tables.locals.keys() {
                    hooks.extend([(Program::FromContainer, dev.clone()), (Program::ToContainer, dev.clone())]);
                }
                for (program, dev) in hooks {
                    l.apply(&BpfAction::Attach(Hook { program, dev })).unwrap();
                }
                *loader.lock().unwrap() = Some(l);
            });
            host
        });
        // A port forwards a little after its other end has come up.
        for ns in [&underlay, &hosts[0].ns, &hosts[1].ns] {
            super::wait("bridge ports to forward", || {
                let ports = ns.sh("bridge link show");
                ports.lines().all(|port| port.contains("state forwarding")).then_some(())
            });
        }
        let lab = Self {
            client,
            hosts,
            containers,
            _underlay: underlay,
            _dir: dir,
        };
        for i in 1..=4 {
            lab.serve(i);
        }
        lab
    }

    /// Gives what container `i` receives a queue, which lets everything pass.
    pub fn queue(&self, i: u32) {
        let host = &self.hosts[host_of(i) - 1];
        host.ns
            .sh(&format!("tc qdisc add dev mv-{i} root tbf rate 10gbit burst 256kb limit 10mb"));
        let local = lb::Local {
            queued: true,
            ..host.tables.locals[&format!("mv-{i}")].clone()
        };
        host.put(Row::Local(format!("mv-{i}"), Some(Box::new(local))));
    }

    /// Bytes that have passed that queue.
    pub fn queued(&self, i: u32) -> u64 {
        let seen = self.hosts[host_of(i) - 1].ns.sh(&format!("tc -s qdisc show dev mv-{i} root"));
        let (_, sent) = seen.split_once("Sent ").unwrap();
        sent.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Each line over TCP, each datagram, is answered with the container's number and the client's
    /// address as it sees it; a line `data N` with N bytes more.
    fn serve(&self, i: u32) {
        let (tcp, udp) =
            self.containers[i as usize - 1].run(|| (TcpListener::bind("0.0.0.0:8000").unwrap(), UdpSocket::bind("0.0.0.0:8000").unwrap()));
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let peer = stream.peer_addr().unwrap();
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    while let Some(Ok(line)) = lines.next() {
                        let mut answer = format!("{i} {peer} {}\n", line.len()).into_bytes();
                        if let Some(n) = line.strip_prefix("data ") {
                            answer.extend((0..n.parse().unwrap()).map(|k: usize| (k * 31 % 251) as u8));
                        }
                        if stream.write_all(&answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        std::thread::spawn(move || {
            let mut buf = vec![0; 65_536];
            while let Ok((len, peer)) = udp.recv_from(&mut buf) {
                let mut answer = format!("{i} {peer} ").into_bytes();
                answer.extend(&buf[..len]);
                if udp.send_to(&answer, peer).is_err() {
                    return;
                }
            }
        });
    }
}

/// A TCP connection that asks.
pub struct Talk {
    pub stream: TcpStream,
    pub reader: BufReader<TcpStream>,
}

impl Talk {
    pub fn to(ns: &Ns, addr: impl Into<IpAddr>, port: u16) -> std::io::Result<Self> {
        let addr = SocketAddr::new(addr.into(), port);
        let stream = ns.run(move || TcpStream::connect_timeout(&addr, Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            stream,
        })
    }

    /// Says a line; returns who answered, and the client's address that it saw.
    pub fn ask(&mut self, line: &str) -> std::io::Result<(u32, SocketAddr)> {
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer)?;
        let mut words = answer.split_whitespace();
        let (Some(i), Some(peer), Some(len)) = (words.next(), words.next(), words.next()) else {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        assert_eq!(len, line.len().to_string());
        Ok((i.parse().unwrap(), peer.parse().unwrap()))
    }
}

/// A UDP socket that asks.
pub struct Datagrams(pub UdpSocket);

impl Datagrams {
    pub fn to(ns: &Ns, addr: impl Into<IpAddr>, port: u16) -> Self {
        let addr = SocketAddr::new(addr.into(), port);
        let socket = ns.run(move || {
            // A port of its own, below those that the kernel picks from: one that was used towards the
            // other node a moment ago would rightly reach the backend as another.
            static PORT: AtomicU16 = AtomicU16::new(10_000);
            let s = UdpSocket::bind(("0.0.0.0", PORT.fetch_add(1, Ordering::Relaxed))).unwrap();
            s.connect(addr).unwrap();
            s
        });
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(socket)
    }

    pub fn ask(&self, data: &[u8]) -> std::io::Result<(u32, SocketAddr)> {
        self.0.send(data)?;
        let mut buf = vec![0; 65_536];
        let len = super::received(&self.0, &mut buf)?.0;
        let head = buf[..len].splitn(3, |b| *b == b' ').collect::<Vec<_>>();
        assert!(head[2] == data, "the answer brings the data back");
        let word = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        Ok((word(head[0]).parse().unwrap(), word(head[1]).parse().unwrap()))
    }
}
