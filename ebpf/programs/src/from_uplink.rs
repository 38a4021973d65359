//! TC ingress of the uplink: clients' packets to published ports, and what other nodes of the segment
//! send to endpoints here without encapsulation.

use mesh_ebpf_common::{
    Reason,
    flow::DIRECT,
    rows::{Addr, Config, Flow, Local, MacKey, Published, V6, kind},
};

use crate::{
    answer,
    bind::{bind, bind_hairpin},
    direct, icmp,
    maps::{BACKENDS, LOCAL_BY_MAC, NODE_ADDRS, begin, config, published},
    nat::{self, To},
    parse::{self, Kind, Packet, head, lifetime, remember_fragment},
    quick::{self, Seen},
    route::{New, Route, route},
    skb::{Skb, drop, now, pass},
    work::Work,
};

/// In the Ethernet address of the node that carries a packet: its replies must come back by it, also
/// those of a service whose replies go straight to the client, which is behind that node.
pub const BY_ENTRY: u8 = 4;

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = begin(skb) else { return drop(Reason::DropFailed) };
    if skb.tagged() || !skb.to_host() {
        return pass(Reason::Pass);
    }
    let Some(config) = config() else {
        return drop(Reason::DropUnconfigured);
    };
    // Before anything else is looked at: what changes from here on makes it void.
    w.stamp = quick::stamp(config);
    let port = match quick::run(skb, w, config) {
        Seen::Done(verdict) => return verdict,
        Seen::Port(port) => Some(port),
        Seen::Other if head(skb, w) == Kind::Ip => return direct::arrived(skb, w, config),
        Seen::Other | Seen::Nothing => None,
    };
    if head(skb, w) != Kind::Ip {
        return pass(Reason::Pass);
    }
    if NODE_ADDRS.get_ptr(&w.key.dst).is_none() {
        return if config.segment == 1 {
            direct::arrived(skb, w, config)
        } else {
            pass(Reason::Pass)
        };
    }
    let packet = parse::packet(skb, w);
    match packet {
        Packet::Flow => {}
        Packet::Icmp if icmp::is_error(skb, w, packet) => return error(skb, w),
        Packet::Icmp | Packet::Other => return pass(Reason::Pass),
        Packet::Orphan => return pass(Reason::PassFragment),
        Packet::Malformed => return pass(Reason::PassMalformed),
    }
    let found = port.or_else(
        #[inline(always)]
        || published(&w.key.dst, w.key.dport, w.key.proto),
    );
    let Some(published) = found else {
        return pass(Reason::Pass);
    };
    enter(skb, w, published, config, None)
}

/// A client's packet to a published port of this node. `client`: it is a container of this host.
#[inline(never)]
pub fn enter(skb: Skb, w: &mut Work, published: &Published, config: &Config, client: Option<&Local>) -> i32 {
    remember_fragment(w);
    let now = now();
    let new = New {
        service: published.service | if w.v6 { V6 } else { 0 },
        kind: kind::INGRESS,
        direct: published.direct == 1 && client.is_none(),
        target: published.target,
        entry: config.ingress_mac,
        client: client.map_or(0, |c| c.ifindex),
        admitted: false,
    };
    let (f, backend) = match route(w, new, None, now) {
        Route::To(f, backend) => (f, backend),
        Route::Empty => return answer::refuse(skb, w, Reason::ResetNoBackend),
        Route::Gone => return answer::refuse(skb, w, Reason::ResetGone),
        Route::Stray => return drop(Reason::DropReset),
        Route::Full => return drop(Reason::DropFailed),
        Route::Denied => return drop(Reason::DropSource),
    };
    if backend.local == 1 {
        // The port may have changed its way since the flow began.
        // SAFETY: a row looked up in this run.
        let direct = unsafe { (*f).bits } & DIRECT != 0;
        let kind = if direct { kind::DIRECT } else { kind::INGRESS };
        return deliver(skb, w, f, local(backend.mac), kind, now);
    }
    if answer::is_too_big(skb, w, config.ingress_mtu) {
        return answer::refuse_size(skb, w, config.ingress_mtu);
    }
    if client.is_none() {
        quick::mark(w, f, &backend.mac);
    }
    carry(skb, w, backend.mac, config, client.is_some(), Reason::Carried)
}

/// Sends the packet as it is to the node of the backend that has the Ethernet address `mac`.
#[inline(always)]
fn carry(skb: Skb, w: &mut Work, mac: [u8; 6], config: &Config, by_entry: bool, reason: Reason) -> i32 {
    if config.ingress_ifindex == 0 {
        return drop(Reason::DropUnconfigured);
    }
    let mut own = config.ingress_mac;
    if by_entry {
        own[0] |= BY_ENTRY;
    }
    if !nat::ethernet(skb, w, mac, own) {
        return drop(Reason::DropFailed);
    }
    skb.send(config.ingress_ifindex, reason)
}

/// The endpoint on this host that has this Ethernet address.
#[inline(always)]
pub fn local(mac: [u8; 6]) -> Option<&'static Local> {
    // SAFETY: rows of this map are replaced as a whole and outlive this run.
    unsafe { LOCAL_BY_MAC.get(&MacKey::new(mac)) }
}

/// Gives the packet to an endpoint on this host. Also from_overlay's.
#[inline(always)]
pub fn deliver(skb: Skb, w: &mut Work, f: *mut Flow, local: Option<&Local>, kind: u8, now: u64) -> i32 {
    let Some(local) = local else {
        return drop(Reason::DropNoInterface);
    };
    // SAFETY: a row looked up in this run.
    let (target, client) = unsafe { ((*f).target, (*f).client) };
    let own = local.addr(&w.key.dst);
    if own.is_none() {
        return drop(Reason::DropNoInterface);
    }
    if client == local.ifindex {
        return hairpin(skb, w, f, local, target, now);
    }
    if lifetime(w) <= 1 {
        return drop(Reason::DropTtl);
    }
    let Some(cport) = bind(w, f, own, target, kind, now) else {
        return drop(Reason::DropNoPort);
    };
    // A container's own flow is followed by nobody who looks for a mark.
    if w.kept && client == 0 {
        // SAFETY: as above.
        quick::put(unsafe { &raw mut (*f).bits }, w.stamp);
    }
    hand(skb, w, local, own, cport, target)
}

/// Translates the packet and gives it to the endpoint on this host that has the address `own`.
#[inline(always)]
pub fn hand(skb: Skb, w: &mut Work, local: &Local, own: Addr, cport: u16, target: u16) -> i32 {
    w.to = To {
        src: w.key.src,
        dst: own,
        sport: cport,
        dport: target,
        eth_dst: local.mac,
        eth_src: local.gateway_mac,
        hop: true,
    };
    if nat::rewrite(skb, w) {
        return direct::hand_over(skb, local, Reason::Delivered);
    }
    drop(Reason::DropFailed)
}

/// The backend is the client itself: it gets its packet back as one from the address that it asked, so
/// that its answer comes here and not to its own stack. Also from_container's.
#[inline(always)]
pub fn hairpin(skb: Skb, w: &mut Work, f: *mut Flow, local: &Local, target: u16, now: u64) -> i32 {
    let own = w.key.src;
    if !bind_hairpin(w, f, own, target, kind::HAIRPIN, now) {
        return drop(Reason::DropNoPort);
    }
    w.to = To {
        src: w.key.dst,
        dst: own,
        sport: w.key.sport,
        dport: target,
        eth_dst: local.mac,
        eth_src: local.gateway_mac,
        hop: false,
    };
    if nat::rewrite(skb, w) {
        return skb.send(local.ifindex, Reason::Hairpin);
    }
    drop(Reason::DropFailed)
}

/// An ICMP error to a node address about what a published port sent.
#[inline(never)]
fn error(skb: Skb, w: &mut Work) -> i32 {
    let Some(f) = icmp::flow(w) else {
        return pass(Reason::Pass);
    };
    // SAFETY: a row looked up in this run.
    let slot = unsafe { (*f).backend };
    // SAFETY: as above.
    let Some(backend) = (unsafe { BACKENDS.get(&slot) }) else {
        return pass(Reason::Pass);
    };
    if backend.local != 1 {
        let Some(config) = config() else {
            return drop(Reason::DropUnconfigured);
        };
        return carry(skb, w, backend.mac, config, false, Reason::IcmpCarried);
    }
    match local(backend.mac) {
        Some(local) => icmp::deliver(skb, w, f, local),
        None => drop(Reason::DropNoInterface),
    }
}
