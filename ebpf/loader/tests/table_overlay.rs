//! Row by row: from_overlay.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use std::net::IpAddr;

use mesh_core::{
    lb::{self, Program, Row},
    objects::Protocol,
};
use support::{
    frame::{ACK, FIN, RST, SYN},
    packet::Packet,
    table::{Is, LEFT, Reset, SENT, Same, Table, Unreachable, at, neighbor},
    world::{A, D, DROP, E, Family, GATEWAY_MAC, INGRESS, INGRESS_IP, INGRESS_IP6, OTHER_IP, OTHER_IP6, PEER, V4, V6, mac, turn},
};

/// A client's packet as endpoint A gets it.
fn handed(p: &Packet, f: &Family, cport: u16, port: u16) -> Packet {
    p.clone().moved(at(f.client, cport), at(f.a, port)).hop().eth(GATEWAY_MAC, mac(A))
}

fn carried(t: &mut Table, f: &Family) {
    let tcp = |cport, flags| Packet::tcp(at(f.client, cport), at(f.node2, 8080), flags, b"data");
    let back = |cport, flags| Packet::tcp(at(f.a, 8000), at(f.client, cport), flags, b"answer");
    let sent = |cport, flags| {
        back(cport, flags)
            .moved(at(f.node2, 8080), at(f.client, cport))
            .hop()
            .eth(INGRESS, PEER)
    };
    let here = &["delivered"];
    // The choice is the entry's, and counted there.
    t.carried("a SYN", &tcp(1, SYN), A, SENT, here, Is(handed(&tcp(1, SYN), f, 1, 8000)));
    t.carried("again", &tcp(1, SYN), A, SENT, here, Is(handed(&tcp(1, SYN), f, 1, 8000)));
    t.container("its reply", &back(1, SYN | ACK), SENT, &["reply_carried"], Is(sent(1, SYN | ACK)));
    t.carried(
        "both heard",
        &tcp(1, ACK),
        A,
        SENT,
        &["delivered", "kept"],
        Is(handed(&tcp(1, ACK), f, 1, 8000)),
    );
    t.carried(
        "closes",
        &tcp(1, FIN | ACK),
        A,
        SENT,
        here,
        Is(handed(&tcp(1, FIN | ACK), f, 1, 8000)),
    );
    t.container(
        "backend closes",
        &back(1, FIN | ACK),
        SENT,
        &["reply_carried"],
        Is(sent(1, FIN | ACK)),
    );
    t.carried("opens anew", &tcp(1, SYN), A, SENT, here, Is(handed(&tcp(1, SYN), f, 1, 8000)));
    t.carried("resets", &tcp(1, RST), A, SENT, here, Is(handed(&tcp(1, RST), f, 1, 8000)));
    t.carried(
        "mid-flow, not known",
        &tcp(2, ACK),
        A,
        SENT,
        here,
        Is(handed(&tcp(2, ACK), f, 2, 8000)),
    );
    t.carried("lifetime over", &Packet { ttl: 1, ..tcp(2, ACK) }, A, DROP, &["drop_ttl"], Same);
    // The same client, by its own node: another way back.
    let udp = |data: &[u8]| Packet::udp(at(f.client, 3), at(f.node, 8080), data);
    t.carried("datagram", &udp(b"q"), A, SENT, here, Is(handed(&udp(b"q"), f, 3, 5300)));
    let bare = udp(b"q").unsummed();
    t.carried("without a checksum", &bare, A, SENT, here, Is(handed(&bare, f, 3, 5300)));
    let (parts, moved) = (udp(&[4; 200]).split(64, 5), handed(&udp(&[4; 200]), f, 3, 5300).split(64, 5));
    t.carried("orphan", &parts[1], A, DROP, &["drop_fragment"], Same);
    t.carried("first fragment", &parts[0], A, SENT, here, Is(moved[0].clone()));
    t.carried("later fragment", &parts[1], A, SENT, here, Is(moved[1].clone()));
    // The frame.
    let frame = |src: [u8; 6], dst: [u8; 6]| tcp(4, SYN).eth(src, dst).bytes();
    let overlay = (Program::FromOverlay, "mx-1");
    t.bytes(
        "no node that is known",
        overlay.0,
        overlay.1,
        &frame([2, 1, 1, 1, 1, 1], mac(A)),
        DROP,
        &["drop_unknown_peer"],
    );
    t.bytes(
        "this node itself",
        overlay.0,
        overlay.1,
        &frame(INGRESS, mac(A)),
        DROP,
        &["drop_unknown_peer"],
    );
    t.bytes(
        "an endpoint elsewhere",
        overlay.0,
        overlay.1,
        &frame(PEER, mac(D)),
        DROP,
        &["drop_unknown_endpoint"],
    );
    t.bytes(
        "nobody's",
        overlay.0,
        overlay.1,
        &frame(PEER, [2, 9, 9, 9, 9, 9]),
        DROP,
        &["drop_unknown_endpoint"],
    );
    t.bytes(
        "multicast",
        overlay.0,
        overlay.1,
        &frame(PEER, [1, 0, 0x5e, 0, 0, 1]),
        LEFT,
        &["pass"],
    );
    t.bytes("broadcast", overlay.0, overlay.1, &frame(PEER, [0xff; 6]), LEFT, &["pass"]);
    let mut arp = frame(PEER, mac(A));
    arp[12..14].copy_from_slice(&[8, 6]);
    t.bytes("ARP", overlay.0, overlay.1, &arp, LEFT, &["pass"]);
    let mut cut = frame(PEER, mac(A));
    cut.truncate(cut.len() - 1);
    t.bytes("cut", overlay.0, overlay.1, &cut, DROP, &["drop_malformed"]);
    let p = Packet::tcp(at(f.client, 5), at(f.node2, 22), SYN, b"");
    t.carried("not published", &p, A, DROP, &["drop_unpublished"], Same);
    for proto in [47, 132, 50] {
        let p = Packet::new(proto, f.client, f.node2, vec![0; 40]);
        t.carried(&format!("protocol {proto}"), &p, A, DROP, &["drop_unpublished"], Same);
    }
    let p = Packet::icmp(f.client, f.node2, if f.v6 { 128 } else { 8 }, 0, &[0; 8]);
    t.carried("ping", &p, A, DROP, &["drop_unpublished"], Same);
    if f.v6 {
        t.carried("an endpoint without IPv6", &tcp(6, SYN), E, DROP, &["drop_no_interface"], Same);
        let p = neighbor(136, f.client, f.node2, f.vip, PEER);
        t.carried("an advertisement", &p, A, DROP, &["drop_unpublished"], Same);
    }
    // Errors.
    let (about, inside) = (
        Packet::udp(at(f.node, 8080), at(f.client, 3), &[1; 300]),
        Packet::udp(at(f.a, 5300), at(f.client, 3), &[1; 300]),
    );
    let p = Packet::too_big(f.router, f.node, 1280, &about);
    let want = Packet::too_big(f.router, f.a, 1280, &inside).eth(GATEWAY_MAC, mac(A));
    t.carried("error", &p, A, SENT, &["delivered", "icmp_translated"], Is(want));
    let p = Packet::too_big(f.router, f.node, 1280, &Packet::udp(at(f.node, 8080), at(f.client, 9), b""));
    t.carried("error about no flow", &p, A, DROP, &["drop_unpublished"], Same);
    let got = Packet::udp(at(f.client, 3), at(f.a, 5300), b"q");
    let p = Packet::unreachable(f.a, f.client, &got);
    let want = Packet::unreachable(f.node, f.client, &udp(b"q")).eth(INGRESS, PEER);
    t.container("error of the backend", &p, SENT, &["reply_carried", "icmp_translated"], Is(want));
    // A port that is gone, or another service's, keeps its connections.
    let old = t.w.loader.observe().unwrap().0.published[&(Protocol::Tcp, 8080)];
    t.carried("a connection", &tcp(20, SYN), A, SENT, here, Is(handed(&tcp(20, SYN), f, 20, 8000)));
    t.w.put(Row::Published((Protocol::Tcp, 8080), None));
    t.carried(
        "its port is gone",
        &tcp(20, ACK),
        A,
        SENT,
        here,
        Is(handed(&tcp(20, ACK), f, 20, 8000)),
    );
    t.carried("no new one", &tcp(21, SYN), A, DROP, &["drop_unpublished"], Same);
    t.w.put(Row::Published((Protocol::Tcp, 8080), Some(lb::Published { target: 9000, ..old })));
    t.carried(
        "its port is another's",
        &tcp(20, ACK),
        A,
        SENT,
        here,
        Is(handed(&tcp(20, ACK), f, 20, 8000)),
    );
    t.carried(
        "its port is another's, a SYN",
        &tcp(20, SYN),
        A,
        SENT,
        here,
        Is(handed(&tcp(20, SYN), f, 20, 9000)),
    );
    t.w.put(Row::Published((Protocol::Tcp, 8080), Some(old)));
    // Straight back to the client; but by its entry for who is behind that.
    t.w.put(Row::Published((Protocol::Tcp, 74), Some(lb::Published { direct: true, ..old })));
    let p = |cport| Packet::tcp(at(f.client, cport), at(f.node2, 74), SYN, b"");
    t.carried("direct", &p(30), A, SENT, here, Is(handed(&p(30), f, 30, 8000)));
    let want = |cport, to| back(cport, ACK).moved(at(f.node2, 74), at(f.client, cport)).hop().eth(INGRESS, to);
    t.container("direct, reply", &back(30, ACK), SENT, &["reply_sent"], Is(want(30, PEER)));
    let mut by_entry = PEER;
    by_entry[0] |= 4;
    let bytes = p(31).eth(by_entry, mac(A)).bytes();
    let out = t.w.raw(overlay.0, overlay.1, &bytes);
    t.row("direct, but by its entry", out, &bytes, SENT, here, Is(handed(&p(31), f, 31, 8000)));
    t.container("reply by its entry", &back(31, ACK), SENT, &["reply_carried"], Is(want(31, PEER)));
    let p = Packet::tcp(at(f.node, 32), at(f.node2, 74), SYN, b"");
    let want = p.clone().moved(at(f.node, 32), at(f.a, 8000)).hop().eth(GATEWAY_MAC, mac(A));
    t.carried("direct, but to this node", &p, A, SENT, here, Is(want));
    let reply = Packet::tcp(at(f.a, 8000), at(f.node, 32), SYN | ACK, b"answer");
    let want = reply.clone().moved(at(f.node2, 74), at(f.node, 32)).hop().eth(INGRESS, PEER);
    t.container("reply to this node", &reply, SENT, &["reply_carried"], Is(want));
}

/// Replies to clients that came in here.
fn replies(t: &mut Table, f: &Family) {
    let asked = Packet::tcp(at(f.client, 40), at(f.node, 80), SYN, b"");
    let bytes = asked.clone().eth(support::world::ROUTER, support::world::UPLINK).bytes();
    t.w.raw(Program::FromUplink, "up0", &bytes);
    let reply = |cport| Packet::tcp(at(f.node, 80), at(f.client, cport), SYN | ACK, b"");
    t.returned("of a flow", &reply(40), SENT, &["reply_sent"], Same);
    t.returned("of one that is forgotten", &reply(41), SENT, &["reply_sent"], Same);
    let p = Packet::tcp(at(f.node, 22), at(f.client, 40), ACK, b"");
    t.returned("of no published port", &p, LEFT, &["pass"], Same);
    let p = Packet::tcp(at(f.client, 80), at(f.router, 40), ACK, b"");
    t.returned("of no address of the node", &p, LEFT, &["pass"], Same);
    let bytes = reply(40).eth([2, 1, 1, 1, 1, 1], INGRESS).bytes();
    t.bytes("of no node", Program::FromOverlay, "mx-1", &bytes, DROP, &["drop_unknown_peer"]);
    let p = Packet::unreachable(f.node, f.client, &asked);
    t.returned("error", &p, SENT, &["reply_sent"], Same);
    let bytes = p.clone().eth([2, 1, 1, 1, 1, 1], INGRESS).bytes();
    t.bytes("error of no node", Program::FromOverlay, "mx-1", &bytes, LEFT, &["pass"]);
    let p = Packet::unreachable(f.node, f.client, &Packet::tcp(at(f.client, 49), at(f.node, 80), SYN, b""));
    t.returned("error about no flow", &p, LEFT, &["pass"], Same);
    let parts = Packet::udp(at(f.node, 53), at(f.client, 42), &[0; 100]).split(48, 6);
    t.returned("orphan", &parts[1], DROP, &["drop_fragment"], Same);
    t.returned("first fragment", &parts[0], SENT, &["reply_sent"], Same);
    t.returned("later fragment", &parts[1], SENT, &["reply_sent"], Same);
    t.returned("GRE", &Packet::new(47, f.node, f.client, vec![0; 40]), LEFT, &["pass"], Same);
}

/// Another node's own process asks for a published port by this node's ingress address.
fn processes(t: &mut Table, f: &Family) {
    let (own, there): (IpAddr, IpAddr) = if f.v6 {
        (INGRESS_IP6.into(), OTHER_IP6.into())
    } else {
        (INGRESS_IP.into(), OTHER_IP.into())
    };
    // Backends of the other family are none.
    let of_other = 2 | lb::LOCAL | if f.v6 { 0 } else { lb::V6 };
    t.w.put(Row::Service(of_other, Some(turn(&[]))));
    let tcp = |cport, port, flags| Packet::tcp(at(there, cport), at(own, port), flags, b"");
    let got = |p: &Packet, cport, port| p.clone().moved(at(there, cport), at(f.a, port)).hop().eth(GATEWAY_MAC, mac(A));
    let p = tcp(40_000, 8080, SYN);
    t.returned(
        "SYN",
        &p,
        SENT,
        &["delivered", "from_peer_node", "new_flow"],
        Is(got(&p, 40_000, 8000)),
    );
    let reply = Packet::tcp(at(f.a, 8000), at(there, 40_000), SYN | ACK, b"");
    let want = reply.clone().moved(at(own, 8080), at(there, 40_000)).hop().eth(INGRESS, PEER);
    t.container("its reply", &reply, SENT, &["reply_carried"], Is(want));
    let p = tcp(40_000, 8080, ACK);
    t.returned(
        "both heard",
        &p,
        SENT,
        &["delivered", "from_peer_node", "kept"],
        Is(got(&p, 40_000, 8000)),
    );
    let p = Packet::udp(at(there, 40_000), at(own, 8080), b"q");
    t.returned(
        "datagram",
        &p,
        SENT,
        &["delivered", "from_peer_node", "new_flow"],
        Is(got(&p, 40_000, 5300)),
    );
    // The same service has backends, but none is here.
    t.returned("none here", &tcp(40_001, 80, SYN), SENT, &["reset_no_backend"], Reset);
    let p = Packet::udp(at(there, 40_001), at(own, 53), b"q");
    t.returned("none here, datagram", &p, SENT, &["unreachable_no_backend"], Unreachable);
    t.returned("not published", &tcp(40_002, 22, SYN), LEFT, &["pass"], Same);
    t.returned("reset of nothing", &tcp(40_003, 8080, RST), DROP, &["drop_reset"], Same);
    let bytes = tcp(40_004, 8080, SYN).eth([2, 1, 1, 1, 1, 1], INGRESS).bytes();
    t.bytes("no node", Program::FromOverlay, "mx-1", &bytes, DROP, &["drop_unknown_peer"]);
    // What another node's port answers to a process here, whose own port is one that is published.
    t.returned("an answer", &tcp(80, 8080, SYN | ACK), LEFT, &["pass"], Same);
    t.returned(
        "a question",
        &tcp(80, 8080, SYN),
        SENT,
        &["delivered", "from_peer_node", "new_flow"],
        Is(got(&tcp(80, 8080, SYN), 80, 8000)),
    );
    let ping = if f.v6 { 128 } else { 8 };
    t.returned("ping", &Packet::icmp(there, own, ping, 0, &[0; 8]), LEFT, &["pass"], Same);
    // Two services have the port, each at an address of its own: the one that was asked for is the source.
    let port = |service| lb::Published {
        service,
        target: 8000,
        direct: false,
    };
    // The first is this node's as well (anycast).
    let (one, two) = (f.node2, f.client);
    t.w.put(Row::Published((Protocol::Tcp, 73), Some(port(0))));
    t.w.put(Row::Bound((one, Protocol::Tcp, 73), Some(port(2))));
    t.w.put(Row::Bound((two, Protocol::Tcp, 73), Some(port(1))));
    let p = Packet::tcp(at(one, 7300), at(own, 73), SYN, b"");
    let want = p.clone().moved(at(one, 7300), at(f.a, 8000)).hop().eth(GATEWAY_MAC, mac(A));
    t.returned("bound", &p, SENT, &["delivered", "from_peer_node", "new_flow"], Is(want));
    let reply = Packet::tcp(at(f.a, 8000), at(one, 7300), SYN | ACK, b"");
    let want = reply.clone().moved(at(own, 73), at(one, 7300)).hop().eth(INGRESS, PEER);
    t.container("its reply", &reply, SENT, &["reply_carried"], Is(want));
    let p = Packet::tcp(at(two, 7300), at(own, 73), SYN, b"");
    t.returned("bound, and none here", &p, SENT, &["reset_no_backend"], Reset);
    t.returned("bound to neither", &tcp(7300, 73, SYN), LEFT, &["pass"], Same);
    let p = Packet::tcp(at(own, 73), at(one, 7300), SYN | ACK, b"");
    t.returned("an answer to that source", &p, LEFT, &["pass"], Same);
    for bound in [one, two] {
        t.w.put(Row::Bound((bound, Protocol::Tcp, 73), None));
    }
    t.w.put(Row::Service(of_other, Some(turn(&[1]))));
}

#[test]
fn the_ingress_network() {
    let mut t = Table::new();
    for f in [V4, V6] {
        t.family(&f);
        carried(&mut t, &f);
        replies(&mut t, &f);
    }
    for f in [V4, V6] {
        t.family(&f);
        processes(&mut t, &f);
    }
    t.finish(130);
}
