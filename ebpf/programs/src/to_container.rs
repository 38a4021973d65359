//! TC egress of an endpoint's host-side veth: a VIP's backend answers, the client sees the VIP.

use mesh_ebpf_common::{Reason, rows::kind};

use crate::{
    bind::touch_reverse,
    maps::{REPLIES, count, work},
    nat,
    parse::{self, Packet, head, is_ipv4, remember_fragment},
    skb::{PASS, Skb, drop, now},
};

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = work() else { return drop(Reason::DropFailed) };
    if skb.tagged() || !head(skb, w) || !is_ipv4(w) || parse::packet(skb, w) != Packet::Flow {
        return PASS;
    }
    let Some(r) = REPLIES.get_ptr_mut(&w.key) else { return PASS };
    // SAFETY: a row looked up in this run.
    let row = unsafe { *r };
    if row.kind != kind::VIP {
        return PASS;
    }
    remember_fragment(w);
    let client = w.key.dst;
    touch_reverse(w, r, client, row.dst, now());
    let sport = w.key.sport;
    if nat::source(skb, w, row.dst.raw_v4()) && nat::ports(skb, w, sport, row.cport) {
        count(Reason::VipReply);
        return PASS;
    }
    drop(Reason::DropFailed)
}
