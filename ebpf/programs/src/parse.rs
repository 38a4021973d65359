//! From bytes to a 5-tuple. Called by every program.

use mesh_ebpf_common::{
    header::{ETH_IPV4, Part, Udp, shape, tcp_fits, udp_fits},
    rows::{Addr, FlowKey, FragmentKey, FragmentPorts, TCP, UDP},
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

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// TCP or UDP, with its 5-tuple in [`Work::key`].
    Flow,
    /// IPv4 of another protocol; [`Work::l4`] is set.
    Other,
    /// A later fragment of TCP or UDP whose first was not seen.
    Orphan,
    /// Its headers contradict themselves.
    Malformed,
}

/// Loads Ethernet and IPv4; false if the frame is too short.
#[inline(always)]
pub fn head(skb: Skb, w: &mut Work) -> bool {
    skb.load(0, &mut w.head)
}

/// It is an IPv4 frame.
#[inline(always)]
pub fn is_ipv4(w: &Work) -> bool {
    let [a, b] = w.head.eth.ethertype;
    a == ETH_IPV4[0] && b == ETH_IPV4[1]
}

/// The source address as a word.
#[inline(always)]
pub fn src(w: &Work) -> u32 {
    u32::from_ne_bytes(w.head.ip.src)
}

/// The destination address as a word.
#[inline(always)]
pub fn dst(w: &Work) -> u32 {
    u32::from_ne_bytes(w.head.ip.dst)
}

/// Goes on from the IPv4 header in [`Work::head`].
#[inline(always)]
pub fn packet(skb: Skb, w: &mut Work) -> Packet {
    let gso = skb.gso();
    let Some(shape) = shape(&w.head.ip, skb.len(), gso) else {
        return Packet::Malformed;
    };
    w.l4 = shape.l4;
    w.l4_len = shape.l4_len;
    w.flags = 0;
    w.part = match shape.part {
        Part::Whole => WHOLE,
        Part::First => FIRST,
        Part::Later => LATER,
    };
    let proto = w.head.ip.proto;
    if proto != TCP && proto != UDP {
        return Packet::Other;
    }
    let (src, dst) = (Addr::v4(src(w)), Addr::v4(dst(w)));
    if shape.part != Part::Whole {
        w.fragment_key = FragmentKey {
            src,
            dst,
            id: u16::from_ne_bytes(w.head.ip.id),
            proto,
            zero: 0,
        };
    }
    let (sport, dport) = if shape.part == Part::Later {
        let Some(ports) = FRAGMENTS.get_ptr(&w.fragment_key) else {
            return Packet::Orphan;
        };
        // SAFETY: looked up in this run; a row that is being replaced gives another packet's ports,
        // which the receiver's own checks refuse.
        unsafe { ((*ports).sport, (*ports).dport) }
    } else if proto == TCP {
        if !skb.load(shape.l4, &mut w.tcp) || !tcp_fits(&w.tcp, shape.l4_len) {
            return Packet::Malformed;
        }
        w.flags = w.tcp.flags;
        (u16::from_be_bytes(w.tcp.sport), u16::from_be_bytes(w.tcp.dport))
    } else {
        let mut udp = Udp::default();
        if !skb.load(shape.l4, &mut udp) || !udp_fits(&udp, &shape, gso) {
            return Packet::Malformed;
        }
        (w.tcp.sport, w.tcp.dport) = (udp.sport, udp.dport);
        w.tcp.seq = [udp.len[0], udp.len[1], udp.checksum[0], udp.checksum[1]];
        (u16::from_be_bytes(udp.sport), u16::from_be_bytes(udp.dport))
    };
    w.key = FlowKey {
        src,
        dst,
        sport,
        dport,
        proto,
        zero: [0; 3],
    };
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
