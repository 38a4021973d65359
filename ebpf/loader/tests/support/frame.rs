//! Frames: made, taken apart, and checked by code of its own, not the programs'.

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// RFC 1071, over any bytes.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// An IPv4 frame in pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub eth_dst: [u8; 6],
    pub eth_src: [u8; 6],
    pub options: Vec<u8>,
    pub tos: u8,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub proto: u8,
    pub src: [u8; 4],
    pub dst: [u8; 4],
    /// The upper layer with its header; the checksum field counts as it is.
    pub body: Vec<u8>,
}

impl Frame {
    fn new(proto: u8, src: [u8; 4], dst: [u8; 4], body: Vec<u8>) -> Self {
        Self {
            eth_dst: [0; 6],
            eth_src: [0; 6],
            options: vec![],
            tos: 0,
            id: 7,
            fragment: 0x4000,
            ttl: 63,
            proto,
            src,
            dst,
            body,
        }
    }

    /// A TCP segment from `src` to `dst`, checksum right.
    pub fn tcp(src: ([u8; 4], u16), dst: ([u8; 4], u16), flags: u8, data: &[u8]) -> Self {
        let mut body = Vec::new();
        body.extend(src.1.to_be_bytes());
        body.extend(dst.1.to_be_bytes());
        body.extend(1000u32.to_be_bytes());
        body.extend(if flags & ACK != 0 { 5000u32 } else { 0 }.to_be_bytes());
        body.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
        body.extend(data);
        Self::new(TCP, src.0, dst.0, body).summed()
    }

    /// A UDP datagram, checksum right.
    pub fn udp(src: ([u8; 4], u16), dst: ([u8; 4], u16), data: &[u8]) -> Self {
        let mut body = Vec::new();
        body.extend(src.1.to_be_bytes());
        body.extend(dst.1.to_be_bytes());
        body.extend((8 + data.len() as u16).to_be_bytes());
        body.extend([0, 0]);
        body.extend(data);
        Self::new(UDP, src.0, dst.0, body).summed()
    }

    /// An ICMP message, checksum right.
    pub fn icmp(src: [u8; 4], dst: [u8; 4], kind: u8, data: &[u8]) -> Self {
        let mut body = vec![kind, 0, 0, 0];
        body.extend(data);
        Self::new(ICMP, src, dst, body).summed()
    }

    fn checksum_at(&self) -> usize {
        match self.proto {
            TCP => 16,
            UDP => 6,
            _ => 2,
        }
    }

    fn l4_sum(&self) -> u16 {
        if self.proto == ICMP {
            return sum(&[&self.body]);
        }
        sum(&[
            &self.src,
            &self.dst,
            &[0, self.proto],
            &(self.body.len() as u16).to_be_bytes(),
            &self.body,
        ])
    }

    /// With the upper layer's checksum made right.
    pub fn summed(mut self) -> Self {
        let at = self.checksum_at();
        self.body[at..at + 2].copy_from_slice(&[0, 0]);
        let sum = !self.l4_sum();
        self.body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// True if the upper layer's checksum is right.
    pub fn valid(&self) -> bool {
        self.l4_sum() == 0xffff
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

    /// Between other ends; the checksum is made right if it was.
    pub fn between(mut self, src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> Self {
        (self.src, self.dst) = (src.0, dst.0);
        self.body[..2].copy_from_slice(&src.1.to_be_bytes());
        self.body[2..4].copy_from_slice(&dst.1.to_be_bytes());
        self.summed()
    }

    pub fn sport(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    pub fn flags(&self) -> u8 {
        self.body[13]
    }

    pub fn seq(&self) -> u32 {
        u32::from_be_bytes([self.body[4], self.body[5], self.body[6], self.body[7]])
    }

    pub fn ack(&self) -> u32 {
        u32::from_be_bytes([self.body[8], self.body[9], self.body[10], self.body[11]])
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut ip = vec![0x45 + (self.options.len() / 4) as u8, self.tos];
        ip.extend((20 + self.options.len() as u16 + self.body.len() as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.proto, 0, 0]);
        ip.extend(self.src);
        ip.extend(self.dst);
        ip.extend(&self.options);
        let sum = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut out = Vec::new();
        out.extend(self.eth_dst);
        out.extend(self.eth_src);
        out.extend([8, 0]);
        out.extend(ip);
        out.extend(&self.body);
        out
    }

    /// Takes a frame apart; its IP checksum must be right and its length exact.
    pub fn parse(b: &[u8]) -> Self {
        assert_eq!(b[12..14], [8, 0], "ethertype");
        let header = usize::from(b[14] & 15) * 4;
        assert_eq!(sum(&[&b[14..14 + header]]), 0xffff, "ip checksum");
        assert_eq!(usize::from(u16::from_be_bytes([b[16], b[17]])), b.len() - 14, "total length");
        let four = |at: usize| [b[at], b[at + 1], b[at + 2], b[at + 3]];
        let six = |at: usize| [b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5]];
        Self {
            eth_dst: six(0),
            eth_src: six(6),
            options: b[34..14 + header].to_vec(),
            tos: b[15],
            id: u16::from_be_bytes([b[18], b[19]]),
            fragment: u16::from_be_bytes([b[20], b[21]]),
            ttl: b[22],
            proto: b[23],
            src: four(26),
            dst: four(30),
            body: b[14 + header..].to_vec(),
        }
    }
}
