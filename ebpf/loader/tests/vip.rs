//! VIPs and the source check, packet by packet: from_container and to_container.

mod support;

use mesh_core::lb::{Program, Row};
use support::{
    frame::{ACK, FIN, Frame, RST, SYN, UDP, sum},
    world::{A, B, C, D, DROP, GATEWAY, GATEWAY_MAC, Out, PASS, REDIRECT, VIP, VIP_EMPTY, VIP2, World, mac, turn},
};

fn seg(cport: u16, vip: [u8; 4], flags: u8) -> Frame {
    Frame::tcp((A, cport), (vip, 80), flags, b"")
}

fn raw(w: &World, bytes: &[u8]) -> Out {
    w.raw(Program::FromContainer, "mv-a", bytes)
}

/// An ARP frame of endpoint [`A`].
fn arp(op: u8, sender_mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut b = vec![0xff; 6];
    b.extend(mac(A));
    b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, op]);
    b.extend(sender_mac);
    b.extend(sender);
    b.extend([0; 6]);
    b.extend(target);
    b
}

#[test]
fn a_container_speaks_only_for_itself() {
    let w = World::new();
    let own = Frame::udp((A, 1), (B, 2), &[7; 64]);
    w.container(&own).is(PASS, &["pass_bridge"]);
    w.container(&Frame::icmp(A, GATEWAY, 8, &[0; 12])).is(PASS, &["pass_bridge"]);
    w.container(&Frame {
        fragment: 9,
        ..own.clone()
    })
    .is(PASS, &["pass_bridge"]);
    w.container(&Frame { proto: 47, ..own.clone() }).is(PASS, &["pass_bridge"]);
    w.container(&Frame { src: B, ..own.clone() }).is(DROP, &["drop_spoofed_ip"]);
    w.container(&Frame {
        src: [0; 4],
        ..own.clone()
    })
    .is(DROP, &["drop_spoofed_ip"]);
    raw(&w, &own.clone().eth(mac(B), GATEWAY_MAC).bytes()).is(DROP, &["drop_spoofed_mac"]);
    let mut b = own.clone().eth(mac(A), GATEWAY_MAC).bytes();
    for (ethertype, counter) in [
        ([0x86, 0xdd], "drop_malformed"),
        ([0x81, 0x00], "drop_ethertype"),
        ([0x88, 0xcc], "drop_ethertype"),
    ] {
        b[12..14].copy_from_slice(&ethertype);
        raw(&w, &b).is(DROP, &[counter]);
    }
    b[12..14].copy_from_slice(&[8, 0]);
    b[16..18].copy_from_slice(&[9, 0]);
    raw(&w, &b).is(DROP, &["drop_malformed"]);
    w.raw(Program::FromContainer, "stray", &own.bytes())
        .is(PASS, &["pass_unknown_device"]);
}

#[test]
fn arp_for_a_vip_is_answered() {
    let w = World::new();
    let ask = |sender, target| arp(1, mac(A), sender, target);
    raw(&w, &ask(A, B)).is(PASS, &["pass_bridge"]);
    raw(&w, &ask(A, A)).is(PASS, &["pass_bridge"]);
    raw(&w, &ask([0; 4], B)).is(PASS, &["pass_bridge"]);
    raw(&w, &arp(2, mac(A), A, B)).is(PASS, &["pass_bridge"]);
    raw(&w, &arp(2, mac(A), A, VIP)).is(PASS, &["pass_bridge"]);
    raw(&w, &ask(B, A)).is(DROP, &["drop_spoofed_arp"]);
    raw(&w, &arp(2, mac(B), A, B)).is(DROP, &["drop_spoofed_arp"]);
    raw(&w, &ask(A, VIP)[..40]).is(DROP, &["drop_malformed"]);
    let mut token_ring = ask(A, VIP);
    token_ring[15] = 6;
    raw(&w, &token_ring).is(DROP, &["drop_malformed"]);
    for vip in [VIP, VIP_EMPTY] {
        let out = raw(&w, &ask(A, vip));
        out.is(REDIRECT, &["arp_answered"]);
        let mut want = mac(A).to_vec();
        want.extend(GATEWAY_MAC);
        want.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        want.extend(GATEWAY_MAC);
        want.extend(vip);
        want.extend(mac(A));
        want.extend(A);
        assert_eq!(out.bytes, want);
    }
}

#[test]
fn a_vip_is_translated_there_and_back() {
    let w = World::new();
    for (i, backend) in [C, D, C].into_iter().enumerate() {
        let cport = 100 + i as u16;
        let sent = seg(cport, VIP, SYN);
        let out = w.container(&sent);
        out.is(REDIRECT, &["direct_remote", "new_flow", "vip_forwarded"]);
        assert_eq!(
            out.frame(),
            sent.clone().between((A, cport), (backend, 80)).eth(mac(A), mac(backend))
        );
        let reply = Frame::tcp((backend, 80), (A, cport), SYN | ACK, b"");
        let out = w.to_container(&reply);
        out.is(PASS, &["vip_reply"]);
        assert_eq!(out.frame(), reply.between((VIP, 80), (A, cport)).eth(mac(C), mac(A)));
        w.container(&seg(cport, VIP, ACK))
            .is(REDIRECT, &["direct_remote", "kept", "vip_forwarded"]);
    }
    let sent = Frame::udp((A, 9), (VIP, 53), b"q");
    let out = w.container(&sent).frame();
    assert_eq!(out, sent.clone().between((A, 9), (D, 53)).eth(mac(A), mac(D)));
    assert_eq!(w.to_container(&Frame::udp((D, 53), (A, 9), b"a")).frame().src, VIP);
    // What is no VIP's reply is left alone.
    let direct = Frame::udp((D, 54), (A, 9), b"a").eth(mac(C), mac(A));
    let out = w.to_container(&direct);
    out.is(PASS, &[]);
    assert_eq!(out.bytes, direct.bytes());
    w.to_container(&Frame::icmp(D, A, 0, &[0; 12])).is(PASS, &[]);
}

#[test]
fn flows_of_a_vip_end_and_move() {
    let mut w = World::new();
    let to = |w: &World, cport, flags| w.container(&seg(cport, VIP, flags)).frame().dst;
    assert_eq!([to(&w, 1, SYN), to(&w, 1, FIN | ACK), to(&w, 1, SYN)], [C; 3]);
    w.to_container(&Frame::tcp((C, 80), (A, 1), FIN | ACK, b""))
        .is(PASS, &["vip_reply"]);
    assert_eq!([to(&w, 1, ACK), to(&w, 1, SYN)], [C, D]);
    w.put(Row::Service(1, Some(turn(&[3]))));
    assert_eq!(to(&w, 1, ACK), D);
    w.put(Row::Backend(4, None));
    let out = w.container(&seg(1, VIP, ACK));
    out.is(REDIRECT, &["reset_gone"]);
    let rst = out.frame();
    assert_eq!((rst.src, rst.dst, rst.eth_src, rst.eth_dst), (VIP, A, GATEWAY_MAC, mac(A)));
    assert_eq!((rst.flags(), rst.seq(), rst.valid()), (RST, 5000, true));
    assert_eq!(to(&w, 1, SYN), C);
}

#[test]
fn an_empty_vip_refuses_at_once() {
    let w = World::new();
    let out = w.container(&seg(1, VIP_EMPTY, SYN));
    out.is(REDIRECT, &["reset_no_backend"]);
    let rst = out.frame();
    assert_eq!((rst.flags(), rst.seq(), rst.ack(), rst.valid()), (RST | ACK, 0, 1001, true));
    let out = w.container(&Frame::udp((A, 1), (VIP_EMPTY, 53), b"q"));
    out.is(REDIRECT, &["unreachable_no_backend"]);
    let icmp = out.frame();
    assert_eq!((icmp.src, icmp.dst, icmp.proto, sum(&[&icmp.body])), (VIP_EMPTY, A, 1, 0xffff));
    assert_eq!(icmp.body[8 + 9], UDP);
}

#[test]
fn ping_and_the_rest() {
    let w = World::new();
    for (data, vip) in [(vec![0, 1, 0, 2], VIP), (vec![9; 1000], VIP_EMPTY)] {
        let out = w.container(&Frame::icmp(A, vip, 8, &data));
        out.is(REDIRECT, &["echo_answered"]);
        assert_eq!(out.frame(), Frame::icmp(vip, A, 0, &data).eth(GATEWAY_MAC, mac(A)));
    }
    let echo = Frame::icmp(A, VIP, 8, &[0; 12]);
    w.container(&Frame {
        options: vec![1, 1, 1, 1],
        ..echo.clone()
    })
    .is(REDIRECT, &["echo_answered"]);
    w.container(&Frame {
        fragment: 0x2000,
        ..echo.clone()
    })
    .is(DROP, &["drop_vip_protocol"]);
    w.container(&Frame::icmp(A, VIP, 13, &[0; 12])).is(DROP, &["drop_vip_protocol"]);
    w.container(&Frame { proto: 47, ..echo.clone() }).is(DROP, &["drop_vip_protocol"]);
    w.container(&Frame {
        fragment: 3,
        ..seg(1, VIP, SYN)
    })
    .is(DROP, &["drop_fragment"]);
}

#[test]
fn two_vips_of_one_backend_are_told_apart() {
    let mut w = World::new();
    w.put(Row::Service(1, Some(turn(&[3]))));
    w.put(Row::Service(5, Some(turn(&[3]))));
    w.container(&seg(5, VIP, SYN))
        .is(REDIRECT, &["direct_remote", "new_flow", "vip_forwarded"]);
    let out = w.container(&seg(5, VIP2, SYN));
    out.is(REDIRECT, &["direct_remote", "new_flow", "port_translated", "vip_forwarded"]);
    let cport = out.frame().sport();
    assert_eq!((out.frame().src, out.frame().dst, out.frame().valid()), (A, C, true));
    for (port, vip) in [(5, VIP), (cport, VIP2)] {
        let out = w.to_container(&Frame::tcp((C, 80), (A, port), SYN | ACK, b""));
        assert_eq!(
            out.is(PASS, &["vip_reply"]).frame(),
            Frame::tcp((vip, 80), (A, 5), SYN | ACK, b"").eth(mac(C), mac(A))
        );
    }
}

#[test]
fn a_backend_reaches_itself_through_its_vip() {
    let mut w = World::new();
    // The only one: turned around.
    let sent = seg(7, VIP2, SYN);
    let out = w.container(&sent);
    out.is(REDIRECT, &["hairpin", "new_flow"]);
    assert_eq!(out.frame(), sent.clone().between((VIP2, 7), (A, 80)).eth(GATEWAY_MAC, mac(A)));
    let reply = Frame::tcp((A, 80), (VIP2, 7), SYN | ACK, b"");
    let out = w.container(&reply);
    out.is(REDIRECT, &["hairpin"]);
    assert_eq!(out.frame(), reply.clone().between((VIP2, 80), (A, 7)).eth(GATEWAY_MAC, mac(A)));
    w.container(&seg(7, VIP2, ACK)).is(REDIRECT, &["hairpin", "kept"]);
    // One of several: another is taken.
    w.put(Row::Service(5, Some(turn(&[1, 2]))));
    for cport in 20..24 {
        let out = w.container(&seg(cport, VIP2, SYN));
        assert_eq!(out.is(REDIRECT, &["direct_local", "new_flow", "vip_forwarded"]).frame().dst, B);
    }
}

#[test]
fn fragments_to_a_vip() {
    let w = World::new();
    let whole = Frame::udp((A, 9), (VIP, 53), &[5; 64]);
    let first = Frame {
        fragment: 0x2000,
        body: whole.body[..32].to_vec(),
        ..whole.clone()
    };
    let second = Frame {
        fragment: 4,
        body: whole.body[32..].to_vec(),
        ..whole.clone()
    };
    let mut got = w
        .container(&first)
        .is(REDIRECT, &["direct_remote", "new_flow", "vip_forwarded"])
        .frame();
    let rest = w.container(&second).is(REDIRECT, &["direct_remote", "vip_forwarded"]).frame();
    assert_eq!((rest.dst, rest.eth_dst), (C, mac(C)));
    got.body.extend(rest.body);
    assert!(got.valid());
}
