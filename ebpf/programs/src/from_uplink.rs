//! TC ingress of the uplink: clients' packets to published ports.

use mesh_ebpf_common::{
    Reason,
    rows::{Addr, Backend, Flow, MacKey, PortKey, kind},
};

use crate::{
    answer,
    bind::bind,
    maps::{LOCAL_BY_MAC, NODE_ADDRS, PUBLISHED, config, work},
    nat,
    parse::{self, Packet, dst, head, is_ipv4, remember_fragment},
    route::{New, Route, route},
    skb::{Skb, drop, now, pass},
    work::Work,
};

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = work() else { return drop(Reason::DropFailed) };
    if skb.tagged() || !skb.to_host() || !head(skb, w) || !is_ipv4(w) {
        return pass(Reason::Pass);
    }
    if NODE_ADDRS.get_ptr(&Addr::v4(dst(w))).is_none() {
        return pass(Reason::Pass);
    }
    match parse::packet(skb, w) {
        Packet::Flow => {}
        Packet::Other => return pass(Reason::Pass),
        Packet::Orphan => return pass(Reason::PassFragment),
        Packet::Malformed => return pass(Reason::PassMalformed),
    }
    let port = PortKey {
        port: w.key.dport,
        proto: w.key.proto,
        zero: 0,
    };
    // SAFETY: rows of this map are replaced as a whole and outlive this run; so below.
    let Some(published) = (unsafe { PUBLISHED.get(&port) }) else {
        return pass(Reason::Pass);
    };
    let Some(config) = config() else {
        return drop(Reason::DropUnconfigured);
    };
    remember_fragment(w);
    let now = now();
    let new = New {
        service: published.service,
        kind: kind::INGRESS,
        target: published.target,
        entry: config.ingress_mac,
    };
    let (f, backend) = match route(w, new, None, now) {
        Route::To(f, backend) => (f, backend),
        Route::Empty => return answer::refuse(skb, w, Reason::ResetNoBackend),
        Route::Gone => return answer::refuse(skb, w, Reason::ResetGone),
        Route::Stray => return drop(Reason::DropReset),
        Route::Full => return drop(Reason::DropFailed),
    };
    if backend.local == 1 {
        return deliver(skb, w, f, backend.mac, now);
    }
    carry(skb, w, backend, config.ingress_mac, config.ingress_ifindex)
}

/// Sends the packet as it is to the backend's node.
#[inline(always)]
fn carry(skb: Skb, w: &mut Work, backend: &Backend, own: [u8; 6], ifindex: u32) -> i32 {
    if ifindex == 0 {
        return drop(Reason::DropUnconfigured);
    }
    if !nat::ethernet(skb, w, backend.mac, own) {
        return drop(Reason::DropFailed);
    }
    skb.send(ifindex, Reason::Carried)
}

/// Gives the packet to an endpoint on this host. Also from_overlay's.
#[inline(always)]
pub fn deliver(skb: Skb, w: &mut Work, f: *mut Flow, mac: [u8; 6], now: u64) -> i32 {
    // SAFETY: as above.
    let Some(local) = (unsafe { LOCAL_BY_MAC.get(&MacKey::new(mac)) }) else {
        return drop(Reason::DropNoInterface);
    };
    // SAFETY: a row looked up in this run.
    let target = unsafe { (*f).target };
    let Some(cport) = bind(w, f, local.ip, target, kind::INGRESS, now) else {
        return drop(Reason::DropNoPort);
    };
    if nat::destination(skb, w, local.ip.raw_v4())
        && nat::ports(skb, w, cport, target)
        && nat::ethernet(skb, w, local.mac, local.gateway_mac)
    {
        return skb.hand_over(local.ifindex, Reason::Delivered);
    }
    drop(Reason::DropFailed)
}
