//! The way past the bridge, packet by packet: from_container and from_network.

mod support;

use mesh_core::lb::{Program, Row};
use support::{
    frame::{ACK, Frame, SYN},
    world::{A, B, C, D, DROP, E, GATEWAY, GATEWAY_MAC, INGRESS, Out, PASS, PEER, REDIRECT, VIP, VIP_OTHER, VIP2, World, mac, turn},
};

/// Nothing about the frame has changed.
fn untouched(out: &Out, sent: &Frame) {
    assert_eq!(out.frame(), *sent);
}

/// One after the other with one load of the programs, which is what takes time in an emulated machine.
#[test]
fn past_the_bridge() {
    let mut w = World::new();
    a_frame_goes_where_its_ethernet_address_is(&w);
    from_another_node_to_an_endpoint_here(&w);
    replies_of_a_vip_from_another_node(&w);
    a_vip_is_its_own_networks(&w);
    replies_of_a_vip_from_this_node(&mut w);
    an_endpoint_or_a_network_that_is_gone(&mut w);
}

fn a_frame_goes_where_its_ethernet_address_is(w: &World) {
    let frames = [
        Frame::tcp((A, 1), (B, 2), SYN, b""),
        Frame::udp((A, 1), (B, 2), &[7; 64]),
        Frame::icmp(A, B, 8, &[0; 12]),
        Frame {
            fragment: 9,
            ..Frame::udp((A, 1), (B, 2), &[7; 64])
        },
        Frame {
            proto: 47,
            options: vec![1; 4],
            ..Frame::udp((A, 1), (B, 2), &[7; 64])
        },
    ];
    let places = [
        ("here, same network", mac(B), REDIRECT, "direct_local"),
        ("elsewhere", mac(C), REDIRECT, "direct_remote"),
        // The network's own device has no forwarding entry for these.
        ("here, another network", mac(E), REDIRECT, "direct_remote"),
        ("nowhere", [2, 9, 9, 9, 9, 9], REDIRECT, "direct_remote"),
        ("itself", mac(A), REDIRECT, "direct_remote"),
        ("another node of the ingress network", PEER, REDIRECT, "direct_remote"),
        ("this node", INGRESS, REDIRECT, "direct_remote"),
        ("gateway", GATEWAY_MAC, PASS, "pass_bridge"),
        ("broadcast", [0xff; 6], PASS, "pass_bridge"),
        ("multicast", [1, 0, 0x5e, 0, 0, 1], PASS, "pass_bridge"),
    ];
    for (what, to, verdict, counter) in places {
        for frame in &frames {
            println!("{what}: protocol {}", frame.proto);
            let sent = frame.clone().eth(mac(A), to);
            let out = w.to_mac(frame, to);
            out.is(verdict, &[counter]);
            untouched(&out, &sent);
        }
    }
    // The source check comes first.
    let spoofed = Frame::udp((B, 1), (C, 2), b"x");
    w.to_mac(&spoofed, mac(C)).is(DROP, &["drop_spoofed_ip"]);
}

fn from_another_node_to_an_endpoint_here(w: &World) {
    for sent in [
        Frame::tcp((C, 1), (A, 2), SYN, b""),
        Frame::icmp(C, A, 8, &[0; 12]),
        Frame {
            fragment: 9,
            ..Frame::udp((C, 1), (A, 2), &[7; 64])
        },
    ] {
        let out = w.arrived(&sent, A);
        out.is(REDIRECT, &["direct_arrived"]);
        untouched(&out, &sent.clone().eth(mac(C), mac(A)));
        // Of another network, whichever of the two it is.
        let out = w.arrived(&sent, E);
        out.is(PASS, &["pass_bridge"]);
        untouched(&out, &sent.clone().eth(mac(C), mac(E)));
        let other = |to| w.raw(Program::FromNetwork, "mx-m", &sent.clone().eth(mac(C), mac(to)).bytes());
        other(A).is(PASS, &["pass_bridge"]);
        other(E).is(REDIRECT, &["direct_arrived"]);
    }
    let frame = Frame::udp((C, 1), (A, 2), b"x");
    for to in [mac(D), GATEWAY_MAC, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        let bytes = frame.clone().eth(mac(C), to).bytes();
        let out = w.raw(Program::FromNetwork, "mx-n", &bytes);
        assert_eq!(out.is(PASS, &["pass_bridge"]).bytes, bytes);
    }
    let mut arp = frame.clone().eth(mac(C), mac(A)).bytes();
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(w.raw(Program::FromNetwork, "mx-n", &arp).is(PASS, &["pass_bridge"]).bytes, arp);
    // A device that is no network's.
    let bytes = frame.clone().eth(mac(C), mac(A)).bytes();
    w.raw(Program::FromNetwork, "stray", &bytes).is(PASS, &["pass_unknown_device"]);
}

fn an_endpoint_or_a_network_that_is_gone(w: &mut World) {
    let sent = Frame::udp((A, 1), (B, 2), b"x");
    w.put(Row::Local("mv-b".into(), None));
    w.to_mac(&sent, mac(B)).is(REDIRECT, &["direct_remote"]);
    w.arrived(&sent, B).is(PASS, &["pass_bridge"]);
    w.put(Row::Network("mx-n".into(), None));
    w.arrived(&sent, A).is(PASS, &["pass_unknown_device"]);
}

fn replies_of_a_vip_from_another_node(w: &World) {
    w.container(&Frame::tcp((A, 100), (VIP, 80), SYN, b""))
        .is(REDIRECT, &["direct_remote", "new_flow", "vip_forwarded"]);
    let reply = Frame::tcp((C, 80), (A, 100), SYN | ACK, b"");
    let out = w.arrived(&reply, A);
    out.is(REDIRECT, &["direct_arrived", "vip_reply"]);
    assert_eq!(out.frame(), reply.clone().between((VIP, 80), (A, 100)).eth(mac(C), mac(A)));
    // Not where it does not belong.
    let out = w.arrived(&reply, E);
    out.is(PASS, &["pass_bridge"]);
    assert_eq!(out.frame().src, C);
    let whole = Frame::udp((C, 53), (A, 9), &[5; 64]);
    for cport in 9..11 {
        w.container(&Frame::udp((A, cport), (VIP, 53), b"q"));
    }
    let mut asked = w.arrived(&Frame::udp((D, 53), (A, 9), b"a"), A).frame();
    assert_eq!((asked.src, asked.valid()), (VIP, true));
    // A datagram in fragments: C has the flow of port 10.
    let whole = whole.between((C, 53), (A, 10));
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
    asked = w.arrived(&first, A).is(REDIRECT, &["direct_arrived", "vip_reply"]).frame();
    let rest = w.arrived(&second, A).is(REDIRECT, &["direct_arrived", "vip_reply"]).frame();
    assert_eq!(rest.src, VIP);
    asked.body.extend(rest.body);
    assert!(asked.valid());
}

fn replies_of_a_vip_from_this_node(w: &mut World) {
    w.put(Row::Service(5, Some(turn(&[2]))));
    let sent = Frame::tcp((A, 100), (VIP2, 80), SYN, b"");
    let out = w.container(&sent);
    out.is(REDIRECT, &["direct_local", "new_flow", "vip_forwarded"]);
    assert_eq!(out.frame(), sent.between((A, 100), (B, 80)).eth(mac(A), mac(B)));
    let reply = Frame::tcp((B, 80), (A, 100), SYN | ACK, b"");
    let from_b = |to| w.raw(Program::FromContainer, "mv-b", &reply.clone().eth(mac(B), to).bytes());
    let out = from_b(mac(A));
    out.is(REDIRECT, &["direct_local", "vip_reply"]);
    assert_eq!(out.frame(), reply.clone().between((VIP2, 80), (A, 100)).eth(mac(B), mac(A)));
    // By the bridge it is to_container's work.
    let out = from_b(GATEWAY_MAC);
    out.is(PASS, &["pass_bridge"]);
    untouched(&out, &reply.clone().eth(mac(B), GATEWAY_MAC));
    assert_eq!(w.to_container(&reply).is(PASS, &["vip_reply"]).frame().src, VIP2);
}

fn a_vip_is_its_own_networks(w: &World) {
    let ask = |src: [u8; 4], target: [u8; 4]| {
        let mut b = vec![0xff; 6];
        b.extend(mac(src));
        b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        b.extend(mac(src));
        b.extend(src);
        b.extend([0; 6]);
        b.extend(target);
        b
    };
    for (src, dev, gateway, own, other) in [(A, "mv-a", GATEWAY, VIP2, VIP_OTHER), (E, "mv-e", [10, 2, 0, 1], VIP_OTHER, VIP)] {
        let raw = |bytes: &[u8]| w.raw(Program::FromContainer, dev, bytes);
        raw(&ask(src, own)).is(REDIRECT, &["arp_answered"]);
        raw(&ask(src, other)).is(PASS, &["pass_bridge"]);
        let to = |frame: Frame| raw(&frame.eth(mac(src), mac(gateway)).bytes());
        to(Frame::tcp((src, 5), (own, 80), SYN, b"")).is(REDIRECT, &["hairpin", "new_flow"]);
        to(Frame::icmp(src, own, 8, &[0; 12])).is(REDIRECT, &["echo_answered"]);
        for sent in [Frame::tcp((src, 5), (other, 80), SYN, b""), Frame::icmp(src, other, 8, &[0; 12])] {
            let out = to(sent.clone());
            out.is(PASS, &["pass_bridge"]);
            untouched(&out, &sent.eth(mac(src), mac(gateway)));
        }
    }
}
