//! Changing addresses and ports, checksums included.
//!
//! An address and the checksums over it are changed so that the sum over the packet stays what it
//! was, which keeps the kernel's own notes (CHECKSUM_COMPLETE, CHECKSUM_PARTIAL) right. Later
//! fragments have no upper layer header; the checksum in the first one covers them.
//!
//! The headers are changed in working memory and stored at once: a helper call costs more than the
//! arithmetic.

use mesh_ebpf_common::{
    checksum::{both, changed, diff},
    header::ETH_LEN,
    quote::{addresses_diff, requoted},
    rows::{Addr, Macs, Plain, TCP, UDP},
};

use crate::{
    parse::{LATER, bytes6},
    skb::Skb,
    work::Work,
};

/// What a packet becomes.
#[derive(Clone, Copy)]
pub struct To {
    pub src: Addr,
    pub dst: Addr,
    pub sport: u16,
    pub dport: u16,
    pub eth_dst: [u8; 6],
    pub eth_src: [u8; 6],
    /// It has taken a hop; its lifetime was checked.
    pub hop: bool,
}

/// A word as it lies in the packet.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Word(u32);
// SAFETY: an integer.
unsafe impl Plain for Word {}

/// Half a word.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
struct Half([u8; 2]);
// SAFETY: two bytes.
unsafe impl Plain for Half {}

#[inline(always)]
fn ports_word(sport: u16, dport: u16) -> u32 {
    let ([a, b], [c, d]) = (sport.to_be_bytes(), dport.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// By how much the packet's addresses change a sum.
#[inline(always)]
fn address_diff(w: &Work, src: &Addr, dst: &Addr) -> u32 {
    if w.v6 {
        addresses_diff((w.key.src, w.key.dst), (*src, *dst))
    } else {
        diff([w.key.src.0[3], w.key.dst.0[3]], [src.0[3], dst.0[3]])
    }
}

/// Puts new addresses into the IP header, and Ethernet addresses before it.
#[inline(never)]
pub fn store_head(skb: Skb, w: &mut Work, diff_of_addresses: u32) -> bool {
    let to = &w.to;
    w.head.eth.dst = to.eth_dst;
    w.head.eth.src = to.eth_src;
    if w.v6 {
        w.ip6.src = bytes6(&to.src);
        w.ip6.dst = bytes6(&to.dst);
        if to.hop {
            // No checksum makes up for it in IPv6: the sum over the packet has changed.
            let lifetime = |hops| u32::from_ne_bytes([0, 0, 0, hops]);
            let now = w.ip6.hop_limit - 1;
            skb.sum_by(diff([lifetime(w.ip6.hop_limit)], [lifetime(now)]));
            w.ip6.hop_limit = now;
        }
        return skb.store(0, &w.head.eth) && skb.store(ETH_LEN, &w.ip6);
    }
    let lifetime = |ttl| u32::from_ne_bytes([ttl, 0, 0, 0]);
    let ttl = w.head.ip.ttl - u8::from(to.hop);
    let all = both(diff_of_addresses, diff([lifetime(w.head.ip.ttl)], [lifetime(ttl)]));
    w.head.ip.checksum = changed(w.head.ip.checksum, all);
    w.head.ip.ttl = ttl;
    w.head.ip.src = to.src.0[3].to_ne_bytes();
    w.head.ip.dst = to.dst.0[3].to_ne_bytes();
    skb.store(0, &w.head)
}

/// Makes the flow's packet in `w` what [`Work::to`] says. False: the kernel refused.
#[inline(never)]
pub fn rewrite(skb: Skb, w: &mut Work) -> bool {
    let to = &w.to;
    let addresses = address_diff(w, &to.src, &to.dst);
    if w.part != LATER {
        let udp = w.key.proto == UDP;
        let at = w.l4 + if udp { 6 } else { 16 };
        let (from, ports) = (ports_word(w.key.sport, w.key.dport), ports_word(to.sport, to.dport));
        let moved = !(to.src.same(&w.key.src) && to.dst.same(&w.key.dst));
        let summed = !udp || w.tcp.seq[2] != 0 || w.tcp.seq[3] != 0;
        if summed && moved && !pseudo(skb, w.v6, at, addresses, udp) {
            return false;
        }
        if from != ports && !((!summed || skb.l4_checksum(at, from, ports, udp)) && skb.store(w.l4, &Word(ports))) {
            return false;
        }
    } else if w.v6 {
        // The checksum that makes up for the addresses is another fragment's.
        skb.sum_by(addresses);
    }
    store_head(skb, w, addresses)
}

/// Changes an upper layer's checksum by what the addresses in its pseudo header changed.
#[inline(always)]
fn pseudo(skb: Skb, v6: bool, at: u32, by: u32, udp: bool) -> bool {
    // The kernel takes every change of a pseudo header for one that the IP header's own checksum makes
    // up for. IPv6 has none, so the sum over the whole packet has not changed: say so.
    skb.l4_checksum_by(at, by, true, udp) && {
        if v6 {
            skb.sum_by(by);
        }
        true
    }
}

/// Changes the Ethernet addresses.
#[inline(always)]
pub fn ethernet(skb: Skb, w: &mut Work, dst: [u8; 6], src: [u8; 6]) -> bool {
    w.macs = Macs { dst, src };
    skb.store(0, &w.macs)
}

/// Makes an ICMP error what [`Work::to`] says, and the packet that it quotes, whose 5-tuple is in
/// [`Work::quoted`], one of [`Work::requoted`]. Ports in [`Work::to`] mean nothing.
#[inline(never)]
pub fn rewrite_error(skb: Skb, w: &mut Work) -> bool {
    let (to, quoted) = (&w.to, &w.requoted);
    let inner = if w.v6 {
        addresses_diff((w.quoted.src, w.quoted.dst), (quoted.src, quoted.dst))
    } else {
        let old = [w.quoted.src.0[3], w.quoted.dst.0[3]];
        diff(old, [quoted.src.0[3], quoted.dst.0[3]])
    };
    let (from, ports) = (ports_word(w.quoted.sport, w.quoted.dport), ports_word(quoted.sport, quoted.dport));
    let inner_ports = diff([from], [ports]);
    // What the message's own sum grows by. A quoted IPv4 header makes up for its addresses itself.
    let mut grown = if w.v6 { both(inner, inner_ports) } else { inner_ports };
    let at = w.quoted_l4 + if w.quoted.proto == TCP { 16 } else { 6 };
    let mut sum = Half::default();
    if at + 2 <= w.l4 + w.l4_len && skb.load(at, &mut sum) && (w.quoted.proto == TCP || sum.0[0] != 0 || sum.0[1] != 0) {
        let new = Half(changed(sum.0, both(inner, inner_ports)));
        let word = |h: Half| u32::from_ne_bytes([h.0[0], h.0[1], 0, 0]);
        grown = both(grown, diff([word(sum)], [word(new)]));
        if !skb.store(at, &new) {
            return false;
        }
    }
    let stored = if w.v6 {
        w.quoted_ip6.src = bytes6(&quoted.src);
        w.quoted_ip6.dst = bytes6(&quoted.dst);
        skb.store(w.quoted_at, &w.quoted_ip6)
    } else {
        w.quoted_ip = requoted(&w.quoted_ip, quoted.src.0[3], quoted.dst.0[3]);
        skb.store(w.quoted_at, &w.quoted_ip)
    };
    let addresses = address_diff(w, &to.src, &to.dst);
    stored
        && skb.store(w.quoted_l4, &Word(ports))
        && skb.l4_checksum_by(w.l4 + 2, grown, false, false)
        && (!w.v6 || pseudo(skb, true, w.l4 + 2, addresses, false))
        && store_head(skb, w, addresses)
}
