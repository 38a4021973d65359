//! TC ingress of an endpoint's host-side veth: source check, replies of published ports, VIPs, the
//! published ports of the node itself, and the way past the bridge.

use mesh_ebpf_common::{
    Reason,
    header::{ARP_IPV4, ARP_REQUEST, ETH_LEN, Neighbor},
    rows::{Addr, Local, Reply, Vip, kind},
};

use crate::{
    answer,
    bind::{self, bind, touch_reverse},
    direct,
    from_uplink::{enter, hairpin},
    icmp,
    maps::{LOCALS, NODE_ADDRS, VIPS, begin, config, count, published},
    nat::{self, To},
    parse::{self, Kind, Packet, addr6, head, lifetime, remember_fragment, same},
    route::{New, Route, route},
    skb::{Skb, drop, now, pass},
    work::Work,
};

#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    let Some(w) = begin(skb) else { return drop(Reason::DropFailed) };
    // SAFETY: rows of these maps are replaced as a whole and outlive this run; so below.
    let Some(local) = (unsafe { LOCALS.get(&skb.ifindex()) }) else {
        return pass(Reason::PassUnknownDevice);
    };
    let kind = head(skb, w);
    if kind == Kind::Short {
        return drop(Reason::DropMalformed);
    }
    if !same(&w.head.eth.src, &local.mac) {
        return drop(Reason::DropSpoofedMac);
    }
    if skb.tagged() {
        return drop(Reason::DropEthertype);
    }
    match kind {
        Kind::Ip => ip(skb, w, local),
        Kind::Arp => arp(skb, w, local),
        Kind::Other | Kind::Short => drop(Reason::DropEthertype),
    }
}

/// The VIP of the container's network that has this address.
#[inline(always)]
fn vip_of(ip: &Addr, local: &Local) -> Option<&'static Vip> {
    // SAFETY: as in `run`.
    let vip = unsafe { VIPS.get(ip) }?;
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
    if !same(&w.arp.sender_mac, &local.mac) || (sender != 0 && sender != local.ip4) {
        return drop(Reason::DropSpoofedArp);
    }
    let asked = Addr::v4(u32::from_ne_bytes(w.arp.target_ip));
    if w.arp.op[0] == ARP_REQUEST[0] && w.arp.op[1] == ARP_REQUEST[1] && vip_of(&asked, local).is_some() {
        return answer::arp(skb, w, local);
    }
    pass(Reason::PassBridge)
}

#[inline(always)]
fn ip(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    if w.v6 && local.ip6.is_none() {
        return drop(Reason::DropIpv6);
    }
    let own = local.addr(&w.key.src).same(&w.key.src);
    if !own && !w.v6 {
        return drop(Reason::DropSpoofedIp);
    }
    let packet = parse::packet(skb, w);
    if packet == Packet::Malformed {
        return drop(Reason::DropMalformed);
    }
    if w.v6 {
        if packet == Packet::Icmp && is_discovery(w.icmp.kind) {
            return discovery(skb, w, local, own);
        }
        if !own {
            return drop(Reason::DropSpoofedIp);
        }
    }
    let row = if packet == Packet::Flow {
        bind::find(&w.key).map(|(r, _)| r)
    } else if icmp::is_error(skb, w, packet) {
        icmp::reply(w)
    } else {
        None
    };
    if let Some(r) = row {
        // SAFETY: a row looked up in this run.
        match unsafe { (*r).kind } {
            kind::INGRESS | kind::DIRECT => return ingress_reply(skb, w, packet, r),
            kind::HAIRPIN if packet == Packet::Flow => return hairpin_reply(skb, w, local, r),
            kind::HAIRPIN => return drop(Reason::DropVipProtocol),
            // Translated where it reaches its client.
            _ => return forward(skb, w, local, packet, (w.head.eth.dst, w.key.dst), Some(r)),
        }
    }
    // VIPs and the rest of the world are behind the gateway's Ethernet address.
    if same(&w.head.eth.dst, &local.gateway_mac) {
        if let Some(found) = vip_of(&w.key.dst, local) {
            return match packet {
                Packet::Flow => vip(skb, w, local, found.service),
                Packet::Icmp if icmp::is_error(skb, w, packet) => vip_error(skb, w, local),
                Packet::Icmp => answer::echo(skb, w),
                Packet::Other => drop(Reason::DropVipProtocol),
                Packet::Orphan | Packet::Malformed => drop(Reason::DropFragment),
            };
        }
        if packet == Packet::Flow
            && NODE_ADDRS.get_ptr(&w.key.dst).is_some()
            && let Some(published) = published(&w.key.dst, w.key.dport, w.key.proto)
            && let Some(config) = config()
        {
            count(Reason::FromOwnNode);
            return enter(skb, w, published, config, Some(local));
        }
    }
    forward(skb, w, local, packet, (w.head.eth.dst, w.key.dst), None)
}

/// Neighbour discovery (RFC 4861 section 4: 133 to 137) and multicast listener discovery (RFC 2710, RFC
/// 3810: 130 to 132, 143): what a host says to its link.
#[inline(always)]
fn is_discovery(kind: u8) -> bool {
    (kind >= 130 && kind <= 137) || kind == 143
}

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Options that name an Ethernet address: its sender's, its target's.
const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;
/// Options of one message that are looked at; Linux sends two.
const OPTIONS: u32 = 4;
const REDIRECT: u8 = 137;

/// A container's word to its link. `own`: from its own address.
#[inline(never)]
fn discovery(skb: Skb, w: &mut Work, local: &Local, own: bool) -> i32 {
    if !own && !w.key.src.is_none() && !w.key.src.is_link_local() {
        return drop(Reason::DropSpoofedIp);
    }
    let kind = w.icmp.kind;
    if kind == ROUTER_ADVERTISEMENT || kind == REDIRECT {
        return drop(Reason::DropSpoofedNd);
    }
    if kind == SOLICITATION || kind == ADVERTISEMENT {
        if !skb.load(w.l4, &mut w.neighbor) {
            return drop(Reason::DropMalformed);
        }
        let target = addr6(&w.neighbor.target);
        // An address of the link is believed if it follows from the Ethernet address.
        let another = w.key.src.is_link_local() && !w.key.src.is_link_local_of(&local.mac)
            || kind == ADVERTISEMENT && !target.same(&local.ip6) && !target.is_link_local_of(&local.mac);
        if another || !names_itself(skb, w, local) {
            return drop(Reason::DropSpoofedNd);
        }
        if kind == SOLICITATION && own && vip_of(&target, local).is_some() {
            return answer::neighbor(skb, w, local);
        }
    }
    pass(Reason::PassBridge)
}

/// Every Ethernet address among the options of the message in [`Work::neighbor`] is the container's own, and none
/// is where it was not looked for.
#[inline(always)]
fn names_itself(skb: Skb, w: &mut Work, local: &Local) -> bool {
    let (mut at, end) = (w.l4 + size_of::<Neighbor>() as u32, w.l4 + w.l4_len);
    for _ in 0..OPTIONS {
        if at + 8 > end {
            break;
        }
        if !skb.load(at, &mut w.option) {
            return false;
        }
        let [kind, len, m0, m1, m2, m3, m4, m5] = w.option.0;
        let names = kind == SOURCE_ADDRESS || kind == TARGET_ADDRESS;
        if len == 0 || names && !same(&[m0, m1, m2, m3, m4, m5], &local.mac) {
            return false;
        }
        at += u32::from(len) * 8;
    }
    at == end
}

/// To the station of the container's network with these addresses. `reply`: the packet is one of a VIP.
#[inline(always)]
fn forward(skb: Skb, w: &mut Work, local: &Local, packet: Packet, (to, ip): ([u8; 6], Addr), reply: Option<*mut Reply>) -> i32 {
    // The host itself, and groups.
    if same(&to, &local.gateway_mac) || to[0] & 1 != 0 {
        return pass(Reason::PassBridge);
    }
    match direct::endpoint(to, local.network) {
        Some(other) if other.ifindex != local.ifindex => direct::deliver(skb, w, packet, other, reply, Reason::DirectLocal),
        _ => direct::away(skb, local, &ip),
    }
}

/// A reply to a client of a published port: back to where the client came in, or straight to it.
#[inline(never)]
fn ingress_reply(skb: Skb, w: &mut Work, packet: Packet, r: *mut Reply) -> i32 {
    let Some(config) = config() else {
        return drop(Reason::DropUnconfigured);
    };
    // SAFETY: a row looked up in this run.
    let row = unsafe { &*r };
    let here = same(&row.entry, &config.ingress_mac) || row.kind == kind::DIRECT;
    let device = match (here, row.client) {
        (true, 0) => config.uplink_ifindex,
        (true, client) => client,
        (false, _) => config.ingress_ifindex,
    };
    if device == 0 {
        return drop(Reason::DropUnconfigured);
    }
    let own = config.ingress_mac;
    if packet == Packet::Flow {
        if lifetime(w) <= 1 {
            return drop(Reason::DropTtl);
        }
        remember_fragment(w);
        let client = w.key.dst;
        touch_reverse(w, r, client, row.dst);
        w.to = To {
            src: row.dst,
            dst: client,
            sport: row.dport,
            dport: row.cport,
            eth_dst: row.entry,
            eth_src: own,
            hop: true,
        };
        if !nat::rewrite(skb, w) {
            return drop(Reason::DropFailed);
        }
    } else if !icmp::outward(skb, w, r, row.entry, own) {
        return drop(Reason::DropFailed);
    }
    if !here {
        return skb.send(device, Reason::ReplyCarried);
    }
    if row.client != 0 {
        return direct::give_back(skb, w, device, Reason::ReplySent);
    }
    skb.route(device, Reason::ReplySent)
}

/// A container's packet to a VIP of its network.
#[inline(never)]
fn vip(skb: Skb, w: &mut Work, local: &Local, service: u32) -> i32 {
    remember_fragment(w);
    let now = now();
    let new = New {
        service,
        kind: kind::VIP,
        direct: false,
        target: w.key.dport,
        entry: [0; 6],
        client: 0,
        admitted: true,
    };
    let own = w.key.src;
    let (f, backend) = match route(w, new, Some(own), now) {
        Route::To(f, backend) => (f, backend),
        Route::Empty | Route::Denied => return answer::refuse(skb, w, Reason::ResetNoBackend),
        Route::Gone => return answer::refuse(skb, w, Reason::ResetGone),
        Route::Stray => return drop(Reason::DropReset),
        Route::Full => return drop(Reason::DropFailed),
    };
    let (port, ip) = (w.key.dport, backend.addr(&own));
    if ip.same(&own) {
        return hairpin(skb, w, f, local, port, now);
    }
    let Some(cport) = bind(w, f, ip, port, kind::VIP, now) else {
        return drop(Reason::DropNoPort);
    };
    w.to = To {
        src: own,
        dst: ip,
        sport: cport,
        dport: port,
        eth_dst: backend.mac,
        eth_src: local.mac,
        hop: false,
    };
    if nat::rewrite(skb, w) {
        count(Reason::VipForwarded);
        return forward(skb, w, local, Packet::Flow, (backend.mac, ip), None);
    }
    drop(Reason::DropFailed)
}

/// A container's ICMP error to a VIP, about what the VIP sent: to the backend that did.
#[inline(never)]
fn vip_error(skb: Skb, w: &mut Work, local: &Local) -> i32 {
    let Some(f) = icmp::flow(w) else {
        return drop(Reason::DropVipProtocol);
    };
    // SAFETY: a row looked up in this run.
    let slot = unsafe { (*f).backend };
    // SAFETY: as in `run`.
    let Some(backend) = (unsafe { crate::maps::BACKENDS.get(&slot) }) else {
        return drop(Reason::DropVipProtocol);
    };
    let ip = backend.addr(&w.key.src);
    if ip.is_none() || ip.same(&w.key.src) || !icmp::inward(skb, w, f, ip, backend.mac, local.mac) {
        return drop(Reason::DropVipProtocol);
    }
    forward(skb, w, local, Packet::Icmp, (backend.mac, ip), None)
}

/// A container answers itself: to the address that it asked, as that one.
#[inline(never)]
fn hairpin_reply(skb: Skb, w: &mut Work, local: &Local, r: *mut Reply) -> i32 {
    remember_fragment(w);
    let (own, asked) = (w.key.src, w.key.dst);
    // SAFETY: a row looked up in this run.
    let row = unsafe { &*r };
    touch_reverse(w, r, own, asked);
    w.to = To {
        src: asked,
        dst: own,
        sport: row.dport,
        dport: row.cport,
        eth_dst: local.mac,
        eth_src: local.gateway_mac,
        hop: false,
    };
    if nat::rewrite(skb, w) {
        return skb.send(local.ifindex, Reason::Hairpin);
    }
    drop(Reason::DropFailed)
}
