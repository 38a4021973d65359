//! Tables and listeners coming and going.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use common::*;
use hickory_proto::{op::ResponseCode, rr::RecordType};
use mesh_core::{Id, names::Listener};
use mesh_dns::Transport;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_lose_no_query() {
    let mut f = Fixture::new(&[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let askers: Vec<_> = (0..4)
        .map(|n| {
            let (from, to, stop, answered) = (f.net.ip(10), f.gateway(1), stop.clone(), answered.clone());
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    // `udp` and `tcp` fail if no answer comes; each asks once only.
                    let query = query("web", RecordType::A);
                    let answer = if n == 0 {
                        tcp(from, to, &query).await
                    } else {
                        udp(from, to, &query).await
                    };
                    assert_eq!(code(&answer), ResponseCode::NoError);
                    answered.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    let other = f.net.ip(3);
    let mut swaps = 0;
    while answered.load(Relaxed) < 2000 || swaps < 100 {
        swaps += 1;
        f.swap(|t| {
            t.zones
                .values_mut()
                .next()
                .unwrap()
                .names
                .insert("new".into(), vec![ip(&format!("10.1.3.{}", swaps % 200))]);
            // A listener that comes and goes next to those that stay.
            if t.listeners.remove(&other).is_none() {
                t.listeners.insert(
                    other,
                    Listener {
                        network: Id::from_bits(1),
                        dev: "lo".into(),
                        forward: true,
                    },
                );
            }
        })
        .await;
        if swaps % 2 == 1 {
            let answer = udp(f.net.ip(10), f.gateway(3), &query("new", RecordType::A)).await;
            assert_eq!(
                addresses(&answer),
                [format!("10.1.3.{}", swaps % 200)],
                "the new address answers from the new table"
            );
        }
    }
    stop.store(true, Relaxed);
    for asker in askers {
        asker.await.unwrap();
    }
}

#[tokio::test]
async fn names_come_and_go_at_once() {
    let mut f = Fixture::new(&[]).await;
    for round in 0..50 {
        assert_negative(&f.ask(10, "headless", RecordType::A).await, ResponseCode::NXDomain);
        f.swap(|t| {
            _ = t
                .zones
                .get_mut(&Id::from_bits(1))
                .unwrap()
                .names
                .insert("headless".into(), vec![ip("10.1.0.77")])
        })
        .await;
        assert_eq!(
            addresses(&f.ask(10, "headless", RecordType::A).await),
            ["10.1.0.77"],
            "round {round}"
        );
        f.swap(|t| _ = t.zones.get_mut(&Id::from_bits(1)).unwrap().names.remove("headless"))
            .await;
    }
}

#[tokio::test]
async fn a_taken_port_is_a_precise_failure_of_one_network() {
    let f = Fixture::new(&[]).await;
    let (three, four) = (f.net.ip(3), f.net.ip(4));
    let mut table = f.table.clone();
    for address in [three, four] {
        table.listeners.insert(
            address,
            Listener {
                network: Id::from_bits(1),
                dev: "lo".into(),
                forward: true,
            },
        );
    }
    let table = Arc::new(table);
    // Another program, also one that lets others share its UDP port.
    let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    taken.set_reuse_address(true).unwrap();
    taken.bind(&std::net::SocketAddr::new(three, f.port).into()).unwrap();
    let error = f.dns.swap(table.clone()).await.unwrap_err();
    let [failed] = &error.failed[..] else { panic!("{error}") };
    assert_eq!((failed.address.ip(), failed.transport), (three, Transport::Udp));
    let expected = format!("cannot listen at {three}:{}/udp on lo: another program holds it", f.port);
    assert_eq!(failed.to_string(), expected);
    assert!(
        error.to_string().contains(&expected) && error.to_string().contains("in use"),
        "{error}"
    );
    let current = f.dns.current();
    assert!(!current.listeners.contains_key(&three) && current.listeners.contains_key(&four));
    assert_eq!((current.zones.len(), &current.clients), (2, &table.clients));
    for host in [1, 4] {
        assert_eq!(
            addresses(&udp(f.net.ip(10), f.gateway(host), &query("web", RecordType::A)).await),
            ["10.1.0.5"]
        );
    }
    drop(taken);
    let taken = std::net::TcpListener::bind((three, f.port)).unwrap();
    let error = f.dns.swap(table.clone()).await.unwrap_err();
    assert_eq!(error.failed[0].transport, Transport::Tcp, "{error}");
    assert!(std::net::UdpSocket::bind((three, f.port)).is_ok(), "nothing is half open");
    drop(taken);
    f.dns.swap(table.clone()).await.unwrap();
    assert!(Arc::ptr_eq(&f.dns.current(), &table));
    assert_eq!(
        addresses(&udp(f.net.ip(10), f.gateway(3), &query("web", RecordType::A)).await),
        ["10.1.0.5"]
    );
}

#[tokio::test]
async fn what_is_gone_is_closed() {
    let mut f = Fixture::new(&[]).await;
    let two = f.net.ip(2);
    let mut held = connect(f.net.ip(10), f.gateway(2)).await;
    f.swap(|t| _ = t.listeners.remove(&two)).await;
    assert!(std::net::UdpSocket::bind((two, f.port)).is_ok() && std::net::TcpListener::bind((two, f.port)).is_ok());
    let mut rest = Vec::new();
    tokio::time::timeout(BOUND, tokio::io::AsyncReadExt::read_to_end(&mut held, &mut rest))
        .await
        .unwrap()
        .ok();
    f.dns.shutdown().await;
    let one = f.net.ip(1);
    assert!(std::net::UdpSocket::bind((one, f.port)).is_ok());
    assert!(f.dns.current().listeners.is_empty());
    // A query under way does not keep the socket open: swapping in again works at once.
    f.dns.swap(Arc::new(f.table.clone())).await.unwrap();
}

#[tokio::test]
async fn a_query_under_way_does_not_hold_a_closed_address() {
    let net = Net::new();
    let port = net.port();
    let f = Fixture::at(net, port, &[net.ip(200)]).await;
    let resolver = Resolver::new((net.ip(200), port).into(), |_, _| Vec::new()).await;
    let asked = query("www.example.com", RecordType::A).to_vec().unwrap();
    assert_eq!(exchange(net.ip(10), f.gateway(1), &asked, Duration::from_millis(200)).await, None);
    assert!(resolver.asked() > 0);
    f.dns.shutdown().await;
    f.dns.swap(Arc::new(f.table.clone())).await.unwrap();
    assert_eq!(addresses(&f.ask(10, "web", RecordType::A).await), ["10.1.0.5"]);
}

#[tokio::test]
async fn a_missing_device_is_named() {
    let f = Fixture::new(&[]).await;
    let mut table = f.table.clone();
    table.listeners.insert(
        f.net.ip(5),
        Listener {
            network: Id::from_bits(1),
            dev: "mtdnsnone0".into(),
            forward: true,
        },
    );
    let error = f.dns.swap(Arc::new(table)).await.unwrap_err();
    assert_eq!(error.failed.len(), 1);
    assert!(error.to_string().contains("on mtdnsnone0: there is no such device"), "{error}");
}
