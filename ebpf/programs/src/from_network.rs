//! TC ingress of a network's VXLAN device: what other nodes' containers send to endpoints here.

use mesh_ebpf_common::Reason;

use crate::{
    direct,
    maps::{NETWORKS, begin},
    parse::{self, Kind, head},
    skb::{Skb, drop, pass},
};

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = begin(skb) else { return drop(Reason::DropFailed) };
    if skb.tagged() || head(skb, w) != Kind::Ip {
        return pass(Reason::PassBridge);
    }
    // SAFETY: rows of this map are replaced as a whole and outlive this run.
    let Some(network) = (unsafe { NETWORKS.get(&skb.ifindex()) }) else {
        return pass(Reason::PassUnknownDevice);
    };
    let Some(to) = direct::endpoint(w.head.eth.dst, network.vni) else {
        return pass(Reason::PassBridge);
    };
    let packet = parse::packet(skb, w);
    let reply = direct::vip_reply(skb, w, packet);
    direct::deliver(skb, w, packet, to, reply, Reason::DirectArrived)
}
