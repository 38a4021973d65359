//! Row by row: from_container, from_network and to_container.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use mesh_core::lb::{Program, Row};
use support::{
    frame::{ACK, FIN, RST, SYN},
    packet::Packet,
    table::{Is, LEFT, Reset, SENT, Same, Table, Unreachable, at, group, neighbor},
    world::{A, B, C, D, DROP, E, Family, GATEWAY_MAC, INGRESS, PEER, V4, V6, VIP_OTHER, mac, turn},
};

/// BY_ENTRY of from_uplink.
const BY_ENTRY: u8 = 4;

/// What only its own address may say.
fn sources(t: &mut Table, f: &Family) {
    let bridge = &["pass_bridge"];
    let udp = |src, dst| Packet::udp(at(src, 1), at(dst, 2), b"x");
    t.container("own", &udp(f.a, f.router), LEFT, bridge, Same);
    t.container("another's", &udp(f.b, f.router), DROP, &["drop_spoofed_ip"], Same);
    t.container("a stranger's", &udp(f.client, f.router), DROP, &["drop_spoofed_ip"], Same);
    let none = if f.v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
    t.container("no address", &udp(none, f.router), DROP, &["drop_spoofed_ip"], Same);
    t.container("the VIP's", &udp(f.vip, f.router), DROP, &["drop_spoofed_ip"], Same);
    if f.v6 {
        let local = "fe80::11".parse().unwrap();
        t.container(
            "of its link, but no discovery",
            &udp(local, f.router),
            DROP,
            &["drop_spoofed_ip"],
            Same,
        );
        let mapped = Packet::udp(at("::ffff:10.1.0.11".parse().unwrap(), 1), at(f.router, 2), b"x");
        t.container("mapped IPv4", &mapped, DROP, &["drop_malformed"], Same);
        let mapped = Packet::udp(at(f.a, 1), at("::ffff:10.1.0.100".parse().unwrap(), 2), b"x");
        t.container("to a mapped VIP", &mapped, DROP, &["drop_malformed"], Same);
    }
    for proto in [47, 132, 50] {
        let p = Packet::new(proto, f.a, f.c, vec![0; 40]);
        t.container(&format!("protocol {proto}, to the gateway"), &p, LEFT, bridge, Same);
        t.station(&format!("protocol {proto}, elsewhere"), &p, mac(C), SENT, &["direct_remote"], Same);
        t.station(&format!("protocol {proto}, here"), &p, mac(B), SENT, &["direct_local"], Same);
        let p = Packet { src: f.b, ..p };
        t.station(
            &format!("protocol {proto}, another's"),
            &p,
            mac(C),
            DROP,
            &["drop_spoofed_ip"],
            Same,
        );
    }
    let p = udp(f.a, f.c).eth(mac(B), GATEWAY_MAC).bytes();
    t.bytes(
        "another's Ethernet address",
        Program::FromContainer,
        "mv-a",
        &p,
        DROP,
        &["drop_spoofed_mac"],
    );
    let p = udp(f.a, f.c).eth(mac(A), GATEWAY_MAC);
    t.bytes(
        "no endpoint's device",
        Program::FromContainer,
        "stray",
        &p.bytes(),
        LEFT,
        &["pass_unknown_device"],
    );
    for kind in [[0x81, 0], [0x88, 0xa8], [0x88, 0x63], [0, 100]] {
        let mut b = p.bytes();
        b[12..14].copy_from_slice(&kind);
        t.bytes("neither IP nor ARP", Program::FromContainer, "mv-a", &b, DROP, &["drop_ethertype"]);
    }
    t.station("broadcast", &udp(f.a, f.c), [0xff; 6], LEFT, bridge, Same);
    let mut bad = vec![("version", 14, vec![0x95]), ("length", if f.v6 { 18 } else { 16 }, vec![7, 7])];
    let l4 = if f.v6 { 54 } else { 34 };
    bad.extend([("UDP length", l4 + 4, vec![0, 3]), ("UDP length past the end", l4 + 4, vec![0, 10])]);
    for (what, from, to) in bad {
        let mut b = p.bytes();
        b[from..from + to.len()].copy_from_slice(&to);
        t.bytes(what, Program::FromContainer, "mv-a", &b, DROP, &["drop_malformed"]);
    }
    let p = Packet::tcp(at(f.a, 1), at(f.c, 2), SYN, b"");
    let mut b = p.eth(mac(A), mac(C)).bytes();
    b[l4 + 12] = 0x40;
    t.bytes("data offset", Program::FromContainer, "mv-a", &b, DROP, &["drop_malformed"]);
    // A fragment is its sender's, too.
    let parts = Packet::udp(at(f.a, 1), at(f.c, 2), &[0; 64]).split(32, 3);
    t.station("first fragment", &parts[0], mac(C), SENT, &["direct_remote"], Same);
    t.station("later fragment", &parts[1], mac(C), SENT, &["direct_remote"], Same);
    let p = Packet {
        src: f.b,
        ..parts[1].clone()
    };
    t.station("another's later fragment", &p, mac(C), DROP, &["drop_spoofed_ip"], Same);
}

/// Neighbour discovery.
fn discovery(t: &mut Table) {
    let f = V6;
    let bridge = &["pass_bridge"];
    let ip = |text: &str| text.parse().unwrap();
    let (own, none, link) = (f.a, ip("::"), ip("fe80::6d:aff:fe01:b"));
    for vip in [f.vip, f.vip2, f.vip_empty] {
        let (to, lladdr) = group(vip);
        let ask = neighbor(135, own, to, vip, mac(A));
        let answer = neighbor(136, vip, own, vip, GATEWAY_MAC).eth(GATEWAY_MAC, mac(A));
        t.station("asks for a VIP", &ask, lladdr, SENT, &["nd_answered"], Is(answer.clone()));
        let again = neighbor(135, own, vip, vip, mac(A));
        t.container("makes sure of a VIP", &again, SENT, &["nd_answered"], Is(answer.clone()));
        let mut bare = Packet::icmp(own, to, 135, 0, &again.body[4..24]);
        bare.ttl = 255;
        t.station("asks without its own", &bare, lladdr, SENT, &["nd_answered"], Is(answer));
        let p = neighbor(135, none, to, vip, mac(A));
        t.station("asks whether a VIP is taken", &p, lladdr, LEFT, bridge, Same);
    }
    for (what, target) in [
        ("another", f.b),
        ("itself", f.a),
        ("the gateway", f.gateway),
        ("of no network", f.client),
    ] {
        let (to, lladdr) = group(target);
        t.station(
            &format!("asks for {what}"),
            &neighbor(135, own, to, target, mac(A)),
            lladdr,
            LEFT,
            bridge,
            Same,
        );
    }
    let all = ip("ff02::1");
    let many = [0x33, 0x33, 0, 0, 0, 1];
    let from = |src, kind| Packet::icmp(src, all, kind, 0, &[0; 20]);
    t.station(
        "another asks",
        &neighbor(135, f.b, all, f.c, mac(A)),
        many,
        DROP,
        &["drop_spoofed_ip"],
        Same,
    );
    t.station(
        "its link's address asks",
        &neighbor(135, link, all, f.c, mac(A)),
        many,
        LEFT,
        bridge,
        Same,
    );
    t.station(
        "asks whether its own is taken",
        &neighbor(135, none, all, f.a, mac(A)),
        many,
        LEFT,
        bridge,
        Same,
    );
    t.station("says where it is", &neighbor(136, own, all, own, mac(A)), many, LEFT, bridge, Same);
    t.station(
        "says where its link's is",
        &neighbor(136, link, all, link, mac(A)),
        many,
        LEFT,
        bridge,
        Same,
    );
    let spoofed = &["drop_spoofed_nd"];
    for (what, target) in [("another's", f.b), ("the gateway's", f.gateway), ("a VIP's", f.vip)] {
        t.station(
            &format!("{what} place"),
            &neighbor(136, own, all, target, mac(A)),
            many,
            DROP,
            spoofed,
            Same,
        );
        t.station(
            &format!("{what} place, by its link's"),
            &neighbor(136, link, all, target, mac(A)),
            many,
            DROP,
            spoofed,
            Same,
        );
        let dressed = neighbor(136, own, all, target, mac(A)).behind(&[(60, 8); 6]);
        t.station(&format!("{what} place, behind six headers"), &dressed, many, DROP, spoofed, Same);
        let dressed = neighbor(136, own, all, target, mac(A)).behind(&[(60, 8); 7]);
        t.station(
            &format!("{what} place, behind seven"),
            &dressed,
            many,
            DROP,
            &["drop_malformed"],
            Same,
        );
        let atomic = neighbor(136, own, all, target, mac(A)).behind(&[(44, 8)]);
        t.station(&format!("{what} place, in an atomic fragment"), &atomic, many, DROP, spoofed, Same);
    }
    // Addresses of the link that are another's, or nobody's.
    let others = ip("fe80::6d:aff:fe01:c");
    for (what, kind, src, target) in [
        ("says where another's link's is", 136, own, others),
        ("says so as that one", 136, others, others),
        ("says where one that it chose is", 136, own, ip("fe80::1")),
        ("another's link's asks", 135, others, f.c),
        ("another's link's says where its own is", 136, others, own),
    ] {
        t.station(what, &neighbor(kind, src, all, target, mac(A)), many, DROP, spoofed, Same);
    }
    // Ethernet addresses among the options.
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let option = |kind, of: [u8; 6]| [&[kind, 1][..], &of].concat();
    let with = |kind, target, options: &[&[u8]]| {
        let flags = if kind == 136 { 0x60 } else { 0 };
        let data = [&[flags, 0, 0, 0][..], &support::packet::octets(target), &options.concat()].concat();
        let ttl = 255;
        Packet {
            ttl,
            ..Packet::icmp(own, all, kind, 0, &data)
        }
    };
    let (source, target) = (option(1, mac(A)), option(2, mac(A)));
    for (what, p) in [
        ("asks with a nonce", with(135, f.c, &[&nonce, &source])),
        ("asks with four options", with(135, f.c, &[&nonce, &nonce, &nonce, &source])),
        ("says so without an option", with(136, own, &[])),
        ("says so with a long option", with(136, own, &[&[14, 2][..], &[0; 14], &target])),
    ] {
        t.station(what, &p, many, LEFT, bridge, Same);
    }
    for (what, p) in [
        ("asks as at another's", with(135, f.c, &[&option(1, mac(C))])),
        (
            "asks as at another's, behind a nonce",
            with(135, f.c, &[&nonce, &option(1, mac(C))]),
        ),
        ("asks as at both", with(135, f.c, &[&source, &option(1, mac(C))])),
        ("says that it is at another's", with(136, own, &[&option(2, mac(C))])),
        ("says so by the wrong option", with(136, own, &[&target, &option(1, mac(C))])),
        ("asks with five options", with(135, f.c, &[&nonce, &nonce, &nonce, &nonce, &source])),
        ("asks with an option of no length", with(135, f.c, &[&[14, 0, 0, 0, 0, 0, 0, 0]])),
        ("asks with an option that is cut", with(135, f.c, &[&[14, 2, 0, 0, 0, 0, 0, 0]])),
        ("asks with half an option", with(135, f.c, &[&[1, 1, 2, 0x6d]])),
    ] {
        t.station(what, &p, many, DROP, spoofed, Same);
    }
    t.station("router advertisement", &from(link, 134), many, DROP, spoofed, Same);
    t.station(
        "router advertisement behind options",
        &from(link, 134).behind(&[(0, 8)]),
        many,
        DROP,
        spoofed,
        Same,
    );
    t.station("router advertisement of its own", &from(own, 134), many, DROP, spoofed, Same);
    t.station("redirect", &from(link, 137), many, DROP, spoofed, Same);
    t.station("router solicitation", &from(link, 133), many, LEFT, bridge, Same);
    t.station(
        "router solicitation before it has an address",
        &from(none, 133),
        many,
        LEFT,
        bridge,
        Same,
    );
    t.station("joins a group", &from(link, 143).behind(&[(0, 8)]), many, LEFT, bridge, Same);
    t.station(
        "joins, before it has an address",
        &from(none, 143).behind(&[(0, 8)]),
        many,
        LEFT,
        bridge,
        Same,
    );
    let short = Packet::icmp(own, all, 135, 0, &[0; 8]);
    t.station("solicitation cut short", &short, many, DROP, &["drop_malformed"], Same);
    let parts = neighbor(136, link, all, f.b, mac(A)).split(16, 9);
    t.station("advertisement in fragments", &parts[0], many, DROP, &["drop_spoofed_ip"], Same);
    // The network of endpoint E has no IPv6.
    let p = Packet::udp(at(f.a, 1), at(f.c, 2), b"x").eth(mac(E), GATEWAY_MAC).bytes();
    t.bytes("IPv6 where there is none", Program::FromContainer, "mv-e", &p, DROP, &["drop_ipv6"]);
    let p = neighbor(135, none, all, f.a, mac(E)).eth(mac(E), many).bytes();
    t.bytes(
        "discovery where there is none",
        Program::FromContainer,
        "mv-e",
        &p,
        DROP,
        &["drop_ipv6"],
    );
}

fn vips(t: &mut Table, f: &Family) {
    let seg = |cport, flags| Packet::tcp(at(f.a, cport), at(f.vip, 80), flags, b"data");
    let to = |p: &Packet, cport, ip: std::net::IpAddr, m: [u8; 4]| p.clone().moved(at(f.a, cport), at(ip, 80)).eth(mac(A), mac(m));
    let new = &["direct_remote", "new_flow", "vip_forwarded"];
    let known = &["direct_remote", "vip_forwarded"];
    t.container("a SYN", &seg(1, SYN), SENT, new, Is(to(&seg(1, SYN), 1, f.c, C)));
    t.container("sent again", &seg(1, SYN), SENT, known, Is(to(&seg(1, SYN), 1, f.c, C)));
    t.container("the next one's turn", &seg(2, SYN), SENT, new, Is(to(&seg(2, SYN), 2, f.d, D)));
    let back = |flags| Packet::tcp(at(f.c, 80), at(f.a, 1), flags, b"answer");
    let shown = |flags| back(flags).moved(at(f.vip, 80), at(f.a, 1)).eth(mac(C), mac(A));
    let arrived = &["direct_arrived", "vip_reply"];
    t.arrived("its reply", &back(SYN | ACK), A, SENT, arrived, Is(shown(SYN | ACK)));
    t.bridged(
        "its reply, over the bridge",
        &back(SYN | ACK),
        LEFT,
        &["vip_reply"],
        Is(shown(SYN | ACK)),
    );
    let kept = &["direct_remote", "kept", "vip_forwarded"];
    t.container("both heard", &seg(1, ACK), SENT, kept, Is(to(&seg(1, ACK), 1, f.c, C)));
    t.container("closes", &seg(1, FIN | ACK), SENT, known, Is(to(&seg(1, FIN | ACK), 1, f.c, C)));
    t.arrived("backend closes", &back(FIN | ACK), A, SENT, arrived, Is(shown(FIN | ACK)));
    t.container("the last ACK", &seg(1, ACK), SENT, known, Is(to(&seg(1, ACK), 1, f.c, C)));
    t.container("opens anew", &seg(1, SYN), SENT, new, Is(to(&seg(1, SYN), 1, f.c, C)));
    t.container("reset of nothing", &seg(3, RST), DROP, &["drop_reset"], Same);
    t.container(
        "lifetime 1, on one link",
        &Packet { ttl: 1, ..seg(1, ACK) },
        SENT,
        known,
        Is(to(&Packet { ttl: 1, ..seg(1, ACK) }, 1, f.c, C)),
    );
    // Datagrams.
    let q = Packet::udp(at(f.a, 5), at(f.vip, 53), b"question");
    let out = t.w.raw(Program::FromContainer, "mv-a", &q.clone().eth(mac(A), GATEWAY_MAC).bytes());
    let (ip, m) = (out.packet().dst, out.packet().eth_dst);
    t.row(
        "a datagram",
        out,
        &[],
        SENT,
        new,
        Is(q.clone().moved(at(f.a, 5), at(ip, 53)).eth(mac(A), m)),
    );
    let bare = q.clone().unsummed();
    t.container(
        "without a checksum",
        &bare,
        SENT,
        known,
        Is(bare.clone().moved(at(f.a, 5), at(ip, 53)).eth(mac(A), m)),
    );
    let whole = Packet::udp(at(f.a, 5), at(f.vip, 53), &[8; 300]);
    let parts = whole.split(104, 21);
    let moved = whole.moved(at(f.a, 5), at(ip, 53)).eth(mac(A), m).split(104, 21);
    t.container(
        "orphan",
        &Packet::udp(at(f.a, 5), at(f.vip, 53), &[8; 300]).split(104, 22)[1],
        DROP,
        &["drop_fragment"],
        Same,
    );
    t.container("first fragment", &parts[0], SENT, known, Is(moved[0].clone()));
    t.container("later fragment", &parts[1], SENT, known, Is(moved[1].clone()));
    // Errors, both ways. From the backend or a router on its side: about what the backend got.
    let got = Packet::udp(at(f.a, 5), at(ip, 53), b"question");
    let p = Packet::unreachable(ip, f.a, &got);
    let want = Packet::unreachable(f.vip, f.a, &q);
    let both = &["direct_arrived", "icmp_translated"];
    t.arrived("error of the backend", &p, A, SENT, both, Is(want.clone().eth(mac(C), mac(A))));
    t.bridged(
        "error of the backend, over the bridge",
        &p,
        LEFT,
        &["icmp_translated"],
        Is(want.eth(mac(C), mac(A))),
    );
    let p = Packet::too_big(f.router, f.a, 1280, &got);
    t.arrived(
        "error of a router",
        &p,
        A,
        SENT,
        both,
        Is(Packet::too_big(f.router, f.a, 1280, &q).eth(mac(C), mac(A))),
    );
    let p = Packet::unreachable(ip, f.a, &Packet::udp(at(f.a, 6), at(ip, 53), b"question"));
    t.arrived("error about no flow", &p, A, SENT, &["direct_arrived"], Same);
    // From the client: about what the backend sent, which the client got from the VIP.
    let (sent, seen) = (
        Packet::udp(at(ip, 53), at(f.a, 5), b"answer"),
        Packet::udp(at(f.vip, 53), at(f.a, 5), b"answer"),
    );
    let p = Packet::unreachable(f.a, f.vip, &seen);
    let both = &["direct_remote", "icmp_translated"];
    t.container(
        "error of the client",
        &p,
        SENT,
        both,
        Is(Packet::unreachable(f.a, ip, &sent).eth(mac(A), m)),
    );
    let p = Packet::unreachable(f.a, f.vip, &Packet::udp(at(f.vip, 54), at(f.a, 5), b"answer"));
    t.container("error of the client about no flow", &p, DROP, &["drop_vip_protocol"], Same);
    // The rest that a VIP is asked.
    let (echo, reply) = if f.v6 { (128, 129) } else { (8, 0) };
    for data in [&[0u8; 60][..], &[7; 61], &[]] {
        let data = [&[1, 2, 3, 4][..], data].concat();
        let p = Packet::icmp(f.a, f.vip, echo, 0, &data);
        let want = Packet::icmp(f.vip, f.a, reply, 0, &data).eth(GATEWAY_MAC, mac(A));
        t.container("ping", &p, SENT, &["echo_answered"], Is(want));
    }
    for (kind, code) in [(echo, 1), (reply, 0), (13, 0), (200, 0)] {
        let p = Packet::icmp(f.a, f.vip, kind, code, &[0; 8]);
        t.container(&format!("message {kind} {code}"), &p, DROP, &["drop_vip_protocol"], Same);
    }
    for proto in [47, 132, 50] {
        let p = Packet::new(proto, f.a, f.vip, vec![0; 20]);
        t.container(&format!("protocol {proto}"), &p, DROP, &["drop_vip_protocol"], Same);
    }
    // Nobody.
    let seg = |flags| Packet::tcp(at(f.a, 9), at(f.vip_empty, 80), flags, b"");
    t.container("empty: SYN", &seg(SYN), SENT, &["reset_no_backend"], Reset);
    t.container("empty: ACK", &seg(ACK), SENT, &["reset_no_backend"], Reset);
    t.container("empty: RST", &seg(RST), DROP, &["drop_reset"], Same);
    let p = Packet::udp(at(f.a, 9), at(f.vip_empty, 53), b"q");
    t.container("empty: datagram", &p, SENT, &["unreachable_no_backend"], Unreachable);
    // Not by the gateway's address: an ordinary one.
    let p = Packet::tcp(at(f.a, 9), at(f.vip, 80), SYN, b"");
    t.station("not by the gateway", &p, mac(C), SENT, &["direct_remote"], Same);
}

/// The backend is the client.
fn itself(t: &mut Table, f: &Family) {
    for (what, asked, port, target) in [("by its VIP", f.vip2, 80, 80), ("by its published port", f.node, 8080, 8000)] {
        let named = |s: &str| format!("itself {what}: {s}");
        let first: &[&str] = if port == 80 {
            &["hairpin", "new_flow"]
        } else {
            &["from_own_node", "hairpin", "new_flow"]
        };
        let then: &[&str] = if port == 80 { &["hairpin"] } else { &["from_own_node", "hairpin"] };
        let p = Packet::tcp(at(f.a, 77), at(asked, port), SYN, b"");
        let want = p.clone().moved(at(asked, 77), at(f.a, target)).eth(GATEWAY_MAC, mac(A));
        t.container(&named("SYN"), &p, SENT, first, Is(want.clone()));
        t.container(&named("again"), &p, SENT, then, Is(want));
        let p = Packet::tcp(at(f.a, target), at(asked, 77), SYN | ACK, b"");
        let want = p.clone().moved(at(asked, port), at(f.a, 77)).eth(GATEWAY_MAC, mac(A));
        t.container(&named("answers"), &p, SENT, &["hairpin"], Is(want));
        let p = Packet::tcp(at(f.a, 77), at(asked, port), ACK, b"x");
        let want = p.clone().moved(at(asked, 77), at(f.a, target)).eth(GATEWAY_MAC, mac(A));
        let kept: Vec<_> = then.iter().copied().chain(["kept"]).collect();
        t.container(&named("both heard"), &p, SENT, &kept, Is(want));
    }
    // A backend beside it is taken before itself.
    let set = if f.v6 { 5 | mesh_core::lb::V6 } else { 5 };
    t.w.put(Row::Service(set, Some(turn(&[1, 2]))));
    for cport in 200..206 {
        let p = Packet::tcp(at(f.a, cport), at(f.vip2, 80), SYN, b"");
        let want = p.clone().moved(at(f.a, cport), at(f.b, 80)).eth(mac(A), mac(B));
        t.container("not itself", &p, SENT, &["direct_local", "new_flow", "vip_forwarded"], Is(want));
    }
    let reply = Packet::tcp(at(f.b, 80), at(f.a, 200), SYN | ACK, b"").eth(mac(B), mac(A));
    let out = t.w.raw(Program::FromContainer, "mv-b", &reply.bytes());
    let want = reply.clone().moved(at(f.vip2, 80), at(f.a, 200));
    t.row("a backend here answers", out, &[], SENT, &["direct_local", "vip_reply"], Is(want));
    t.w.put(Row::Service(set, Some(turn(&[1]))));
}

/// A container asks a published port of its own node.
fn own_node(t: &mut Table, f: &Family) {
    let set = if f.v6 { 2 | mesh_core::lb::V6 } else { 2 };
    t.w.put(Row::Service(set, Some(turn(&[2]))));
    let p = Packet::tcp(at(f.a, 300), at(f.node, 8080), SYN, b"");
    let want = p.clone().moved(at(f.a, 300), at(f.b, 8000)).hop().eth(GATEWAY_MAC, mac(B));
    t.container("a backend here", &p, SENT, &["delivered", "from_own_node", "new_flow"], Is(want));
    let reply = Packet::tcp(at(f.b, 8000), at(f.a, 300), SYN | ACK, b"").eth(mac(B), GATEWAY_MAC);
    let out = t.w.raw(Program::FromContainer, "mv-b", &reply.bytes());
    let want = reply.moved(at(f.node, 8080), at(f.a, 300)).hop().eth(INGRESS, INGRESS);
    t.row("its reply", out, &[], SENT, &["reply_sent"], Is(want));
    let p = Packet::tcp(at(f.a, 300), at(f.node, 8080), ACK, b"");
    let want = p.clone().moved(at(f.a, 300), at(f.b, 8000)).hop().eth(GATEWAY_MAC, mac(B));
    t.container("both heard", &p, SENT, &["delivered", "from_own_node", "kept"], Is(want));
    t.w.put(Row::Service(set, Some(turn(&[1]))));
    // Elsewhere: carried so that its replies come back by this node.
    let mut entry = INGRESS;
    entry[0] |= BY_ENTRY;
    let p = Packet::tcp(at(f.a, 301), at(f.node, 80), SYN, b"");
    let out = t.w.raw(Program::FromContainer, "mv-a", &p.clone().eth(mac(A), GATEWAY_MAC).bytes());
    let to = out.packet().eth_dst;
    t.that("it is an endpoint elsewhere", to == mac(C) || to == mac(D));
    t.row(
        "a backend elsewhere",
        out,
        &[],
        SENT,
        &["carried", "from_own_node", "new_flow"],
        Is(p.eth(entry, to)),
    );
    let reply = Packet::tcp(at(f.node, 80), at(f.a, 301), SYN | ACK, b"");
    t.returned("its reply, from elsewhere", &reply, SENT, &["reply_sent"], Same);
    let p = Packet::tcp(at(f.a, 301), at(f.node, 80), ACK, b"").eth(entry, to);
    t.container(
        "both heard, elsewhere",
        &p,
        SENT,
        &["carried", "from_own_node", "kept"],
        Is(p.clone()),
    );
    let p = Packet::tcp(at(f.a, 302), at(f.node, 9090), SYN, b"");
    t.container("nobody", &p, SENT, &["from_own_node", "reset_no_backend"], Reset);
    let p = Packet::udp(at(f.a, 302), at(f.node, 9090), b"q");
    t.container(
        "nobody, datagram",
        &p,
        SENT,
        &["from_own_node", "unreachable_no_backend"],
        Unreachable,
    );
    let p = Packet::tcp(at(f.a, 302), at(f.node, 22), SYN, b"");
    t.container("not published", &p, LEFT, &["pass_bridge"], Same);
    let p = Packet::icmp(f.a, f.node, if f.v6 { 128 } else { 8 }, 0, &[0; 8]);
    t.container("ping of the node", &p, LEFT, &["pass_bridge"], Same);
}

/// From another node's containers, and over the bridge.
fn network(t: &mut Table, f: &Family) {
    let p = Packet::udp(at(f.c, 1), at(f.a, 2), b"x");
    let arrived = &["direct_arrived"];
    t.arrived("datagram", &p, A, SENT, arrived, Same);
    t.arrived(
        "to another here",
        &Packet::udp(at(f.c, 1), at(f.b, 2), b"x"),
        B,
        SENT,
        arrived,
        Same,
    );
    t.arrived("segment", &Packet::tcp(at(f.c, 1), at(f.a, 2), SYN, b""), A, SENT, arrived, Same);
    t.arrived("lifetime 1", &Packet { ttl: 1, ..p.clone() }, A, SENT, arrived, Same);
    t.arrived(
        "ping",
        &Packet::icmp(f.c, f.a, if f.v6 { 128 } else { 8 }, 0, &[0; 8]),
        A,
        SENT,
        arrived,
        Same,
    );
    t.arrived("GRE", &Packet::new(47, f.c, f.a, vec![0; 40]), A, SENT, arrived, Same);
    let parts = Packet::udp(at(f.c, 1), at(f.a, 2), &[0; 64]).split(32, 8);
    t.arrived("first fragment", &parts[0], A, SENT, arrived, Same);
    t.arrived("later fragment", &parts[1], A, SENT, arrived, Same);
    t.arrived("another network's endpoint", &p, E, LEFT, &["pass_bridge"], Same);
    t.arrived("nobody's", &p, D, LEFT, &["pass_bridge"], Same);
    let all = p.clone().eth(mac(C), [0x33, 0x33, 0, 0, 0, 1]).bytes();
    t.bytes("multicast", Program::FromNetwork, "mx-n", &all, LEFT, &["pass_bridge"]);
    let mut b = p.clone().eth(mac(C), mac(A)).bytes();
    t.bytes(
        "no network's device",
        Program::FromNetwork,
        "stray",
        &b,
        LEFT,
        &["pass_unknown_device"],
    );
    b[14] = 0x00;
    t.bytes(
        "malformed is the receiver's to judge",
        Program::FromNetwork,
        "mx-n",
        &b,
        SENT,
        arrived,
    );
    b[12..14].copy_from_slice(&[8, 6]);
    t.bytes("ARP", Program::FromNetwork, "mx-n", &b, LEFT, &["pass_bridge"]);
    t.bytes("ARP over the bridge", Program::ToContainer, "mv-a", &b, LEFT, &[]);
    t.bridged("over the bridge", &p, LEFT, &[], Same);
    t.bridged("fragment over the bridge", &parts[1], LEFT, &[], Same);
    t.bridged(
        "ping over the bridge",
        &Packet::icmp(f.gateway, f.a, if f.v6 { 128 } else { 8 }, 0, &[0; 8]),
        LEFT,
        &[],
        Same,
    );
}

#[test]
fn containers() {
    let mut t = Table::new();
    for f in [V4, V6] {
        t.family(&f);
        sources(&mut t, &f);
        vips(&mut t, &f);
        itself(&mut t, &f);
        own_node(&mut t, &f);
        network(&mut t, &f);
    }
    discovery(&mut t);
    t.family(&V4);
    let p = Packet::tcp(at(V4.a, 1), at(std::net::IpAddr::from(VIP_OTHER), 80), SYN, b"");
    t.container("another network's VIP", &p, LEFT, &["pass_bridge"], Same);
    t.w.put(Row::Peer(mesh_core::Mac(PEER), false));
    let reply = Packet::tcp(at(V4.node, 80), at(V4.a, 301), ACK, b"");
    t.returned("a reply of a node that is gone", &reply, DROP, &["drop_unknown_peer"], Same);
    t.finish(200);
}
