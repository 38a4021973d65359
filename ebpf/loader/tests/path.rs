//! The whole way: a client, the node it asks, the backend's node, the container and back.

mod support;

use std::{
    io::{ErrorKind, Read},
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_core::lb::Row;
use support::{
    lab::{CLIENT, Datagrams, Lab, Talk, VIP, VIP_EMPTY, container, node},
    world::turn,
};

fn both(f: impl Fn(&Lab)) {
    for checksums_left in [true, false] {
        println!("checksums left to devices: {checksums_left}");
        f(&Lab::new(checksums_left));
    }
}

#[test]
fn tcp_through_every_node_in_turn() {
    both(|lab| {
        for h in [1, 2] {
            let who: Vec<_> = (0..6)
                .map(|_| {
                    let mut talk = Talk::to(&lab.client, node(h), 80).unwrap();
                    let (who, seen) = talk.ask("hello").unwrap();
                    let own = talk.stream.local_addr().unwrap();
                    assert_eq!(seen.ip(), own.ip(), "the client's own address");
                    // By chance its port may be one that it had towards the first node: then the
                    // backend rightly sees another.
                    assert!(h == 2 || seen.port() == own.port(), "and its own port");
                    assert_eq!(talk.ask("again").unwrap().0, who);
                    who
                })
                .collect();
            assert_eq!(who, [1, 2, 1, 2, 1, 2], "through node {h}");
        }
        assert!(lab.hosts.iter().all(|h| h.count("drop_failed") == 0));
    });
}

#[test]
fn much_data_arrives_whole() {
    both(|lab| {
        for (h, port) in [(1, 81), (1, 82), (2, 81), (2, 82)] {
            let mut talk = Talk::to(&lab.client, node(h), port).unwrap();
            talk.ask(&"x".repeat(500_000)).unwrap();
            talk.ask("data 2000000").unwrap();
            let mut data = vec![0; 2_000_000];
            talk.reader.read_exact(&mut data).unwrap();
            assert!(data.iter().enumerate().all(|(k, b)| *b == (k * 31 % 251) as u8));
        }
    });
}

#[test]
fn udp_small_and_large() {
    both(|lab| {
        for h in [1, 2] {
            let who: Vec<_> = (0..4)
                .map(|_| {
                    let socket = Datagrams::to(&lab.client, node(h), 53);
                    let (who, seen) = socket.ask(b"question").unwrap();
                    assert_eq!(
                        seen,
                        socket
                            .0
                            .local_addr()
                            .map(|a| SocketAddr::new(CLIENT.parse().unwrap(), a.port()))
                            .unwrap()
                    );
                    assert_eq!(socket.ask(&[7; 9000]).unwrap().0, who, "fragments");
                    who
                })
                .collect();
            assert_eq!(who, [1, 2, 1, 2], "through node {h}");
        }
    });
}

#[test]
fn refused_at_once() {
    both(|lab| {
        let start = Instant::now();
        for h in [1, 2] {
            assert_eq!(
                Talk::to(&lab.client, node(h), 9090).err().map(|e| e.kind()),
                Some(ErrorKind::ConnectionRefused)
            );
            assert_eq!(
                Datagrams::to(&lab.client, node(h), 9090).ask(b"x").unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
        }
        let c3 = &lab.containers[2];
        assert_eq!(
            Talk::to(c3, VIP_EMPTY, 80).err().map(|e| e.kind()),
            Some(ErrorKind::ConnectionRefused)
        );
        assert_eq!(
            Datagrams::to(c3, VIP_EMPTY, 80).ask(b"x").unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    });
}

#[test]
fn vips_from_containers() {
    both(|lab| {
        for i in [3, 4] {
            let ns = &lab.containers[i as usize - 1];
            let who: Vec<_> = (0..4)
                .map(|_| {
                    let mut talk = Talk::to(ns, VIP, 8000).unwrap();
                    let (who, seen) = talk.ask("hello").unwrap();
                    assert_eq!(seen, SocketAddr::new(container(i).into(), talk.stream.local_addr().unwrap().port()));
                    talk.ask(&"x".repeat(300_000)).unwrap();
                    who
                })
                .collect();
            assert_eq!(who, [1, 2, 1, 2], "from container {i}");
            let socket = Datagrams::to(ns, VIP, 8000);
            socket.ask(b"question").unwrap();
            socket.ask(&[7; 4000]).unwrap();
            ns.sh(&format!("ping -c1 -W2 {VIP}"));
        }
        // A backend that asks its own service gets another one, and itself when it is alone.
        assert_eq!(Talk::to(&lab.containers[0], VIP, 8000).unwrap().ask("hello").unwrap().0, 2);
        lab.hosts[0].put(Row::Service(1, Some(turn(&[1]))));
        let mut talk = Talk::to(&lab.containers[0], VIP, 8000).unwrap();
        assert_eq!(
            talk.ask("hello").unwrap(),
            (1, SocketAddr::new(VIP.into(), talk.stream.local_addr().unwrap().port()))
        );
        talk.ask(&"x".repeat(300_000)).unwrap();
        assert_eq!(Datagrams::to(&lab.containers[0], VIP, 8000).ask(b"x").unwrap().0, 1);
    });
}

#[test]
fn past_the_bridge_between_containers() {
    const LEN: usize = 2_000_000;
    for checksums_left in [true, false] {
        println!("checksums left to devices: {checksums_left}");
        let lab = Lab::new(checksums_left);
        let counts = |names: &[&'static str]| -> u64 { lab.hosts.iter().flat_map(|h| names.iter().map(|n| h.count(n))).sum() };
        // Container 3 is on the host of 1, not on that of 2. A VIP's turn begins with 1.
        for (to, port, who, way) in [
            (container(1), 8000, 1, &["direct_local"][..]),
            (container(2), 8000, 2, &["direct_remote", "direct_arrived"]),
            (VIP, 8000, 1, &["direct_local", "vip_forwarded", "vip_reply"]),
            (VIP, 8000, 2, &["direct_remote", "direct_arrived", "vip_forwarded", "vip_reply"]),
        ] {
            let before: Vec<_> = way.iter().map(|n| counts(&[n])).collect();
            let bridged = counts(&["pass_bridge"]);
            let mut talk = Talk::to(&lab.containers[2], to, port).unwrap();
            let (backend, seen) = talk.ask(&"x".repeat(LEN)).unwrap();
            assert_eq!((backend, seen.ip()), (who, std::net::IpAddr::from(container(3))), "to {to}");
            talk.ask(&format!("data {LEN}")).unwrap();
            let mut data = vec![0; LEN];
            talk.reader.read_exact(&mut data).unwrap();
            assert!(data.iter().enumerate().all(|(k, b)| *b == (k * 31 % 251) as u8));
            let socket = Datagrams::to(&lab.containers[2], container(who), 8000);
            socket.ask(b"question").unwrap();
            socket.ask(&[7; 4000]).unwrap();
            // Segments of the MTU would be so many, for the data of both directions.
            let segments = 2 * LEN as u64 / 1400;
            for (name, before) in way.iter().zip(before) {
                let packets = counts(&[name]) - before;
                println!("{who} by {to}: {name} {packets} of {segments}");
                assert!(packets > 10, "{name}: {packets}");
                assert!(!checksums_left || packets < segments / 2, "{name}: {packets} packets, not joined");
            }
            assert_eq!(
                counts(&["pass_bridge"]),
                bridged,
                "nothing but ARP takes the bridge, and neighbours are permanent"
            );
        }
        assert_eq!(counts(&["drop_failed"]), 0);
        for other in [1, 2] {
            lab.containers[2].sh(&format!("ping -c1 -W2 {}", container(other)));
        }
        // The host itself is reached as before.
        lab.containers[2].sh("ping -c1 -W2 10.1.0.1");
        assert!(counts(&["pass_bridge"]) > 0);
    }
}

/// Whatever way leads to a container whose interface has a queue, goes by that.
#[test]
fn nothing_passes_by_a_queue() {
    const LEN: usize = 300_000;
    both(|lab| {
        let talk = |name: &str, to: (std::net::Ipv4Addr, u16), from: &support::Ns, backend: u32, asks: bool| {
            let counted = || (lab.queued(backend), lab.queued(3));
            let before = counted();
            let mut talk = Talk::to(from, to.0, to.1).unwrap();
            assert_eq!(talk.ask(&"x".repeat(LEN)).unwrap().0, backend, "{name}");
            talk.ask(&format!("data {LEN}")).unwrap();
            let mut data = vec![0; LEN];
            talk.reader.read_exact(&mut data).unwrap();
            assert!(data.iter().enumerate().all(|(k, b)| *b == (k * 31 % 251) as u8), "{name}");
            let (got, answered) = (counted().0 - before.0, counted().1 - before.1);
            println!("{name}: {got} bytes passed the backend's queue, {answered} the client's");
            assert!(got > LEN as u64, "{name}: {got} bytes passed the backend's queue");
            assert!(!asks || answered > LEN as u64, "{name}: {answered} bytes passed the client's");
        };
        for i in [1, 2, 3] {
            lab.queue(i);
        }
        talk("a published port where its backend is", (node(1), 82), &lab.client, 1, false);
        talk("a published port of another node", (node(2), 82), &lab.client, 1, false);
        let own = &lab.containers[2];
        talk("a container of this host", (container(1), 8000), own, 1, true);
        talk("a container of another host", (container(2), 8000), own, 2, true);
        talk("a VIP, by a backend here", (VIP, 8000), own, 1, true);
        talk("a VIP, by a backend of another host", (VIP, 8000), own, 2, true);
        talk("the own node's published port, by a backend here", (node(1), 82), own, 1, true);
        talk("the own node's published port, by a backend elsewhere", (node(1), 81), own, 2, true);
        // The datagram's pieces, an error about it, and the VIP's answers.
        for (to, who) in [(container(1), 1), (container(2), 2), (VIP, 1), (VIP, 2)] {
            let socket = Datagrams::to(own, to, 8000);
            assert_eq!(socket.ask(b"question").unwrap().0, who, "{to}");
            assert_eq!(socket.ask(&[7; 4000]).unwrap().0, who, "{to}");
        }
        let refused = Datagrams::to(own, container(1), 8001).ask(b"x").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(lab.hosts.iter().all(|h| h.count("drop_failed") == 0));
    });
}

#[test]
fn connections_survive_restarts_and_updates() {
    let lab = Lab::new(true);
    let mut talks: Vec<_> = [(1, 80), (1, 80), (2, 80), (2, 80), (1, 81), (2, 82)]
        .into_iter()
        .map(|(h, port)| {
            let mut talk = Talk::to(&lab.client, node(h), port).unwrap();
            let who = talk.ask("hello").unwrap().0;
            (talk, who)
        })
        .collect();
    let mut vip = Talk::to(&lab.containers[2], VIP, 8000).unwrap();
    let first = vip.ask("hello").unwrap();
    let mut still = |when: &str| {
        for (talk, who) in &mut talks {
            assert_eq!(talk.ask("more").unwrap().0, *who, "{when}");
        }
        assert_eq!(vip.ask("more").unwrap(), first, "{when}");
    };
    for host in &lab.hosts {
        host.restart();
    }
    still("after a restart");
    for list in [vec![2, 1], vec![1], vec![2], vec![]] {
        for host in &lab.hosts {
            host.put(Row::Service(1, Some(turn(&list))));
        }
        still("after an update");
    }
    for host in &lab.hosts {
        host.put(Row::Service(1, Some(turn(&[1, 2]))));
    }
    let who = Talk::to(&lab.client, node(1), 80).unwrap().ask("hello").unwrap().0;
    assert!([1, 2].contains(&who));
}

#[test]
fn a_connection_whose_backend_is_gone_ends() {
    let lab = Lab::new(true);
    let mut talk = Talk::to(&lab.client, node(1), 81).unwrap();
    talk.ask("hello").unwrap();
    let sockets = [(); 2].map(|()| Datagrams::to(&lab.client, node(1), 53));
    assert_eq!(sockets.each_ref().map(|s| s.ask(b"hello").unwrap().0), [1, 2]);
    lab.hosts[0].put(Row::Service(1, Some(turn(&[1]))));
    assert_eq!(sockets.each_ref().map(|s| s.ask(b"more").unwrap().0), [1, 2], "drained, not cut");
    lab.hosts[0].put(Row::Backend(2, None));
    assert_eq!(talk.ask("more").unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(sockets.each_ref().map(|s| s.ask(b"more").unwrap().0), [1, 1], "udp moves on");
}

#[test]
fn collisions_over_the_whole_way() {
    let lab = Lab::new(true);
    // One client port, through both nodes, to the one container behind 81.
    let mut talks: Vec<_> = [1, 2]
        .into_iter()
        .map(|h| {
            let stream = lab.client.run(move || {
                use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
                let socket = nix::sys::socket::socket(
                    nix::sys::socket::AddressFamily::Inet,
                    nix::sys::socket::SockType::Stream,
                    nix::sys::socket::SockFlag::empty(),
                    None,
                )
                .unwrap();
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReuseAddr, &true).unwrap();
                let addr = |ip, port| nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(ip, port));
                nix::sys::socket::bind(socket.as_raw_fd(), &addr(std::net::Ipv4Addr::UNSPECIFIED, 41_000)).unwrap();
                nix::sys::socket::connect(socket.as_raw_fd(), &addr(node(h), 81)).unwrap();
                // SAFETY: the descriptor is ours alone.
                #[expect(unsafe_code, reason = "a socket that is bound before it connects")]
                unsafe {
                    std::net::TcpStream::from_raw_fd(socket.into_raw_fd())
                }
            });
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            Talk {
                reader: std::io::BufReader::new(stream.try_clone().unwrap()),
                stream,
            }
        })
        .collect();
    let seen: Vec<_> = talks.iter_mut().map(|t| t.ask("hello").unwrap()).collect();
    assert_eq!((seen[0].0, seen[1].0), (2, 2));
    assert_eq!(seen[0].1.ip(), seen[1].1.ip());
    assert_ne!(seen[0].1.port(), seen[1].1.port());
    for (talk, seen) in talks.iter_mut().zip(seen) {
        assert_eq!(talk.ask("more").unwrap(), seen);
    }
}
