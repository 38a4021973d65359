//! Changing addresses and ports, checksums included.
//!
//! An address and the checksums over it are changed so that the sum over the packet stays what it
//! was, which keeps the kernel's own notes (CHECKSUM_COMPLETE, CHECKSUM_PARTIAL) right. Later
//! fragments have no upper layer header; the checksum in the first one covers them.

use mesh_ebpf_common::{
    header::ETH_LEN,
    rows::{TCP, UDP},
};

use crate::{
    parse::LATER,
    skb::Skb,
    work::{Macs, Work},
};

const IP_CHECKSUM: u32 = ETH_LEN + 10;
const IP_SRC: u32 = ETH_LEN + 12;
const IP_DST: u32 = ETH_LEN + 16;

#[inline(always)]
fn l4_checksum_offset(w: &Work) -> u32 {
    w.l4 + if w.key.proto == TCP { 16 } else { 6 }
}

#[inline(always)]
fn address(skb: Skb, w: &Work, at: u32, from: u32, to: u32) -> bool {
    if from == to {
        return true;
    }
    (w.part == LATER || skb.l4_checksum(l4_checksum_offset(w), from, to, true, w.key.proto == UDP))
        && skb.l3_checksum(IP_CHECKSUM, from, to)
        && skb.store(at, &Word(to))
}

/// A word as it lies in the packet.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Word(u32);
// SAFETY: an integer.
unsafe impl mesh_ebpf_common::rows::Plain for Word {}

/// Changes the source address.
#[inline(always)]
pub fn source(skb: Skb, w: &Work, to: u32) -> bool {
    address(skb, w, IP_SRC, u32::from_ne_bytes(w.head.ip.src), to)
}

/// Changes the destination address.
#[inline(always)]
pub fn destination(skb: Skb, w: &Work, to: u32) -> bool {
    address(skb, w, IP_DST, u32::from_ne_bytes(w.head.ip.dst), to)
}

/// Both addresses.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pair {
    src: u32,
    dst: u32,
}
// SAFETY: two integers without padding.
unsafe impl mesh_ebpf_common::rows::Plain for Pair {}

/// Writes both addresses of a packet that has the same two the other way round: no sum changes.
#[inline(always)]
pub fn swap_addresses(skb: Skb, src: u32, dst: u32) -> bool {
    skb.store(IP_SRC, &Pair { src, dst })
}

/// Changes both ports.
#[inline(always)]
pub fn ports(skb: Skb, w: &Work, sport: u16, dport: u16) -> bool {
    let word = |s: u16, d: u16| {
        let ([a, b], [c, d]) = (s.to_be_bytes(), d.to_be_bytes());
        u32::from_ne_bytes([a, b, c, d])
    };
    let (from, to) = (word(w.key.sport, w.key.dport), word(sport, dport));
    from == to
        || w.part == LATER
        || (skb.l4_checksum(l4_checksum_offset(w), from, to, false, w.key.proto == UDP) && skb.store(w.l4, &Word(to)))
}

/// Changes the Ethernet addresses.
#[inline(always)]
pub fn ethernet(skb: Skb, w: &mut Work, dst: [u8; 6], src: [u8; 6]) -> bool {
    w.macs = Macs { dst, src };
    skb.store(0, &w.macs)
}
