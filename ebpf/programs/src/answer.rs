//! Packets that are answered here: no backend, too big for its way, ARP, neighbour discovery and ping of a VIP. The answer
//! takes the packet's place and goes back out of the device that the packet came in at.

use mesh_ebpf_common::{
    Reason,
    answer::{answerable, port_unreachable, tcp_reset, too_big, unfragmentable},
    answer6::{advertisement, port_unreachable6, tcp_reset6, too_big6},
    header::{ARP_REPLY, ETH_LEN, Ipv6},
    rows::{Local, TCP},
};

use crate::{
    nat::{self, To},
    parse::WHOLE,
    skb::{Skb, drop},
    work::Work,
};

/// The packet is one that an answer can quote: whole, and without options or extension headers.
#[inline(always)]
fn plain(w: &Work) -> bool {
    w.part == WHOLE
        && if w.v6 {
            w.l4 == ETH_LEN + size_of::<Ipv6>() as u32
        } else {
            answerable(&w.head.ip)
        }
}

/// What is quoted of the upper layer.
#[inline(always)]
fn quoted(w: &Work) -> [u8; 8] {
    let ([a, b], [c, d], [e, f, g, h]) = (w.tcp.sport, w.tcp.dport, w.tcp.seq);
    [a, b, c, d, e, f, g, h]
}

/// The packet, or what it stands for, must be answered by [`refuse_size`]: it is longer than `mtu`, and must not be
/// fragmented. One that may be is, by the kernel, once it is in VXLAN.
#[inline(always)]
pub fn is_too_big(skb: Skb, w: &Work, mtu: u32) -> bool {
    !skb.fits(mtu, w.headers) && (w.v6 || unfragmentable(&w.head.ip)) && plain(w)
}

/// Tells a client that its packets must not be longer than `mtu`.
#[inline(never)]
pub fn refuse_size(skb: Skb, w: &mut Work, mtu: u32) -> i32 {
    let (dst, src) = (w.head.eth.src, w.head.eth.dst);
    let quoted = quoted(w);
    let written = if w.v6 {
        too_big6(&w.ip6, quoted, mtu as u16, &mut w.icmp_error6);
        skb.resize(ETH_LEN + 96) && skb.overwrite(ETH_LEN, &w.icmp_error6)
    } else {
        w.icmp_error = too_big(&w.head.ip, quoted, mtu as u16);
        skb.resize(ETH_LEN + 56) && skb.overwrite(ETH_LEN, &w.icmp_error)
    };
    if written && nat::ethernet(skb, w, dst, src) {
        return skb.send(skb.ifindex(), Reason::TooBig);
    }
    drop(Reason::DropFailed)
}

/// Refuses a client's packet: a TCP reset, or ICMP port unreachable for UDP.
#[inline(never)]
pub fn refuse(skb: Skb, w: &mut Work, reset: Reason) -> i32 {
    if !plain(w) {
        return drop(Reason::DropUnanswered);
    }
    let (dst, src) = (w.head.eth.src, w.head.eth.dst);
    let quoted = quoted(w);
    let (done, reason) = if w.key.proto == TCP {
        let written = if w.v6 {
            if !tcp_reset6(&w.ip6, &w.tcp, w.l4_len, &mut w.reset6) {
                return drop(Reason::DropReset);
            }
            skb.resize(ETH_LEN + 60) && skb.overwrite(ETH_LEN, &w.reset6)
        } else {
            let Some(answer) = tcp_reset(&w.head.ip, &w.tcp, w.l4_len) else {
                return drop(Reason::DropReset);
            };
            w.reset = answer;
            skb.resize(ETH_LEN + 40) && skb.overwrite(ETH_LEN, &w.reset)
        };
        (written, reset)
    } else {
        let written = if w.v6 {
            port_unreachable6(&w.ip6, quoted, &mut w.icmp_error6);
            skb.resize(ETH_LEN + 96) && skb.overwrite(ETH_LEN, &w.icmp_error6)
        } else {
            w.icmp_error = port_unreachable(&w.head.ip, quoted);
            skb.resize(ETH_LEN + 56) && skb.overwrite(ETH_LEN, &w.icmp_error)
        };
        (written, Reason::UnreachableNoBackend)
    };
    if done && nat::ethernet(skb, w, dst, src) {
        return skb.send(skb.ifindex(), reason);
    }
    drop(Reason::DropFailed)
}

/// Answers the ARP request in `w.arp` with the gateway's Ethernet address.
#[inline(never)]
pub fn arp(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    (w.arp.target_mac, w.arp.target_ip, w.arp.sender_ip) = (w.arp.sender_mac, w.arp.sender_ip, w.arp.target_ip);
    (w.arp.sender_mac, w.arp.op) = (local.gateway_mac, ARP_REPLY);
    if skb.overwrite(ETH_LEN, &w.arp) && nat::ethernet(skb, w, local.mac, local.gateway_mac) {
        return skb.send(skb.ifindex(), Reason::ArpAnswered);
    }
    drop(Reason::DropFailed)
}

/// Answers the neighbour solicitation in `w.neighbor` with the gateway's Ethernet address.
#[inline(never)]
pub fn neighbor(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    advertisement(&w.neighbor.target, &w.ip6.src, local.gateway_mac, &mut w.advertisement);
    if skb.resize(ETH_LEN + 72) && skb.overwrite(ETH_LEN, &w.advertisement) && nat::ethernet(skb, w, local.mac, local.gateway_mac) {
        return skb.send(skb.ifindex(), Reason::NdAnswered);
    }
    drop(Reason::DropFailed)
}

/// Types of an echo and its reply: ICMP, ICMPv6.
const ECHO: [(u8, u8); 2] = [(8, 0), (128, 129)];

/// Answers the ping in `w.icmp`; drops what is none.
#[inline(never)]
pub fn echo(skb: Skb, w: &mut Work) -> i32 {
    let (echo, reply) = ECHO[usize::from(w.v6)];
    if w.icmp.kind != echo || w.icmp.code != 0 {
        return drop(Reason::DropVipProtocol);
    }
    // The checksum is written as it was, and then changed by type and code, one word of it. The
    // addresses trade places, which changes no sum.
    let (from, to) = (u16::from_ne_bytes([echo, 0]), u16::from_ne_bytes([reply, 0]));
    w.icmp.kind = reply;
    w.to = To {
        src: w.key.dst,
        dst: w.key.src,
        sport: 0,
        dport: 0,
        eth_dst: w.head.eth.src,
        eth_src: w.head.eth.dst,
        hop: false,
    };
    if skb.store(w.l4, &w.icmp) && skb.icmp_checksum(w.l4 + 2, from, to) && nat::store_head(skb, w, 0) {
        return skb.send(skb.ifindex(), Reason::EchoAnswered);
    }
    drop(Reason::DropFailed)
}
