//! Packets of either family: made, taken apart, and checked by code of its own, not the programs'.

use std::net::{IpAddr, SocketAddr};

use super::frame::{ACK, ICMP, TCP, UDP, sum};

pub const ICMP6: u8 = 58;
/// The fragment header of IPv6.
const FRAGMENT: u8 = 44;

/// A frame in pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct Packet {
    pub eth_dst: [u8; 6],
    pub eth_src: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// Of IPv4: identification, flags and offset.
    pub id: u16,
    pub fragment: u16,
    /// Of IPv4: options. Of IPv6: extension headers, the first of type `first`.
    pub between: Vec<u8>,
    pub first: u8,
    /// Of the upper layer.
    pub proto: u8,
    /// The upper layer with its header; the checksum field counts as it is.
    pub body: Vec<u8>,
}

pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

impl Packet {
    /// Any protocol.
    pub fn new(proto: u8, src: IpAddr, dst: IpAddr, body: Vec<u8>) -> Self {
        Self {
            eth_dst: [0; 6],
            eth_src: [0; 6],
            src,
            dst,
            ttl: 63,
            id: 7,
            fragment: 0x4000,
            between: vec![],
            first: proto,
            proto,
            body,
        }
        .canonical()
    }

    /// IPv6 has no such fields.
    fn canonical(mut self) -> Self {
        if self.v6() {
            (self.id, self.fragment) = (0, 0);
        }
        self
    }

    pub fn v6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// A TCP segment, checksum right.
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8, data: &[u8]) -> Self {
        let mut body = Vec::new();
        body.extend(src.port().to_be_bytes());
        body.extend(dst.port().to_be_bytes());
        body.extend(1000u32.to_be_bytes());
        body.extend(if flags & ACK != 0 { 5000u32 } else { 0 }.to_be_bytes());
        body.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
        body.extend(data);
        Self::new(TCP, src.ip(), dst.ip(), body).summed()
    }

    /// A UDP datagram, checksum right.
    pub fn udp(src: SocketAddr, dst: SocketAddr, data: &[u8]) -> Self {
        let mut body = Vec::new();
        body.extend(src.port().to_be_bytes());
        body.extend(dst.port().to_be_bytes());
        body.extend((8 + data.len() as u16).to_be_bytes());
        body.extend([0, 0]);
        body.extend(data);
        Self::new(UDP, src.ip(), dst.ip(), body).summed()
    }

    /// An ICMP message of the addresses' family, checksum right. `data`: from its fifth byte on.
    pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, data: &[u8]) -> Self {
        let mut body = vec![kind, code, 0, 0];
        body.extend(data);
        Self::new(if src.is_ipv6() { ICMP6 } else { ICMP }, src, dst, body).summed()
    }

    /// An ICMP error that quotes the first `len` bytes of `about` (from its IP header on).
    pub fn error(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: [u8; 4], about: &Self, len: usize) -> Self {
        let quoted = about.bytes()[14..].to_vec();
        let mut data = rest.to_vec();
        data.extend(&quoted[..len.min(quoted.len())]);
        Self::icmp(src, dst, kind, code, &data)
    }

    /// Too big for the next hop, whose MTU is `mtu`, with all of the packet quoted.
    pub fn too_big(src: IpAddr, dst: IpAddr, mtu: u16, about: &Self) -> Self {
        let [a, b] = mtu.to_be_bytes();
        let (kind, code) = if src.is_ipv6() { (2, 0) } else { (3, 4) };
        Self::error(src, dst, kind, code, [0, 0, a, b], about, 1200)
    }

    /// Port unreachable.
    pub fn unreachable(src: IpAddr, dst: IpAddr, about: &Self) -> Self {
        let (kind, code) = if src.is_ipv6() { (1, 4) } else { (3, 3) };
        Self::error(src, dst, kind, code, [0; 4], about, 1200)
    }

    fn checksum_at(&self) -> Option<usize> {
        match self.proto {
            TCP => Some(16),
            UDP => Some(6),
            ICMP | ICMP6 => Some(2),
            _ => None,
        }
    }

    fn l4_sum(&self) -> u16 {
        if self.proto == ICMP {
            return sum(&[&self.body]);
        }
        let len = (self.body.len() as u16).to_be_bytes();
        sum(&[&octets(self.src), &octets(self.dst), &[0, self.proto], &len, &self.body])
    }

    /// With the upper layer's checksum made right.
    pub fn summed(mut self) -> Self {
        if let Some(at) = self.checksum_at() {
            self.body[at..at + 2].copy_from_slice(&[0, 0]);
            let sum = match (!self.l4_sum(), self.proto) {
                (0, UDP) => 0xffff,
                (sum, _) => sum,
            };
            self.body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        self
    }

    /// UDP without a checksum.
    pub fn unsummed(mut self) -> Self {
        self.body[6..8].copy_from_slice(&[0, 0]);
        self
    }

    /// True if the upper layer's checksum is right, or there is none.
    pub fn valid(&self) -> bool {
        let none = self.proto == UDP && self.body[6..8] == [0, 0];
        none || self.checksum_at().is_none() || self.l4_sum() == 0xffff
    }

    /// With other Ethernet addresses.
    pub fn eth(mut self, src: [u8; 6], dst: [u8; 6]) -> Self {
        (self.eth_src, self.eth_dst) = (src, dst);
        self
    }

    /// One hop on.
    pub fn hop(mut self) -> Self {
        self.ttl -= 1;
        self
    }

    /// Between other ends; a checksum that there is is made right.
    pub fn moved(mut self, src: SocketAddr, dst: SocketAddr) -> Self {
        let none = self.proto == UDP && self.body[6..8] == [0, 0];
        (self.src, self.dst) = (src.ip(), dst.ip());
        self.body[..2].copy_from_slice(&src.port().to_be_bytes());
        self.body[2..4].copy_from_slice(&dst.port().to_be_bytes());
        if none { self } else { self.summed() }
    }

    /// Behind extension headers or options, in which each `next` is filled in here: (type, length in
    /// bytes, a multiple of eight).
    pub fn behind(mut self, extensions: &[(u8, usize)]) -> Self {
        let kinds: Vec<u8> = extensions.iter().map(|e| e.0).chain([self.proto]).collect();
        self.first = kinds[0];
        for (i, (kind, len)) in extensions.iter().enumerate() {
            let mut header = vec![0; *len];
            (header[0], header[1]) = (kinds[i + 1], (len / 8 - 1) as u8);
            if *kind == FRAGMENT {
                header[1] = 0;
            } else {
                // PadN.
                (header[2], header[3]) = (1, (len - 4) as u8);
            }
            self.between.extend(header);
        }
        self
    }

    /// Two fragments of this packet, `at` bytes of its upper layer in the first. `id`: theirs.
    pub fn split(&self, at: usize, id: u16) -> [Self; 2] {
        let part = |body: &[u8], offset: usize, more: bool| {
            let mut p = Self {
                body: body.to_vec(),
                ..self.clone()
            };
            if self.v6() {
                let word = (offset as u16 & 0xfff8) | u16::from(more);
                let [a, b] = word.to_be_bytes();
                let [c, d] = id.to_be_bytes();
                p.first = FRAGMENT;
                p.between = vec![self.proto, 0, a, b, 0, 0, c, d];
            } else {
                p.id = id;
                p.fragment = (offset as u16 / 8) | if more { 0x2000 } else { 0 };
            }
            p
        };
        [part(&self.body[..at], 0, true), part(&self.body[at..], at, false)]
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.eth_dst);
        out.extend(self.eth_src);
        if self.v6() {
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend((self.between.len() as u16 + self.body.len() as u16).to_be_bytes());
            out.extend([self.first, self.ttl]);
            out.extend(octets(self.src));
            out.extend(octets(self.dst));
            out.extend(&self.between);
        } else {
            let mut ip = vec![0x45 + (self.between.len() / 4) as u8, 0];
            ip.extend((20 + self.between.len() as u16 + self.body.len() as u16).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend(self.fragment.to_be_bytes());
            ip.extend([self.ttl, self.proto, 0, 0]);
            ip.extend(octets(self.src));
            ip.extend(octets(self.dst));
            ip.extend(&self.between);
            let sum = !sum(&[&ip]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            out.extend([8, 0]);
            out.extend(ip);
        }
        out.extend(&self.body);
        out
    }

    /// Takes a frame apart; an IPv4 checksum must be right, and the length exact.
    pub fn parse(b: &[u8]) -> Result<Self, String> {
        let ok = |right: bool, what: &str| if right { Ok(()) } else { Err(format!("{what}: {b:02x?}")) };
        let six = |at: usize| [b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5]];
        let word = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
        if b[12..14] == [8, 0] {
            let header = usize::from(b[14] & 15) * 4;
            ok(sum(&[&b[14..14 + header]]) == 0xffff, "ip checksum")?;
            ok(usize::from(word(16)) == b.len() - 14, "total length")?;
            let four = |at: usize| IpAddr::from([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            return Ok(Self {
                eth_dst: six(0),
                eth_src: six(6),
                src: four(26),
                dst: four(30),
                ttl: b[22],
                id: word(18),
                fragment: word(20),
                between: b[34..14 + header].to_vec(),
                first: b[23],
                proto: b[23],
                body: b[14 + header..].to_vec(),
            });
        }
        ok(b[12..14] == [0x86, 0xdd], "ethertype")?;
        ok(usize::from(word(18)) == b.len() - 54, "payload length")?;
        let sixteen = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&b[at..at + 16]).unwrap_or_default());
        let (mut next, mut at) = (b[20], 54);
        while [0, 43, 44, 60].contains(&next) {
            let len = if next == FRAGMENT { 8 } else { usize::from(b[at + 1]) * 8 + 8 };
            next = b[at];
            at += len;
        }
        Ok(Self {
            eth_dst: six(0),
            eth_src: six(6),
            src: sixteen(22),
            dst: sixteen(38),
            ttl: b[21],
            id: 0,
            fragment: 0,
            between: b[54..at].to_vec(),
            first: b[20],
            proto: next,
            body: b[at..].to_vec(),
        })
    }
}
