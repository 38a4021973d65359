//! Published ports, packet by packet: from_uplink, from_overlay, and from_container's replies.

mod support;

use mesh_core::{
    lb::{Backend, Program, Published, Row},
    objects::Protocol,
};
use support::{
    frame::{ACK, FIN, Frame, RST, SYN, TCP, sum},
    world::{
        A, B, C, CLIENT, D, DROP, GATEWAY_MAC, INGRESS, NODE, NODE2, PASS, PEER, REDIRECT, ROUTER, UPLINK, VIP, World, mac, tables, turn,
    },
};

/// A client's segment to a published port.
fn seg(cport: u16, port: u16, flags: u8) -> Frame {
    Frame::tcp((CLIENT, cport), (NODE, port), flags, b"")
}

/// The frame as it was, with other Ethernet addresses.
fn same(out: &Frame, sent: &Frame, src: [u8; 6], dst: [u8; 6]) {
    assert_eq!(*out, sent.clone().eth(src, dst));
}

#[test]
fn what_is_no_services_is_left_alone() {
    let w = World::new();
    let tcp = |src, dst| Frame::tcp(src, dst, SYN, b"");
    let other = [192, 168, 77, 99];
    let fragment = |at: u16| Frame {
        fragment: at,
        ..Frame::udp((CLIENT, 1), (NODE, 53), &[1; 64])
    };
    let passed = [
        ("another address", tcp((CLIENT, 1), (other, 80)), "pass"),
        ("another port", tcp((CLIENT, 1), (NODE, 82)), "pass"),
        ("the port of another protocol", Frame::udp((CLIENT, 1), (NODE, 80), b"x"), "pass"),
        ("ping", Frame::icmp(CLIENT, NODE, 8, &[0; 12]), "pass"),
        ("a VIP from outside", tcp((CLIENT, 1), (VIP, 80)), "pass"),
        ("a fragment without its first", fragment(0x0005), "pass_fragment"),
    ];
    for (what, frame, counter) in passed {
        let frame = frame.eth(ROUTER, UPLINK);
        let out = w.client(&frame);
        println!("{what}");
        out.is(PASS, &[counter]);
        assert_eq!(out.bytes, frame.bytes(), "{what}");
    }
    let good = seg(1, 80, SYN).eth(ROUTER, UPLINK);
    let raw = |bytes: &[u8]| w.raw(Program::FromUplink, "up0", bytes);
    raw(&good.clone().eth(ROUTER, [2, 9, 9, 9, 9, 9]).bytes()).is(PASS, &["pass"]);
    raw(&good.clone().eth(ROUTER, [0xff; 6]).bytes()).is(PASS, &["pass"]);
    let edit = |at: usize, to: &[u8]| {
        let mut b = good.bytes();
        b[at..at + to.len()].copy_from_slice(to);
        b
    };
    raw(&edit(12, &[0x86, 0xdd])).is(PASS, &["pass"]);
    raw(&edit(12, &[0x08, 0x06])).is(PASS, &["pass"]);
    for (what, bytes) in [
        ("version 6 in an ipv4 frame", edit(14, &[0x65])),
        ("header of four words", edit(14, &[0x44])),
        ("options beyond the packet", edit(14, &[0x4f])),
        ("total length beyond the frame", edit(16, &[0, 41])),
        ("total length below the header", edit(16, &[0, 19])),
        ("total length zero", edit(16, &[0, 0])),
        ("tcp header of four words", edit(46, &[0x40])),
        ("tcp header beyond the packet", edit(46, &[0x60])),
        ("cut in the tcp header", good.bytes()[..50].to_vec()),
    ] {
        println!("{what}");
        let out = raw(&bytes);
        out.is(PASS, &["pass_malformed"]);
        assert_eq!(out.bytes, bytes);
    }
    let udp = Frame::udp((CLIENT, 1), (NODE, 53), b"1234").eth(ROUTER, UPLINK).bytes();
    for (what, len) in [("udp length beyond the packet", 13u16), ("udp length below its header", 7)] {
        println!("{what}");
        let mut bytes = udp.clone();
        bytes[38..40].copy_from_slice(&len.to_be_bytes());
        raw(&bytes).is(PASS, &["pass_malformed"]);
    }
}

#[test]
fn carried_unmodified_in_strict_turn() {
    let w = World::new();
    for i in 0..20u16 {
        let sent = seg(2000 + i, 80, SYN);
        let out = w.client(&sent);
        out.is(REDIRECT, &["new_flow", "carried"]);
        same(&out.frame(), &sent, INGRESS, mac(if i % 2 == 0 { C } else { D }));
        let out = w.client(&seg(2000 + i, 80, ACK));
        out.is(REDIRECT, &["carried"]);
        assert_eq!(out.frame().eth_dst, mac(if i % 2 == 0 { C } else { D }), "the flow is remembered");
    }
    // UDP shares the turn of its service; options and padding are carried as they are.
    let sent = Frame {
        options: vec![1, 1, 1, 0],
        ..Frame::udp((CLIENT, 9), (NODE2, 53), b"q")
    };
    same(&w.client(&sent).frame(), &sent, INGRESS, mac(C));
    let mut padded = seg(2999, 81, SYN).eth(ROUTER, UPLINK).bytes();
    padded.extend([0; 6]);
    assert_eq!(
        w.raw(Program::FromUplink, "up0", &padded)
            .is(REDIRECT, &["new_flow", "carried"])
            .bytes[14..],
        padded[14..]
    );
}

#[test]
fn turns_survive_updates_and_restarts() {
    let mut w = World::new();
    let to = |w: &World, cport| w.client(&seg(cport, 80, SYN)).frame().eth_dst;
    assert_eq!(to(&w, 1), mac(C));
    w.put(Row::Service(1, Some(turn(&[4, 3]))));
    assert_eq!(to(&w, 2), mac(C), "the second place of the new list");
    w = w.reopen();
    assert_eq!(to(&w, 3), mac(D));
    assert_eq!(to(&w, 1), mac(C), "an old flow");
    w.put(Row::Service(1, Some(turn(&[3]))));
    assert_eq!([to(&w, 4), to(&w, 5), to(&w, 2)], [mac(C); 3]);
}

#[test]
fn closed_flows_choose_anew() {
    let w = World::new();
    let to = |flags| w.client(&seg(7, 80, flags)).frame().eth_dst;
    let reply = |flags| Frame::tcp((NODE, 80), (CLIENT, 7), flags, b"");
    assert_eq!([to(SYN), to(SYN), to(ACK)], [mac(C); 3], "a SYN sent again");
    assert_eq!(to(FIN | ACK), mac(C));
    assert_eq!(to(SYN), mac(C), "half closed");
    w.returned(&reply(FIN | ACK)).is(REDIRECT, &["reply_sent"]);
    assert_eq!(to(ACK), mac(C), "the last ACK");
    assert_eq!([to(SYN), to(ACK)], [mac(D); 2], "the port used again");
    w.returned(&reply(RST | ACK)).is(REDIRECT, &["reply_sent"]);
    assert_eq!(to(SYN), mac(C));
    assert_eq!(to(RST), mac(C));
    assert_eq!(to(SYN), mac(D));
}

#[test]
fn drained_and_gone() {
    let mut w = World::new();
    let to = |w: &World, cport, flags| w.client(&seg(cport, 80, flags)).frame().eth_dst;
    let udp = |w: &World, cport| w.client(&Frame::udp((CLIENT, cport), (NODE, 53), b"q")).frame().eth_dst;
    assert_eq!([to(&w, 1, SYN), udp(&w, 1), udp(&w, 2)], [mac(C), mac(D), mac(C)]);
    // Draining: off the list, still a backend.
    w.put(Row::Service(1, Some(turn(&[4]))));
    let c = Backend {
        accepting: false,
        ..tables().backends[&3]
    };
    w.put(Row::Backend(3, Some(c)));
    assert_eq!(
        [to(&w, 1, ACK), udp(&w, 2), to(&w, 3, SYN), to(&w, 4, SYN)],
        [mac(C), mac(C), mac(D), mac(D)]
    );
    w.put(Row::Backend(3, None));
    let out = w.client(&Frame::tcp((CLIENT, 1), (NODE, 80), ACK, b"late"));
    out.is(REDIRECT, &["reset_gone"]);
    let rst = out.frame();
    assert_eq!(
        (rst.eth_src, rst.eth_dst, rst.src, rst.dst, rst.sport()),
        (UPLINK, ROUTER, NODE, CLIENT, 80)
    );
    assert_eq!(
        (rst.flags(), rst.seq(), rst.ack(), rst.body.len(), rst.valid()),
        (RST, 5000, 0, 20, true)
    );
    w.client(&seg(1, 80, RST)).is(DROP, &["drop_reset"]);
    assert_eq!(udp(&w, 2), mac(D), "udp moves on");
    assert_eq!(to(&w, 1, SYN), mac(D), "so does a new connection");
    // A list that still names one that is gone.
    w.put(Row::Service(1, Some(turn(&[3, 4]))));
    assert_eq!([to(&w, 10, SYN), to(&w, 11, SYN), to(&w, 12, SYN)], [mac(D); 3]);
}

#[test]
fn without_backends_the_answer_comes_at_once() {
    let mut w = World::new();
    for (flags, data, seq, ack, want) in [
        (SYN, &b""[..], 0, 1001, RST | ACK),
        (SYN, b"fast open", 0, 1010, RST | ACK),
        (FIN, b"x", 0, 1002, RST | ACK),
        (ACK, b"hello", 5000, 0, RST),
        (SYN | ACK, b"", 5000, 0, RST),
    ] {
        let out = w.client(&Frame::tcp((CLIENT, 40_000), (NODE2, 9090), flags, data));
        out.is(REDIRECT, &["reset_no_backend"]);
        let rst = out.frame();
        assert_eq!((rst.eth_src, rst.eth_dst, rst.src, rst.dst), (UPLINK, ROUTER, NODE2, CLIENT));
        assert_eq!((rst.sport(), u16::from_be_bytes([rst.body[2], rst.body[3]])), (9090, 40_000));
        assert_eq!((rst.seq(), rst.ack(), rst.flags(), rst.proto), (seq, ack, want, TCP));
        assert!(rst.valid() && rst.body.len() == 20 && rst.ttl == 64);
    }
    for flags in [RST, RST | ACK] {
        w.client(&seg(1, 9090, flags)).is(DROP, &["drop_reset"]);
    }
    for data in [&b""[..], b"question", &[7; 1000]] {
        let asked = Frame::udp((CLIENT, 40_001), (NODE, 9090), data).eth(ROUTER, UPLINK);
        let out = w.client(&asked);
        out.is(REDIRECT, &["unreachable_no_backend"]);
        let icmp = out.frame();
        assert_eq!(
            (icmp.eth_src, icmp.eth_dst, icmp.src, icmp.dst, icmp.proto),
            (UPLINK, ROUTER, NODE, CLIENT, 1)
        );
        assert_eq!((&icmp.body[..2], &icmp.body[4..8]), (&[3, 3][..], &[0; 4][..]));
        assert_eq!(sum(&[&icmp.body]), 0xffff);
        assert_eq!(icmp.body[8..], asked.bytes()[14..42], "ip header and eight bytes");
    }
    // Not answered: what RFC 1812 says not to, or what could not be answered right.
    let options = Frame {
        options: vec![1, 1, 1, 0],
        ..seg(1, 9090, SYN)
    };
    w.client(&options).is(DROP, &["drop_unanswered"]);
    let mut corrupt = seg(1, 9090, SYN).eth(ROUTER, UPLINK).bytes();
    corrupt[22] ^= 1;
    w.raw(Program::FromUplink, "up0", &corrupt).is(DROP, &["drop_unanswered"]);
    // A service whose last backend goes.
    w.put(Row::Service(1, Some(turn(&[]))));
    w.client(&seg(1, 80, SYN)).is(REDIRECT, &["reset_no_backend"]);
    w.put(Row::Service(1, None));
    w.client(&seg(2, 80, SYN)).is(REDIRECT, &["reset_no_backend"]);
}

/// The packet as endpoint [`A`] must get it.
fn at_a(sent: &Frame, cport: u16, target: u16) -> Frame {
    sent.clone().between((CLIENT, cport), (A, target)).eth(GATEWAY_MAC, mac(A)).hop()
}

#[test]
fn delivered_here_and_replied() {
    let w = World::new();
    let sent = Frame::tcp((CLIENT, 5), (NODE, 8080), SYN, b"");
    let out = w.client(&sent);
    out.is(REDIRECT, &["new_flow", "delivered"]);
    assert_eq!(out.frame(), at_a(&sent, 5, 8000));
    let out = w.container(&Frame::tcp((A, 8000), (CLIENT, 5), SYN | ACK, b""));
    out.is(REDIRECT, &["reply_sent"]);
    let want = Frame::tcp((NODE, 8080), (CLIENT, 5), SYN | ACK, b"").eth(INGRESS, INGRESS).hop();
    assert_eq!(out.frame(), want, "the kernel writes the ethernet header when it routes");
    // UDP, with options, without a checksum, and with a wrong one: that stays wrong.
    let sent = Frame {
        options: vec![0x94, 4, 0, 0],
        ..Frame::udp((CLIENT, 6), (NODE2, 8080), b"data")
    };
    let out = w.client(&sent);
    assert_eq!(out.frame(), at_a(&sent, 6, 5300));
    let mut none = Frame::udp((CLIENT, 6), (NODE2, 8080), b"data");
    none.body[6..8].copy_from_slice(&[0, 0]);
    assert_eq!(w.client(&none).frame().body[6..8], [0, 0]);
    let mut wrong = Frame::udp((CLIENT, 6), (NODE2, 8080), b"data");
    wrong.body[6] ^= 0x55;
    assert!(!w.client(&wrong).frame().valid());
    let mut wrong = seg(5, 8080, ACK);
    wrong.body[17] ^= 0x55;
    assert!(!w.client(&wrong).frame().valid());
    // A reply's tuple that no flow made is the bridge's.
    w.container(&Frame::tcp((A, 8000), (CLIENT, 77), SYN | ACK, b""))
        .is(PASS, &["pass_bridge"]);
}

#[test]
fn every_checksum_comes_out_right() {
    let w = World::new();
    for i in 0..400u32 {
        let data = i.wrapping_mul(2_654_435_761).to_be_bytes();
        let sent = Frame::udp((CLIENT, 30_000 + i as u16), (NODE, 8080), &data);
        assert_eq!(w.client(&sent).frame(), at_a(&sent, 30_000 + i as u16, 5300));
        let reply = Frame::udp((A, 5300), (CLIENT, 30_000 + i as u16), &data);
        let out = w.container(&reply).frame();
        assert!(out.valid() && out.body[6..8] != [0, 0] && (out.src, out.sport()) == (NODE, 8080));
    }
}

#[test]
fn colliding_flows_are_told_apart() {
    let w = World::new();
    let sent = |node, port, flags| Frame::tcp((CLIENT, 5), (node, port), flags, b"");
    let ways = [(NODE, 8080), (NODE2, 8080), (NODE, 8081), (NODE2, 8081)];
    let mut seen = Vec::new();
    for (i, (node, port)) in ways.into_iter().enumerate() {
        let out = w.client(&sent(node, port, SYN));
        out.is(
            REDIRECT,
            if i == 0 {
                &["new_flow", "delivered"]
            } else {
                &["new_flow", "delivered", "port_translated"]
            },
        );
        let cport = out.frame().sport();
        assert_eq!(out.frame(), at_a(&sent(node, port, SYN), cport, 8000), "the client's address stays");
        assert!(!seen.contains(&cport) && (i > 0 || cport == 5) && (i == 0 || cport >= 1024));
        seen.push(cport);
    }
    for ((node, port), cport) in ways.into_iter().zip(&seen) {
        assert_eq!(w.client(&sent(node, port, ACK)).frame().sport(), *cport, "it keeps its port");
        let out = w.container(&Frame::tcp((A, 8000), (CLIENT, *cport), ACK, b"hi"));
        out.is(REDIRECT, &["reply_sent"]);
        let want = Frame::tcp((node, port), (CLIENT, 5), ACK, b"hi").eth(INGRESS, INGRESS).hop();
        assert_eq!(out.frame(), want);
    }
    // The client's own port meets one that was given away.
    let taken = Frame::tcp((CLIENT, seen[1]), (NODE, 8080), SYN, b"");
    let out = w.client(&taken);
    out.is(REDIRECT, &["new_flow", "delivered", "port_translated"]);
    assert!(!seen.contains(&out.frame().sport()));
    // A closed flow's own way back is its successor's at once.
    w.client(&sent(NODE, 8080, RST));
    assert_eq!(
        w.client(&sent(NODE, 8080, SYN))
            .is(REDIRECT, &["new_flow", "delivered"])
            .frame()
            .sport(),
        5
    );
    // Another client's is no collision.
    let other = Frame::tcp(([192, 168, 77, 201], 5), (NODE, 8081), SYN, b"");
    assert_eq!(w.client(&other).frame().sport(), 5);
}

#[test]
fn carried_packets_are_delivered_and_replies_go_back() {
    let mut w = World::new();
    let far = [192, 168, 77, 12];
    let sent = |flags| Frame::tcp((CLIENT, 5), (far, 80), flags, b"");
    let out = w.carried(&sent(SYN), A);
    out.is(REDIRECT, &["delivered"]);
    assert_eq!(out.frame(), at_a(&sent(SYN), 5, 8000));
    let reply = Frame::tcp((A, 8000), (CLIENT, 5), SYN | ACK, b"");
    let out = w.container(&reply);
    out.is(REDIRECT, &["reply_carried"]);
    assert_eq!(out.frame(), reply.clone().between((far, 80), (CLIENT, 5)).eth(INGRESS, PEER).hop());
    // The same client through another node: told apart, each reply to its node.
    w.put(Row::Peer(mesh_core::Mac([2, 0, 0, 0, 0, 9]), true));
    let third = [192, 168, 77, 13];
    let out = w.raw(
        Program::FromOverlay,
        "mx-1",
        &Frame::tcp((CLIENT, 5), (third, 80), SYN, b"")
            .eth([2, 0, 0, 0, 0, 9], mac(A))
            .bytes(),
    );
    let cport = out.is(REDIRECT, &["delivered", "port_translated"]).frame().sport();
    let out = w.container(&Frame::tcp((A, 8000), (CLIENT, cport), ACK, b"")).frame();
    assert_eq!(
        (out.eth_dst, out.src, out.body[2..4].to_vec()),
        ([2, 0, 0, 0, 0, 9], third, vec![0, 5])
    );
    // Its node chose another endpoint here.
    let out = w.carried(&sent(SYN), B).frame();
    assert_eq!((out.eth_dst, out.dst, out.sport()), (mac(B), B, 5));
    // A flow outlives its published port, a new one does not begin.
    w.put(Row::Published((Protocol::Tcp, 80), None));
    w.carried(&sent(ACK), B).is(REDIRECT, &["delivered"]);
    w.carried(&Frame::tcp((CLIENT, 6), (far, 80), SYN, b""), A)
        .is(DROP, &["drop_unpublished"]);
}

#[test]
fn what_the_overlay_must_not_bring() {
    let w = World::new();
    let far = [192, 168, 77, 12];
    let sent = Frame::tcp((CLIENT, 5), (far, 80), SYN, b"");
    let raw = |src, dst, f: &Frame| w.raw(Program::FromOverlay, "mx-1", &f.clone().eth(src, dst).bytes());
    raw([2, 1, 1, 1, 1, 1], mac(A), &sent).is(DROP, &["drop_unknown_peer"]);
    raw(PEER, mac(C), &sent).is(DROP, &["drop_unknown_endpoint"]);
    raw(PEER, mac(A), &Frame::tcp((CLIENT, 5), (far, 82), SYN, b"")).is(DROP, &["drop_unpublished"]);
    raw(PEER, mac(A), &Frame::icmp(CLIENT, A, 8, &[0; 12])).is(DROP, &["drop_unpublished"]);
    raw(
        PEER,
        mac(A),
        &Frame {
            fragment: 3,
            ..sent.clone()
        },
    )
    .is(DROP, &["drop_fragment"]);
    let mut bad = sent.clone().eth(PEER, mac(A)).bytes();
    bad[46] = 0x40;
    w.raw(Program::FromOverlay, "mx-1", &bad).is(DROP, &["drop_malformed"]);
    // Broadcasts and other ethertypes are the host's, and so is its own traffic.
    raw(PEER, [0xff; 6], &sent).is(PASS, &["pass"]);
    let mut arp = sent.clone().eth(PEER, INGRESS).bytes();
    arp[12..14].copy_from_slice(&[8, 6]);
    w.raw(Program::FromOverlay, "mx-1", &arp).is(PASS, &["pass"]);
    w.returned(&Frame::icmp([172, 30, 0, 2], [172, 30, 0, 1], 8, &[0; 12]))
        .is(PASS, &["pass"]);
    w.returned(&Frame::tcp(([172, 30, 0, 2], 80), ([172, 30, 0, 1], 9), ACK, b""))
        .is(PASS, &["pass"]);
    w.returned(&Frame::tcp((NODE, 82), (CLIENT, 9), ACK, b"")).is(PASS, &["pass"]);
    // A reply of a flow that was forgotten still finds its way; from a stranger it does not.
    let reply = Frame::tcp((NODE, 80), (CLIENT, 9), ACK, b"");
    let out = w.returned(&reply);
    out.is(REDIRECT, &["reply_sent"]);
    same(&out.frame(), &reply, PEER, INGRESS);
    raw([2, 1, 1, 1, 1, 1], INGRESS, &reply).is(DROP, &["drop_unknown_peer"]);
}

#[test]
fn fragments_follow_their_first() {
    let w = World::new();
    let whole = Frame::udp((CLIENT, 9), (NODE, 8080), &[5; 64]);
    let part = |f: &Frame, from: usize, to: usize, more: bool| {
        let fragment = (from as u16 / 8) | if more { 0x2000 } else { 0 };
        Frame {
            fragment,
            body: f.body[from..to].to_vec(),
            ..f.clone()
        }
    };
    let out = w.client(&part(&whole, 0, 32, true));
    out.is(REDIRECT, &["new_flow", "delivered"]);
    let mut got = out.frame();
    let out = w.client(&part(&whole, 32, 72, false));
    out.is(REDIRECT, &["delivered"]);
    let second = out.frame();
    assert_eq!((second.dst, second.fragment), (A, 4));
    got.body.extend(second.body);
    assert_eq!(
        (&got.body, got.valid()),
        (&at_a(&whole, 9, 5300).body, true),
        "put together it is whole"
    );
    // Back, and carried.
    let reply = Frame::udp((A, 5300), (CLIENT, 9), &[6; 64]);
    w.container(&part(&reply, 0, 32, true)).is(REDIRECT, &["reply_sent"]);
    let out = w.container(&part(&reply, 32, 72, false));
    assert_eq!(out.is(REDIRECT, &["reply_sent"]).frame().src, NODE);
    let far = Frame {
        id: 99,
        ..Frame::udp((CLIENT, 9), (NODE, 53), &[5; 64])
    };
    let first = w.client(&part(&far, 0, 32, true)).frame();
    let second = w.client(&part(&far, 32, 72, false)).frame();
    assert_eq!(first.eth_dst, second.eth_dst);
    assert_eq!(second.body, far.body[32..]);
    w.client(&Frame {
        fragment: 0x2000,
        ..seg(1, 9090, SYN)
    })
    .is(DROP, &["drop_unanswered"]);
}

#[test]
fn a_port_that_changes_hands_keeps_only_connections() {
    let mut w = World::new();
    let udp = Frame::udp((CLIENT, 5), (NODE, 8080), b"q");
    let (syn, ack) = (seg(5, 8080, SYN), seg(5, 8080, ACK));
    w.client(&udp).is(REDIRECT, &["new_flow", "delivered"]);
    w.client(&syn).is(REDIRECT, &["new_flow", "delivered"]);
    let far = |f: &Frame| {
        Frame {
            dst: [192, 168, 77, 12],
            ..f.clone()
        }
        .summed()
    };
    assert_eq!(w.carried(&far(&udp), A).frame().body[2..4], 5300u16.to_be_bytes());
    for proto in [Protocol::Tcp, Protocol::Udp] {
        w.put(Row::Published(
            (proto, 8080),
            Some(Published {
                service: 5,
                target: 6000,
                direct: false,
            }),
        ));
    }
    let to = |f: Frame| u16::from_be_bytes([f.body[2], f.body[3]]);
    assert_eq!(to(w.client(&ack).is(REDIRECT, &["delivered"]).frame()), 8000);
    assert_eq!(to(w.client(&udp).is(REDIRECT, &["new_flow", "delivered"]).frame()), 6000);
    assert_eq!(to(w.carried(&far(&udp), A).frame()), 6000);
    assert_eq!(to(w.client(&syn).is(REDIRECT, &["new_flow", "delivered"]).frame()), 6000);
}

#[test]
fn without_interface_or_devices() {
    let mut w = World::new();
    w.put(Row::Local("mv-a".into(), None));
    w.client(&seg(1, 8080, SYN)).is(DROP, &["drop_no_interface", "new_flow"]);
    let t = tables();
    w.put(Row::Config {
        ingress_ip: None,
        ingress_mac: t.ingress_mac,
        ingress_dev: String::new(),
        uplink: String::new(),
        ingress_mtu: 0,
    });
    w.client(&seg(1, 80, SYN)).is(DROP, &["drop_unconfigured", "new_flow"]);
    w.returned(&Frame::tcp((NODE, 80), (CLIENT, 1), SYN | ACK, b""))
        .is(DROP, &["drop_unconfigured"]);
}
