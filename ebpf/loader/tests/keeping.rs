//! How flows are kept, reclaimed and told of.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use std::path::Path;

use aya::maps::{HashMap, MapData};
use mesh_core::lb::{Program, Row};
use mesh_ebpf_common::{
    flow::{CLOSED_GRACE_NS, RESET_GRACE_NS, TCP_IDLE_NS, UDP_IDLE_NS},
    rows::{Flow, FlowKey, Plain, Reply},
    spec,
};
use mesh_loader::{Event, Watch};
use support::{
    frame::{ACK, FIN, RST, SYN},
    packet::Packet,
    table::{SENT, at},
    world::{A, DROP, GATEWAY_MAC, PEER, ROUTER, UPLINK, V4, V6, World, mac, turn},
};

/// A row as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Bytes<T>(T);
// SAFETY: `Plain` types are nothing but their bytes.
#[expect(unsafe_code, reason = "see the trait Plain")]
unsafe impl<T: Plain> aya::Pod for Bytes<T> {}

fn open<V: Plain>(maps: &Path, name: &str) -> HashMap<MapData, Bytes<FlowKey>, Bytes<V>> {
    let map = MapData::from_pin(maps.join(name)).unwrap();
    let map = if name.ends_with("KEPT") {
        aya::maps::Map::HashMap(map)
    } else {
        aya::maps::Map::LruHashMap(map)
    };
    map.try_into().unwrap()
}

fn uplink(w: &World, p: &Packet) -> support::world::Out {
    w.raw(Program::FromUplink, "up0", &p.clone().eth(ROUTER, UPLINK).bytes())
}

fn usage(w: &mut World, name: &str) -> u64 {
    w.loader.usage().unwrap().into_iter().find(|u| u.map == name).unwrap().rows
}

#[test]
fn a_flood_displaces_no_flow_that_both_ends_were_heard_of() {
    let mut w = World::new();
    let tcp = |cport, flags| Packet::tcp(at(V4.client, cport), at(V4.node, 80), flags, b"");
    let kept: Vec<_> = (1000..1500u16)
        .map(|cport| {
            let to = uplink(&w, &tcp(cport, SYN)).packet().eth_dst;
            let reply = Packet::tcp(at(V4.node, 80), at(V4.client, cport), SYN | ACK, b"").eth(PEER, support::world::INGRESS);
            w.raw(Program::FromOverlay, "mx-1", &reply.bytes()).is(SENT, &["reply_sent"]);
            uplink(&w, &tcp(cport, ACK)).is(SENT, &["carried", "kept"]);
            (cport, to)
        })
        .collect();
    let (half, to) = (tcp(2000, SYN), uplink(&w, &tcp(2000, SYN)).packet().eth_dst);
    assert_eq!(uplink(&w, &half).packet().eth_dst, to, "sent again, nothing else going on");
    // Ten times what the table of half-open flows has room for.
    let n = 10 * spec::FLOWS.max_entries;
    let first = tcp(1, SYN).eth(ROUTER, UPLINK).bytes();
    let flood = (0..n).map(|i| {
        let mut b = first.clone();
        b[26..30].copy_from_slice(&(0x0b00_0000 + i / 16).to_be_bytes());
        b[34..36].copy_from_slice(&(5000 + (i % 16) as u16).to_be_bytes());
        let sum = !support::frame::sum(&[&b[14..24], &b[26..34]]);
        b[24..26].copy_from_slice(&sum.to_be_bytes());
        b
    });
    let before = w.loader.counters().unwrap();
    w.flood(Program::FromUplink, "up0", flood);
    let after = w.loader.counters().unwrap();
    let grown = |name| after.iter().find(|c| c.0 == name).unwrap().1 - before.iter().find(|c| c.0 == name).unwrap().1;
    assert_eq!((grown("new_flow"), grown("carried"), grown("drop_failed")), (n.into(), n.into(), 0));
    assert!(usage(&mut w, "FLOWS") <= spec::FLOWS.max_entries.into());
    // Another list in another order: who is known stays.
    w.put(Row::Service(1, Some(turn(&[1]))));
    for (cport, to) in &kept {
        let out = uplink(&w, &tcp(*cport, ACK));
        assert_eq!(out.is(SENT, &["carried"]).bytes[..6], *to);
    }
    assert_eq!(usage(&mut w, "FLOWS_KEPT"), 500);
    // New ones have a place as ever.
    uplink(&w, &tcp(3000, SYN)).is(SENT, &["new_flow", "delivered"]);
}

#[test]
fn what_is_over_is_reclaimed_and_nothing_else() {
    let mut w = World::new();
    let maps = w.maps();
    let tcp = |cport, flags| Packet::tcp(at(V6.client, cport), at(V6.node, 8080), flags, b"");
    let back = |w: &World, p: Packet| {
        w.raw(Program::FromContainer, "mv-a", &p.eth(mac(A), GATEWAY_MAC).bytes())
            .is(SENT, &["reply_sent"])
            .verdict
    };
    let answer = |w: &World, cport, flags| back(w, Packet::tcp(at(V6.a, 8000), at(V6.client, cport), flags, b""));
    let open_one = |w: &World, cport| {
        uplink(w, &tcp(cport, SYN)).is(SENT, &["new_flow", "delivered"]);
        answer(w, cport, SYN | ACK);
        uplink(w, &tcp(cport, ACK)).is(SENT, &["delivered", "kept"]);
    };
    for cport in 1..=5 {
        open_one(&w, cport);
    }
    // 1 stays open; 2 is half closed; 3 is closed; 4 is reset; 5 falls silent.
    uplink(&w, &tcp(2, FIN | ACK));
    uplink(&w, &tcp(3, FIN | ACK));
    answer(&w, 3, FIN | ACK);
    answer(&w, 4, RST);
    uplink(&w, &tcp(6, SYN)).is(SENT, &["new_flow", "delivered"]);
    let udp = Packet::udp(at(V6.client, 7), at(V6.node, 8080), b"q");
    uplink(&w, &udp);
    back(&w, Packet::udp(at(V6.a, 5300), at(V6.client, 7), b"a"));
    uplink(&w, &udp).is(SENT, &["delivered", "kept"]);
    assert_eq!((usage(&mut w, "FLOWS_KEPT"), usage(&mut w, "REPLIES_KEPT")), (6, 6));
    assert_eq!((usage(&mut w, "FLOWS"), usage(&mut w, "REPLIES")), (1, 1));
    assert_eq!(w.loader.live_flows(1).unwrap(), 5, "not those that are closed or reset");
    assert_eq!(w.loader.live_flows(2).unwrap(), 0);
    assert_eq!(w.loader.reclaim().unwrap(), 0, "not before its time");
    // As if so much time had passed since the last packet of the flow by `cport`.
    let age = |cport: u16, ns: u64| {
        let mut flows = open::<Flow>(&maps, "FLOWS_KEPT");
        for (Bytes(k), Bytes(mut f)) in flows.iter().map(Result::unwrap).collect::<Vec<_>>() {
            if k.sport == cport {
                f.last_seen = f.last_seen.saturating_sub(ns);
                flows.insert(Bytes(k), Bytes(f), 0).unwrap();
            }
        }
        let mut replies = open::<Reply>(&maps, "REPLIES_KEPT");
        for (Bytes(k), Bytes(mut r)) in replies.iter().map(Result::unwrap).collect::<Vec<_>>() {
            if r.cport == cport {
                r.last_seen = r.last_seen.saturating_sub(ns);
                replies.insert(Bytes(k), Bytes(r), 0).unwrap();
            }
        }
    };
    const S: u64 = 1_000_000_000;
    for cport in 1..=7 {
        age(cport, 1);
    }
    assert_eq!(w.loader.reclaim().unwrap(), 0);
    age(4, RESET_GRACE_NS);
    assert_eq!(w.loader.reclaim().unwrap(), 2, "the reset one, and its way back");
    age(3, CLOSED_GRACE_NS - 30 * S);
    assert_eq!(w.loader.reclaim().unwrap(), 0, "its backend is in TIME_WAIT");
    age(3, 30 * S);
    assert_eq!(w.loader.reclaim().unwrap(), 2, "the closed one");
    age(7, UDP_IDLE_NS);
    assert_eq!(w.loader.reclaim().unwrap(), 2, "silent datagrams");
    // A machine that has not been up for so long has no flow that is so old.
    let uptime: f64 = std::fs::read_to_string("/proc/uptime")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let mut left = 3;
    if uptime > TCP_IDLE_NS as f64 / 1e9 {
        age(5, TCP_IDLE_NS);
        assert_eq!(w.loader.reclaim().unwrap(), 2, "one that fell silent");
        left = 2;
    }
    assert_eq!((usage(&mut w, "FLOWS_KEPT"), usage(&mut w, "REPLIES_KEPT")), (left, left));
    for cport in 1..=2 {
        uplink(&w, &tcp(cport, ACK)).is(SENT, &["delivered"]);
    }
    assert_eq!(w.loader.live_flows(1).unwrap(), left + 1);
    // What was reclaimed may begin again.
    open_one(&w, 3);
}

#[test]
fn drops_and_new_flows_are_told_of() {
    let mut w = World::new();
    let mut events = w.loader.events().unwrap();
    assert!(w.loader.events().is_err(), "taken once");
    let ifindex = |dev: &str| nix::net::if_::if_nametoindex(dev).unwrap();
    let syn = |cport| Packet::tcp(at(V6.client, cport), at(V6.node, 80), SYN, b"hello").eth(ROUTER, UPLINK);
    let spoofed = Packet::udp(at(V4.b, 5), at(V4.c, 6), b"x").eth(mac(A), GATEWAY_MAC);
    let run = |w: &World, cport| {
        uplink(w, &syn(cport)).is(SENT, &["new_flow", "carried"]);
        w.raw(Program::FromContainer, "mv-a", &spoofed.bytes())
            .is(DROP, &["drop_spoofed_ip"]);
    };
    run(&w, 1);
    assert_eq!(events.next(), None, "nobody watches");
    w.loader.watch(Watch { flows: true, drops: true }).unwrap();
    run(&w, 2);
    let flow = events.next().unwrap();
    assert!([3, 4].contains(&flow.backend), "{flow:?}");
    let want = Event {
        at_ns: flow.at_ns,
        reason: "new_flow",
        dropped: false,
        src: V6.client,
        dst: V6.node,
        sport: 2,
        dport: 80,
        proto: 6,
        service: 1,
        backend: flow.backend,
        len: syn(2).bytes().len() as u32,
        ifindex: ifindex("up0"),
    };
    assert_eq!(flow, want);
    let drop = events.next().unwrap();
    assert!(drop.at_ns >= flow.at_ns && flow.at_ns > 0);
    // It is dropped before anybody looks for its ports.
    let want = Event {
        at_ns: drop.at_ns,
        reason: "drop_spoofed_ip",
        dropped: true,
        src: V4.b,
        dst: V4.c,
        sport: 0,
        dport: 0,
        proto: 0,
        service: 0,
        backend: 0,
        len: spoofed.bytes().len() as u32,
        ifindex: ifindex("mv-a"),
    };
    assert_eq!(drop, want);
    // No IP packet: nothing of the one before it.
    let mut other = spoofed.bytes();
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    w.raw(Program::FromContainer, "mv-a", &other).is(DROP, &["drop_ethertype"]);
    let drop = events.next().unwrap();
    let nothing = std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED);
    assert_eq!(
        (drop.reason, drop.src, drop.dst, drop.proto),
        ("drop_ethertype", nothing, nothing, 0)
    );
    // One of both.
    w.loader.watch(Watch { flows: false, drops: true }).unwrap();
    run(&w, 3);
    assert_eq!(events.next().map(|e| e.reason), Some("drop_spoofed_ip"));
    assert_eq!(events.next(), None);
    w.loader.watch(Watch { flows: true, drops: false }).unwrap();
    run(&w, 4);
    assert_eq!(events.next().map(|e| (e.reason, e.sport)), Some(("new_flow", 4)));
    assert_eq!(events.next(), None);
    // A client's reset of nothing has its ports.
    w.loader.watch(Watch { flows: false, drops: true }).unwrap();
    let rst = Packet::tcp(at(V4.client, 9), at(V4.node, 80), RST, b"");
    uplink(&w, &rst).is(DROP, &["drop_reset"]);
    assert_eq!(events.next().map(|e| (e.sport, e.dport, e.proto)), Some((9, 80, 6)));
    // Full: what is lost is counted, and what is there stays whole.
    let lost = |w: &World| w.loader.counters().unwrap().into_iter().find(|c| c.0 == "events_lost").unwrap().1;
    assert_eq!(lost(&w), 0);
    w.flood(Program::FromContainer, "mv-a", (0..10_000).map(|_| spoofed.bytes()));
    let gone = lost(&w);
    let mut told = 0;
    while let Some(event) = events.next() {
        assert_eq!((event.reason, event.src), ("drop_spoofed_ip", V4.b));
        told += 1;
    }
    assert_eq!(told + gone, 10_000);
    assert!(gone > 0 && told > 1000, "{told} told, {gone} lost");
    w.loader.watch(Watch::default()).unwrap();
    run(&w, 5);
    assert_eq!(events.next(), None);
}
