//! ICMP errors about flows that are translated: they are translated as the flow is, the packet that
//! they quote included, or carried on to the node that does so.

use mesh_ebpf_common::{
    Reason,
    header::Ipv4,
    quote::quotes,
    rows::{Addr, Flow, FlowKey, Local, Plain, Reply, TCP, UDP},
};

use crate::{
    bind, direct, maps, nat,
    nat::To,
    parse::{Packet, addr6},
    route,
    skb::{Skb, drop},
    work::Work,
};

/// The first four bytes of TCP and UDP.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ports {
    sport: [u8; 2],
    dport: [u8; 2],
}
// SAFETY: byte fields only.
unsafe impl Plain for Ports {}

/// True if the packet is an ICMP error that quotes TCP or UDP; then [`Work::quoted`] is what it quotes.
#[inline(never)]
pub fn is_error(skb: Skb, w: &mut Work, packet: Packet) -> bool {
    if packet != Packet::Icmp || !quotes(w.proto, &w.icmp) {
        return false;
    }
    w.quoted_at = w.l4 + 8;
    let (proto, at) = if w.v6 {
        if !skb.load(w.quoted_at, &mut w.quoted_ip6) {
            return false;
        }
        (w.quoted.src, w.quoted.dst) = (addr6(&w.quoted_ip6.src), addr6(&w.quoted_ip6.dst));
        // A quoted packet with extension headers is nobody's flow.
        (w.quoted_ip6.next, w.quoted_at + 40)
    } else {
        if !skb.load(w.quoted_at, &mut w.quoted_ip) {
            return false;
        }
        let ip = &w.quoted_ip;
        w.quoted.src = Addr::v4(u32::from_ne_bytes(ip.src));
        w.quoted.dst = Addr::v4(u32::from_ne_bytes(ip.dst));
        let header = u32::from(ip.version_ihl & 15) * 4;
        if ip.version_ihl >> 4 != 4 || header < size_of::<Ipv4>() as u32 || u16::from_be_bytes(ip.fragment) & 0x1fff != 0 {
            return false;
        }
        (ip.proto, w.quoted_at + header)
    };
    if (proto != TCP && proto != UDP) || at + 8 > w.l4 + w.l4_len {
        return false;
    }
    let mut ports = Ports::default();
    if !skb.load(at, &mut ports) {
        return false;
    }
    w.quoted_l4 = at;
    w.quoted.sport = u16::from_be_bytes(ports.sport);
    w.quoted.dport = u16::from_be_bytes(ports.dport);
    (w.quoted.proto, w.quoted.zero) = (proto, [0; 3]);
    true
}

/// The flow that an error from a client's side is about: the client got the quoted packet.
#[inline(always)]
pub fn flow(w: &mut Work) -> Option<*mut Flow> {
    w.reply_key = w.quoted.reversed();
    route::find(&w.reply_key).map(|(f, _)| f)
}

/// The way back of the flow that an error from a backend's side is about: the backend got the quoted
/// packet.
#[inline(always)]
pub fn reply(w: &mut Work) -> Option<*mut Reply> {
    w.reply_key = w.quoted.reversed();
    bind::find(&w.reply_key).map(|(r, _)| r)
}

/// Makes an error about what a service sent its client one about what the backend sent.
#[inline(always)]
pub fn inward(skb: Skb, w: &mut Work, f: *mut Flow, backend: Addr, eth_dst: [u8; 6], eth_src: [u8; 6]) -> bool {
    // SAFETY: a row looked up in this run.
    let f = unsafe { &*f };
    w.requoted = FlowKey {
        src: backend,
        dst: w.quoted.dst,
        sport: f.target,
        dport: if f.cport == 0 { w.quoted.dport } else { f.cport },
        proto: w.quoted.proto,
        zero: [0; 3],
    };
    w.to = To {
        src: w.key.src,
        dst: backend,
        sport: 0,
        dport: 0,
        eth_dst,
        eth_src,
        hop: false,
    };
    translated(nat::rewrite_error(skb, w))
}

/// Makes an error about what a backend got one about what its client sent.
#[inline(always)]
pub fn outward(skb: Skb, w: &mut Work, r: *mut Reply, eth_dst: [u8; 6], eth_src: [u8; 6]) -> bool {
    // SAFETY: a row looked up in this run.
    let r = unsafe { &*r };
    w.requoted = FlowKey {
        src: w.quoted.src,
        dst: r.dst,
        sport: r.cport,
        dport: r.dport,
        proto: w.quoted.proto,
        zero: [0; 3],
    };
    w.to = To {
        // A router's error keeps its own source.
        src: if w.key.src.same(&w.quoted.dst) { r.dst } else { w.key.src },
        dst: w.key.dst,
        sport: 0,
        dport: 0,
        eth_dst,
        eth_src,
        hop: false,
    };
    translated(nat::rewrite_error(skb, w))
}

#[inline(always)]
fn translated(done: bool) -> bool {
    if done {
        maps::count(Reason::IcmpTranslated);
    }
    done
}

/// Gives an error to the endpoint here that the flow `f` goes to.
#[inline(always)]
pub fn deliver(skb: Skb, w: &mut Work, f: *mut Flow, local: &Local) -> i32 {
    let own = local.addr(&w.key.dst);
    if !own.is_none() && inward(skb, w, f, own, local.mac, local.gateway_mac) {
        return direct::hand_over(skb, local, Reason::Delivered);
    }
    drop(Reason::DropFailed)
}
