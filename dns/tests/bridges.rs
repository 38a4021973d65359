//! Gateway addresses on real bridges, with containers behind them. Needs root; all of it happens in
//! network namespaces without a name, which end with the test.

#![expect(clippy::unwrap_used, reason = "test")]

mod common;

use std::{
    fs::File,
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{addresses, ip, query};
use hickory_proto::{op::Message, rr::RecordType};
use mesh_core::{
    Id,
    names::{Listener, NameTable, Zone},
};
use mesh_dns::{Config, Dns};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lives as long as this.
#[derive(Clone)]
struct Namespace(Arc<File>);

impl Namespace {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let new = Self(Arc::new(made.join().unwrap()));
        new.ip("link set lo up");
        new
    }

    /// Runs `work` in the namespace, on a thread of its own.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|s| {
            let thread = s.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn ip(&self, arguments: &str) {
        let done = self.run(|| Command::new("ip").args(arguments.split_whitespace()).status().unwrap());
        assert!(done.success(), "ip {arguments}");
    }

    /// A container behind `bridge` of this namespace, with `addresses` and a default route.
    fn container(&self, bridge: &str, port: &str, addresses: &[&str], gateway: &str) -> Self {
        use std::os::fd::AsRawFd;
        let container = Self::new();
        let path = format!("/proc/{}/fd/{}", std::process::id(), container.0.as_raw_fd());
        self.ip(&format!("link add {port} type veth peer name eth0 netns {path}"));
        self.ip(&format!("link set {port} master {bridge} up"));
        container.ip("link set eth0 up");
        addresses.iter().for_each(|a| container.ip(&format!("addr add {a} dev eth0 nodad")));
        container.ip(&format!("route add default via {gateway}"));
        container
    }

    /// Asks once for an A record; what arrives within `patience`, and from where.
    fn ask(&self, gateway: IpAddr, name: &str, patience: Duration) -> Option<Message> {
        self.run(|| {
            let any: IpAddr = if gateway.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_read_timeout(Some(patience)).unwrap();
            socket.send_to(&query(name, RecordType::A).to_vec().unwrap(), (gateway, 53)).ok()?;
            let mut buffer = [0; 1500];
            let (length, from) = loop {
                match socket.recv_from(&mut buffer) {
                    // By the end of a child, if another thread is at making that one still.
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    received => break received.ok()?,
                }
            };
            assert_eq!(from.ip(), gateway, "answers come from the address asked");
            Some(Message::from_vec(&buffer[..length]).unwrap())
        })
    }

    /// Asks until there is an answer.
    async fn answer(&self, gateway: &str, name: &'static str) -> Vec<String> {
        let (this, gateway) = (self.clone(), ip(gateway));
        let asking = move || {
            let start = Instant::now();
            loop {
                if let Some(answer) = this.ask(gateway, name, Duration::from_millis(200)) {
                    return addresses(&answer);
                }
                assert!(start.elapsed() < common::BOUND, "no answer from {gateway}");
            }
        };
        tokio::task::spawn_blocking(asking).await.unwrap()
    }

    async fn silence(&self, gateway: &str, name: &'static str) {
        let (this, gateway) = (self.clone(), ip(gateway));
        let asking = move || this.ask(gateway, name, Duration::from_millis(300));
        assert!(tokio::task::spawn_blocking(asking).await.unwrap().is_none());
    }
}

fn table() -> Arc<NameTable> {
    let [a, b] = [1, 2].map(Id::from_bits);
    let zone = |network: &str, name: &str, address: &str| Zone {
        network: network.into(),
        names: [(name.to_owned(), vec![ip(address)])].into(),
        ..Zone::default()
    };
    let listener = |network, dev: &str| Listener {
        network,
        dev: dev.into(),
        forward: true,
    };
    Arc::new(NameTable {
        listeners: [
            (ip("172.30.0.1"), listener(a, "mb-a")),
            (ip("fd30::1"), listener(a, "mb-a")),
            (ip("172.31.0.1"), listener(b, "mb-b")),
        ]
        .into(),
        zones: [(a, zone("a", "web", "172.30.0.80")), (b, zone("b", "db", "172.31.0.80"))].into(),
        clients: [(ip("172.30.0.2"), vec![a]), (ip("fd30::2"), vec![a]), (ip("172.31.0.2"), vec![b])].into(),
    })
}

#[test]
fn gateways_answer_their_own_networks_and_the_host() {
    let host = Namespace::new();
    host.ip("link add mb-a type bridge");
    host.ip("link add mb-b type bridge");
    host.ip("link set mb-a up");
    host.ip("link set mb-b up");
    let on_a = host.container("mb-a", "va", &["172.30.0.2/24", "fd30::2/64"], "172.30.0.1");
    let on_b = host.container("mb-b", "vb", &["172.31.0.2/24"], "172.31.0.1");
    let inside = host.clone();
    let scenario = async move {
        let dns = Dns::new(Config {
            resolv_conf: "/nonexistent".into(),
            ..Config::default()
        });
        // The addresses are not there yet.
        dns.swap(table()).await.unwrap();
        inside.ip("addr add 172.30.0.1/24 dev mb-a");
        inside.ip("addr add fd30::1/64 dev mb-a nodad");
        inside.ip("addr add 172.31.0.1/24 dev mb-b");
        assert_eq!(on_a.answer("172.30.0.1", "web").await, ["172.30.0.80"]);
        assert_eq!(on_a.answer("fd30::1", "web").await, ["172.30.0.80"]);
        assert_eq!(on_b.answer("172.31.0.1", "db").await, ["172.31.0.80"]);
        assert!(on_a.answer("172.30.0.1", "db").await.is_empty());
        // The host itself, which is on no network, sees the one it asks in.
        assert_eq!(inside.answer("172.30.0.1", "web").await, ["172.30.0.80"]);
        assert_eq!(inside.answer("172.31.0.1", "db").await, ["172.31.0.80"]);
        // From one network the other's gateway can be reached, but does not answer.
        on_b.silence("172.30.0.1", "web").await;

        // A bridge made anew under the same name is another device.
        inside.ip("link del mb-a");
        let left: Vec<String> = dns.current().listeners.keys().map(ToString::to_string).collect();
        assert_eq!(left, ["172.31.0.1"], "a planner sees what is not served any more");
        let error = dns.swap(table()).await.unwrap_err();
        assert_eq!(error.failed.len(), 2, "{error}");
        inside.ip("link add mb-a type bridge");
        inside.ip("link set mb-a up");
        inside.ip("addr add 172.30.0.1/24 dev mb-a");
        inside.ip("link set va master mb-a");
        dns.swap(table()).await.unwrap();
        assert_eq!(*dns.current(), *table());
        assert_eq!(on_a.answer("172.30.0.1", "web").await, ["172.30.0.80"]);
        dns.shutdown().await;
    };
    host.run(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(scenario)
    });
}

#[test]
fn a_program_that_holds_every_address_is_reported_per_network() {
    let host = Namespace::new();
    host.ip("link add mb-a type bridge");
    host.ip("link add mb-b type bridge");
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let taken = UdpSocket::bind("0.0.0.0:53").unwrap();
            let dns = Dns::new(Config {
                resolv_conf: "/nonexistent".into(),
                ..Config::default()
            });
            let error = dns.swap(table()).await.unwrap_err().to_string();
            assert!(error.contains("172.30.0.1:53/udp on mb-a: another program holds it"), "{error}");
            assert!(error.contains("172.31.0.1:53/udp on mb-b: another program holds it"), "{error}");
            assert_eq!(
                dns.current().listeners.keys().collect::<Vec<_>>(),
                [&ip("fd30::1")],
                "the others work"
            );
            drop(taken);
            // A program that another test is just starting has the socket too, until it runs.
            let end = Instant::now() + Duration::from_secs(5);
            while let Err(error) = dns.swap(table()).await {
                assert!(Instant::now() < end, "{error}");
                tokio::task::yield_now().await;
            }
        });
    });
}
