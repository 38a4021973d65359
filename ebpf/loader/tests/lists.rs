//! Lists of backends as the programs read them, counters that are given out with the first flow, and
//! both across an upgrade.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use std::{collections::BTreeMap, net::IpAddr};

use mesh_core::lb::{Method, Pool, Row};
use mesh_ebpf_common::{
    flow::hash_flow,
    rows::{Addr, FlowKey, TCP},
};
use mesh_loader::Stat;
use support::{
    frame::{ACK, Frame, SYN},
    world::{A, C, CLIENT, D, GATEWAY_MAC, NODE, REDIRECT, World, mac, turn},
};

/// bpf_redirect and its like.
const SENT: i32 = REDIRECT;

fn open(w: &World, port: u16) -> [u8; 6] {
    let out = w.client(&Frame::tcp((CLIENT, port), (NODE, 80), SYN, b""));
    out.is(SENT, &["carried", "new_flow"]);
    out.bytes[..6].try_into().unwrap()
}

fn usage(w: &mut World, map: &str) -> u64 {
    let all = w.loader.usage().unwrap();
    all.iter().find(|u| u.map == map).unwrap().rows
}

#[test]
fn by_a_table() {
    let mut w = World::new();
    // Long enough for places of one byte, and of two.
    for members in [2u32, 300] {
        // Only two of them exist; an entry that names another is passed over.
        let list: Vec<u32> = (0..16_381).map(|i: u32| 3 + (i * 7 + i / 11) % members).collect();
        w.put(Row::Service(
            1,
            Some(Pool {
                method: Method::Flow,
                ..turn(&list)
            }),
        ));
        w = w.reopen();
        assert_eq!(w.loader.observe().unwrap().0.services[&1].list, list);
        let macs = BTreeMap::from([(3, mac(C)), (4, mac(D))]);
        let mut met = 0;
        for port in (1000..1400).map(|n| n + members as u16 * 100) {
            let key = FlowKey {
                src: IpAddr::from(CLIENT).into(),
                dst: Addr::default(),
                sport: port,
                dport: 80,
                proto: TCP,
                zero: [0; 3],
            };
            if let Some(to) = macs.get(&list[hash_flow(&key) as usize % list.len()]) {
                assert_eq!(open(&w, port), *to);
                met += 1;
            }
        }
        assert!(met > 0);
    }
}

#[test]
fn room_for_many_tables_and_their_changes() {
    let mut w = World::new();
    let before = usage(&mut w, "MEMBERS");
    let table = |by: u32| Pool {
        method: Method::Flow,
        ..turn(&(0..16_381).map(|i| 1 + (i / 3 + by) % 5).collect::<Vec<_>>())
    };
    for round in 0..2 {
        for set in 1000..1200 {
            w.put(Row::Service(set, Some(table(round))));
        }
    }
    assert_eq!(usage(&mut w, "MEMBERS"), before + 200 * (1 + 3 + 2048));
    w = w.reopen();
    assert_eq!(w.loader.observe().unwrap().0.services[&1199], table(1));
    // More than what is left has room for, if nothing came back.
    for round in 0..150 {
        w.put(Row::Service(1000, Some(table(round))));
    }
    for set in 1000..1200 {
        w.put(Row::Service(set, None));
    }
    assert_eq!(usage(&mut w, "MEMBERS"), before);
}

#[test]
fn turns_go_on_when_the_list_changes() {
    let mut w = World::new();
    let all = turn(&[3, 4, 3, 4]);
    assert_eq!(open(&w, 1), mac(C));
    w.put(Row::Service(1, Some(all)));
    assert_eq!((open(&w, 2), open(&w, 3)), (mac(D), mac(C)));
}

#[test]
fn counters_are_given_out_with_the_first_flow() {
    let mut w = World::new();
    let of = |w: &World| w.loader.stats().unwrap().into_iter().skip(1).collect::<Vec<_>>();
    assert_eq!(of(&w), []);
    open(&w, 1);
    let stat = |backend, flows| Stat {
        service: 1,
        backend,
        flows,
        packets: flows,
        bytes: 54 * flows,
        ..Stat::default()
    };
    assert_eq!(of(&w), [stat(3, 1)]);
    open(&w, 2);
    open(&w, 3);
    assert_eq!(of(&w), [stat(3, 2), stat(4, 1)]);
    w = w.reopen();
    assert_eq!(of(&w), [stat(3, 2), stat(4, 1)]);
    w.put(Row::Service(1, Some(turn(&[4]))));
    assert_eq!(of(&w).len(), 2, "the set of IPv6 still has it");
    w.put(Row::Service(1 | mesh_core::lb::V6, Some(turn(&[4]))));
    assert_eq!(of(&w), [stat(4, 1)]);
}

#[test]
fn flows_of_version_3_go_on() {
    let w = World::new();
    let syn = |port| Frame::tcp((CLIENT, port), (NODE, 8080), SYN, b"");
    let ack = |port| Frame::tcp((CLIENT, port), (NODE, 8080), ACK, b"");
    let back = Frame::tcp((A, 8000), (CLIENT, 1), SYN | ACK, b"").eth(mac(A), GATEWAY_MAC);
    w.client(&syn(1)).is(SENT, &["new_flow", "delivered"]);
    w.raw(mesh_core::lb::Program::FromContainer, "mv-a", &back.bytes())
        .is(SENT, &["reply_sent"]);
    w.client(&ack(1)).is(SENT, &["delivered", "kept"]);
    w.client(&syn(2)).is(SENT, &["new_flow", "delivered"]);
    let mut w = w.upgrade("v3");
    w.fill();
    w.loader.observe().unwrap();
    assert_eq!(["FLOWS", "FLOWS_KEPT", "REPLIES", "REPLIES_KEPT"].map(|m| usage(&mut w, m)), [1; 4]);
    for port in [1, 2] {
        w.client(&ack(port)).is(SENT, &["delivered"]);
    }
    w.raw(mesh_core::lb::Program::FromContainer, "mv-a", &back.bytes())
        .is(SENT, &["reply_sent"]);
    let stats = w.loader.stats().unwrap();
    assert_eq!(stats.len(), 2);
    assert_eq!(
        (stats[1].service, stats[1].backend, stats[1].packets, stats[1].reply_packets),
        (2, 1, 2, 1)
    );
}
