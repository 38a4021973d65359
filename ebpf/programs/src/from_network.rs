//! TC ingress of a network's VXLAN device: what other nodes' containers send to endpoints here.

use mesh_ebpf_common::Reason;

use crate::{
    direct,
    maps::{NETWORKS, work},
    parse::{self, head, is_ipv4},
    skb::{Skb, drop, pass},
};

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = work() else { return drop(Reason::DropFailed) };
    if skb.tagged() || !head(skb, w) || !is_ipv4(w) {
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
    let reply = direct::vip_reply(w, packet);
    direct::deliver(skb, w, to, reply, Reason::DirectArrived)
}
