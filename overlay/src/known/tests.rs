use mesh_core::Id;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags};

use super::*;

const NOARP: u16 = 0x40;
const REACHABLE: u16 = 0x02;
const PERMANENT: u16 = 0x80;

fn device(index: u32, name: &str) -> Device {
    Device {
        index,
        name: name.into(),
        alias: mesh_core::desired::mark(Id::from_bits(1), Id::from_bits(2)),
        ..Device::default()
    }
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn vtep(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn entry(dev: &str, n: u8, to: Option<u8>) -> Fdb {
    Fdb {
        dev: dev.into(),
        mac: mac(n),
        vtep: to.map(vtep),
    }
}

fn neighbour(dev: &str, n: u8, m: u8) -> Neigh {
    Neigh {
        dev: dev.into(),
        ip: vtep(n),
        mac: mac(m),
    }
}

/// What the kernel tells of an entry.
fn told(index: u32, n: u8, to: Option<u8>) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = AddressFamily::Bridge;
    m.header.ifindex = index;
    m.attributes.push(NeighbourAttribute::LinkLayerAddress(mac(n).0.to_vec()));
    match to {
        Some(to) => {
            m.header.state = NeighbourState::Other(NOARP | PERMANENT);
            m.header.flags = NeighbourFlags::Own;
            m.attributes.push(NeighbourAttribute::Destination(vtep(to).into()));
        }
        None => {
            m.header.state = NeighbourState::Other(NOARP | REACHABLE);
            m.attributes.push(NeighbourAttribute::Controller(9));
        }
    }
    m
}

fn told_neigh(index: u32, n: u8, m: u8, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = state;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 0, 2, n].into())),
        NeighbourAttribute::LinkLayerAddress(mac(m).0.to_vec()),
    ];
    message
}

/// mx-1 (4) with an entry of its own and one of its bridge's, mb-1 (5) with a neighbour.
fn known() -> Known {
    let (vxlan, bridge) = (device(4, "mx-1"), device(5, "mb-1"));
    let known = Known::default();
    known.learn(
        &[(4, &vxlan), (5, &bridge)].into(),
        9,
        &[entry("mx-1", 1, Some(1)), entry("mx-1", 1, None)].into(),
        &[neighbour("mb-1", 1, 1)].into(),
    );
    known
}

fn rows(known: &Known, of: Option<[&BTreeSet<Fdb>; 2]>) -> Option<(Vec<Fdb>, Vec<Neigh>)> {
    let (vxlan, bridge) = (device(4, "mx-1"), device(5, "mb-1"));
    let (fdb, neighs) = known.rows(&[(4, &vxlan), (5, &bridge)].into(), 9, of)?;
    Some((fdb.into_iter().collect(), neighs.into_iter().collect()))
}

#[test]
fn what_meshd_does_itself_agrees() {
    let known = known();
    for (e, index) in [(entry("mx-1", 2, Some(1)), 4), (entry("mx-1", 1, Some(2)), 4)] {
        known.put(index, &e);
    }
    assert_eq!(known.agrees(&told(4, 2, Some(1)), false), Some(true));
    assert_eq!(
        known.agrees(&told(4, 1, Some(2)), false),
        Some(true),
        "it took the place of the former"
    );
    known.remove(4, &entry("mx-1", 2, Some(1)));
    assert_eq!(known.agrees(&told(4, 2, Some(1)), true), Some(true));
    known.put_neigh(5, &neighbour("mb-1", 2, 2));
    assert_eq!(known.agrees(&told_neigh(5, 2, 2, NeighbourState::Permanent), false), Some(true));
    known.remove_neigh(5, &neighbour("mb-1", 2, 2));
    known.compact();
    assert_eq!(known.agrees(&told_neigh(5, 2, 2, NeighbourState::Failed), true), Some(true));
    let all = (
        vec![entry("mx-1", 1, None), entry("mx-1", 1, Some(2))],
        vec![neighbour("mb-1", 1, 1)],
    );
    assert_eq!(rows(&known, None), Some(all));
    // A device that goes takes its rows along; the kernel tells of each.
    known.forget(4);
    assert_eq!(known.agrees(&told(4, 1, Some(2)), true), Some(true));
    assert_eq!(rows(&known, None).unwrap().0, []);
}

#[test]
fn what_others_do_ends_it() {
    let learned = {
        let mut m = told(4, 1, None);
        m.header.state = NeighbourState::Other(REACHABLE);
        m
    };
    let cases = [
        (told(4, 1, Some(1)), true, "removed"),
        (told(4, 1, None), true, "removed from the bridge"),
        (told(4, 1, Some(3)), false, "moved"),
        (told(4, 3, Some(1)), false, "added"),
        (told(5, 3, None), false, "added to the bridge"),
        (told(12, 3, None), false, "added to a device that may be ours by now"),
        (learned, false, "learned"),
        (told_neigh(5, 1, 1, NeighbourState::Stale), false, "not permanent any more"),
        (told_neigh(5, 1, 2, NeighbourState::Permanent), false, "another Ethernet address"),
        (told_neigh(5, 1, 1, NeighbourState::Failed), true, "a neighbour removed"),
        (told_neigh(5, 7, 7, NeighbourState::Permanent), false, "a neighbour added"),
    ];
    for (event, removed, why) in cases {
        let known = known();
        assert_eq!(known.agrees(&event, removed), Some(false), "{why}");
        assert_eq!(rows(&known, None), None, "{why}");
        assert_eq!(known.agrees(&event, removed), None, "{why}");
    }
}

#[test]
fn what_concerns_nobody_is_nothing() {
    let known = known();
    for (event, removed) in [
        // A foreign bridge, VXLAN device, neighbour.
        (told(7, 1, None), false),
        (told(7, 1, None), true),
        (told(7, 2, Some(2)), false),
        (told_neigh(7, 9, 9, NeighbourState::Permanent), false),
        (told_neigh(5, 9, 9, NeighbourState::Reachable), false),
        (told_neigh(5, 9, 9, NeighbourState::Failed), true),
        // What was told before it was read.
        (told(4, 8, Some(8)), true),
        (told(4, 1, Some(1)), false),
    ] {
        assert_eq!(known.agrees(&event, removed), Some(true), "{event:?}");
    }
}

#[test]
fn some_rows_by_address() {
    let known = known();
    known.put(4, &entry("mx-1", 2, Some(1)));
    let (one, other) = (
        [entry("mx-1", 1, Some(9))].into(),
        [entry("mx-1", 3, Some(1)), entry("gone", 1, None)].into(),
    );
    let (fdb, neighs) = rows(&known, Some([&one, &other])).unwrap();
    assert_eq!(fdb, [entry("mx-1", 1, Some(1))], "to another VTEP than asked for");
    assert_eq!(neighs, [neighbour("mb-1", 1, 1)], "all of them");
}
