//! Lists of backends as the programs read them, and flows across an upgrade.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::maps::{HashMap, Map, MapData, PerCpuArray, Queue};
use mesh_core::{
    action::BpfAction,
    lb::{Method, Pool, Row},
};
use mesh_ebpf_common::{
    flow::hash_flow,
    rows::{Addr, Flow, FlowKey, TCP},
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
    for set in 1000..1100 {
        w.put(Row::Service(set, Some(table(0))));
    }
    assert_eq!(usage(&mut w, "MEMBERS"), before + 100 * 512);
    w = w.reopen();
    assert_eq!(w.loader.observe().unwrap().0.services[&1099], table(0));
    // More than what is left has room for, if nothing came back.
    for round in 1..=40 {
        w.put(Row::Service(1000, Some(table(round))));
    }
    w = w.reopen();
    assert_eq!(w.loader.observe().unwrap().0.services[&1000], table(40));
    // One that finds no room leaves no part behind.
    let long = |parts: u32| Row::Service(1200, Some(turn(&(0..parts * 32).map(|i| 1 + i % 5).collect::<Vec<_>>())));
    w.loader.apply(&BpfAction::Row(long(14_800))).unwrap_err();
    w.put(long(14_000));
    w.put(Row::Service(1200, None));
    for set in 1000..1100 {
        w.put(Row::Service(set, None));
    }
    assert_eq!(usage(&mut w, "MEMBERS"), before);
}

#[test]
fn a_client_comes_back_to_its_backend_wherever_that_is_in_the_list() {
    let mut w = World::new();
    let with = |list: &[u32]| {
        Row::Service(
            1,
            Some(Pool {
                affinity_secs: 60,
                ..turn(list)
            }),
        )
    };
    // Numbers that nobody has are passed over.
    let far = |place: usize| {
        let mut list = vec![1000; 70];
        (list[0], list[place]) = (4, 3);
        list
    };
    w.put(with(&[3]));
    assert_eq!(open(&w, 1), mac(C));
    for (port, place) in (2..).zip([1, 7, 8, 31, 32, 63]) {
        w.put(with(&far(place)));
        assert_eq!(open(&w, port), mac(C), "place {place}");
    }
    // In lists that are in the service's own row.
    w.put(with(&[1000, 4, 3]));
    assert_eq!(open(&w, 100), mac(C));
    w.put(with(&[1000, 1000, 1000, 1000, 1000, 1000, 4, 3]));
    assert_eq!(open(&w, 101), mac(C));
    w.put(with(&[4]));
    assert_eq!(open(&w, 102), mac(D));
}

#[test]
fn turns_go_on_when_the_list_changes() {
    let mut w = World::new();
    let all = turn(&[3, 4, 3, 4]);
    assert_eq!(open(&w, 1), mac(C));
    w.put(Row::Service(1, Some(all)));
    assert_eq!((open(&w, 2), open(&w, 3)), (mac(D), mac(C)));
}

/// Of every length at which a list is kept another way.
#[test]
fn lists_of_all_lengths() {
    let mut w = World::new();
    let mut port = 0;
    for len in [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 8, 1] {
        let list: Vec<u32> = (0..len).map(|i| 3 + (i + i / 5) % 2).collect();
        w.put(Row::Service(1, Some(turn(&list))));
        w = w.reopen();
        assert_eq!(w.loader.observe().unwrap().0.services[&1].list, list);
        let mut seen = BTreeMap::new();
        for _ in 0..len {
            port += 1;
            *seen.entry(open(&w, port)).or_insert(0) += 1;
        }
        let of = |slot| list.iter().filter(|s| **s == slot).count();
        assert_eq!(seen.get(&mac(C)).copied().unwrap_or(0), of(3), "{list:?}");
        assert_eq!(seen.get(&mac(D)).copied().unwrap_or(0), of(4), "{list:?}");
    }
    assert_eq!(usage(&mut w, "MEMBERS"), 0);
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

fn pinned(w: &World, name: &str) -> MapData {
    MapData::from_pin(w.maps().join(name)).unwrap()
}

/// Rows of `STATS` that are nobody's.
fn free(w: &World) -> BTreeSet<u32> {
    let mut queue: Queue<_, u32> = Map::Queue(pinned(w, "STAT_FREE")).try_into().unwrap();
    let mut rows = Vec::new();
    while let Ok(row) = queue.pop(0) {
        rows.push(row);
    }
    for row in &rows {
        queue.push(row, 0).unwrap();
    }
    let once: BTreeSet<u32> = rows.iter().copied().collect();
    assert_eq!(once.len(), rows.len(), "one is there twice");
    once
}

#[test]
fn counters_that_a_flow_counts_in_are_not_given_to_another() {
    let mut w = World::new();
    // The key is a `Pair`.
    let mut pairs: HashMap<_, [u32; 2], u32> = Map::HashMap(pinned(&w, "STAT_ROWS")).try_into().unwrap();
    let put = |w: &mut World, list: &[u32]| {
        [1, 1 | mesh_core::lb::V6]
            .into_iter()
            .for_each(|set| w.put(Row::Service(set, Some(turn(list)))))
    };
    let of = |w: &World, backend| {
        w.loader
            .stats()
            .unwrap()
            .into_iter()
            .find(|s| (s.service, s.backend) == (1, backend))
    };
    let more = |w: &World| {
        w.client(&Frame::tcp((CLIENT, 1), (NODE, 80), ACK, b"")).is(SENT, &["carried"]);
    };
    assert_eq!(open(&w, 1), mac(C));
    let row = pairs.get(&[1, 3], 0).unwrap();
    put(&mut w, &[4]);
    for _ in 0..3 {
        w.loader.reclaim().unwrap();
        assert_eq!(of(&w, 3), None);
        assert!(!free(&w).contains(&row));
        more(&w);
    }
    // It returns, and its count with it.
    put(&mut w, &[3, 4]);
    w.loader.reclaim().unwrap();
    assert_eq!(pairs.get(&[1, 3], 0).unwrap(), row);
    assert_eq!(of(&w, 3).map(|s| (s.flows, s.packets)), Some((1, 4)));
    // The next loader knows nothing of the pair, and sees the flow.
    put(&mut w, &[4]);
    w = w.reopen();
    w.loader.reclaim().unwrap();
    assert!(!free(&w).contains(&row));
    more(&w);
    // As a program does that has read the list before it changed.
    let taken = *free(&w).first().unwrap();
    let mut queue: Queue<_, u32> = Map::Queue(pinned(&w, "STAT_FREE")).try_into().unwrap();
    let others: Vec<u32> = std::iter::from_fn(|| queue.pop(0).ok()).filter(|row| *row != taken).collect();
    for row in &others {
        queue.push(row, 0).unwrap();
    }
    pairs.insert([1, 3], taken, 0).unwrap();
    put(&mut w, &[3]);
    put(&mut w, &[4]);
    w.loader.reclaim().unwrap();
    assert_eq!(of(&w, 3), None);
    assert!(free(&w).contains(&taken), "no flow counts in it");
    // The flow is over.
    let mut flows: HashMap<_, [u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()]> =
        Map::LruHashMap(pinned(&w, "FLOWS")).try_into().unwrap();
    for key in flows.keys().map(Result::unwrap).collect::<Vec<_>>() {
        flows.remove(&key).unwrap();
    }
    w.loader.reclaim().unwrap();
    assert_eq!(free(&w).len(), 32_767, "all but that of those that have no room");
    let stats: PerCpuArray<_, [u64; 5]> = Map::PerCpuArray(pinned(&w, "STATS")).try_into().unwrap();
    assert!(stats.get(&row, 0).unwrap().iter().all(|s| *s == [0; 5]));
}

#[test]
fn flows_of_versions_3_and_4_go_on() {
    for former in ["v3", "v4"] {
        flows_go_on(former);
    }
}

fn flows_go_on(former: &str) {
    let w = World::new();
    let syn = |port| Frame::tcp((CLIENT, port), (NODE, 8080), SYN, b"");
    let ack = |port| Frame::tcp((CLIENT, port), (NODE, 8080), ACK, b"");
    let back = Frame::tcp((A, 8000), (CLIENT, 1), SYN | ACK, b"").eth(mac(A), GATEWAY_MAC);
    w.client(&syn(1)).is(SENT, &["new_flow", "delivered"]);
    w.raw(mesh_core::lb::Program::FromContainer, "mv-a", &back.bytes())
        .is(SENT, &["reply_sent"]);
    w.client(&ack(1)).is(SENT, &["delivered", "kept"]);
    w.client(&syn(2)).is(SENT, &["new_flow", "delivered"]);
    let mut w = w.upgrade(former);
    w.fill();
    w.loader.observe().unwrap();
    assert_eq!(["FLOWS", "FLOWS_KEPT", "REPLIES", "REPLIES_KEPT"].map(|m| usage(&mut w, m)), [1; 4]);
    for port in [1, 2] {
        w.client(&ack(port)).is(SENT, &["delivered"]);
    }
    w.raw(mesh_core::lb::Program::FromContainer, "mv-a", &back.bytes())
        .is(SENT, &["reply_sent"]);
    let stats = w.loader.stats().unwrap();
    let its = stats.iter().find(|s| (s.service, s.backend) == (2, 1)).unwrap();
    assert_eq!((its.packets, its.reply_packets), (2, 1));
}
