//! Packets that are answered here: no backend, ARP and ping of a VIP. The answer takes the packet's
//! place and goes back out of the device that the packet came in at.

use mesh_ebpf_common::{
    Reason,
    answer::{answerable, port_unreachable, tcp_reset},
    header::{ARP_REPLY, ETH_LEN, Icmp},
    rows::{Local, TCP},
};

use crate::{
    nat,
    parse::WHOLE,
    skb::{Skb, drop},
    work::Work,
};

/// Refuses a client's packet: a TCP reset, or ICMP port unreachable for UDP.
#[inline(always)]
pub fn refuse(skb: Skb, w: &mut Work, reset: Reason) -> i32 {
    if w.part != WHOLE || !answerable(&w.head.ip) {
        return drop(Reason::DropUnanswered);
    }
    let (dst, src) = (w.head.eth.src, w.head.eth.dst);
    if w.key.proto == TCP {
        let Some(answer) = tcp_reset(&w.head.ip, &w.tcp, w.l4_len) else {
            return drop(Reason::DropReset);
        };
        w.reset = answer;
        if skb.resize(ETH_LEN + 40) && skb.overwrite(ETH_LEN, &w.reset) && nat::ethernet(skb, w, dst, src) {
            return skb.send(skb.ifindex(), reset);
        }
    } else {
        let ([a, b], [c, d], [e, f, g, h]) = (w.tcp.sport, w.tcp.dport, w.tcp.seq);
        w.unreachable = port_unreachable(&w.head.ip, [a, b, c, d, e, f, g, h]);
        if skb.resize(ETH_LEN + 56) && skb.overwrite(ETH_LEN, &w.unreachable) && nat::ethernet(skb, w, dst, src) {
            return skb.send(skb.ifindex(), Reason::UnreachableNoBackend);
        }
    }
    drop(Reason::DropFailed)
}

/// Answers the ARP request in `w.arp` with the gateway's Ethernet address.
#[inline(always)]
pub fn arp(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    (w.arp.target_mac, w.arp.target_ip, w.arp.sender_ip) = (w.arp.sender_mac, w.arp.sender_ip, w.arp.target_ip);
    (w.arp.sender_mac, w.arp.op) = (local.gateway_mac, ARP_REPLY);
    if skb.overwrite(ETH_LEN, &w.arp) && nat::ethernet(skb, w, local.mac, local.gateway_mac) {
        return skb.send(skb.ifindex(), Reason::ArpAnswered);
    }
    drop(Reason::DropFailed)
}

/// ICMP types.
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;

/// Answers a ping; drops what is none.
#[inline(always)]
pub fn echo(skb: Skb, w: &mut Work) -> i32 {
    if w.part != WHOLE || w.l4_len < size_of::<Icmp>() as u32 || !skb.load(w.l4, &mut w.icmp) {
        return drop(Reason::DropVipProtocol);
    }
    if w.icmp.kind != ECHO || w.icmp.code != 0 {
        return drop(Reason::DropVipProtocol);
    }
    let (dst, src) = (w.head.eth.src, w.head.eth.dst);
    // The checksum is written as it was, and then changed by type and code, one word of it. The addresses trade places, which changes no sum.
    let (from, to) = (u16::from_ne_bytes([ECHO, 0]), u16::from_ne_bytes([ECHO_REPLY, 0]));
    w.icmp.kind = ECHO_REPLY;
    if skb.store(w.l4, &w.icmp)
        && skb.icmp_checksum(w.l4 + 2, from, to)
        && nat::swap_addresses(skb, u32::from_ne_bytes(w.head.ip.dst), u32::from_ne_bytes(w.head.ip.src))
        && nat::ethernet(skb, w, dst, src)
    {
        return skb.send(skb.ifindex(), Reason::EchoAnswered);
    }
    drop(Reason::DropFailed)
}
