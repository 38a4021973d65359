//! Nanoseconds that each program takes for a packet, by BPF_PROG_TEST_RUN; run by `scripts/bench ns`.
//!
//!     ns SERVICES        prints a line for each: what, a tab, nanoseconds
//!
//! Packets that a program leaves as they are run many times in one call. Others, and those that open a
//! flow, run once in a call, whose own time is taken off: it is what one run of a packet takes more
//! alone than among many.
#![expect(clippy::unwrap_used, reason = "a bench of the tests' world")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::{IpAddr, Ipv4Addr};

use mesh_core::{
    Mac,
    lb::{Backend, Program, Published, Row},
    objects::Protocol,
};
use support::{
    frame::{ACK, SYN},
    packet::Packet,
    table::at,
    world::{A, B, C, GATEWAY_MAC, INGRESS, PEER, ROUTER, UPLINK, V4, World, mac, turn},
};

/// Runs in one call.
const REPEAT: u32 = 200_000;
/// Calls, and flows.
const MANY: u16 = 10_000;
/// The first port that is published, set of backends, and backend.
const FIRST: (u16, u32, u32) = (10_000, 1_000, 100_000);
/// Backends of each service.
const BACKENDS: u32 = 4;

fn main() {
    let services = std::env::args().skip(1).find_map(|a| a.parse::<u16>().ok()).unwrap_or(10);
    assert!(
        (1..=50_000).contains(&services),
        "{services} is not a number of services from 1 to 50000"
    );
    let mut w = World::sized(262_144);
    fill(&mut w, services);
    let mut b = Bench { w, alone: 0.0 };
    b.uplink(services);
    b.overlay();
    b.container();
}

/// Services with backends on another node.
fn fill(w: &mut World, services: u16) {
    let (port, set, backend) = FIRST;
    for i in 0..services {
        let slots: Vec<u32> = (0..BACKENDS).map(|j| backend + u32::from(i) * BACKENDS + j).collect();
        for slot in &slots {
            let ip = Ipv4Addr::from(0x6440_0000 + slot);
            let row = Backend {
                ip4: Some(ip),
                ip6: None,
                mac: Mac::for_ip(IpAddr::V4(ip)),
                node: None,
                local: false,
                accepting: true,
            };
            w.put(Row::Backend(*slot, Some(row)));
        }
        let set = set + u32::from(i);
        w.put(Row::Service(set, Some(turn(&slots))));
        let row = Published {
            service: set,
            target: 8000,
            direct: false,
        };
        w.put(Row::Published((Protocol::Tcp, port + i), Some(row)));
    }
}

struct Bench {
    w: World,
    /// What one run takes more when it is alone in its call.
    alone: f64,
}

fn tell(what: &str, ns: f64) {
    println!("{what}\t{:.1}", ns.max(0.0));
}

fn median(mut all: Vec<u32>) -> f64 {
    all.sort_unstable();
    f64::from(all[all.len() / 2])
}

/// A place of a program.
type Place = (Program, &'static str);
const UP: Place = (Program::FromUplink, "up0");
const OVERLAY: Place = (Program::FromOverlay, "mx-1");
const CONTAINER: Place = (Program::FromContainer, "mv-a");
const NETWORK: Place = (Program::FromNetwork, "mx-n");
const TO_CONTAINER: Place = (Program::ToContainer, "mv-a");

impl Bench {
    fn counter(&self, name: &str) -> u64 {
        let all = self.w.loader.counters().unwrap();
        all.iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// Many runs of one frame.
    fn uncounted(&self, what: &str, place: Place, frame: Vec<u8>) -> f64 {
        let ns = f64::from(self.w.timed(place.0, place.1, [frame].into_iter(), REPEAT)[0]);
        tell(what, ns);
        ns
    }

    /// Many runs of one frame, each of which must be counted as `counted`.
    fn many(&self, what: &str, place: Place, frame: Vec<u8>, counted: &str) -> f64 {
        let before = self.counter(counted);
        let ns = self.uncounted(what, place, frame);
        let runs = self.counter(counted) - before;
        assert!(
            runs == u64::from(REPEAT),
            "{what}: {runs} of {REPEAT} runs were counted as {counted}"
        );
        tell(what, ns);
        ns
    }

    /// One run of each of the frames, each of which must be counted as `counted`.
    fn each(&self, what: &str, place: Place, frame: impl Fn(u16) -> Vec<u8>, counted: &str) {
        let median = self.alone(what, place, frame, counted);
        tell(what, median - self.alone);
    }

    fn alone(&self, what: &str, place: Place, frame: impl Fn(u16) -> Vec<u8>, counted: &str) -> f64 {
        let before = self.counter(counted);
        let times = self.w.timed(place.0, place.1, (1..=MANY).map(frame), 1);
        let runs = self.counter(counted) - before;
        assert!(runs == u64::from(MANY), "{what}: {runs} of {MANY} runs were counted as {counted}");
        median(times)
    }

    fn flood(&self, place: Place, frame: impl Fn(u16) -> Vec<u8>) {
        self.w.flood(place.0, place.1, (1..=MANY).map(frame));
    }

    fn uplink(&mut self, services: u16) {
        let port = |i: u16| FIRST.0 + i % services;
        let client = |i, flags| {
            let data: &[u8] = if flags == ACK { &[7; 64] } else { b"" };
            let p = Packet::tcp(at(V4.client, i), at(V4.node, port(i)), flags, data);
            p.eth(ROUTER, UPLINK).bytes()
        };
        let back = |i| {
            Packet::tcp(at(V4.node, port(i)), at(V4.client, i), SYN | ACK, b"")
                .eth(PEER, INGRESS)
                .bytes()
        };
        let other = Packet::tcp(at(V4.client, 1), at(V4.node, 22), ACK, &[7; 64])
            .eth(ROUTER, UPLINK)
            .bytes();
        // The link layer's own (LLDP): what any program costs at all.
        let mut link = other[..60].to_vec();
        link[12..14].copy_from_slice(&[0x88, 0xcc]);
        self.many("from_uplink, not of IP", UP, link, "pass");
        self.many("from_uplink, not for a service", UP, other, "pass");
        let opened = self.alone("from_uplink, new flow", UP, |i| client(i, SYN), "new_flow");
        self.flood(OVERLAY, back);
        self.flood(UP, |i| client(i, ACK));
        let known = self.many("from_uplink, known flow", UP, client(1, ACK), "carried");
        self.alone = self.alone("from_uplink, one flow alone", UP, |_| client(1, ACK), "carried") - known;
        tell("from_uplink, new flow", opened - self.alone);
        self.each("from_uplink, 10,000 known flows in turn", UP, |i| client(i, ACK), "carried");
        self.many("from_overlay, reply of a known flow", OVERLAY, back(1), "reply_sent");
    }

    /// Port 8080 is of endpoint A, here.
    fn overlay(&self) {
        let carried = |i, flags| {
            Packet::tcp(at(V4.client, i), at(V4.node2, 8080), flags, &[7; 64])
                .eth(PEER, mac(A))
                .bytes()
        };
        let back = |i, flags| {
            Packet::tcp(at(V4.a, 8000), at(V4.client, i), flags, &[7; 64])
                .eth(mac(A), GATEWAY_MAC)
                .bytes()
        };
        self.each("from_overlay, new flow to an endpoint", OVERLAY, |i| carried(i, SYN), "delivered");
        self.each(
            "from_container, first reply of a published port",
            CONTAINER,
            |i| back(i, SYN | ACK),
            "reply_carried",
        );
        self.flood(OVERLAY, |i| carried(i, ACK));
        self.flood(CONTAINER, |i| back(i, ACK));
        self.each("from_overlay, known flow to an endpoint", OVERLAY, |_| carried(1, ACK), "delivered");
        self.each(
            "from_container, reply of a published port",
            CONTAINER,
            |_| back(1, ACK),
            "reply_carried",
        );
    }

    fn container(&self) {
        let to = |ip, mac_to| Packet::tcp(at(V4.a, 1000), at(ip, 80), ACK, &[7; 64]).eth(mac(A), mac_to).bytes();
        self.many(
            "from_container, to one of another host",
            CONTAINER,
            to(V4.c, mac(C)),
            "direct_remote",
        );
        self.many("from_container, to one of this host", CONTAINER, to(V4.b, mac(B)), "direct_local");
        let from = Packet::tcp(at(V4.c, 80), at(V4.a, 1000), ACK, &[7; 64]).eth(mac(C), mac(A)).bytes();
        self.many("from_network, to one of this host", NETWORK, from.clone(), "direct_arrived");
        // What it leaves as it is, it does not count.
        self.uncounted("to_container, from the bridge", TO_CONTAINER, from);
        let vip = |i, flags| {
            Packet::tcp(at(V4.a, i), at(V4.vip, 80), flags, &[7; 64])
                .eth(mac(A), GATEWAY_MAC)
                .bytes()
        };
        self.each("from_container, new flow to a VIP", CONTAINER, |i| vip(i, SYN), "vip_forwarded");
        self.each("from_container, known flow to a VIP", CONTAINER, |_| vip(1, ACK), "vip_forwarded");
    }
}
