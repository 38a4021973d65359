//! TC ingress of an endpoint's host-side veth: source check, replies of published ports, VIPs, and the
//! way past the bridge.

use mesh_ebpf_common::{
    Reason,
    header::{ARP_IPV4, ARP_REQUEST, ETH_ARP, ETH_IPV6, ETH_LEN, Eth},
    rows::{Addr, Flow, FlowKey, ICMP, Local, Reply, Vip, kind},
};

use crate::{
    answer,
    bind::{bind, touch_reverse},
    direct,
    maps::{LOCALS, REPLIES, VIPS, config, count, work},
    nat,
    parse::{self, Packet, dst, head, is_ipv4, remember_fragment, src},
    route::{New, Route, route},
    skb::{Skb, drop, now, pass},
    work::Work,
};

/// BPF_ANY.
const ANY: u64 = 0;

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = work() else { return drop(Reason::DropFailed) };
    // SAFETY: rows of these maps are replaced as a whole and outlive this run; so below.
    let Some(local) = (unsafe { LOCALS.get(&skb.ifindex()) }) else {
        return pass(Reason::PassUnknownDevice);
    };
    if !skb.load(0, &mut w.head.eth) {
        return drop(Reason::DropMalformed);
    }
    if !same(&w.head.eth.src, &local.mac) {
        return drop(Reason::DropSpoofedMac);
    }
    if skb.tagged() {
        return drop(Reason::DropEthertype);
    }
    if is_ipv4(w) {
        return ipv4(skb, w, local);
    }
    match w.head.eth.ethertype {
        ETH_ARP => arp(skb, w, local),
        ETH_IPV6 => drop(Reason::DropIpv6),
        _ => drop(Reason::DropEthertype),
    }
}

#[inline(always)]
fn same(a: &[u8; 6], b: &[u8; 6]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5]
}

/// The VIP of the container's network that has this address.
#[inline(always)]
fn vip_of(ip: Addr, local: &Local) -> Option<&'static Vip> {
    // SAFETY: as in `run`.
    let vip = unsafe { VIPS.get(&ip) }?;
    if vip.network == local.network { Some(vip) } else { None }
}

#[inline(always)]
fn arp(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    if !skb.load(ETH_LEN, &mut w.arp) {
        return drop(Reason::DropMalformed);
    }
    let ([t0, t1, t2, t3], [l0, l1]) = (w.arp.types, w.arp.lens);
    let ([e0, e1, e2, e3], [f0, f1]) = ARP_IPV4;
    if t0 != e0 || t1 != e1 || t2 != e2 || t3 != e3 || l0 != f0 || l1 != f1 {
        return drop(Reason::DropMalformed);
    }
    // 0.0.0.0 asks whether an address is taken, and claims none (RFC 5227).
    let sender = u32::from_ne_bytes(w.arp.sender_ip);
    if !same(&w.arp.sender_mac, &local.mac) || (sender != 0 && sender != local.ip.raw_v4()) {
        return drop(Reason::DropSpoofedArp);
    }
    let asked = Addr::v4(u32::from_ne_bytes(w.arp.target_ip));
    if w.arp.op[0] == ARP_REQUEST[0] && w.arp.op[1] == ARP_REQUEST[1] && vip_of(asked, local).is_some() {
        return answer::arp(skb, w, local);
    }
    pass(Reason::PassBridge)
}

#[inline(always)]
fn ipv4(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    if !head(skb, w) {
        return drop(Reason::DropMalformed);
    }
    if src(w) != local.ip.raw_v4() {
        return drop(Reason::DropSpoofedIp);
    }
    let packet = parse::packet(skb, w);
    if packet == Packet::Malformed {
        return drop(Reason::DropMalformed);
    }
    if packet == Packet::Flow
        && let Some(r) = REPLIES.get_ptr_mut(&w.key)
    {
        // SAFETY: a row looked up in this run; so below.
        match unsafe { (*r).kind } {
            kind::INGRESS => return ingress_reply(skb, w, r),
            kind::HAIRPIN => return hairpin_reply(skb, w, local, r),
            // Translated where it reaches its client.
            _ => return forward(skb, w, local, w.head.eth.dst, Some(r)),
        }
    }
    let Some(found) = vip_of(Addr::v4(dst(w)), local) else {
        return forward(skb, w, local, w.head.eth.dst, None);
    };
    match packet {
        Packet::Flow => vip(skb, w, local, found.service),
        Packet::Other if w.head.ip.proto == ICMP => answer::echo(skb, w),
        Packet::Other => drop(Reason::DropVipProtocol),
        Packet::Orphan | Packet::Malformed => drop(Reason::DropFragment),
    }
}

/// To the station `to` of the container's network. `reply`: the packet is one of a VIP.
#[inline(always)]
fn forward(skb: Skb, w: &mut Work, local: &Local, to: [u8; 6], reply: Option<*mut Reply>) -> i32 {
    // The host itself, and groups.
    if same(&to, &local.gateway_mac) || to[0] & 1 != 0 {
        return pass(Reason::PassBridge);
    }
    match direct::endpoint(to, local.network) {
        Some(other) if other.ifindex != local.ifindex => direct::deliver(skb, w, other, reply, Reason::DirectLocal),
        // The device's forwarding entry names the node; what has none ends there.
        _ => skb.send(local.vxlan_ifindex, Reason::DirectRemote),
    }
}

/// A reply to a client of a published port: back to where the client came in.
#[inline(always)]
fn ingress_reply(skb: Skb, w: &mut Work, r: *mut Reply) -> i32 {
    let Some(config) = config() else {
        return drop(Reason::DropUnconfigured);
    };
    // SAFETY: as above.
    let row = unsafe { *r };
    remember_fragment(w);
    let client = w.key.dst;
    touch_reverse(w, r, client, row.dst, now());
    if !nat::source(skb, w, row.dst.raw_v4()) || !nat::ports(skb, w, row.dport, row.cport) {
        return drop(Reason::DropFailed);
    }
    if same(&row.entry, &config.ingress_mac) {
        if config.uplink_ifindex == 0 {
            return drop(Reason::DropUnconfigured);
        }
        return skb.route(config.uplink_ifindex, Reason::ReplySent);
    }
    if config.ingress_ifindex == 0 {
        return drop(Reason::DropUnconfigured);
    }
    if !nat::ethernet(skb, w, row.entry, config.ingress_mac) {
        return drop(Reason::DropFailed);
    }
    skb.send(config.ingress_ifindex, Reason::ReplyCarried)
}

/// To a VIP.
#[inline(always)]
fn vip(skb: Skb, w: &mut Work, local: &Local, service: u32) -> i32 {
    remember_fragment(w);
    let now = now();
    let new = New {
        service,
        kind: kind::VIP,
        target: w.key.dport,
        entry: [0; 6],
    };
    let (f, backend) = match route(w, new, Some(local.ip), now) {
        Route::To(f, backend) => (f, backend),
        Route::Empty => return answer::refuse(skb, w, Reason::ResetNoBackend),
        Route::Gone => return answer::refuse(skb, w, Reason::ResetGone),
        Route::Stray => return drop(Reason::DropReset),
        Route::Full => return drop(Reason::DropFailed),
    };
    if backend.ip.same(&local.ip) {
        return hairpin(skb, w, local, f, now);
    }
    let port = w.key.dport;
    let Some(cport) = bind(w, f, backend.ip, port, kind::VIP, now) else {
        return drop(Reason::DropNoPort);
    };
    if nat::destination(skb, w, backend.ip.raw_v4())
        && nat::ports(skb, w, cport, port)
        && nat::ethernet(skb, w, backend.mac, w.head.eth.src)
    {
        count(Reason::VipForwarded);
        return forward(skb, w, local, backend.mac, None);
    }
    drop(Reason::DropFailed)
}

/// The backend is the client itself: it gets its packet back as one from the VIP, so that its answer
/// comes here and not to its own stack. The two ends of such a flow can not collide with others.
#[inline(always)]
fn hairpin(skb: Skb, w: &mut Work, local: &Local, f: *mut Flow, now: u64) -> i32 {
    // SAFETY: as above.
    let bits = unsafe { (*f).bits };
    w.reply_key = FlowKey {
        src: local.ip,
        dst: w.key.dst,
        sport: w.key.dport,
        dport: w.key.sport,
        proto: w.key.proto,
        zero: [0; 3],
    };
    w.reply = Reply {
        last_seen: now,
        bits,
        dport: w.key.dport,
        cport: w.key.sport,
        dst: w.key.dst,
        entry: [0; 6],
        kind: kind::HAIRPIN,
        zero: 0,
    };
    if REPLIES.get_ptr(&w.reply_key).is_none() && REPLIES.insert(&w.reply_key, &w.reply, ANY).is_err() {
        return drop(Reason::DropFailed);
    }
    turn_around(skb, w, local)
}

#[inline(always)]
fn hairpin_reply(skb: Skb, w: &mut Work, local: &Local, r: *mut Reply) -> i32 {
    remember_fragment(w);
    let asked = w.key.dst;
    touch_reverse(w, r, local.ip, asked, now());
    turn_around(skb, w, local)
}

/// From the container to the VIP becomes from the VIP to the container. Only the addresses trade
/// places: no sum changes.
#[inline(always)]
fn turn_around(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    let (vip, own) = (u32::from_ne_bytes(w.head.ip.dst), u32::from_ne_bytes(w.head.ip.src));
    let eth = Eth {
        dst: local.mac,
        src: local.gateway_mac,
        ethertype: w.head.eth.ethertype,
    };
    if nat::swap_addresses(skb, vip, own) && nat::ethernet(skb, w, eth.dst, eth.src) {
        return skb.send(skb.ifindex(), Reason::Hairpin);
    }
    drop(Reason::DropFailed)
}
