//! The shortest way of the most frequent packet: one of a flow that is kept, whose backend is on another
//! node. Called by from_uplink first; what is not that takes the long way, which comes to the same verdict.
//! The mark that says when it may be taken also spares from_overlay and from_container looks at what they saw just now.
//!
//! A helper call costs thirty times what the same work costs in the program, and a look-up in a hash map as
//! much. So the packet is read in place, and nothing is looked up but the flow: its row was marked
//! ([`flow::stamp`]) when the long way was taken last, and the mark is void as soon as a row of the
//! tables has changed that could have led elsewhere.

use mesh_ebpf_common::{
    Reason,
    flow::{self, FIN, RST, SYN},
    header::{ETH_IPV4, ETH_IPV6, ETH_LEN, Ipv6, Part, Shape, Tcp, Udp, end_v6, shape, tcp_fits, udp_fits},
    rows::{Addr, Config, Flow, Published, TCP, UDP, kind},
};

use crate::{
    maps::{FLOWS_KEPT, count_packet, published},
    parse::{PLAIN_V4, PLAIN_V6, same},
    skb::{Skb, jiffies, pass},
    work::{Head, Work},
};

/// The first byte of an IPv4 header without options.
const NO_OPTIONS: u8 = 0x45;

/// The mark of flows that the tables of this moment are followed for.
#[inline(always)]
pub fn stamp(config: &Config) -> u16 {
    flow::stamp(jiffies(), config.epoch)
}

/// Whether a row of a flow or of a way back with these bits was marked at this moment.
#[inline(always)]
pub fn marked(bits: u32, stamp: u16) -> bool {
    (bits >> 16) as u16 == stamp
}

/// Marks such a row.
#[inline(always)]
pub fn put(bits: *mut u32, stamp: u16) {
    // The half word alone: another CPU may be setting bits in the other.
    // SAFETY: the upper half of a word of a row looked up in this run.
    unsafe { bits.cast::<u16>().add(1).write(stamp) };
}

/// This packet opens no flow and ends none.
#[inline(always)]
pub fn plain(flags: u8) -> bool {
    flags & (SYN | FIN | RST) == 0
}

/// Notes that the long way led the flow `f` to the backend elsewhere with the Ethernet address `mac`,
/// by tables that [`Work::stamp`] is the mark of.
#[inline(always)]
pub fn mark(w: &Work, f: *mut Flow, mac: &[u8; 6]) {
    // SAFETY: a row looked up in this run.
    let row = unsafe { &mut *f };
    if row.kind == kind::CARRIED && same(&row.entry, mac) {
        put(&raw mut row.bits, w.stamp);
    }
}

/// Reads a whole packet without options or extension headers: its 5-tuple into [`Work::key`], its TCP flags.
#[inline(always)]
fn tuple(skb: Skb, w: &mut Work) -> Option<u8> {
    let head = skb.peek::<Head>(0)?;
    let [a, b] = head.eth.ethertype;
    if a == ETH_IPV4[0] && b == ETH_IPV4[1] {
        if head.ip.version_ihl != NO_OPTIONS {
            return None;
        }
        let shape = shape(&head.ip, skb.len(), skb.gso())?;
        (w.key.src, w.key.dst) = (Addr::v4(skb.word(26)?), Addr::v4(skb.word(30)?));
        return upper::<PLAIN_V4>(skb, w, head.ip.proto, &shape);
    }
    if a != ETH_IPV6[0] || b != ETH_IPV6[1] {
        return None;
    }
    let ip6 = skb.peek::<Ipv6>(ETH_LEN)?;
    let end = end_v6(ip6, skb.len(), skb.gso())?;
    w.key.src = Addr([skb.word(22)?, skb.word(26)?, skb.word(30)?, skb.word(34)?]);
    w.key.dst = Addr([skb.word(38)?, skb.word(42)?, skb.word(46)?, skb.word(50)?]);
    if w.key.src.is_v4() || w.key.dst.is_v4() {
        return None;
    }
    let shape = Shape {
        l4: PLAIN_V6,
        l4_len: end - PLAIN_V6,
        part: Part::Whole,
    };
    upper::<PLAIN_V6>(skb, w, ip6.next, &shape)
}

/// The upper layer at offset `AT`.
#[inline(always)]
fn upper<const AT: u32>(skb: Skb, w: &mut Work, proto: u8, shape: &Shape) -> Option<u8> {
    if shape.part != Part::Whole {
        return None;
    }
    let (sport, dport, flags) = if proto == TCP {
        let tcp = skb.peek::<Tcp>(AT)?;
        if !tcp_fits(tcp, shape.l4_len) {
            return None;
        }
        w.headers = AT + u32::from(tcp.offset >> 4) * 4;
        (tcp.sport, tcp.dport, tcp.flags)
    } else if proto == UDP {
        let udp = skb.peek::<Udp>(AT)?;
        if !udp_fits(udp, shape, skb.gso()) {
            return None;
        }
        w.headers = AT + size_of::<Udp>() as u32;
        (udp.sport, udp.dport, 0)
    } else {
        return None;
    };
    (w.key.sport, w.key.dport) = (u16::from_be_bytes(sport), u16::from_be_bytes(dport));
    (w.key.proto, w.key.zero) = (proto, [0; 3]);
    Some(flags)
}

/// What the short way came to.
pub enum Seen {
    /// The packet's verdict.
    Done(i32),
    /// It is for this port, if it is for this node.
    Port(&'static Published),
    /// It is for no published port, and perhaps for an endpoint here.
    Other,
    /// Not a packet for the short way.
    Nothing,
}

/// Sends the packet on, if its flow's row says where to.
#[inline(always)]
pub fn run(skb: Skb, w: &mut Work, config: &Config) -> Seen {
    let Some(flags) = tuple(skb, w) else { return Seen::Nothing };
    // What is for no published port is not ours, whatever its address, or an endpoint's.
    let Some(port) = published(&w.key.dst, w.key.dport, w.key.proto) else {
        return if config.segment == 1 {
            Seen::Other
        } else {
            Seen::Done(pass(Reason::Pass))
        };
    };
    if plain(flags)
        && skb.fits(config.ingress_mtu, w.headers)
        && let Some(f) = FLOWS_KEPT.get_ptr(&w.key)
    {
        // SAFETY: a row looked up in this run.
        let f = unsafe { &*f };
        if f.kind == kind::CARRIED && marked(f.bits, w.stamp) && config.ingress_ifindex != 0 && skb.address(&f.entry, &config.ingress_mac) {
            count_packet(f.stat, w.len, true);
            return Seen::Done(skb.send(config.ingress_ifindex, Reason::Carried));
        }
    }
    Seen::Port(port)
}
