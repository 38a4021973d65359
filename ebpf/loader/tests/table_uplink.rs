//! Row by row: from_uplink, and what comes back of its flows.
#![expect(clippy::unwrap_used, reason = "test")]

mod support;

use mesh_core::{
    Mac,
    lb::{self, Method, Pool, Program, Row},
    objects::Protocol,
};
use support::{
    frame::{ACK, FIN, RST, SYN},
    packet::Packet,
    table::{Is, LEFT, Reset, SENT, Same, Table, Unreachable, at},
    world::{A, C, D, DROP, Family, GATEWAY_MAC, INGRESS, PEER, ROUTER, UPLINK, V4, V6, mac, turn},
};

/// A client's packet as it is carried to `to`.
fn on_its_way(p: &Packet, to: [u8; 4]) -> Packet {
    p.clone().eth(INGRESS, mac(to))
}

/// A client's packet as endpoint A gets it.
fn handed(p: &Packet, f: &Family, cport: u16, port: u16) -> Packet {
    p.clone().moved(at(f.client, cport), at(f.a, port)).hop().eth(GATEWAY_MAC, mac(A))
}

fn flows(t: &mut Table, f: &Family) {
    let tcp = |cport, port, flags| Packet::tcp(at(f.client, cport), at(f.node, port), flags, b"");
    let udp = |cport, port| Packet::udp(at(f.client, cport), at(f.node, port), b"question");
    let p = Packet::tcp(at(f.client, 1), at(f.a, 80), SYN, b"");
    t.client("to no address of the node", &p, LEFT, &["pass"], Same);
    t.client("to no published port", &tcp(1, 22, SYN), LEFT, &["pass"], Same);
    t.client("to a port of the other protocol", &udp(1, 80), LEFT, &["pass"], Same);
    let p = tcp(1, 80, SYN);
    t.client("a SYN", &p, SENT, &["new_flow", "carried"], Is(on_its_way(&p, C)));
    t.client("a SYN sent again", &p, SENT, &["carried"], Is(on_its_way(&p, C)));
    let p = tcp(1, 80, ACK);
    t.client("its ACK", &p, SENT, &["carried"], Is(on_its_way(&p, C)));
    let p = tcp(2, 80, SYN);
    t.client("the next one's turn", &p, SENT, &["new_flow", "carried"], Is(on_its_way(&p, D)));
    let p = tcp(3, 80, ACK);
    t.client("mid-flow, not known", &p, SENT, &["new_flow", "carried"], Is(on_its_way(&p, C)));
    t.client("a reset of nothing", &tcp(4, 80, RST), DROP, &["drop_reset"], Same);
    let p = tcp(1, 80, RST);
    t.client("a reset", &p, SENT, &["carried"], Is(on_its_way(&p, C)));
    let p = tcp(1, 80, ACK);
    t.client("what follows a reset", &p, SENT, &["carried"], Is(on_its_way(&p, C)));
    let p = tcp(1, 80, SYN);
    t.client("a SYN after a reset", &p, SENT, &["new_flow", "carried"], Is(on_its_way(&p, D)));
    let p = tcp(1, 81, SYN);
    t.client(
        "another port of the service",
        &p,
        SENT,
        &["new_flow", "carried"],
        Is(on_its_way(&p, C)),
    );
    let p = udp(1, 53);
    t.client("a datagram", &p, SENT, &["new_flow", "carried"], Is(on_its_way(&p, D)));
    t.client("the next one", &p, SENT, &["carried"], Is(on_its_way(&p, D)));
    let p = Packet { ttl: 1, ..tcp(1, 80, ACK) };
    t.client("carried as it is", &p, SENT, &["carried"], Is(on_its_way(&p, D)));
    // A reply from the other node, then the flow is kept.
    let p = Packet::tcp(at(f.node, 80), at(f.client, 1), SYN | ACK, b"");
    t.returned("a reply", &p, SENT, &["reply_sent"], Same);
    let p = tcp(1, 80, ACK);
    t.client("both ends were heard", &p, SENT, &["carried", "kept"], Is(on_its_way(&p, D)));
    t.client("from then on", &p, SENT, &["carried"], Is(on_its_way(&p, D)));
    t.w.put(Row::Service(if f.v6 { 1 | lb::V6 } else { 1 }, Some(turn(&[3]))));
    t.client("its backend takes no new flows", &p, SENT, &["carried"], Is(on_its_way(&p, D)));
    let b = t.w.loader.observe().unwrap().0.backends[&4];
    t.w.put(Row::Backend(4, None));
    t.client("its backend is gone", &p, SENT, &["reset_gone"], Reset);
    let p = udp(1, 53);
    t.client("a datagram moves on", &p, SENT, &["new_flow", "carried"], Is(on_its_way(&p, C)));
    let p = tcp(1, 80, SYN);
    t.client("a SYN moves on", &p, SENT, &["new_flow", "carried"], Is(on_its_way(&p, C)));
    t.w.put(Row::Backend(4, Some(b)));
    t.w.put(Row::Service(if f.v6 { 1 | lb::V6 } else { 1 }, Some(turn(&[3, 4]))));
}

/// Service 3 has no backend.
fn nobody(t: &mut Table, f: &Family) {
    let tcp = |flags, data: &[u8]| Packet::tcp(at(f.client, 5), at(f.node, 9090), flags, data);
    let none = &["reset_no_backend"];
    t.client("nobody: SYN", &tcp(SYN, b""), SENT, none, Reset);
    t.client("nobody: SYN with data", &tcp(SYN, b"abc"), SENT, none, Reset);
    t.client("nobody: ACK", &tcp(ACK, b"x"), SENT, none, Reset);
    t.client("nobody: FIN", &tcp(FIN, b"odd"), SENT, none, Reset);
    t.client("nobody: SYN and ACK", &tcp(SYN | ACK, b""), SENT, none, Reset);
    t.client("nobody: RST", &tcp(RST, b""), DROP, &["drop_reset"], Same);
    t.client("nobody: RST and ACK", &tcp(RST | ACK, b""), DROP, &["drop_reset"], Same);
    let udp = Packet::udp(at(f.client, 5), at(f.node, 9090), &[7; 600]);
    let none = &["unreachable_no_backend"];
    t.client("nobody: datagram", &udp, SENT, none, Unreachable);
    t.client(
        "nobody: datagram without a checksum",
        &udp.clone().unsummed(),
        SENT,
        none,
        Unreachable,
    );
    let small = Packet::udp(at(f.client, 5), at(f.node, 9090), b"");
    t.client("nobody: empty datagram", &small, SENT, none, Unreachable);
    let dressed = |p: Packet| {
        if f.v6 {
            p.behind(&[(60, 8)])
        } else {
            Packet { between: vec![1; 4], ..p }
        }
    };
    let none = &["drop_unanswered"];
    t.client("nobody: SYN with options", &dressed(tcp(SYN, b"")), DROP, none, Same);
    t.client("nobody: datagram with options", &dressed(udp.clone()), DROP, none, Same);
    let [first, later] = udp.split(64, 40);
    t.client("nobody: first fragment", &first, DROP, none, Same);
    t.client("nobody: later fragment", &later, DROP, none, Same);
    if !f.v6 {
        let mut b = udp.eth(ROUTER, UPLINK).bytes();
        b[24] ^= 1;
        t.bytes("nobody: wrong header checksum", Program::FromUplink, "up0", &b, DROP, none);
    }
}

/// Service 2's backend is endpoint A, here.
fn here(t: &mut Table, f: &Family) {
    let tcp = |cport, flags| Packet::tcp(at(f.client, cport), at(f.node, 8080), flags, b"data");
    let back = |cport, flags| Packet::tcp(at(f.a, 8000), at(f.client, cport), flags, b"answer");
    let sent = |cport, flags| {
        back(cport, flags)
            .moved(at(f.node, 8080), at(f.client, cport))
            .hop()
            .eth(INGRESS, INGRESS)
    };
    let p = tcp(1, SYN);
    t.client("here: a SYN", &p, SENT, &["new_flow", "delivered"], Is(handed(&p, f, 1, 8000)));
    t.client("here: again", &p, SENT, &["delivered"], Is(handed(&p, f, 1, 8000)));
    t.container(
        "here: its reply",
        &back(1, SYN | ACK),
        SENT,
        &["reply_sent"],
        Is(sent(1, SYN | ACK)),
    );
    let p = tcp(1, ACK);
    t.client("here: both heard", &p, SENT, &["delivered", "kept"], Is(handed(&p, f, 1, 8000)));
    t.client("here: from then on", &p, SENT, &["delivered"], Is(handed(&p, f, 1, 8000)));
    let p = tcp(1, FIN | ACK);
    t.client("here: client closes", &p, SENT, &["delivered"], Is(handed(&p, f, 1, 8000)));
    let p = tcp(1, SYN);
    t.client("here: half closed, a SYN", &p, SENT, &["delivered"], Is(handed(&p, f, 1, 8000)));
    t.container(
        "here: backend closes",
        &back(1, FIN | ACK),
        SENT,
        &["reply_sent"],
        Is(sent(1, FIN | ACK)),
    );
    let p = tcp(1, ACK);
    t.client("here: the last ACK", &p, SENT, &["delivered"], Is(handed(&p, f, 1, 8000)));
    let p = tcp(1, SYN);
    t.client(
        "here: closed, a SYN",
        &p,
        SENT,
        &["new_flow", "delivered"],
        Is(handed(&p, f, 1, 8000)),
    );
    let p = tcp(1, RST);
    t.client("here: reset", &p, SENT, &["delivered"], Is(handed(&p, f, 1, 8000)));
    t.container("here: backend's, after it", &back(1, ACK), SENT, &["reply_sent"], Is(sent(1, ACK)));
    // The same client port towards another address of the node.
    let p = tcp(2, SYN);
    t.client(
        "here: a second one",
        &p,
        SENT,
        &["new_flow", "delivered"],
        Is(handed(&p, f, 2, 8000)),
    );
    let other = Packet::tcp(at(f.client, 2), at(f.node2, 8080), SYN, b"");
    let out = t.w.raw(Program::FromUplink, "up0", &other.clone().eth(ROUTER, UPLINK).bytes());
    let got = out.packet();
    let cport = u16::from_be_bytes([got.body[0], got.body[1]]);
    let counted = ["new_flow", "delivered", "port_translated"];
    t.row(
        "here: same port, other address",
        out,
        &[],
        SENT,
        &counted,
        Is(handed(&other, f, cport, 8000)),
    );
    t.that("here: another port", cport != 2 && cport >= 1024);
    let reply = Packet::tcp(at(f.a, 8000), at(f.client, cport), SYN | ACK, b"");
    let want = reply.clone().moved(at(f.node2, 8080), at(f.client, 2)).hop().eth(INGRESS, INGRESS);
    t.container("here: and back", &reply, SENT, &["reply_sent"], Is(want));
    let p = Packet { ttl: 1, ..tcp(1, ACK) };
    t.client("here: lifetime over", &p, DROP, &["drop_ttl"], Same);
    t.client("here: lifetime never begun", &Packet { ttl: 0, ..p }, DROP, &["drop_ttl"], Same);
    let p = Packet { ttl: 1, ..back(1, ACK) };
    t.container("here: reply's lifetime over", &p, DROP, &["drop_ttl"], Same);
    for (what, data) in [("empty", &b""[..]), ("odd", b"abc"), ("long", &[9; 1200])] {
        let p = Packet::udp(at(f.client, 6), at(f.node, 8080), data);
        let new = if what == "empty" {
            &["new_flow", "delivered"][..]
        } else {
            &["delivered"]
        };
        t.client(&format!("here: {what} datagram"), &p, SENT, new, Is(handed(&p, f, 6, 5300)));
    }
    let p = Packet::udp(at(f.client, 6), at(f.node, 8080), b"x").unsummed();
    t.client("here: no checksum", &p, SENT, &["delivered"], Is(handed(&p, f, 6, 5300)));
    let p = Packet::udp(at(f.a, 5300), at(f.client, 6), b"x").unsummed();
    let want = p.clone().moved(at(f.node, 8080), at(f.client, 6)).hop().eth(INGRESS, INGRESS);
    t.container("here: reply without checksum", &p, SENT, &["reply_sent"], Is(want));
    let p = Packet::udp(at(f.client, 6), at(f.node, 8080), b"x");
    t.client("here: datagrams kept", &p, SENT, &["delivered", "kept"], Is(handed(&p, f, 6, 5300)));
    let dressed = if f.v6 {
        p.behind(&[(0, 8), (60, 24), (43, 8)])
    } else {
        Packet { between: vec![1; 8], ..p }
    };
    t.client(
        "here: with options",
        &dressed,
        SENT,
        &["delivered"],
        Is(handed(&dressed, f, 6, 5300)),
    );
    let l = t.w.loader.observe().unwrap().0.locals["mv-a"].clone();
    t.w.put(Row::Local("mv-a".into(), None));
    t.client("here: it has no interface", &tcp(1, ACK), DROP, &["drop_no_interface"], Same);
    t.w.put(Row::Local("mv-a".into(), Some(Box::new(l))));
}

fn fragments(t: &mut Table, f: &Family) {
    let whole = Packet::udp(at(f.client, 9), at(f.node, 53), &[5; 200]);
    let [first, later] = whole.split(96, 77);
    t.client("orphan", &later, LEFT, &["pass_fragment"], Same);
    let out = t.w.raw(Program::FromUplink, "up0", &first.clone().eth(ROUTER, UPLINK).bytes());
    let to = out.packet().eth_dst;
    t.row(
        "first fragment",
        out,
        &[],
        SENT,
        &["new_flow", "carried"],
        Is(first.eth(INGRESS, to)),
    );
    t.client("later fragment", &later, SENT, &["carried"], Is(later.clone().eth(INGRESS, to)));
    let [_, stranger] = whole.split(96, 78);
    t.client("of another packet", &stranger, LEFT, &["pass_fragment"], Same);
    let whole = Packet::udp(at(f.client, 9), at(f.node, 8080), &[5; 200]);
    let parts = whole.split(96, 79);
    let moved = handed(&whole, f, 9, 5300).split(96, 79);
    t.client(
        "first fragment, here",
        &parts[0],
        SENT,
        &["new_flow", "delivered"],
        Is(moved[0].clone()),
    );
    t.client("later fragment, here", &parts[1], SENT, &["delivered"], Is(moved[1].clone()));
    let whole = Packet::udp(at(f.a, 5300), at(f.client, 9), &[6; 200]);
    let parts = whole.split(48, 80);
    let moved = whole
        .moved(at(f.node, 8080), at(f.client, 9))
        .hop()
        .eth(INGRESS, INGRESS)
        .split(48, 80);
    t.container("reply's first fragment", &parts[0], SENT, &["reply_sent"], Is(moved[0].clone()));
    t.container("reply's later fragment", &parts[1], SENT, &["reply_sent"], Is(moved[1].clone()));
    if f.v6 {
        // RFC 6946.
        let p = Packet::udp(at(f.client, 9), at(f.node, 8080), b"atomic").behind(&[(44, 8)]);
        t.client("atomic fragment", &p, SENT, &["delivered", "kept"], Is(handed(&p, f, 9, 5300)));
    }
}

/// Errors from the clients' side, about what the service sent.
fn errors(t: &mut Table, f: &Family) {
    let udp = Packet::udp(at(f.client, 11), at(f.node, 53), b"q");
    let out = t.w.raw(Program::FromUplink, "up0", &udp.eth(ROUTER, UPLINK).bytes());
    let to = out.packet().eth_dst;
    let answer = Packet::udp(at(f.node, 53), at(f.client, 11), &[1; 900]);
    for (what, p) in [
        ("too big", Packet::too_big(f.router, f.node, 1300, &answer)),
        ("unreachable", Packet::unreachable(f.client, f.node, &answer)),
    ] {
        t.client(
            &format!("error, elsewhere: {what}"),
            &p,
            SENT,
            &["icmp_carried"],
            Is(p.clone().eth(INGRESS, to)),
        );
    }
    let tcp = Packet::tcp(at(f.client, 11), at(f.node, 8080), SYN, b"");
    t.client("a flow here", &tcp, SENT, &["new_flow", "delivered"], Is(handed(&tcp, f, 11, 8000)));
    let udp = Packet::udp(at(f.client, 11), at(f.node, 8080), b"x");
    t.client("another", &udp, SENT, &["new_flow", "delivered"], Is(handed(&udp, f, 11, 5300)));
    let seg = |from, data| Packet::tcp(from, at(f.client, 11), ACK, data);
    let gram = |from, data| Packet::udp(from, at(f.client, 11), data);
    let data = &[3u8; 700][..];
    let tcp_pair = (seg(at(f.node, 8080), data), seg(at(f.a, 8000), data));
    let udp_pair = (gram(at(f.node, 8080), data), gram(at(f.a, 5300), data));
    let bare_pair = (udp_pair.0.clone().unsummed(), udp_pair.1.clone().unsummed());
    let done = &["delivered", "icmp_translated"];
    for (what, (sent, inside)) in [("tcp", &tcp_pair), ("udp", &udp_pair), ("udp without a checksum", &bare_pair)] {
        let two = |make: &dyn Fn(std::net::IpAddr, &Packet) -> Packet| (make(f.node, sent), make(f.a, inside).eth(GATEWAY_MAC, mac(A)));
        let (p, want) = two(&|to, about| Packet::too_big(f.router, to, 1300, about));
        t.client(&format!("error, here: too big, {what}"), &p, SENT, done, Is(want));
        let (p, want) = two(&|to, about| Packet::unreachable(f.client, to, about));
        t.client(&format!("error, here: unreachable, {what}"), &p, SENT, done, Is(want));
        let exceeded = if f.v6 { 3 } else { 11 };
        let (p, want) = two(&|to, about| Packet::error(f.router, to, exceeded, 0, [0; 4], about, 1200));
        t.client(&format!("error, here: time exceeded, {what}"), &p, SENT, done, Is(want));
        let head = if f.v6 { 40 } else { 20 };
        for more in [8, 18] {
            let (p, want) = two(&|to, about| Packet::error(f.router, to, exceeded, 0, [0; 4], about, head + more));
            t.client(&format!("error, here: {more} bytes quoted, {what}"), &p, SENT, done, Is(want));
        }
        let p = Packet::error(f.router, f.node, exceeded, 0, [0; 4], sent, head + 4);
        t.client(&format!("error, quote too short, {what}"), &p, LEFT, &["pass"], Same);
        let p = Packet::error(f.router, f.node, exceeded, 0, [0; 4], sent, head - 1);
        t.client(&format!("error, quote far too short, {what}"), &p, LEFT, &["pass"], Same);
    }
    let other = seg(at(f.node, 8081), data);
    t.client(
        "error about no flow",
        &Packet::too_big(f.router, f.node, 1300, &other),
        LEFT,
        &["pass"],
        Same,
    );
    let sctp = Packet::new(132, f.node, f.client, vec![0; 40]);
    t.client(
        "error about no protocol of ours",
        &Packet::unreachable(f.client, f.node, &sctp),
        LEFT,
        &["pass"],
        Same,
    );
    let [_, later] = udp_pair.0.split(64, 3);
    t.client(
        "error about a fragment",
        &Packet::unreachable(f.client, f.node, &later),
        LEFT,
        &["pass"],
        Same,
    );
    let redirect = if f.v6 { 137 } else { 5 };
    let p = Packet::error(f.router, f.node, redirect, 0, [0; 4], &tcp_pair.0, 1200);
    t.client("no error: a redirect", &p, LEFT, &["pass"], Same);
    let ping = Packet::icmp(f.client, f.node, if f.v6 { 128 } else { 8 }, 0, &[0; 12]);
    t.client("a ping of the node", &ping, LEFT, &["pass"], Same);
    // From the backend's side: about what the client sent, which the backend got otherwise.
    let got = Packet::udp(at(f.client, 11), at(f.a, 5300), b"x").hop();
    let asked = Packet::udp(at(f.client, 11), at(f.node, 8080), b"x").hop();
    let p = Packet::unreachable(f.a, f.client, &got);
    let want = Packet::unreachable(f.node, f.client, &asked).eth(INGRESS, INGRESS);
    t.container("error of the backend", &p, SENT, &["reply_sent", "icmp_translated"], Is(want));
}

/// What no program touches, and what contradicts itself.
fn odd(t: &mut Table, f: &Family) {
    for (proto, what) in [
        (47, "GRE"),
        (132, "SCTP"),
        (50, "ESP"),
        (51, "AH"),
        (4, "IP in IP"),
        (41, "IPv6 in IP"),
        (255, "reserved"),
    ] {
        t.client(what, &Packet::new(proto, f.client, f.node, vec![0; 40]), LEFT, &["pass"], Same);
    }
    let tcp = Packet::tcp(at(f.client, 7), at(f.node, 80), SYN, b"").eth(ROUTER, UPLINK);
    let udp = Packet::udp(at(f.client, 7), at(f.node, 53), b"12345678").eth(ROUTER, UPLINK);
    let (tcp, udp) = (tcp.bytes(), udp.bytes());
    let l4 = if f.v6 { 54 } else { 34 };
    let with = |bytes: &[u8], at: usize, to: &[u8]| {
        let mut b = bytes.to_vec();
        b[at..at + to.len()].copy_from_slice(to);
        b
    };
    let len = if f.v6 { 18 } else { 16 };
    let upper = |n: u16| (n + if f.v6 { 0 } else { 20 }).to_be_bytes();
    let mut bad = vec![
        ("version", with(&tcp, 14, &[0x55])),
        ("longer than the frame", with(&tcp, len, &upper(21))),
        ("much longer", with(&tcp, len, &[0xff, 0xff])),
        ("cut in the TCP header", tcp[..tcp.len() - 1].to_vec()),
        ("shorter than TCP", with(&tcp, len, &upper(19))),
        ("no room for ports", with(&tcp, len, &upper(3))),
        ("nothing above", with(&tcp, len, &upper(0))),
        ("data offset 4", with(&tcp, l4 + 12, &[4 << 4])),
        ("data offset 0", with(&tcp, l4 + 12, &[0])),
        ("data offset past the end", with(&tcp, l4 + 12, &[15 << 4])),
        ("UDP length 7", with(&udp, l4 + 4, &[0, 7])),
        ("UDP length 0", with(&udp, l4 + 4, &[0, 0])),
        ("UDP length past the end", with(&udp, l4 + 4, &[0, 17])),
        ("UDP length far past the end", with(&udp, l4 + 4, &[0xff, 0xff])),
        ("shorter than UDP", with(&udp, len, &upper(7))),
        ("cut in the UDP header", udp[..l4 + 7].to_vec()),
        ("cut before ports", udp[..l4 + 2].to_vec()),
    ];
    if f.v6 {
        let mapped = Packet::tcp(at(f.client, 7), at("::ffff:192.168.77.11".parse().unwrap(), 80), SYN, b"");
        bad.push(("to a mapped address", mapped.eth(ROUTER, UPLINK).bytes()));
        let chain = |e: &[(u8, usize)]| {
            Packet::tcp(at(f.client, 7), at(f.node, 80), SYN, b"")
                .behind(e)
                .eth(ROUTER, UPLINK)
                .bytes()
        };
        bad.extend([
            ("seven extension headers", chain(&[(60, 8); 7])),
            ("twenty extension headers", chain(&[(60, 8); 20])),
            ("extension header past the end", with(&chain(&[(60, 8)]), 55, &[9])),
            ("extension header far past the end", with(&chain(&[(0, 8)]), 55, &[255])),
            ("cut in an extension header", {
                let b = chain(&[(60, 8)]);
                with(&b[..60], 18, &[0, 6])
            }),
            ("fragment header cut", with(&chain(&[(44, 8)])[..58], 18, &[0, 4])),
        ]);
    } else {
        let [first, _] = Packet::udp(at(f.client, 7), at(f.node, 53), &[0; 64]).split(32, 4);
        let first = first.eth(ROUTER, UPLINK).bytes();
        bad.extend([
            ("header length 4", with(&tcp, 14, &[0x44])),
            ("header length 0", with(&tcp, 14, &[0x40])),
            ("header past the end", with(&tcp, 14, &[0x4f])),
            ("total length 0", with(&tcp, 16, &[0, 0])),
            ("total length 19", with(&tcp, 16, &[0, 19])),
            ("a first fragment that is all", with(&first, 38, &[0, 32])),
        ]);
    }
    for (what, bytes) in bad {
        t.bytes(what, Program::FromUplink, "up0", &bytes, LEFT, &["pass_malformed"]);
    }
    for (what, bytes) in [
        // The kernel runs no test with an IP packet that is shorter than its header.
        ("short and of no IP type", with(&tcp[..20], 12, &[8, 6])),
        ("ARP", with(&tcp, 12, &[8, 6])),
        ("a VLAN tag", with(&tcp, 12, &[0x81, 0])),
        ("MPLS", with(&tcp, 12, &[0x88, 0x47])),
        ("another station's", with(&tcp, 0, &[2, 7, 7, 7, 7, 7])),
        ("broadcast", with(&tcp, 0, &[0xff; 6])),
        ("multicast", with(&tcp, 0, &[1, 0, 0x5e, 0, 0, 1])),
        (
            "the other family's type",
            with(&tcp, 12, if f.v6 { &[8, 0] } else { &[0x86, 0xdd] }),
        ),
    ] {
        t.bytes(what, Program::FromUplink, "up0", &bytes, LEFT, &["pass"]);
    }
    // Padding is none of the packet's.
    let mut padded = tcp.clone();
    padded.extend([0; 6]);
    let out = t.w.raw(Program::FromUplink, "up0", &padded);
    let so = out.verdict == SENT && out.bytes[12..] == padded[12..];
    t.that("padding is kept", so);
}

fn joined(t: &mut Table, f: &Family) {
    let p = Packet::tcp(at(f.client, 31), at(f.node, 8080), ACK, &[9; 2500]);
    let bytes = p.clone().eth(ROUTER, UPLINK).bytes();
    let out = t.w.joined(Program::FromUplink, "up0", &bytes, 1000);
    t.row(
        "joined segments",
        out,
        &bytes,
        SENT,
        &["new_flow", "delivered"],
        Is(handed(&p, f, 31, 8000)),
    );
    let at_len = if f.v6 { 18 } else { 16 };
    let mut zero = bytes.clone();
    zero[at_len..at_len + 2].copy_from_slice(&[0, 0]);
    if !f.v6 {
        zero[24..26].copy_from_slice(&[0, 0]);
        let sum = !support::frame::sum(&[&zero[14..34]]);
        zero[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let out = t.w.joined(Program::FromUplink, "up0", &zero, 1000);
    let so = out.verdict == SENT && out.counted.contains_key("delivered");
    t.that("joined segments whose length does not fit", so);
    let out = t.w.raw(Program::FromUplink, "up0", &zero);
    t.that(
        "of one segment it is a contradiction",
        out.verdict == LEFT && out.counted.contains_key("pass_malformed"),
    );
    let p = Packet::tcp(at(f.client, 32), at(f.node, 9090), ACK, &[9; 2500]);
    let bytes = p.eth(ROUTER, UPLINK).bytes();
    let out = t.w.joined(Program::FromUplink, "up0", &bytes, 1000);
    t.row("nobody: joined segments", out, &bytes, SENT, &["reset_no_backend"], Reset);
}

/// The ingress network takes 1450 bytes.
fn sizes(t: &mut Table, f: &Family) {
    let head = if f.v6 { 40 } else { 20 };
    let back = |p: &Packet| {
        let (kind, code) = if f.v6 { (2, 0) } else { (3, 4) };
        let about = Packet::error(f.node, f.client, kind, code, [0, 0, 5, 170], p, head + 8);
        let id = 0;
        Packet { ttl: 64, id, ..about }.eth(UPLINK, ROUTER)
    };
    let tcp = |cport, flags, more: usize| Packet::tcp(at(f.client, cport), at(f.node, 80), flags, &vec![9; 1450 - head - 20 + more]);
    let udp = |cport, more: usize| Packet::udp(at(f.client, cport), at(f.node, 53), &vec![9; 1450 - head - 8 + more]);
    let to = |t: &Table, p: &Packet| {
        t.w.raw(Program::FromUplink, "up0", &p.clone().eth(ROUTER, UPLINK).bytes())
            .packet()
            .eth_dst
    };
    let carried = |p: &Packet, to| p.clone().eth(INGRESS, to);
    let new = &["new_flow", "too_big"];
    let p = udp(40, 1);
    t.client("a datagram too big", &p, SENT, new, Is(back(&p)));
    t.client("once more", &p, SENT, &["too_big"], Is(back(&p)));
    let p = udp(40, 0);
    let backend = to(t, &p);
    t.client("one that just fits", &p, SENT, &["carried"], Is(carried(&p, backend)));
    let p = Packet::udp(at(f.node, 53), at(f.client, 40), b"answer");
    t.returned("its answer", &p, SENT, &["reply_sent"], Same);
    let p = udp(40, 0);
    t.client("both ends were heard", &p, SENT, &["carried", "kept"], Is(carried(&p, backend)));
    let p = udp(40, 1);
    t.client("too big, of a flow that is kept", &p, SENT, &["too_big"], Is(back(&p)));
    let p = udp(40, 0);
    t.client("and what fits", &p, SENT, &["carried"], Is(carried(&p, backend)));
    if f.v6 {
        let p = udp(40, 1).behind(&[(60, 8)]);
        t.client("too big, with a header more", &p, SENT, &["carried"], Is(carried(&p, backend)));
    } else {
        // It is in pieces once it is in VXLAN.
        let p = Packet { fragment: 0, ..udp(40, 1) };
        t.client("too big, and may be fragmented", &p, SENT, &["carried"], Is(carried(&p, backend)));
        let p = Packet {
            between: vec![1; 4],
            ..udp(40, 1)
        };
        t.client("too big, with options", &p, SENT, &["carried"], Is(carried(&p, backend)));
    }
    let [first, _] = udp(40, 100).split(1456, 90);
    let first = if f.v6 { first } else { Packet { fragment: 0x6000, ..first } };
    t.client("a fragment too big", &first, SENT, &["carried"], Is(carried(&first, backend)));
    let p = tcp(41, ACK, 1);
    t.client("a segment too big", &p, SENT, new, Is(back(&p)));
    // Several segments in one frame: what each of them takes.
    let many = Packet::tcp(at(f.client, 41), at(f.node, 80), ACK, &[9; 3000]);
    let backend = to(t, &tcp(41, ACK, 0));
    let bytes = many.clone().eth(ROUTER, UPLINK).bytes();
    let fits = 1450 - head as u32 - 20;
    let out = t.w.joined(Program::FromUplink, "up0", &bytes, fits);
    t.row(
        "joined segments that fit",
        out,
        &bytes,
        SENT,
        &["carried"],
        Is(carried(&many, backend)),
    );
    let out = t.w.joined(Program::FromUplink, "up0", &bytes, fits + 1);
    t.row("joined segments too big", out, &bytes, SENT, &["too_big"], Is(back(&many)));
    let p = Packet::udp(at(f.client, 42), at(f.node, 8080), &[9; 1500]);
    t.client(
        "to an endpoint here",
        &p,
        SENT,
        &["new_flow", "delivered"],
        Is(handed(&p, f, 42, 5300)),
    );
}

/// Direct return, ranges, methods, affinity, bound addresses.
fn ways(t: &mut Table, f: &Family) {
    let set = |s: u32| if f.v6 { s | lb::V6 } else { s };
    let port = |service, direct| lb::Published {
        service,
        target: 8000,
        direct,
    };
    let tcp = |src, cport, port, flags| Packet::tcp(at(src, cport), at(f.node, port), flags, b"");
    let to = |t: &Table, p: &Packet| {
        let out = t.w.raw(Program::FromUplink, "up0", &p.clone().eth(ROUTER, UPLINK).bytes());
        out.packet().eth_dst
    };

    t.w.put(Row::Published((Protocol::Tcp, 70), Some(port(2, true))));
    let p = tcp(f.client, 101, 70, SYN);
    t.client("direct, here", &p, SENT, &["new_flow", "delivered"], Is(handed(&p, f, 101, 8000)));
    let back = Packet::tcp(at(f.a, 8000), at(f.client, 101), SYN | ACK, b"");
    let want = back.clone().moved(at(f.node, 70), at(f.client, 101)).hop().eth(INGRESS, INGRESS);
    t.container("direct, reply", &back, SENT, &["reply_sent"], Is(want));
    let p = tcp(f.client, 101, 70, ACK);
    t.client("direct, kept", &p, SENT, &["delivered", "kept"], Is(handed(&p, f, 101, 8000)));
    t.w.put(Row::Published((Protocol::Tcp, 70), Some(port(2, false))));
    t.client("no longer direct", &p, SENT, &["delivered"], Is(handed(&p, f, 101, 8000)));
    t.w.put(Row::Published((Protocol::Tcp, 70), Some(port(1, true))));
    let p = tcp(f.client, 2, 70, SYN);
    let there = to(t, &p);
    let p = tcp(f.client, 2, 70, ACK);
    t.client(
        "direct, elsewhere: kept by its client",
        &p,
        SENT,
        &["carried", "kept"],
        Is(p.clone().eth(INGRESS, there)),
    );
    let p = tcp(f.client, 2, 70, FIN | ACK);
    t.client(
        "direct, elsewhere: closed",
        &p,
        SENT,
        &["carried"],
        Is(p.clone().eth(INGRESS, there)),
    );
    let p = tcp(f.client, 2, 70, SYN);
    let out = t.w.raw(Program::FromUplink, "up0", &p.eth(ROUTER, UPLINK).bytes());
    t.that("direct, elsewhere: opened anew", out.counted.contains_key("new_flow"));

    // Ranges: the longest prefix counts.
    t.w.put(Row::Published((Protocol::Tcp, 71), Some(port(7, false))));
    t.w.put(Row::Service(
        set(7),
        Some(Pool {
            ranged: true,
            ..turn(&[1])
        }),
    ));
    let nets: [(&str, bool); 3] = if f.v6 {
        [("fd00:4d::/32", true), ("fd00:4d:0:0::/64", false), ("fd00:4d::c8/128", true)]
    } else {
        [("192.168.0.0/16", true), ("192.168.77.0/24", false), ("192.168.77.200/32", true)]
    };
    t.client("no range admits it", &tcp(f.client, 1, 71, SYN), DROP, &["drop_source"], Same);
    let mut want = [true, false, true].into_iter();
    for (i, (net, admitted)) in nets.into_iter().enumerate() {
        t.w.put(Row::Source((7, net.parse().unwrap()), Some(admitted)));
        let p = tcp(f.client, 10 + i as u16, 71, SYN);
        if want.next().unwrap() {
            t.client(net, &p, SENT, &["new_flow", "delivered"], Is(handed(&p, f, 10 + i as u16, 8000)));
        } else {
            t.client(net, &p, DROP, &["drop_source"], Same);
        }
    }
    t.client("its neighbour", &tcp(f.router, 1, 71, SYN), DROP, &["drop_source"], Same);
    let p = tcp(f.client, 10, 71, ACK);
    for (net, _) in nets {
        t.w.put(Row::Source((7, net.parse().unwrap()), None));
    }
    t.client("a flow is not asked again", &p, SENT, &["delivered"], Is(handed(&p, f, 10, 8000)));
    t.client("ranges are gone", &tcp(f.client, 20, 71, SYN), DROP, &["drop_source"], Same);
    // All of the other family's addresses admit none of this one's.
    let all = if f.v6 { "0.0.0.0/0" } else { "::/0" };
    t.w.put(Row::Source((7, all.parse().unwrap()), Some(true)));
    t.client("the other family's", &tcp(f.client, 21, 71, SYN), DROP, &["drop_source"], Same);
    t.w.put(Row::Source((7, all.parse().unwrap()), None));
    let all = if f.v6 { "::/0" } else { "0.0.0.0/0" };
    t.w.put(Row::Source((7, all.parse().unwrap()), Some(true)));
    let p = tcp(f.client, 22, 71, SYN);
    t.client("all of its own", &p, SENT, &["new_flow", "delivered"], Is(handed(&p, f, 22, 8000)));
    t.w.put(Row::Source((7, all.parse().unwrap()), None));
    t.w.put(Row::Source((8, all.parse().unwrap()), Some(true)));
    t.client("another service's range", &tcp(f.client, 23, 71, SYN), DROP, &["drop_source"], Same);

    // Methods. Clients of other addresses, and of other ports.
    let clients: Vec<_> = (1..=64u8)
        .map(|i| match f.client {
            std::net::IpAddr::V4(_) => std::net::IpAddr::from([192, 168, 79, i]),
            std::net::IpAddr::V6(_) => std::net::IpAddr::from([0xfd00, 79, 0, 0, 0, 0, 0, i.into()]),
        })
        .collect();
    let share = |n: usize| (12..=52).contains(&n);
    t.w.put(Row::Published((Protocol::Tcp, 72), Some(port(7, false))));
    let pool = |method, list: &[u32]| Some(Pool { method, ..turn(list) });
    for (method, what) in [(Method::Random, "random"), (Method::Source, "by source"), (Method::Flow, "by flow")] {
        t.w.put(Row::Service(set(7), pool(method, &[3, 4])));
        let chosen: Vec<_> = clients.iter().map(|c| to(t, &tcp(*c, 1000, 72, SYN))).collect();
        t.that(
            &format!("{what}: both get some"),
            share(chosen.iter().filter(|m| **m == mac(C)).count()),
        );
        let ports: Vec<_> = (0..64).map(|i| to(t, &tcp(f.client, 2000 + i, 72, SYN))).collect();
        let of_c = ports.iter().filter(|m| **m == mac(C)).count();
        let one = of_c == 0 || of_c == 64;
        t.that(
            &format!("{what}: ports of one client"),
            if what == "by source" { one } else { share(of_c) },
        );
        // The same again after a reset, as on another node.
        for c in &clients {
            to(t, &tcp(*c, 1000, 72, RST));
        }
        let again: Vec<_> = clients.iter().map(|c| to(t, &tcp(*c, 1000, 72, SYN))).collect();
        t.that(&format!("{what}: the same again"), (again == chosen) == (what != "random"));
        // They are another service's by now.
        for (c, i) in clients.iter().zip(0..) {
            to(t, &tcp(*c, 1000, 72, RST));
            to(t, &tcp(f.client, 2000 + i, 72, RST));
        }
    }
    t.w.put(Row::Service(set(7), Some(turn(&[3, 4, 3, 3]))));
    let chosen: Vec<_> = (0..64).map(|i| to(t, &tcp(f.client, 3000 + i, 72, SYN))).collect();
    t.that("by weight", chosen.iter().filter(|m| **m == mac(C)).count() == 48);

    // A client comes back.
    let sticky = |list: &[u32]| {
        Some(Pool {
            affinity_secs: 60,
            ..turn(list)
        })
    };
    t.w.put(Row::Service(set(7), sticky(&[3, 4])));
    let chosen: Vec<_> = (0..16).map(|i| to(t, &tcp(f.client, 4000 + i, 72, SYN))).collect();
    t.that("affinity: one backend", chosen.iter().all(|m| *m == chosen[0]));
    let (own, other) = if chosen[0] == mac(C) { (3, D) } else { (4, C) };
    t.w.put(Row::Service(set(7), sticky(&[1, 1, 7 - own, own])));
    let moved: Vec<_> = (0..8).map(|i| to(t, &tcp(f.client, 4100 + i, 72, SYN))).collect();
    t.that("affinity: its place has changed", moved.iter().all(|m| *m == chosen[0]));
    t.w.put(Row::Service(set(7), sticky(&[7 - own])));
    let moved: Vec<_> = (0..8).map(|i| to(t, &tcp(f.client, 4200 + i, 72, SYN))).collect();
    t.that("affinity: removed", moved.iter().all(|m| *m == mac(other)));
    t.w.put(Row::Service(set(7), sticky(&[3, 4])));
    let back: Vec<_> = (0..8).map(|i| to(t, &tcp(f.client, 4300 + i, 72, SYN))).collect();
    t.that("affinity: stays where it is now", back.iter().all(|m| *m == mac(other)));
    t.w.put(Row::Service(set(7), Some(turn(&[1]))));

    // Bound to one address.
    t.w.put(Row::Published((Protocol::Tcp, 73), Some(port(0, false))));
    t.client("bound nowhere", &tcp(f.client, 1, 73, SYN), LEFT, &["pass"], Same);
    t.w.put(Row::Bound((f.node2, Protocol::Tcp, 73), Some(port(2, false))));
    t.client("bound elsewhere", &tcp(f.client, 1, 73, SYN), LEFT, &["pass"], Same);
    let p = Packet::tcp(at(f.client, 50), at(f.node2, 73), SYN, b"");
    t.client("bound here", &p, SENT, &["new_flow", "delivered"], Is(handed(&p, f, 50, 8000)));
    let udp = Packet::udp(at(f.client, 50), at(f.node2, 73), b"x");
    t.client("bound, of the other protocol", &udp, LEFT, &["pass"], Same);
    t.w.put(Row::Bound((f.node2, Protocol::Tcp, 73), None));
    t.client("no longer bound", &p, LEFT, &["pass"], Same);
    t.w.put(Row::NodeAddr(f.node2, false));
    let p = Packet::tcp(at(f.client, 60), at(f.node2, 80), SYN, b"");
    t.client("no longer the node's", &p, LEFT, &["pass"], Same);
    t.w.put(Row::NodeAddr(f.node2, true));
    // A port that has become another service's.
    let p = tcp(f.client, 70, 8080, SYN);
    t.client("before", &p, SENT, &["new_flow", "delivered"], Is(handed(&p, f, 70, 8000)));
    let old = t.w.loader.observe().unwrap().0.published[&(Protocol::Tcp, 8080)];
    t.w.put(Row::Published((Protocol::Tcp, 8080), Some(lb::Published { target: 9000, ..old })));
    let ack = tcp(f.client, 70, 8080, ACK);
    t.client("keeps its connections", &ack, SENT, &["delivered"], Is(handed(&ack, f, 70, 8000)));
    t.client(
        "and nothing else",
        &p,
        SENT,
        &["new_flow", "delivered"],
        Is(handed(&p, f, 70, 9000)),
    );
    t.w.put(Row::Published((Protocol::Tcp, 8080), Some(old)));
}

fn unconfigured(t: &mut Table, f: &Family) {
    let tables = t.w.loader.observe().unwrap().0;
    let config = |ingress: &str, uplink: &str| Row::Config {
        ingress_mac: Mac(INGRESS),
        ingress_ip: tables.ingress_ip,
        ingress_dev: ingress.into(),
        uplink: uplink.into(),
        ingress_mtu: 1450,
    };
    t.w.put(config("", ""));
    let none = &["drop_unconfigured"];
    let p = Packet::tcp(at(f.client, 90), at(f.node, 80), SYN, b"");
    t.client("no ingress network", &p, DROP, &["new_flow", none[0]], Same);
    let about = Packet::tcp(at(f.node, 80), at(f.client, 90), ACK, b"");
    t.client(
        "no ingress network, an error",
        &Packet::unreachable(f.client, f.node, &about),
        DROP,
        none,
        Same,
    );
    let p = Packet::tcp(at(f.client, 91), at(f.node, 8080), SYN, b"");
    t.client("needs none", &p, SENT, &["new_flow", "delivered"], Is(handed(&p, f, 91, 8000)));
    let p = Packet::tcp(at(f.a, 8000), at(f.client, 91), ACK, b"");
    t.container("no uplink", &p, DROP, none, Same);
    t.w.put(config("mx-1", "up0"));
    let p = Packet { eth_src: PEER, ..p };
    t.container(
        "with one",
        &p,
        SENT,
        &["reply_sent"],
        Is(p.clone().moved(at(f.node, 8080), at(f.client, 91)).hop().eth(INGRESS, INGRESS)),
    );
}

#[test]
fn published_ports() {
    let mut t = Table::new();
    for f in [V4, V6] {
        t.family(&f);
        flows(&mut t, &f);
        nobody(&mut t, &f);
        here(&mut t, &f);
        fragments(&mut t, &f);
        errors(&mut t, &f);
        odd(&mut t, &f);
        joined(&mut t, &f);
        sizes(&mut t, &f);
        ways(&mut t, &f);
        unconfigured(&mut t, &f);
    }
    t.finish(250);
}
