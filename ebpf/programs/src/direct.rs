//! Past the bridge: straight to an endpoint here, into the network's VXLAN device, or to its node.
//!
//! Called by from_container, from_network, and by from_uplink for what was not encapsulated. Whatever they do not send
//! this way goes over the bridge, and meets to_container, which shares the translation of replies.

use mesh_ebpf_common::{
    Reason,
    rows::{Addr, Config, Local, MacKey, Macs, QUEUED, Reply, SEGMENT, kind},
};

use crate::{
    bind::{self, touch_reverse},
    icmp,
    maps::{LOCAL_BY_ADDR, LOCAL_BY_MAC, LOCALS, NEIGHBORS, REMOTES, config, count, range},
    nat::{self, To},
    parse::{self, Packet, remember_fragment},
    skb::{Skb, drop, pass},
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

/// To the endpoint `to` on another node.
#[inline(always)]
pub fn away(skb: Skb, local: &Local, to: &Addr) -> i32 {
    if local.bits & SEGMENT != 0
        // SAFETY: as in `endpoint`.
        && let Some(remote) = unsafe { REMOTES.get(to) }
        // The Ethernet address was the container's to choose, but it reaches no other network by it.
        && remote.network == local.network
        && let Some(config) = config()
    {
        // The kernel's own way to a neighbour (bpf_redirect_neigh) has none for IPv6 by an IPv4 one.
        if !skb.store(0, &remote.macs) {
            return drop(Reason::DropFailed);
        }
        return skb.send(config.uplink_ifindex, Reason::SegmentSent);
    }
    // The device's forwarding entry names the node; what has none ends there.
    skb.send(local.vxlan_ifindex, Reason::DirectRemote)
}

/// What came in at the uplink and is for no address of this node: from a node of the segment to an
/// endpoint here, or not ours.
#[inline(never)]
pub fn arrived(skb: Skb, w: &mut Work, config: &Config) -> i32 {
    let asked = config.ingress_ip != 0 && w.key.dst.same(&Addr::v4(config.ingress_ip));
    let network = range(&w.key.dst);
    // From anybody else it is a packet like others: what the host lets in is let in.
    if !asked && network.is_none() || NEIGHBORS.get_ptr(&MacKey::new(w.head.eth.src)).is_none() {
        return pass(Reason::Pass);
    }
    if asked {
        // Another node asks whether such packets get here: as if it had done so by VXLAN.
        w.macs = Macs {
            dst: config.ingress_mac,
            src: w.head.eth.src,
        };
        return if skb.store(0, &w.macs) {
            skb.take_in(config.ingress_ifindex, Reason::SegmentArrived)
        } else {
            drop(Reason::DropFailed)
        };
    }
    // What that node routes, for a process of its own or a container of another network: the host's to judge.
    if range(&w.key.src) != network {
        return pass(Reason::Pass);
    }
    // SAFETY: as in `endpoint`; so below.
    let index = unsafe { LOCAL_BY_ADDR.get(&w.key.dst) };
    let to = index.and_then(|index| unsafe { LOCALS.get(index) });
    // An endpoint that has gone: its packets are not for the host to route.
    let Some(to) = to.filter(|to| Some(to.network) == network) else {
        return drop(Reason::DropUnknownEndpoint);
    };
    let packet = parse::packet(skb, w);
    // As it came from its network, and not from the underlay.
    (w.head.eth.dst, w.head.eth.src) = (to.mac, to.gateway_mac);
    w.macs = Macs {
        dst: to.mac,
        src: to.gateway_mac,
    };
    if !skb.store(0, &w.macs) {
        return drop(Reason::DropFailed);
    }
    let reply = vip_reply(skb, w, packet);
    deliver(skb, w, packet, to, reply, Reason::SegmentArrived)
}

/// Gives the packet to the endpoint `to` here; `reply`: it is one of a VIP.
#[inline(always)]
pub fn deliver(skb: Skb, w: &mut Work, packet: Packet, to: &Local, reply: Option<*mut Reply>, reason: Reason) -> i32 {
    if let Some(r) = reply
        && !show_vip(skb, w, packet, r)
    {
        return drop(Reason::DropFailed);
    }
    hand_over(skb, to, reason)
}

/// Gives the frame, whose Ethernet addresses say so, to the endpoint `to` here: past its interface's queue, or by it if
/// that limits it. What goes by it meets to_container, which looks for what was translated already, and finds nothing.
#[inline(always)]
pub fn hand_over(skb: Skb, to: &Local, reason: Reason) -> i32 {
    skb.hand_over(to.ifindex, to.bits & QUEUED != 0, reason)
}

/// As [`hand_over`], to the endpoint whose interface has the index `to`, whatever Ethernet addresses the frame has.
#[inline(never)]
pub fn give_back(skb: Skb, w: &mut Work, to: u32, reason: Reason) -> i32 {
    // SAFETY: as in `endpoint`.
    let queued = match unsafe { LOCALS.get(&to) } {
        Some(local) if local.bits & QUEUED != 0 => nat::ethernet(skb, w, local.mac, local.gateway_mac),
        _ => false,
    };
    skb.hand_over(to, queued, reason)
}
