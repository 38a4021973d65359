//! TC ingress of the ingress VXLAN device: clients' packets that another node carried here, backends'
//! replies to clients that came in here, and what other nodes' own processes send to published ports.
//!
//! A carried packet has the endpoint's Ethernet address as its destination, the others this node's.
//! All have their sender node's as source, which must be a known one.

use mesh_ebpf_common::{
    Reason,
    flow::{advance, closed, opens},
    rows::{Addr, Config, Flow, LOCAL, Local, MacKey, Published, TCP, UNCOUNTED, V6, kind},
};

use crate::{
    answer, direct,
    from_uplink::{BY_ENTRY, deliver, hand, local},
    icmp,
    maps::{LOCAL_BY_MAC, NODE_ADDRS, NODES, PEERS, begin, config, count, count_packet, published},
    parse::{self, Kind, Packet, WHOLE, head, lifetime, remember_fragment, same},
    quick,
    route::{self, ANY, New, Route, touch},
    skb::{Skb, drop, now, pass},
    work::Work,
};

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = begin(skb) else { return drop(Reason::DropFailed) };
    if skb.tagged() || head(skb, w) != Kind::Ip || w.head.eth.dst[0] & 1 != 0 {
        return pass(Reason::Pass);
    }
    let Some(config) = config() else {
        return drop(Reason::DropUnconfigured);
    };
    w.stamp = quick::stamp(config);
    if same(&w.head.eth.dst, &config.ingress_mac) {
        return own(skb, w, config);
    }
    // SAFETY: rows of this map are replaced as a whole and outlive this run; so below.
    match unsafe { LOCAL_BY_MAC.get(&MacKey::new(w.head.eth.dst)) } {
        Some(local) => carried(skb, w, local),
        None => drop(Reason::DropUnknownEndpoint),
    }
}

#[inline(always)]
fn from_peer(entry: [u8; 6]) -> bool {
    PEERS.get_ptr(&MacKey::new(entry)).is_some()
}

/// A client's packet, unmodified, for an endpoint here.
#[inline(always)]
fn carried(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    let mut entry = w.head.eth.src;
    let by_entry = entry[0] & BY_ENTRY != 0;
    entry[0] &= !BY_ENTRY;
    if !from_peer(entry) {
        return drop(Reason::DropUnknownPeer);
    }
    let packet = parse::packet(skb, w);
    match packet {
        Packet::Flow => {}
        Packet::Icmp if icmp::is_error(skb, w, packet) => {
            return match icmp::flow(w) {
                // SAFETY: a row looked up in this run.
                Some(f) if unsafe { (*f).backend } == local.slot => icmp::deliver(skb, w, f, local),
                _ => drop(Reason::DropUnpublished),
            };
        }
        Packet::Icmp | Packet::Other => return drop(Reason::DropUnpublished),
        Packet::Orphan => return drop(Reason::DropFragment),
        Packet::Malformed => return drop(Reason::DropMalformed),
    }
    let old = route::find(&w.key);
    if let Some((f, true)) = old {
        // SAFETY: a row looked up in this run.
        let f = unsafe { &*f };
        let own = local.addr(&w.key.dst);
        // Its way back was there just now, and all that is looked at below was seen.
        if quick::plain(w.flags)
            && quick::marked(f.bits, w.stamp)
            && f.backend == local.slot
            && same(&f.entry, &entry)
            && f.cport != 0
            && !own.is_none()
            && w.part == WHOLE
            && lifetime(w) > 1
        {
            return hand(skb, w, local, own, f.cport, f.target);
        }
    }
    let now = now();
    let published = published(&w.key.dst, w.key.dport, w.key.proto);
    let opens = opens(w.key.proto, w.flags);
    let family = if w.v6 { V6 } else { 0 };
    let known = old.filter(|(f, _)| {
        // SAFETY: a row looked up in this run; so below.
        let f = unsafe { &**f };
        // A port that has become another service's keeps its connections, and nothing else.
        let ours = w.key.proto == TCP && !opens || published.is_none_or(|p| f.service == p.service | family && f.target == p.target);
        // The node that the client came in at may have chosen anew: its choice counts.
        f.backend == local.slot && ours && !(opens && closed(f.bits))
    });
    let f = if let Some((f, kept)) = known {
        // SAFETY: as above.
        unsafe {
            // An address that moved between nodes brings its flows along.
            (*f).entry = entry;
            touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, true, now);
        }
        route::keep(w, f, kept)
    } else {
        let Some(published) = published else {
            return drop(Reason::DropUnpublished);
        };
        // This node itself, and whom it masquerades, are no clients that something can be sent to.
        let direct = published.direct == 1 && !by_entry && NODE_ADDRS.get_ptr(&w.key.src).is_none();
        w.flow = Flow {
            last_seen: now,
            backend: local.slot,
            bits: advance(w.flags, true),
            service: published.service | family,
            client: 0,
            stat: UNCOUNTED,
            cport: 0,
            target: published.target,
            entry,
            kind: if direct { kind::DIRECT } else { kind::INGRESS },
            zero: 0,
        };
        let Some(f) = route::put(w, old.is_some_and(|(_, kept)| kept), ANY) else {
            return drop(Reason::DropFailed);
        };
        f
    };
    remember_fragment(w);
    // SAFETY: as above.
    let kind = unsafe { (*f).kind };
    deliver(skb, w, f, Some(local), kind, now)
}

/// To this node itself: a backend's reply to a client that came in here, another node's own process
/// that asks for a published port, or what is the host's.
#[inline(always)]
fn own(skb: Skb, w: &mut Work, config: &Config) -> i32 {
    // First: an address that is a port's may be several nodes' (anycast).
    if asked(w, config) {
        return process(skb, w);
    }
    if NODE_ADDRS.get_ptr(&w.key.src).is_none() {
        return pass(Reason::Pass);
    }
    let packet = parse::packet(skb, w);
    match packet {
        Packet::Flow => {}
        // An error about what a client sent, translated where the backend is.
        Packet::Icmp if icmp::is_error(skb, w, packet) => {
            // The quoted packet is the client's own.
            w.reply_key = w.quoted;
            return match route::find(&w.reply_key) {
                Some((f, _)) if from_peer(w.head.eth.src) => leave(skb, w, config, f),
                _ => pass(Reason::Pass),
            };
        }
        Packet::Icmp | Packet::Other => return pass(Reason::Pass),
        Packet::Orphan => return drop(Reason::DropFragment),
        Packet::Malformed => return drop(Reason::DropMalformed),
    }
    w.reply_key = w.key.reversed();
    let found = route::find(&w.reply_key);
    match found {
        // SAFETY: a row looked up in this run.
        Some((f, _)) => unsafe {
            let bits = (*f).bits;
            if advance(w.flags, false) & !bits != 0 || !quick::marked(bits, w.stamp) {
                touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, false, now());
            }
            count_packet((*f).stat, w.len, false);
        },
        // A flow that the table had no room for: the packet says all that is needed.
        None if published(&w.key.src, w.key.sport, w.key.proto).is_some() => {}
        None => return pass(Reason::Pass),
    }
    if !from_peer(w.head.eth.src) {
        return drop(Reason::DropUnknownPeer);
    }
    remember_fragment(w);
    match found {
        Some((f, _)) => leave(skb, w, config, f),
        None if config.uplink_ifindex == 0 => drop(Reason::DropUnconfigured),
        None => skb.route(config.uplink_ifindex, Reason::ReplySent),
    }
}

/// It is for this node's own address in the ingress network.
#[inline(always)]
fn asked(w: &Work, config: &Config) -> bool {
    if w.v6 {
        // SAFETY: rows of this map are replaced as a whole and outlive this run.
        unsafe { NODES.get(&config.ingress_ip) }.is_some_and(|own| w.key.dst.same(own))
    } else {
        config.ingress_ip != 0 && w.key.dst.same(&Addr::v4(config.ingress_ip))
    }
}

/// Out to the client of the flow `f`.
#[inline(always)]
fn leave(skb: Skb, w: &mut Work, config: &Config, f: *mut Flow) -> i32 {
    // SAFETY: a row looked up in this run.
    let client = unsafe { (*f).client };
    if client != 0 {
        return direct::give_back(skb, w, client, Reason::ReplySent);
    }
    if config.uplink_ifindex == 0 {
        return drop(Reason::DropUnconfigured);
    }
    skb.route(config.uplink_ifindex, Reason::ReplySent)
}

/// To this node's own address in the ingress network: the connect hook of another node has sent one of
/// its processes here, where a backend is. Which of them it is, is chosen here.
#[inline(always)]
fn process(skb: Skb, w: &mut Work) -> i32 {
    let packet = parse::packet(skb, w);
    if packet != Packet::Flow {
        return pass(Reason::Pass);
    }
    // A port that is bound to an address is asked for from that address.
    let Some(published) = published(&w.key.src, w.key.dport, w.key.proto) else {
        return pass(Reason::Pass);
    };
    // What a published port of another node sends to a process here whose own port happens to be a
    // published one, too.
    let opens = w.key.proto == TCP && opens(w.key.proto, w.flags);
    if !opens && crate::maps::published(&w.key.src, w.key.sport, w.key.proto).is_some() && route::find(&w.key).is_none() {
        return pass(Reason::Pass);
    }
    let entry = w.head.eth.src;
    if !from_peer(entry) {
        return drop(Reason::DropUnknownPeer);
    }
    remember_fragment(w);
    arrive(skb, w, published, entry)
}

#[inline(always)]
fn arrive(skb: Skb, w: &mut Work, published: &Published, entry: [u8; 6]) -> i32 {
    let now = now();
    let new = New {
        service: published.service | LOCAL | if w.v6 { V6 } else { 0 },
        kind: kind::INGRESS,
        direct: false,
        target: published.target,
        entry,
        client: 0,
        admitted: true,
    };
    match route::route(w, new, None, now) {
        Route::To(f, backend) => {
            count(Reason::FromPeerNode);
            deliver(skb, w, f, local(backend.mac), kind::INGRESS, now)
        }
        Route::Empty => answer::refuse(skb, w, Reason::ResetNoBackend),
        Route::Gone => answer::refuse(skb, w, Reason::ResetGone),
        Route::Stray => drop(Reason::DropReset),
        Route::Full => drop(Reason::DropFailed),
        Route::Denied => drop(Reason::DropSource),
    }
}
