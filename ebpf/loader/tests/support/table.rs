//! Rows: a frame in, what must come of it. All rows of a table are looked at before it fails.

use std::net::{IpAddr, SocketAddr};

use mesh_core::lb::Program;

use super::{
    frame::{ACK, FIN, ICMP, RST, SYN, TCP},
    packet::{ICMP6, Packet, octets},
    world::{A, C, DROP, Family, GATEWAY_MAC, INGRESS, Out, PASS, PEER, REDIRECT, ROUTER, UPLINK, World, mac},
};

pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// What must come out; of dropped frames nothing is asked.
#[derive(Clone, Debug)]
pub enum Want {
    /// The frame as it came in.
    Same,
    /// This one.
    Is(Packet),
    /// The reset of the segment, sent back.
    Reset,
    /// The port unreachable for the datagram, sent back.
    Unreachable,
}
pub use Want::{Is, Reset, Same, Unreachable};

/// A host, and what was wrong there so far.
pub struct Table {
    pub w: World,
    rows: usize,
    bad: Vec<String>,
    family: &'static str,
}

impl Table {
    pub fn new() -> Self {
        Self {
            w: World::new(),
            rows: 0,
            bad: vec![],
            family: "",
        }
    }

    /// With its loader replaced, as by a restart of the agent.
    pub fn reopened(self) -> Self {
        Self {
            w: self.w.reopen(),
            ..self
        }
    }

    /// The rows that follow are of this family.
    pub fn family(&mut self, f: &Family) {
        self.family = if f.v6 { "IPv6" } else { "IPv4" };
    }

    /// One row.
    pub fn row(&mut self, name: &str, out: Out, came: &[u8], verdict: i32, counted: &[&str], want: Want) -> Out {
        self.rows += 1;
        let name = format!("{} {name}", self.family);
        let mut asked = counted.to_vec();
        asked.sort_unstable();
        let seen: Vec<_> = out.counted.keys().copied().collect();
        if (out.verdict, &seen) != (verdict, &asked) {
            self.bad.push(format!(
                "{name}: verdict {}, counted {seen:?}; wanted {verdict}, {asked:?}",
                out.verdict
            ));
            return out;
        }
        if verdict == DROP {
            return out;
        }
        let got = if matches!(want, Same) {
            Err(String::new())
        } else {
            Packet::parse(&out.bytes)
        };
        let wrong = match (&want, got) {
            (Same, _) => (out.bytes != came).then(|| format!("changed\n  {:02x?}\n  {came:02x?}", out.bytes)),
            (_, Err(e)) => Some(e),
            (Is(want), Ok(got)) => (got != *want).then(|| format!("{got:?}, wanted\n  {want:?}")),
            (Reset, Ok(got)) => Packet::parse(came)
                .is_ok_and(|p| !is_reset(&got, &p))
                .then(|| format!("{got:?} is not its reset")),
            (Unreachable, Ok(got)) => (!is_unreachable(&got, came)).then(|| format!("{got:?} is not what answers it")),
        };
        self.bad.extend(wrong.map(|w| format!("{name}: {w}")));
        out
    }

    /// One more thing that must be so.
    pub fn that(&mut self, name: &str, so: bool) {
        self.rows += 1;
        if !so {
            self.bad.push(format!("{} {name}", self.family));
        }
    }

    /// Fails if a row did; there must be `rows` at least.
    pub fn finish(self, rows: usize) {
        println!("{} rows", self.rows);
        assert!(
            self.bad.is_empty(),
            "{} of {} rows:\n{}",
            self.bad.len(),
            self.rows,
            self.bad.join("\n")
        );
        assert!(self.rows >= rows, "{} rows", self.rows);
    }

    pub fn bytes(&mut self, name: &str, program: Program, dev: &str, bytes: &[u8], verdict: i32, counted: &[&str]) -> Out {
        let out = self.w.raw(program, dev, bytes);
        self.row(name, out, bytes, verdict, counted, Same)
    }

    #[expect(clippy::too_many_arguments, reason = "a row has so many columns")]
    fn sent(
        &mut self,
        name: &str,
        place: (Program, &str),
        p: &Packet,
        macs: ([u8; 6], [u8; 6]),
        verdict: i32,
        counted: &[&str],
        want: Want,
    ) -> Out {
        let bytes = p.clone().eth(macs.0, macs.1).bytes();
        let out = self.w.raw(place.0, place.1, &bytes);
        self.row(name, out, &bytes, verdict, counted, want)
    }

    /// From a client, on the uplink.
    pub fn client(&mut self, name: &str, p: &Packet, verdict: i32, counted: &[&str], want: Want) -> Out {
        self.sent(name, (Program::FromUplink, "up0"), p, (ROUTER, UPLINK), verdict, counted, want)
    }

    /// From the other node, to an endpoint here.
    pub fn carried(&mut self, name: &str, p: &Packet, to: [u8; 4], verdict: i32, counted: &[&str], want: Want) -> Out {
        self.sent(name, (Program::FromOverlay, "mx-1"), p, (PEER, mac(to)), verdict, counted, want)
    }

    /// From the other node, to this one.
    pub fn returned(&mut self, name: &str, p: &Packet, verdict: i32, counted: &[&str], want: Want) -> Out {
        self.sent(name, (Program::FromOverlay, "mx-1"), p, (PEER, INGRESS), verdict, counted, want)
    }

    /// From endpoint A, to its gateway.
    pub fn container(&mut self, name: &str, p: &Packet, verdict: i32, counted: &[&str], want: Want) -> Out {
        self.station(name, p, GATEWAY_MAC, verdict, counted, want)
    }

    /// From endpoint A, to an Ethernet address.
    pub fn station(&mut self, name: &str, p: &Packet, to: [u8; 6], verdict: i32, counted: &[&str], want: Want) -> Out {
        self.sent(name, (Program::FromContainer, "mv-a"), p, (mac(A), to), verdict, counted, want)
    }

    /// From endpoint C of another node, to one here.
    pub fn arrived(&mut self, name: &str, p: &Packet, to: [u8; 4], verdict: i32, counted: &[&str], want: Want) -> Out {
        self.sent(name, (Program::FromNetwork, "mx-n"), p, (mac(C), mac(to)), verdict, counted, want)
    }

    /// To endpoint A, from the bridge.
    pub fn bridged(&mut self, name: &str, p: &Packet, verdict: i32, counted: &[&str], want: Want) -> Out {
        self.sent(name, (Program::ToContainer, "mv-a"), p, (mac(C), mac(A)), verdict, counted, want)
    }
}

/// `r` is the reset of the segment `asked` (RFC 9293 section 3.10.7.1), sent back.
fn is_reset(r: &Packet, asked: &Packet) -> bool {
    let word = |b: &[u8], at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let flags = asked.body[13];
    let data = asked.body.len() as u32 - u32::from(asked.body[12] >> 4) * 4;
    let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let (seq, ack, with) = if flags & ACK != 0 {
        (word(&asked.body, 8), 0, RST)
    } else {
        (0, word(&asked.body, 4).wrapping_add(data + control), RST | ACK)
    };
    r.proto == TCP
        && (r.src, r.dst) == (asked.dst, asked.src)
        && (r.eth_src, r.eth_dst) == (asked.eth_dst, asked.eth_src)
        && r.body[..2] == asked.body[2..4]
        && r.body[2..4] == asked.body[..2]
        && (word(&r.body, 4), word(&r.body, 8), r.body[13]) == (seq, ack, with)
        && r.body.len() == 20
        && r.between.is_empty()
        && r.valid()
}

/// `r` is the port unreachable for the datagram in the frame `came` (RFC 792, RFC 4443), sent back.
fn is_unreachable(r: &Packet, came: &[u8]) -> bool {
    let Ok(asked) = Packet::parse(came) else { return false };
    let (proto, head) = if asked.v6() { (ICMP6, [1, 4]) } else { (ICMP, [3, 3]) };
    r.proto == proto
        && (r.src, r.dst) == (asked.dst, asked.src)
        && (r.eth_src, r.eth_dst) == (asked.eth_dst, asked.eth_src)
        && r.body[..2] == head
        && came[14..].starts_with(&r.body[8..])
        && r.body.len() >= 36
        && r.valid()
}

/// The solicited-node group of `ip`, and its Ethernet address (RFC 4291 section 2.7.1, RFC 2464 section 7).
pub fn group(ip: IpAddr) -> (IpAddr, [u8; 6]) {
    let o = octets(ip);
    let mut g = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    g[13..].copy_from_slice(&o[13..]);
    (IpAddr::from(g), [0x33, 0x33, 0xff, o[13], o[14], o[15]])
}

/// A neighbour solicitation for `target`, or an advertisement of it.
pub fn neighbor(kind: u8, src: IpAddr, dst: IpAddr, target: IpAddr, lladdr: [u8; 6]) -> Packet {
    let mut data = vec![if kind == 136 { 0x60 } else { 0 }, 0, 0, 0];
    data.extend(octets(target));
    data.extend([if kind == 136 { 2 } else { 1 }, 1]);
    data.extend(lladdr);
    Packet {
        ttl: 255,
        ..Packet::icmp(src, dst, kind, 0, &data)
    }
}

/// What is left to whoever comes next.
pub const LEFT: i32 = PASS;
/// What is sent somewhere.
pub const SENT: i32 = REDIRECT;
