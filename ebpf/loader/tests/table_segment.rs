//! Row by row: what goes from node to node of a segment without encapsulation.
#![expect(clippy::unwrap_used, reason = "test")]
mod support;

use mesh_core::{
    Mac,
    lb::{self, Program, Row},
};
use support::{
    frame::{ACK, SYN},
    packet::Packet,
    table::{Is, LEFT, SENT, Same, Table, at},
    world::{A, C, DROP, E, Family, GATEWAY_MAC, INGRESS, INGRESS_IP, ROUTER, UPLINK, V4, V6, mac, tables},
};

/// The other node's Ethernet address on the segment.
const NEIGHBOR: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Endpoint A's network is not encapsulated between nodes of the segment. C is on another node of it, D on one that
/// is elsewhere.
fn table() -> Table {
    let mut t = Table::new();
    set_local(&mut t, true);
    t.w.put(Row::Neighbor(Mac(NEIGHBOR), true));
    for range in ["10.1.0.0/24", "fd00:1::/64"] {
        t.w.put(Row::Range(range.parse().unwrap(), Some(4097)));
    }
    t.w.put(Row::Range("10.3.0.0/24".parse().unwrap(), Some(4099)));
    for f in [V4, V6] {
        let row = lb::Remote {
            network: 4097,
            node: Mac(NEIGHBOR),
            own: Mac(UPLINK),
        };
        t.w.put(Row::Remote(f.c, Some(row)));
    }
    t
}

fn set_local(t: &mut Table, segment: bool) {
    let row = lb::Local {
        segment,
        ..tables().locals["mv-a"].clone()
    };
    t.w.put(Row::Local("mv-a".into(), Some(Box::new(row))));
}

/// From the uplink, sent by `from`.
fn arrives(t: &mut Table, name: &str, p: &Packet, from: [u8; 6], verdict: i32, counted: &[&str]) {
    let bytes = p.clone().eth(from, UPLINK).bytes();
    let out = t.w.raw(Program::FromUplink, "up0", &bytes);
    // Of the underlay's Ethernet addresses the container sees nothing.
    let want = if verdict == SENT {
        Is(p.clone().eth(GATEWAY_MAC, mac(A)))
    } else {
        Same
    };
    t.row(name, out, &bytes, verdict, counted, want);
}

fn sent(t: &mut Table, f: &Family) {
    let by_segment = &["segment_sent"];
    let out = |p: &Packet| p.clone().eth(UPLINK, NEIGHBOR);
    let p = Packet::tcp(at(f.a, 1), at(f.c, 2), SYN, b"");
    t.station("to a node of the segment", &p, mac(C), SENT, by_segment, Is(out(&p)));
    t.station("by any Ethernet address", &p, [2, 0, 0, 0, 7, 7], SENT, by_segment, Is(out(&p)));
    for part in Packet::udp(at(f.a, 1), at(f.c, 2), &[0; 64]).split(32, 8) {
        t.station("a fragment", &part, mac(C), SENT, by_segment, Is(out(&part)));
    }
    let gre = Packet::new(47, f.a, f.c, vec![0; 40]);
    t.station("GRE", &gre, mac(C), SENT, by_segment, Is(out(&gre)));
    let spoofed = Packet::tcp(at(f.b, 1), at(f.c, 2), SYN, b"");
    t.station("with another's address", &spoofed, mac(C), DROP, &["drop_spoofed_ip"], Same);
    let p = Packet::tcp(at(f.a, 1), at(f.d, 2), SYN, b"");
    t.station("to a node elsewhere", &p, mac(C), SENT, &["direct_remote"], Same);
    // The Ethernet address is one of its network, the IP address another network's.
    let other = lb::Remote {
        network: 4098,
        node: Mac(NEIGHBOR),
        own: Mac(UPLINK),
    };
    t.w.put(Row::Remote(f.router, Some(other)));
    let p = Packet::tcp(at(f.a, 1), at(f.router, 2), SYN, b"");
    t.station("to another network", &p, mac(C), SENT, &["direct_remote"], Same);
    t.w.put(Row::Remote(f.router, None));
    let p = Packet::tcp(at(f.b, 1), at(f.c, 2), SYN, b"").eth(mac([10, 1, 0, 12]), mac(C));
    t.bytes(
        "from an endpoint whose network is encapsulated",
        Program::FromContainer,
        "mv-b",
        &p.bytes(),
        SENT,
        &["direct_remote"],
    );
}

fn got(t: &mut Table, f: &Family) {
    let p = Packet::tcp(at(f.c, 2), at(f.a, 1), SYN | ACK, b"");
    arrives(t, "to an endpoint here", &p, NEIGHBOR, SENT, &["segment_arrived"]);
    // 80 is a published port, too.
    let p = Packet::tcp(at(f.c, 2), at(f.a, 80), SYN, b"");
    arrives(t, "to a published port's number", &p, NEIGHBOR, SENT, &["segment_arrived"]);
    for part in Packet::udp(at(f.c, 2), at(f.a, 1), &[0; 64]).split(32, 8) {
        arrives(t, "a fragment", &part, NEIGHBOR, SENT, &["segment_arrived"]);
    }
    let ping = Packet::icmp(f.c, f.a, if f.v6 { 128 } else { 8 }, 0, &[0; 8]);
    arrives(t, "a ping", &ping, NEIGHBOR, SENT, &["segment_arrived"]);
    let gre = Packet::new(47, f.c, f.a, vec![0; 40]);
    arrives(t, "GRE", &gre, NEIGHBOR, SENT, &["segment_arrived"]);
    arrives(t, "from no node", &p, ROUTER, LEFT, &["pass"]);
    let to_b = Packet::tcp(at(f.c, 2), at(f.b, 1), SYN, b"");
    arrives(t, "to an endpoint that is gone", &to_b, NEIGHBOR, DROP, &["drop_unknown_endpoint"]);
    arrives(t, "to that, from no node", &to_b, ROUTER, LEFT, &["pass"]);
    let routed = Packet::tcp(at(f.client, 2), at(f.a, 1), SYN, b"");
    arrives(t, "what a process of that node sends there", &routed, NEIGHBOR, LEFT, &["pass"]);
    let host = Packet::tcp(at(f.client, 2), at(f.router, 22), SYN, b"");
    arrives(t, "what that node routes", &host, NEIGHBOR, LEFT, &["pass"]);
    if !f.v6 {
        // Whether such packets get here: on to the ingress device, as if it had come in there.
        let ping = Packet::icmp([172, 30, 0, 2].into(), INGRESS_IP.into(), 8, 0, &[0; 8]);
        let bytes = ping.clone().eth(NEIGHBOR, UPLINK).bytes();
        let out = t.w.raw(Program::FromUplink, "up0", &bytes);
        let asked = ping.clone().eth(NEIGHBOR, INGRESS);
        t.row("a question of a node", out, &bytes, SENT, &["segment_arrived"], Is(asked));
        arrives(t, "a stranger's", &ping, ROUTER, LEFT, &["pass"]);
    }
    let own = Packet::tcp(at(f.client, 2), at(f.node, 22), SYN, b"");
    arrives(t, "to the node itself", &own, NEIGHBOR, LEFT, &["pass"]);
}

/// A VIP's flow: translated where it leaves, and back where its answer arrives.
fn vip(t: &mut Table, f: &Family) {
    t.w.put(Row::Service(if f.v6 { 1 | lb::V6 } else { 1 }, Some(support::world::turn(&[3]))));
    let q = Packet::udp(at(f.a, 40_000), at(f.vip, 5300), b"question");
    let asked = Packet::udp(at(f.a, 40_000), at(f.c, 5300), b"question").eth(UPLINK, NEIGHBOR);
    let counted = &["new_flow", "vip_forwarded", "segment_sent"];
    t.container("a VIP's backend there", &q, SENT, counted, Is(asked));
    let answer = Packet::udp(at(f.c, 5300), at(f.a, 40_000), b"answer");
    let bytes = answer.eth(NEIGHBOR, UPLINK).bytes();
    let out = t.w.raw(Program::FromUplink, "up0", &bytes);
    let shown = Packet::udp(at(f.vip, 5300), at(f.a, 40_000), b"answer").eth(GATEWAY_MAC, mac(A));
    t.row("and its answer", out, &bytes, SENT, &["vip_reply", "segment_arrived"], Is(shown));
}

#[test]
fn segments() {
    let mut t = table();
    for f in [V4, V6] {
        t.family(&f);
        sent(&mut t, &f);
        got(&mut t, &f);
        vip(&mut t, &f);
    }
    // An endpoint of a network that is encapsulated is not reached so.
    let p = Packet::tcp(at(V4.c, 2), at(std::net::IpAddr::from(E), 1), SYN, b"");
    arrives(&mut t, "to another network's endpoint", &p, NEIGHBOR, LEFT, &["pass"]);
    let p = Packet::tcp(at([10, 3, 0, 7].into(), 2), at(V4.a, 1), SYN, b"");
    arrives(&mut t, "from another network", &p, NEIGHBOR, LEFT, &["pass"]);
    let p = Packet::tcp(at(V4.c, 2), at(V4.a, 1), SYN, b"");
    t.w.put(Row::Neighbor(Mac(NEIGHBOR), false));
    arrives(&mut t, "from a node that is gone", &p, NEIGHBOR, LEFT, &["pass"]);
    t.w.put(Row::Neighbor(Mac(NEIGHBOR), true));
    // A loader that starts anew knows them, also if the one before was killed between two rows.
    let index = nix::net::if_::if_nametoindex("mv-a").unwrap();
    t.w.lose_address(V4.a, index + 1);
    let mut t = t.reopened();
    assert_eq!(t.w.loader.observe().unwrap().0.remotes.len(), 2);
    arrives(&mut t, "after a restart", &p, NEIGHBOR, SENT, &["segment_arrived"]);
    for f in [V4, V6] {
        t.w.put(Row::Remote(f.c, None));
    }
    set_local(&mut t, false);
    arrives(&mut t, "to a network that is encapsulated now", &p, NEIGHBOR, LEFT, &["pass"]);
    let p = Packet::tcp(at(V4.a, 1), at(V4.c, 2), SYN, b"").eth(mac(A), GATEWAY_MAC);
    t.bytes("by the gateway", Program::FromContainer, "mv-a", &p.bytes(), LEFT, &["pass_bridge"]);
    t.finish(48);
}
