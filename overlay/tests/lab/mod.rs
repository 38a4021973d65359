//! Namespaces that stand for hosts and containers, used by all tests of this crate. Everything a test
//! makes is in namespaces of its own, which go when it ends.

#![expect(dead_code, reason = "each test binary uses a part of it")]

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_core::{
    Id, Mac,
    action::NetAction,
    desired::{Fdb, Link, Neigh, Peer, Route, Veth},
};
use mesh_overlay::{Netns, Overlay};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The cluster of all tests.
pub fn cluster() -> Id {
    Id::from_bits(0xc1)
}

/// A named network namespace that is removed when the test ends, failed or not.
pub struct Ns {
    pub name: String,
}

impl Ns {
    pub fn new() -> Self {
        let name = format!("mtov{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let ns = Self { name };
        ns.ok("ip link set lo up");
        ns
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub fn open(&self) -> Netns {
        Netns::open(&self.path()).unwrap()
    }

    /// Runs a program inside.
    pub fn sh(&self, command: &str) -> Output {
        let words: Vec<&str> = command.split_whitespace().collect();
        Command::new("ip").args(["netns", "exec", &self.name]).args(words).output().unwrap()
    }

    /// Runs a program inside, which must succeed; what it printed.
    pub fn ok(&self, command: &str) -> String {
        let out = self.sh(command);
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub fn succeeds(&self, command: &str) -> bool {
        self.sh(command).status.success()
    }

    /// One ping, answered within the time that a busy machine may take.
    pub fn pings(&self, to: &str) -> bool {
        self.succeeds(&format!("ping -n -c 1 -W 3 {to}"))
    }

    /// An overlay that works in here, made on a thread that is gone afterwards.
    pub async fn overlay(&self) -> Overlay {
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let _context = runtime.enter();
            Overlay::new()
        };
        self.open().run(work).await.unwrap().unwrap()
    }

    /// Packets sent by a link.
    pub fn sent(&self, link: &str) -> u64 {
        self.ok(&format!("cat /sys/class/net/{link}/statistics/tx_packets"))
            .trim()
            .parse()
            .unwrap()
    }

    /// Names of all links but loopback.
    pub fn links(&self) -> Vec<String> {
        let text = self.ok("ip -o link show");
        let names = text
            .lines()
            .filter_map(|l| l.split(": ").nth(1))
            .map(|n| n.split('@').next().unwrap().to_owned());
        names.filter(|n| n != "lo").collect()
    }

    /// Answers each TCP connection with the client's address, until the test binary ends.
    pub async fn serve(&self, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        let listener = self.open().run(move || std::net::TcpListener::bind(at).unwrap()).await.unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let _ = std::io::Write::write_all(&mut stream, from.ip().to_string().as_bytes());
            }
        });
    }

    /// What the server there says; `None` when it is not reached within three seconds: a first packet may be lost
    /// before a link that was made just now is up.
    pub async fn fetch(&self, at: &str) -> Option<String> {
        let at: SocketAddr = at.parse().unwrap();
        let work = move || {
            let mut stream = std::net::TcpStream::connect_timeout(&at, Duration::from_secs(3)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            let mut text = String::new();
            std::io::Read::read_to_string(&mut stream, &mut text).ok()?;
            Some(text)
        };
        self.open().run(work).await.unwrap()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

pub fn run(words: &[&str]) {
    let out = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Connects two namespaces with a veth pair.
pub fn wire(a: (&Ns, &str, &str), b: (&Ns, &str, &str)) {
    run(&[
        "ip", "link", "add", a.1, "netns", &a.0.name, "type", "veth", "peer", "name", b.1, "netns", &b.0.name,
    ]);
    for (ns, dev, addr) in [a, b] {
        let nodad = if addr.contains(':') { "nodad" } else { "" };
        ns.ok(&format!("ip addr add {addr} dev {dev} {nodad}"));
        ns.ok(&format!("ip link set {dev} up"));
    }
}

/// Waits for something to become so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "{what} did not come true");
        std::thread::yield_now();
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A network as a test wants it on a host.
#[derive(Clone)]
pub struct Network {
    pub id: Id,
    pub vni: u32,
    pub subnet: IpNet,
    pub gateway: IpAddr,
    pub mtu: u32,
}

impl Network {
    pub fn new(number: u8) -> Self {
        Self {
            id: Id::from_bits(number.into()),
            vni: 4096 + u32::from(number),
            subnet: net(&format!("10.{number}.0.0/24")),
            gateway: ip(&format!("10.{number}.0.1")),
            mtu: 1450,
        }
    }

    /// One with IPv6 only: fd01:0:0:NUMBER::/64.
    pub fn six(number: u8) -> Self {
        Self {
            subnet: net(&format!("fd01:0:0:{number}::/64")),
            gateway: ip(&format!("fd01:0:0:{number}::1")),
            mtu: 1430,
            ..Self::new(number)
        }
    }

    pub fn bridge(&self) -> String {
        format!("mb-{}", self.id)
    }

    pub fn vxlan(&self) -> String {
        format!("mx-{}", self.id)
    }

    pub fn addr(&self, host: u8) -> IpNet {
        let ip = match self.subnet.network() {
            IpAddr::V4(base) => IpAddr::V4((u32::from(base) + u32::from(host)).into()),
            IpAddr::V6(base) => IpAddr::V6((u128::from(base) + u128::from(host)).into()),
        };
        IpNet::new(ip, self.subnet.prefix_len()).unwrap()
    }

    pub fn put_bridge(&self) -> NetAction {
        let link = Link::Bridge {
            mac: Mac::for_ip(self.gateway),
            mtu: self.mtu,
            ipv6: self.subnet.addr().is_ipv6(),
        };
        NetAction::PutLink {
            name: self.bridge(),
            mark: (cluster(), self.id),
            link: Box::new(link),
        }
    }

    pub fn put_vxlan(&self, local: &str) -> NetAction {
        let link = Link::Vxlan {
            vni: self.vni,
            local: ip(local),
            mtu: self.mtu,
            bridge: Some(self.bridge()),
            mac: None,
            ipv6: false,
        };
        NetAction::PutLink {
            name: self.vxlan(),
            mark: (cluster(), self.id),
            link: Box::new(link),
        }
    }

    /// All that a host needs before its first endpoint.
    pub fn actions(&self, local: &str, src: IpAddr) -> Vec<NetAction> {
        vec![
            self.put_bridge(),
            NetAction::AddAddr(self.bridge(), IpNet::new(self.gateway, self.subnet.prefix_len()).unwrap()),
            self.put_vxlan(local),
            NetAction::AddRoute(Route {
                dst: self.subnet,
                dev: self.bridge(),
                src,
            }),
        ]
    }

    /// A container of this network on this host.
    pub fn attach(&self, ns: &Ns, host: u8, has_gateway: bool) -> (String, Veth) {
        let addr = self.addr(host);
        let endpoint = Id::from_bits(self.id.bits() << 8 | u64::from(host));
        let peer = Peer {
            taken: false,
            waits: false,
            netns: ns.path(),
            inode: ns.open().inode(),
            ifname: "eth0".into(),
            mac: Mac::for_ip(addr.addr()),
            addrs: vec![addr],
            gateways: has_gateway.then_some(self.gateway).into_iter().collect(),
            returns: Vec::new(),
            queue: None,
        };
        (
            format!("mv-{endpoint}"),
            Veth {
                endpoint,
                bridge: self.bridge(),
                mtu: self.mtu,
                queue: None,
                peer,
            },
        )
    }

    pub fn put_veth(&self, ns: &Ns, host: u8) -> NetAction {
        let (name, veth) = self.attach(ns, host, true);
        NetAction::PutVeth {
            name,
            cluster: cluster(),
            veth: Box::new(veth),
        }
    }

    /// The entries for a container on another host.
    pub fn remote(&self, host: u8, vtep: &str) -> Vec<NetAction> {
        let (dev, addr) = (self.vxlan(), self.addr(host).addr());
        let mac = Mac::for_ip(addr);
        vec![
            NetAction::AddFdb(Fdb {
                dev: dev.clone(),
                mac,
                vtep: Some(ip(vtep)),
            }),
            NetAction::AddFdb(Fdb { dev, mac, vtep: None }),
            NetAction::AddNeigh(Neigh {
                dev: self.bridge(),
                ip: addr,
                mac,
            }),
        ]
    }
}

/// Carries out steps that must succeed.
pub async fn apply(overlay: &Overlay, actions: impl IntoIterator<Item = NetAction>) {
    for action in actions {
        if let Err(e) = overlay.apply(&action).await {
            panic!("{action:?}: {}", chain(&e));
        }
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
