//! The short way of a kept flow whose backend is on another node: that it is taken, and that it never leads
//! elsewhere than the long one.

mod support;

use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use mesh_core::lb::{Program, Row};
use mesh_ebpf_common::spec;
use support::{
    frame::{ACK, RST, SYN},
    packet::Packet,
    table::{SENT, at},
    world::{A, C, D, DROP, Family, GATEWAY_MAC, INGRESS, Out, PASS, PEER, ROUTER, UPLINK, V4, V6, World, mac, tables},
};

fn uplink(w: &World, p: &Packet) -> Out {
    w.raw(Program::FromUplink, "up0", &p.clone().eth(ROUTER, UPLINK).bytes())
}

/// A flow from the client's port `cport` that both ends were heard of: its packets, and its backend.
fn known(w: &World, f: &Family, cport: u16, udp: bool) -> (Packet, [u8; 6]) {
    let (client, node) = (at(f.client, cport), at(f.node, if udp { 53 } else { 80 }));
    let (first, back, next) = if udp {
        let p = Packet::udp(client, node, b"question");
        (p.clone(), Packet::udp(node, client, b"answer"), p)
    } else {
        let p = |flags| Packet::tcp(client, node, flags, b"");
        (p(SYN), Packet::tcp(node, client, SYN | ACK, b""), p(ACK))
    };
    uplink(w, &first).is(SENT, &["carried", "new_flow"]);
    w.raw(Program::FromOverlay, "mx-1", &back.eth(PEER, INGRESS).bytes())
        .is(SENT, &["reply_sent"]);
    uplink(w, &next).is(SENT, &["carried", "kept"]);
    let to = uplink(w, &next).is(SENT, &["carried"]).packet().eth_dst;
    (next, to)
}

fn each(mut flow: impl FnMut(&Family, u16, bool)) {
    let mut cport = 1000;
    for f in [&V4, &V6] {
        for udp in [false, true] {
            cport += 1;
            flow(f, cport, udp);
        }
    }
}

#[test]
fn a_known_flow_is_followed_without_another_look_for_a_moment() {
    let w = World::new();
    let map = Map::HashMap(MapData::from_pin(w.maps().join(spec::NODE_ADDRS.name)).unwrap());
    let mut addrs: HashMap<_, [u8; 16], u32> = map.try_into().unwrap();
    each(|f, cport, udp| {
        let octets = match f.node {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(ip) => ip.octets(),
        };
        let (p, _) = known(&w, f, cport, udp);
        // Behind the loader's back: only who does not look does not see it. The moment may end just then.
        let unseen = (0..50).any(|_| {
            addrs.insert(octets, 1, 0).unwrap();
            uplink(&w, &p).is(SENT, &["carried"]);
            addrs.remove(&octets).unwrap();
            uplink(&w, &p).verdict == SENT
        });
        assert!(unseen, "{p:?} was not followed by its row");
        let start = Instant::now();
        while uplink(&w, &p).verdict == SENT {
            assert!(start.elapsed() < Duration::from_secs(5), "{p:?} is followed for ever");
        }
        addrs.insert(octets, 1, 0).unwrap();
        uplink(&w, &p).is(SENT, &["carried"]);
    });
}

#[test]
fn a_change_of_the_tables_counts_at_once() {
    let mut w = World::new();
    let t = tables();
    each(|f, cport, udp| {
        let (p, to) = known(&w, f, cport, udp);
        let slot = if to == mac(C) { 3 } else { 4 };
        let backend = t.backends[&slot];
        let port = *t.published.iter().find(|((_, n), _)| *n == if udp { 53 } else { 80 }).unwrap().0;
        let row = t.published[&port];

        w.put(Row::Published(port, None));
        uplink(&w, &p).is(PASS, &["pass"]);
        w.put(Row::Published(port, Some(row)));
        uplink(&w, &p).is(SENT, &["carried"]);

        w.put(Row::NodeAddr(f.node, false));
        uplink(&w, &p).is(PASS, &["pass"]);
        w.put(Row::NodeAddr(f.node, true));
        uplink(&w, &p).is(SENT, &["carried"]);

        // Its number at another place: it is not what the flow was given, and found by the row all the same.
        let moved = mesh_core::lb::Backend {
            mac: mesh_core::Mac([2, 0x6d, 9, 9, 9, 9]),
            ..backend
        };
        w.put(Row::Backend(slot, Some(moved)));
        for _ in 0..2 {
            assert_eq!(uplink(&w, &p).is(SENT, &["carried"]).packet().eth_dst, moved.mac.0);
        }
        w.put(Row::Backend(slot, None));
        let out = uplink(&w, &p);
        if udp {
            let other = if to == mac(C) { mac(D) } else { mac(C) };
            assert_eq!(out.is(SENT, &["carried", "new_flow"]).packet().eth_dst, other);
        } else {
            assert!(out.counted.contains_key("reset_gone"), "{:?}", out.counted);
        }
        w.put(Row::Backend(slot, Some(backend)));
    });
}

#[test]
fn what_is_not_simple_goes_the_long_way() {
    let w = World::new();
    for f in [&V4, &V6] {
        let (p, to) = known(&w, f, 2000, false);
        let bytes = p.clone().eth(ROUTER, UPLINK).bytes();
        // Cut off, and of a header length that no header has.
        let at = if f.v6 { 54 } else { 34 };
        uplink_raw(&w, &bytes[..at + 19], PASS, "pass_malformed");
        let mut short = bytes.clone();
        short[at + 12] = 4 << 4;
        uplink_raw(&w, &short, PASS, "pass_malformed");
        let tagged_as_other: Vec<u8> = [&bytes[..12], &[0x88, 0xcc], &bytes[14..]].concat();
        uplink_raw(&w, &tagged_as_other, PASS, "pass");
        // A reset ends it, and is sent on as what comes after it is.
        let reset = Packet::tcp(at_client(f), at_node(f), RST, b"");
        assert_eq!(uplink(&w, &reset).is(SENT, &["carried"]).packet().eth_dst, to);
        assert_eq!(uplink(&w, &p).is(SENT, &["carried"]).packet().eth_dst, to);
        // Another one on the same ports.
        let syn = Packet::tcp(at_client(f), at_node(f), SYN, b"");
        uplink(&w, &syn).is(SENT, &["carried", "new_flow"]);
    }
}

fn at_client(f: &Family) -> std::net::SocketAddr {
    at(f.client, 2000)
}

fn at_node(f: &Family) -> std::net::SocketAddr {
    at(f.node, 80)
}

fn uplink_raw(w: &World, bytes: &[u8], verdict: i32, counted: &str) {
    w.raw(Program::FromUplink, "up0", bytes).is(verdict, &[counted]);
}

/// At the backend's node: what is seen anew from time to time, and what is not, come to the same.
#[test]
fn a_carried_flow_is_delivered_alike_with_and_without_a_look() {
    let mut w = World::new();
    for (f, cport) in [(&V4, 3000), (&V6, 3001)] {
        let p = |flags| Packet::tcp(at(f.client, cport), at(f.node2, 8080), flags, b"data");
        let carried = |w: &World, flags, peer| w.raw(Program::FromOverlay, "mx-1", &p(flags).eth(peer, mac(A)).bytes());
        let back = Packet::tcp(at(f.a, 8000), at(f.client, cport), SYN | ACK, b"").eth(mac(A), GATEWAY_MAC);
        let answered = |w: &World| {
            w.raw(Program::FromContainer, "mv-a", &back.bytes())
                .is(SENT, &["reply_carried"])
                .packet()
        };
        carried(&w, SYN, PEER).is(SENT, &["delivered"]);
        assert_eq!(answered(&w).eth_dst, PEER);
        carried(&w, ACK, PEER).is(SENT, &["delivered", "kept"]);
        let first = carried(&w, ACK, PEER).is(SENT, &["delivered"]).packet();
        assert_eq!((first.dst, first.src), (f.a, f.client));
        let start = Instant::now();
        // More than a tick of any kernel's clock.
        while start.elapsed() < Duration::from_millis(1500) {
            assert_eq!(carried(&w, ACK, PEER).is(SENT, &["delivered"]).packet(), first);
        }
        // The address asked has moved to another node: the answer follows at once.
        let other = [2, 0x6d, 172, 30, 0, 9];
        w.put(Row::Peer(mesh_core::Mac(other), true));
        assert_eq!(carried(&w, ACK, other).is(SENT, &["delivered"]).packet(), first);
        assert_eq!(answered(&w).eth_dst, other);
        w.put(Row::Peer(mesh_core::Mac(other), false));
        carried(&w, ACK, other).is(DROP, &["drop_unknown_peer"]);
        // A reset, then another flow on the same ports.
        carried(&w, RST, PEER).is(SENT, &["delivered"]);
        carried(&w, SYN, PEER).is(SENT, &["delivered"]);
    }
}
