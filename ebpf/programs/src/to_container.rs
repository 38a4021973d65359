//! TC egress of an endpoint's host-side veth, for what comes over the bridge: a VIP's backend answers,
//! the client sees the VIP.

use mesh_ebpf_common::Reason;

use crate::{
    direct,
    maps::begin,
    parse::{self, Kind, head},
    skb::{PASS, Skb, drop},
};

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = begin(skb) else { return drop(Reason::DropFailed) };
    if skb.tagged() || head(skb, w) != Kind::Ip {
        return PASS;
    }
    let packet = parse::packet(skb, w);
    match direct::vip_reply(skb, w, packet) {
        Some(r) if !direct::show_vip(skb, w, packet, r) => drop(Reason::DropFailed),
        _ => PASS,
    }
}
