//! TC ingress of the ingress VXLAN device: clients' packets that another node carried here, and
//! backends' replies to clients that came in here.
//!
//! A carried packet has the endpoint's Ethernet address as its destination, a reply this node's. Both
//! have their sender node's as source, which must be a known one.

use mesh_ebpf_common::{
    Reason,
    flow::{advance, closed, opens},
    rows::{Addr, Config, Flow, Local, MacKey, PortKey, TCP, kind},
};

use crate::{
    from_uplink::deliver,
    maps::{FLOWS, LOCAL_BY_MAC, NODE_ADDRS, PEERS, PUBLISHED, config, work},
    parse::{self, Packet, head, is_ipv4, remember_fragment, src},
    route::touch,
    skb::{Skb, drop, now, pass},
    work::Work,
};

/// BPF_ANY.
const ANY: u64 = 0;

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = work() else { return drop(Reason::DropFailed) };
    if skb.tagged() || !head(skb, w) || !is_ipv4(w) || w.head.eth.dst[0] & 1 != 0 {
        return pass(Reason::Pass);
    }
    let Some(config) = config() else {
        return drop(Reason::DropUnconfigured);
    };
    if same(w.head.eth.dst, config.ingress_mac) {
        return reply(skb, w, config);
    }
    // SAFETY: rows of this map are replaced as a whole and outlive this run; so below.
    match unsafe { LOCAL_BY_MAC.get(&MacKey::new(w.head.eth.dst)) } {
        Some(local) => carried(skb, w, local),
        None => drop(Reason::DropUnknownEndpoint),
    }
}

#[inline(always)]
fn same(a: [u8; 6], b: [u8; 6]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5]
}

#[inline(always)]
fn from_peer(w: &Work) -> bool {
    PEERS.get_ptr(&MacKey::new(w.head.eth.src)).is_some()
}

/// A client's packet, unmodified, for an endpoint here.
#[inline(always)]
fn carried(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    if !from_peer(w) {
        return drop(Reason::DropUnknownPeer);
    }
    match parse::packet(skb, w) {
        Packet::Flow => {}
        Packet::Other => return drop(Reason::DropUnpublished),
        Packet::Orphan => return drop(Reason::DropFragment),
        Packet::Malformed => return drop(Reason::DropMalformed),
    }
    let now = now();
    let entry = w.head.eth.src;
    let port = PortKey {
        port: w.key.dport,
        proto: w.key.proto,
        zero: 0,
    };
    // SAFETY: as above.
    let published = unsafe { PUBLISHED.get(&port) };
    let opens = opens(w.key.proto, w.flags);
    let known = FLOWS.get_ptr_mut(&w.key).filter(|f| {
        // SAFETY: a row looked up in this run; so below.
        let f = unsafe { &**f };
        // A port that has become another service's keeps its connections, and nothing else.
        let ours = w.key.proto == TCP && !opens || published.is_none_or(|p| f.service == p.service && f.target == p.target);
        // The node that the client came in at may have chosen anew: its choice counts.
        f.backend == local.slot && ours && !(opens && closed(f.bits))
    });
    let f = if let Some(f) = known {
        // SAFETY: as above.
        unsafe {
            // An address that moved between nodes brings its flows along.
            (*f).entry = entry;
            touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, true, now);
        }
        f
    } else {
        let Some(published) = published else {
            return drop(Reason::DropUnpublished);
        };
        w.flow = Flow {
            last_seen: now,
            backend: local.slot,
            bits: advance(w.flags, true),
            service: published.service,
            cport: 0,
            target: published.target,
            entry,
            kind: kind::INGRESS,
            zero: 0,
        };
        let _ = FLOWS.insert(&w.key, &w.flow, ANY);
        let Some(f) = FLOWS.get_ptr_mut(&w.key) else {
            return drop(Reason::DropFailed);
        };
        f
    };
    remember_fragment(w);
    deliver(skb, w, f, local.mac, now)
}

/// To this node itself: a backend's reply to a client of a published port, or host traffic.
#[inline(always)]
fn reply(skb: Skb, w: &mut Work, config: &Config) -> i32 {
    if NODE_ADDRS.get_ptr(&Addr::v4(src(w))).is_none() {
        return pass(Reason::Pass);
    }
    match parse::packet(skb, w) {
        Packet::Flow => {}
        Packet::Other => return pass(Reason::Pass),
        Packet::Orphan => return drop(Reason::DropFragment),
        Packet::Malformed => return drop(Reason::DropMalformed),
    }
    w.reply_key = w.key.reversed();
    let port = PortKey {
        port: w.key.sport,
        proto: w.key.proto,
        zero: 0,
    };
    match FLOWS.get_ptr_mut(&w.reply_key) {
        // SAFETY: a row looked up in this run.
        Some(f) => unsafe { touch(&raw mut (*f).last_seen, &raw mut (*f).bits, w.flags, false, now()) },
        // A flow that the table had no room for: the packet says all that is needed.
        None if PUBLISHED.get_ptr(&port).is_some() => {}
        None => return pass(Reason::Pass),
    }
    if !from_peer(w) {
        return drop(Reason::DropUnknownPeer);
    }
    if config.uplink_ifindex == 0 {
        return drop(Reason::DropUnconfigured);
    }
    remember_fragment(w);
    skb.route(config.uplink_ifindex, Reason::ReplySent)
}
