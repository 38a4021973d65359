//! Packet headers as they lie in a packet (byte fields only, so no alignment), and the checks that
//! make them worth reading. The programs load them with `bpf_skb_load_bytes`.

use crate::rows::Plain;

/// ETH_P_IP.
pub const ETH_IPV4: [u8; 2] = [0x08, 0x00];
/// ETH_P_ARP.
pub const ETH_ARP: [u8; 2] = [0x08, 0x06];
/// ETH_P_IPV6.
pub const ETH_IPV6: [u8; 2] = [0x86, 0xdd];
/// Length of an Ethernet header in bytes.
pub const ETH_LEN: u32 = 14;

/// Ethernet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Eth {
    /// Destination.
    pub dst: [u8; 6],
    /// Source.
    pub src: [u8; 6],
    /// Type of what follows.
    pub ethertype: [u8; 2],
}

/// IPv4 without options (RFC 791 section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ipv4 {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// Type of service.
    pub tos: u8,
    /// Total length in bytes.
    pub total_len: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub proto: u8,
    /// Header checksum.
    pub checksum: [u8; 2],
    /// Source.
    pub src: [u8; 4],
    /// Destination.
    pub dst: [u8; 4],
}

/// IPv6 (RFC 8200 section 3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_flow: [u8; 4],
    /// Length in bytes of what follows this header.
    pub payload_len: [u8; 2],
    /// What follows: an upper layer's protocol or an extension header.
    pub next: u8,
    /// Time to live.
    pub hop_limit: u8,
    /// Source.
    pub src: [u8; 16],
    /// Destination.
    pub dst: [u8; 16],
}

/// The beginning of an IPv6 extension header (RFC 6564 section 4); of a fragment header all of it
/// (RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Extension {
    /// What follows it.
    pub next: u8,
    /// Its length, in units that depend on its type.
    pub len: u8,
    /// Of a fragment header: offset, and whether more follow.
    pub fragment: [u8; 2],
    /// Of a fragment header: identification.
    pub id: [u8; 4],
}

/// TCP without options (RFC 9293 section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tcp {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgement number.
    pub ack: [u8; 4],
    /// Header length in words, in the high half.
    pub offset: u8,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: [u8; 2],
    /// Checksum.
    pub checksum: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

/// UDP (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Udp {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Length in bytes with this header.
    pub len: [u8; 2],
    /// Checksum; 0: none.
    pub checksum: [u8; 2],
}

/// ICMP's first eight bytes (RFC 792).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: [u8; 2],
    /// Depends on the type.
    pub rest: [u8; 4],
}

/// A neighbour solicitation or advertisement without options (RFC 4861 sections 4.3, 4.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Neighbor {
    /// Type, code, checksum, and flags of an advertisement.
    pub icmp: Icmp,
    /// The address that is asked for, or spoken of.
    pub target: [u8; 16],
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Arp {
    /// Hardware type and protocol type.
    pub types: [u8; 4],
    /// Lengths of both addresses.
    pub lens: [u8; 2],
    /// Operation.
    pub op: [u8; 2],
    /// Sender's Ethernet address.
    pub sender_mac: [u8; 6],
    /// Sender's IP address.
    pub sender_ip: [u8; 4],
    /// Target's Ethernet address.
    pub target_mac: [u8; 6],
    /// Target's IP address.
    pub target_ip: [u8; 4],
}

/// [`Arp::types`] and [`Arp::lens`] of ARP for IPv4 over Ethernet.
pub const ARP_IPV4: ([u8; 4], [u8; 2]) = ([0, 1, 8, 0], [6, 4]);
/// [`Arp::op`] of a request.
pub const ARP_REQUEST: [u8; 2] = [0, 1];
/// [`Arp::op`] of a reply.
pub const ARP_REPLY: [u8; 2] = [0, 2];

macro_rules! wire {
    ($($t:ty = $size:literal),+) => {$(
        // SAFETY: byte fields only; the size is the sum of the fields'.
        #[expect(unsafe_code, reason = "see the trait")]
        unsafe impl Plain for $t {}
        const _: () = assert!(size_of::<$t>() == $size && align_of::<$t>() == 1);
    )+};
}
wire!(
    Eth = 14,
    Ipv4 = 20,
    Ipv6 = 40,
    Extension = 8,
    Tcp = 20,
    Udp = 8,
    Icmp = 8,
    Neighbor = 24,
    Arp = 28
);

impl Ipv4 {
    /// The header's bytes.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; 20] {
        let [a, b] = self.total_len;
        let [c, d] = self.id;
        let [e, f] = self.fragment;
        let [g, h] = self.checksum;
        let [s0, s1, s2, s3] = self.src;
        let [d0, d1, d2, d3] = self.dst;
        [
            self.version_ihl,
            self.tos,
            a,
            b,
            c,
            d,
            e,
            f,
            self.ttl,
            self.proto,
            g,
            h,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ]
    }
}

impl Ipv6 {
    /// The header's bytes.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; 40] {
        let [v0, v1, v2, v3] = self.version_flow;
        let [l0, l1] = self.payload_len;
        let (s, d) = (&self.src, &self.dst);
        [
            v0,
            v1,
            v2,
            v3,
            l0,
            l1,
            self.next,
            self.hop_limit,
            s[0],
            s[1],
            s[2],
            s[3],
            s[4],
            s[5],
            s[6],
            s[7],
            s[8],
            s[9],
            s[10],
            s[11],
            s[12],
            s[13],
            s[14],
            s[15],
            d[0],
            d[1],
            d[2],
            d[3],
            d[4],
            d[5],
            d[6],
            d[7],
            d[8],
            d[9],
            d[10],
            d[11],
            d[12],
            d[13],
            d[14],
            d[15],
        ]
    }
}

impl Tcp {
    /// The header's bytes.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; 20] {
        let [a, b] = self.sport;
        let [c, d] = self.dport;
        let [s0, s1, s2, s3] = self.seq;
        let [k0, k1, k2, k3] = self.ack;
        let [e, f] = self.window;
        let [g, h] = self.checksum;
        let [i, j] = self.urgent;
        [
            a,
            b,
            c,
            d,
            s0,
            s1,
            s2,
            s3,
            k0,
            k1,
            k2,
            k3,
            self.offset,
            self.flags,
            e,
            f,
            g,
            h,
            i,
            j,
        ]
    }
}

impl Icmp {
    /// The header's bytes.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.checksum;
        let [c, d, e, f] = self.rest;
        [self.kind, self.code, a, b, c, d, e, f]
    }
}

/// How much of a packet an IP packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment.
    First,
    /// A later fragment: no ports.
    Later,
}

/// Where the upper layer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Offset of the upper layer's header from the start of the frame, in bytes.
    pub l4: u32,
    /// Its length in bytes, padding left out.
    pub l4_len: u32,
    /// See [`Part`].
    pub part: Part,
}

/// Checks an IPv4 header against the frame's length and tells where the upper layer lies; `None` if
/// it contradicts itself. `gso`: the frame stands for several, whose total length may not fit the
/// header, which then says 0 (the kernel's `iph_totlen`).
#[inline(always)]
pub const fn shape(ip: &Ipv4, frame_len: u32, gso: bool) -> Option<Shape> {
    let header = ((ip.version_ihl & 0x0f) as u32) * 4;
    if ip.version_ihl >> 4 != 4 || header < 20 || frame_len < ETH_LEN {
        return None;
    }
    let total = match u16::from_be_bytes(ip.total_len) as u32 {
        0 if gso => frame_len - ETH_LEN,
        total => total,
    };
    if total < header || frame_len - ETH_LEN < total {
        return None;
    }
    let fragment = u16::from_be_bytes(ip.fragment);
    let part = match (fragment & 0x1fff, fragment & 0x2000 != 0) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    };
    Some(Shape {
        l4: ETH_LEN + header,
        l4_len: total - header,
        part,
    })
}

/// Checks an IPv6 header against the frame's length and tells where the packet ends in the frame, in
/// bytes; `None` if it contradicts itself. `gso`: as for [`shape`] (RFC 2675 jumbo payloads of the
/// kernel's own making say 0).
#[inline(always)]
pub const fn end_v6(ip: &Ipv6, frame_len: u32, gso: bool) -> Option<u32> {
    if ip.version_flow[0] >> 4 != 6 || frame_len < ETH_LEN + 40 {
        return None;
    }
    let payload = match u16::from_be_bytes(ip.payload_len) as u32 {
        0 if gso => frame_len - ETH_LEN - 40,
        payload => payload,
    };
    if frame_len - ETH_LEN - 40 < payload {
        return None;
    }
    Some(ETH_LEN + 40 + payload)
}

/// Hop-by-hop options, routing, destination options: passed over.
const SKIPPED: [u8; 3] = [0, 43, 60];
/// The fragment header's type.
pub const FRAGMENT: u8 = 44;
/// How many extension headers are looked at.
pub const EXTENSIONS: u32 = 6;

/// It is an extension header that is passed over.
#[inline(always)]
pub const fn is_extension(kind: u8) -> bool {
    kind == SKIPPED[0] || kind == SKIPPED[1] || kind == SKIPPED[2] || kind == FRAGMENT
}

/// Length in bytes of an extension header of type `kind`.
#[inline(always)]
pub const fn extension_len(kind: u8, header: &Extension) -> u32 {
    // A fragment header's length field is reserved.
    if kind == FRAGMENT { 8 } else { (header.len as u32 + 1) * 8 }
}

/// Which part of a packet a fragment header tells of.
#[inline(always)]
pub const fn part_v6(header: &Extension) -> Part {
    let fragment = u16::from_be_bytes(header.fragment);
    match (fragment & 0xfff8 != 0, fragment & 1 != 0) {
        // RFC 6946: a packet that is called a fragment and is whole.
        (false, false) => Part::Whole,
        (false, true) => Part::First,
        _ => Part::Later,
    }
}

/// A TCP header that fits its packet.
#[inline(always)]
pub const fn tcp_fits(tcp: &Tcp, l4_len: u32) -> bool {
    let header = ((tcp.offset >> 4) as u32) * 4;
    header >= 20 && header <= l4_len
}

/// A UDP header that fits its packet: its length is the packet's, or more in a first fragment.
#[inline(always)]
pub const fn udp_fits(udp: &Udp, shape: &Shape, gso: bool) -> bool {
    let len = u16::from_be_bytes(udp.len) as u32;
    match shape.part {
        // A frame that stands for several has the length of one or of all.
        Part::Whole if gso => len >= 8,
        Part::Whole => len >= 8 && len <= shape.l4_len,
        _ => len > shape.l4_len,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(version_ihl: u8, total_len: u16, fragment: u16) -> Ipv4 {
        Ipv4 {
            version_ihl,
            total_len: total_len.to_be_bytes(),
            fragment: fragment.to_be_bytes(),
            ..Ipv4::default()
        }
    }

    #[test]
    fn shapes_v6() {
        let ip = |version: u8, payload: u16| Ipv6 {
            version_flow: [version << 4, 0, 0, 0],
            payload_len: payload.to_be_bytes(),
            ..Ipv6::default()
        };
        assert_eq!(end_v6(&ip(6, 20), 74, false), Some(74));
        assert_eq!(end_v6(&ip(6, 20), 80, false), Some(74), "padding");
        assert_eq!(end_v6(&ip(6, 0), 90_054, true), Some(90_054));
        assert_eq!(end_v6(&ip(6, 0), 54, false), Some(54));
        assert_eq!(end_v6(&ip(6, 21), 74, false), None, "longer than the frame");
        assert_eq!(end_v6(&ip(4, 20), 74, false), None, "version");
        assert_eq!(end_v6(&ip(6, 0), 53, false), None, "no header");
        let ext = |len, fragment: u16| Extension {
            len,
            fragment: fragment.to_be_bytes(),
            ..Extension::default()
        };
        assert_eq!(extension_len(0, &ext(0, 0)), 8);
        assert_eq!(extension_len(60, &ext(255, 0)), 2048);
        assert_eq!(extension_len(FRAGMENT, &ext(77, 0)), 8, "its length is reserved");
        assert_eq!(
            (0..=255).filter(|k| is_extension(*k)).collect::<std::vec::Vec<_>>(),
            [0, 43, 44, 60]
        );
        assert_eq!(part_v6(&ext(0, 0)), Part::Whole);
        assert_eq!(part_v6(&ext(0, 1)), Part::First);
        assert_eq!(part_v6(&ext(0, 8)), Part::Later);
        assert_eq!(part_v6(&ext(0, 9)), Part::Later);
    }

    #[test]
    fn shapes() {
        assert_eq!(
            shape(&ip(0x45, 40, 0), 54, false),
            Some(Shape {
                l4: 34,
                l4_len: 20,
                part: Part::Whole
            })
        );
        assert_eq!(
            shape(&ip(0x45, 40, 0x4000), 60, false),
            Some(Shape {
                l4: 34,
                l4_len: 20,
                part: Part::Whole
            }),
            "padding"
        );
        assert_eq!(
            shape(&ip(0x46, 44, 0x2000), 58, false),
            Some(Shape {
                l4: 38,
                l4_len: 20,
                part: Part::First
            })
        );
        assert_eq!(shape(&ip(0x45, 40, 0x2001), 54, false).map(|s| s.part), Some(Part::Later));
        assert_eq!(shape(&ip(0x45, 40, 0x00b9), 54, false).map(|s| s.part), Some(Part::Later));
        assert_eq!(
            shape(&ip(0x45, 0, 0), 70_014, true),
            Some(Shape {
                l4: 34,
                l4_len: 69_980,
                part: Part::Whole
            })
        );
        for (bad, why) in [
            (shape(&ip(0x65, 40, 0), 54, false), "version"),
            (shape(&ip(0x44, 40, 0), 54, false), "short header"),
            (shape(&ip(0x45, 41, 0), 54, false), "longer than the frame"),
            (shape(&ip(0x45, 19, 0), 54, false), "shorter than the header"),
            (shape(&ip(0x45, 0, 0), 54, false), "zero length"),
            (shape(&ip(0x4f, 40, 0), 54, false), "options beyond the end"),
            (shape(&ip(0x45, 40, 0), 10, false), "no frame"),
        ] {
            assert_eq!(bad, None, "{why}");
        }
    }

    proptest! {
        #[test]
        fn the_upper_layer_lies_in_the_frame(version_ihl: u8, total: u16, fragment: u16, frame in 0u32..70_000, gso: bool) {
            if let Some(s) = shape(&ip(version_ihl, total, fragment), frame, gso) {
                prop_assert!(s.l4 >= 34 && s.l4 <= 74 && s.l4 + s.l4_len <= frame);
            }
        }

        #[test]
        fn bytes_are_in_order(b: [u8; 20]) {
            let tcp = Tcp {
                sport: [b[0], b[1]], dport: [b[2], b[3]], seq: [b[4], b[5], b[6], b[7]], ack: [b[8], b[9], b[10], b[11]],
                offset: b[12], flags: b[13], window: [b[14], b[15]], checksum: [b[16], b[17]], urgent: [b[18], b[19]],
            };
            prop_assert_eq!(tcp.bytes(), b);
            let ip = Ipv4 {
                version_ihl: b[0], tos: b[1], total_len: [b[2], b[3]], id: [b[4], b[5]], fragment: [b[6], b[7]], ttl: b[8],
                proto: b[9], checksum: [b[10], b[11]], src: [b[12], b[13], b[14], b[15]], dst: [b[16], b[17], b[18], b[19]],
            };
            prop_assert_eq!(ip.bytes(), b);
        }
    }
}
