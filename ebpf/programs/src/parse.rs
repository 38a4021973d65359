//! From bytes to a 5-tuple. Called by every program.

use mesh_ebpf_common::{
    header::{
        ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_LEN, EXTENSIONS, FRAGMENT, Icmp, Part, Shape, Udp, end_v6, extension_len, is_extension, part_v6,
        shape, tcp_fits, udp_fits,
    },
    rows::{Addr, FragmentKey, FragmentPorts, ICMP, ICMP6, Plain, TCP, UDP},
};

use crate::{maps::FRAGMENTS, skb::Skb, work::Work};

/// [`Work::part`]: not fragmented.
pub const WHOLE: u8 = 0;
/// The first fragment.
pub const FIRST: u8 = 1;
/// A later fragment; its ports are remembered from the first.
pub const LATER: u8 = 2;

/// BPF_ANY.
const ANY: u64 = 0;
/// Where the upper layer lies in a packet without options or extension headers.
pub const PLAIN_V4: u32 = ETH_LEN + 20;
pub const PLAIN_V6: u32 = ETH_LEN + 40;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 or IPv6, with its addresses in [`Work::key`].
    Ip,
    /// ARP.
    Arp,
    /// Something else.
    Other,
    /// Shorter than its headers.
    Short,
}

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// TCP or UDP, with its 5-tuple in [`Work::key`].
    Flow,
    /// ICMP of its family, whole, its header in [`Work::icmp`].
    Icmp,
    /// Another protocol.
    Other,
    /// A later fragment of TCP or UDP whose first was not seen.
    Orphan,
    /// Its headers contradict themselves.
    Malformed,
}

/// Loads Ethernet and IP.
#[inline(always)]
pub fn head(skb: Skb, w: &mut Work) -> Kind {
    if !skb.read(0, &mut w.head) {
        return Kind::Short;
    }
    let [a, b] = w.head.eth.ethertype;
    let is = |t: [u8; 2]| a == t[0] && b == t[1];
    if is(ETH_IPV4) {
        w.v6 = false;
        w.key.src = Addr::v4(u32::from_ne_bytes(w.head.ip.src));
        w.key.dst = Addr::v4(u32::from_ne_bytes(w.head.ip.dst));
        Kind::Ip
    } else if is(ETH_IPV6) {
        if !skb.load(ETH_LEN, &mut w.ip6) {
            return Kind::Short;
        }
        w.v6 = true;
        w.key.src = addr6(&w.ip6.src);
        w.key.dst = addr6(&w.ip6.dst);
        Kind::Ip
    } else if is(ETH_ARP) {
        Kind::Arp
    } else {
        Kind::Other
    }
}

/// Two Ethernet addresses are the same. Byte by byte: a compare of arrays can become a call of memcmp,
/// which BPF has not.
#[inline(always)]
pub fn same(a: &[u8; 6], b: &[u8; 6]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5]
}

/// Hops that the packet has left.
#[inline(always)]
pub fn lifetime(w: &Work) -> u8 {
    if w.v6 { w.ip6.hop_limit } else { w.head.ip.ttl }
}

/// An address as it lies in a packet.
#[inline(always)]
pub fn addr6(b: &[u8; 16]) -> Addr {
    let word = |i: usize| u32::from_ne_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
    Addr([word(0), word(4), word(8), word(12)])
}

/// And back.
#[inline(always)]
pub fn bytes6(a: &Addr) -> [u8; 16] {
    let [a0, a1, a2, a3] = a.0[0].to_ne_bytes();
    let [b0, b1, b2, b3] = a.0[1].to_ne_bytes();
    let [c0, c1, c2, c3] = a.0[2].to_ne_bytes();
    let [d0, d1, d2, d3] = a.0[3].to_ne_bytes();
    [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]
}

/// Where the upper layer of an IPv6 packet lies; sets [`Work::proto`] and, of a fragment, its identity.
#[inline(always)]
fn shape_v6(skb: Skb, w: &mut Work, gso: bool) -> Option<Shape> {
    // Mapped IPv4 addresses are those of IPv4's rows here, and none of a packet's (RFC 4038 section 4.2).
    if w.key.src.is_v4() || w.key.dst.is_v4() {
        return None;
    }
    let end = end_v6(&w.ip6, skb.len(), gso)?;
    let (mut next, mut at, mut part) = (w.ip6.next, ETH_LEN + 40, Part::Whole);
    for _ in 0..EXTENSIONS {
        if !is_extension(next) {
            break;
        }
        if at + 8 > end || !skb.load(at, &mut w.extension) {
            return None;
        }
        let this = next;
        next = w.extension.next;
        at += extension_len(this, &w.extension);
        if this == FRAGMENT {
            part = part_v6(&w.extension);
            w.fragment_key.id = u32::from_ne_bytes(w.extension.id);
            if part == Part::Later {
                break;
            }
        }
    }
    // A chain that goes on hides what it carries (RFC 7113 section 3): an advertisement, for one.
    if at > end || (part != Part::Later && is_extension(next)) {
        return None;
    }
    w.proto = next;
    Some(Shape {
        l4: at,
        l4_len: end - at,
        part,
    })
}

/// Reads the upper layer's header. Mostly it is behind an IP header without options.
#[inline(always)]
fn upper<T: Plain>(skb: Skb, at: u32, to: &mut T) -> bool {
    match at {
        PLAIN_V4 => skb.read(PLAIN_V4, to),
        PLAIN_V6 => skb.read(PLAIN_V6, to),
        at => skb.load(at, to),
    }
}

/// Goes on from the IP header that [`head`] loaded.
#[inline(never)]
pub fn packet(skb: Skb, w: &mut Work) -> Packet {
    let gso = skb.gso();
    let found = if w.v6 {
        shape_v6(skb, w, gso)
    } else {
        w.proto = w.head.ip.proto;
        w.fragment_key.id = u16::from_ne_bytes(w.head.ip.id).into();
        shape(&w.head.ip, skb.len(), gso)
    };
    let Some(shape) = found else { return Packet::Malformed };
    w.l4 = shape.l4;
    w.l4_len = shape.l4_len;
    w.flags = 0;
    w.part = match shape.part {
        Part::Whole => WHOLE,
        Part::First => FIRST,
        Part::Later => LATER,
    };
    let proto = w.proto;
    w.key.proto = proto;
    if proto != TCP && proto != UDP {
        let icmp = proto == if w.v6 { ICMP6 } else { ICMP };
        if icmp && shape.part == Part::Whole && shape.l4_len >= size_of::<Icmp>() as u32 && skb.load(shape.l4, &mut w.icmp) {
            return Packet::Icmp;
        }
        return Packet::Other;
    }
    if shape.part != Part::Whole {
        let id = w.fragment_key.id;
        w.fragment_key = FragmentKey {
            src: w.key.src,
            dst: w.key.dst,
            id,
            proto,
            zero: [0; 3],
        };
    }
    if shape.part == Part::Later {
        let Some(ports) = FRAGMENTS.get_ptr(&w.fragment_key) else {
            return Packet::Orphan;
        };
        // SAFETY: looked up in this run; a row that is being replaced gives another packet's ports,
        // which the receiver's own checks refuse.
        (w.key.sport, w.key.dport) = unsafe { ((*ports).sport, (*ports).dport) };
    } else if proto == TCP {
        if !upper(skb, shape.l4, &mut w.tcp) || !tcp_fits(&w.tcp, shape.l4_len) {
            return Packet::Malformed;
        }
        w.flags = w.tcp.flags;
        w.headers = shape.l4 + u32::from(w.tcp.offset >> 4) * 4;
        (w.key.sport, w.key.dport) = (u16::from_be_bytes(w.tcp.sport), u16::from_be_bytes(w.tcp.dport));
    } else {
        if !upper(skb, shape.l4, &mut w.udp) || !udp_fits(&w.udp, &shape, gso) {
            return Packet::Malformed;
        }
        let udp = w.udp;
        w.headers = shape.l4 + size_of::<Udp>() as u32;
        (w.tcp.sport, w.tcp.dport) = (udp.sport, udp.dport);
        w.tcp.seq = [udp.len[0], udp.len[1], udp.checksum[0], udp.checksum[1]];
        (w.key.sport, w.key.dport) = (u16::from_be_bytes(udp.sport), u16::from_be_bytes(udp.dport));
    }
    w.key.zero = [0; 3];
    Packet::Flow
}

/// Lets the later fragments of a packet that is forwarded follow its first one.
#[inline(always)]
pub fn remember_fragment(w: &mut Work) {
    if w.part == FIRST {
        w.fragment_ports = FragmentPorts {
            sport: w.key.sport,
            dport: w.key.dport,
        };
        // A failure is that of the later fragments, which are then counted as orphans.
        let _ = FRAGMENTS.insert(&w.fragment_key, &w.fragment_ports, ANY);
    }
}
