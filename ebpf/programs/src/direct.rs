//! Past the bridge: straight to an endpoint here, or into the network's VXLAN device.
//!
//! Called by from_container and from_network. Whatever they do not send this way goes over the bridge,
//! and meets to_container, which shares the translation of replies.

use mesh_ebpf_common::{
    Reason,
    rows::{Local, MacKey, Reply, kind},
};

use crate::{
    bind::{self, touch_reverse},
    icmp,
    maps::{LOCAL_BY_MAC, count},
    nat::{self, To},
    parse::{Packet, remember_fragment},
    skb::{Skb, drop},
    work::Work,
};

/// The endpoint here that has this Ethernet address, if it belongs to `network`: what comes in from
/// one network never reaches another's endpoint.
#[inline(always)]
pub fn endpoint(mac: [u8; 6], network: u32) -> Option<&'static Local> {
    // SAFETY: rows of this map are replaced as a whole and outlive this run.
    let local = unsafe { LOCAL_BY_MAC.get(&MacKey::new(mac)) }?;
    if local.network == network { Some(local) } else { None }
}

/// The way back of a VIP's flow, if the packet in `w` is its backend's, or an error about what its
/// backend got.
#[inline(always)]
pub fn vip_reply(skb: Skb, w: &mut Work, packet: Packet) -> Option<*mut Reply> {
    let r = if packet == Packet::Flow {
        bind::find(&w.key)?.0
    } else if icmp::is_error(skb, w, packet) {
        icmp::reply(w)?
    } else {
        return None;
    };
    // SAFETY: a row looked up in this run.
    if unsafe { (*r).kind } == kind::VIP { Some(r) } else { None }
}

/// A VIP's backend answers, the client sees the VIP. False: the kernel refused to change the packet.
#[inline(never)]
pub fn show_vip(skb: Skb, w: &mut Work, packet: Packet, r: *mut Reply) -> bool {
    let (eth_dst, eth_src) = (w.head.eth.dst, w.head.eth.src);
    if packet != Packet::Flow {
        return icmp::outward(skb, w, r, eth_dst, eth_src);
    }
    // SAFETY: a row looked up in this run.
    let row = unsafe { &*r };
    remember_fragment(w);
    let client = w.key.dst;
    touch_reverse(w, r, client, row.dst);
    w.to = To {
        src: row.dst,
        dst: client,
        sport: row.dport,
        dport: row.cport,
        eth_dst,
        eth_src,
        hop: false,
    };
    if nat::rewrite(skb, w) {
        count(Reason::VipReply);
        return true;
    }
    false
}

/// Gives the packet to an endpoint here; `reply`: it is one of a VIP.
#[inline(always)]
pub fn deliver(skb: Skb, w: &mut Work, packet: Packet, to: &Local, reply: Option<*mut Reply>, reason: Reason) -> i32 {
    if let Some(r) = reply
        && !show_vip(skb, w, packet, r)
    {
        return drop(Reason::DropFailed);
    }
    skb.hand_over(to.ifindex, reason)
}
