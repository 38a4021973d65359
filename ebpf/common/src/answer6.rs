//! What [`crate::answer`] does, for IPv6: a TCP reset, ICMPv6 port unreachable and packet too big, a neighbour
//! advertisement.
//!
//! As there, every answer but packet too big comes out right whether or not a device later finishes a checksum
//! that the sender of the packet had left to it.

use crate::{
    answer::reset_numbers,
    checksum::{add, fold, pseudo_v6},
    header::{Icmp, Ipv6, Neighbor, Tcp},
    rows::{ICMP6, Plain, TCP},
};

/// Hop limit of an answer.
const HOPS: u8 = 64;
/// Hop limit of neighbour discovery (RFC 4861 section 7.1).
const ND_HOPS: u8 = 255;
/// How much of a packet's payload is quoted: the ports. RFC 4443 would have as much as fits.
pub const QUOTED: usize = 8;

/// A reset.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpReset6 {
    /// IP.
    pub ip: Ipv6,
    /// TCP.
    pub tcp: Tcp,
}

/// An ICMPv6 error.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IcmpError6 {
    /// IP.
    pub ip: Ipv6,
    /// ICMP.
    pub icmp: Icmp,
    /// IP header of the packet that is answered.
    pub quoted_ip: Ipv6,
    /// The first bytes of what it carries.
    pub quoted: [u8; QUOTED],
}

/// A neighbour advertisement with its sender's Ethernet address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Advertisement {
    /// IP.
    pub ip: Ipv6,
    /// What is said.
    pub neighbor: Neighbor,
    /// Type and length of the option, then the address.
    pub option: [u8; 8],
}

// SAFETY: byte fields only.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for TcpReset6 {}
// SAFETY: byte fields only.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for IcmpError6 {}
// SAFETY: byte fields only.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for Advertisement {}
const _: () = assert!(size_of::<TcpReset6>() == 60 && size_of::<IcmpError6>() == 96 && size_of::<Advertisement>() == 72);

/// Fills in the header of an answer, its sum included in what is returned: that of the pseudo header.
#[inline(always)]
fn ip_back(back: &mut Ipv6, src: &[u8; 16], dst: &[u8; 16], next: u8, payload: u16, hop_limit: u8) -> u32 {
    back.version_flow = [0x60, 0, 0, 0];
    back.payload_len = payload.to_be_bytes();
    (back.next, back.hop_limit) = (next, hop_limit);
    (back.src, back.dst) = (*src, *dst);
    pseudo_v6(src, dst, next, payload)
}

/// The sum over an IPv6 header.
#[inline(always)]
fn sum_of(ip: &Ipv6) -> u32 {
    let sum = add(add(0, &ip.version_flow), &ip.payload_len) + (u32::from(ip.next) << 8) + u32::from(ip.hop_limit);
    add(add(sum, &ip.src), &ip.dst)
}

/// See [`crate::answer::tcp_reset`]; the answer is put into `back`. False: there is none.
#[inline(always)]
pub fn tcp_reset6(ip: &Ipv6, tcp: &Tcp, l4_len: u32, back: &mut TcpReset6) -> bool {
    let Some((seq, ack, flags)) = reset_numbers(tcp, l4_len) else {
        return false;
    };
    let pseudo = fold(ip_back(&mut back.ip, &ip.dst, &ip.src, TCP, 20, HOPS));
    let t = &mut back.tcp;
    (t.sport, t.dport) = (tcp.dport, tcp.sport);
    (t.seq, t.ack) = (u32::to_be_bytes(seq), u32::to_be_bytes(ack));
    (t.offset, t.flags) = (5 << 4, flags);
    (t.window, t.checksum, t.urgent) = ([0; 2], [0; 2], [0; 2]);
    let sum = add(add(add(add(2 * u32::from(pseudo), &t.sport), &t.dport), &t.seq), &t.ack) + u32::from(t.offset) * 256 + u32::from(flags);
    t.window = (!fold(sum)).to_be_bytes();
    t.checksum = pseudo.to_be_bytes();
    true
}

/// Port unreachable (RFC 4443 section 3.1, code 4) from the address that the packet was for, put into
/// `back`.
///
/// A device that finishes a checksum takes UDP's field, bytes 6 and 7 of this message, adds the
/// message up and stores the complement. These bytes mean nothing for this code: they hold the pseudo
/// header's sum, at which the message is right and the device stores the same value again.
#[inline(always)]
pub fn port_unreachable6(ip: &Ipv6, quoted: [u8; QUOTED], back: &mut IcmpError6) {
    let pseudo = fold(ip_back(&mut back.ip, &ip.dst, &ip.src, ICMP6, 8 + 40 + QUOTED as u16, HOPS));
    let [a, b] = pseudo.to_be_bytes();
    (back.icmp.kind, back.icmp.code) = (1, 4);
    back.icmp.rest = [0, 0, a, b];
    let sum = add(sum_of(ip) + 2 * u32::from(pseudo) + 0x0104, &quoted);
    back.icmp.checksum = (!fold(sum)).to_be_bytes();
    back.quoted_ip = *ip;
    back.quoted = quoted;
}

/// Packet too big (RFC 4443 section 3.2) from the address that the packet was for, put into `back`: the next hop
/// takes packets of `mtu` bytes.
#[inline(always)]
pub fn too_big6(ip: &Ipv6, quoted: [u8; QUOTED], mtu: u16, back: &mut IcmpError6) {
    let pseudo = ip_back(&mut back.ip, &ip.dst, &ip.src, ICMP6, 8 + 40 + QUOTED as u16, HOPS);
    let [a, b] = mtu.to_be_bytes();
    (back.icmp.kind, back.icmp.code) = (2, 0);
    back.icmp.rest = [0, 0, a, b];
    let sum = add(sum_of(ip) + u32::from(fold(pseudo)) + u32::from(mtu) + 0x0200, &quoted);
    back.icmp.checksum = (!fold(sum)).to_be_bytes();
    back.quoted_ip = *ip;
    back.quoted = quoted;
}

/// The answer to a neighbour solicitation for `target` from `to`: it is at `mac` (RFC 4861 section
/// 7.2.4, solicited and overriding). Put into `back`.
#[inline(always)]
pub fn advertisement(target: &[u8; 16], to: &[u8; 16], mac: [u8; 6], back: &mut Advertisement) {
    let pseudo = ip_back(&mut back.ip, target, to, ICMP6, 32, ND_HOPS);
    let [m0, m1, m2, m3, m4, m5] = mac;
    back.option = [2, 1, m0, m1, m2, m3, m4, m5];
    back.neighbor.target = *target;
    let icmp = &mut back.neighbor.icmp;
    (icmp.kind, icmp.code) = (136, 0);
    icmp.rest = [0x60, 0, 0, 0];
    let sum = add(add(pseudo + 0x8800 + 0x6000, target), &back.option);
    icmp.checksum = (!fold(sum)).to_be_bytes();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::RST;

    fn valid(sum: u32, parts: &[&[u8]]) -> bool {
        let words = parts
            .iter()
            .flat_map(|p| p.chunks(2))
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        fold(sum + words.sum::<u32>()) == 0xffff
    }

    /// What a device does that finishes a checksum over `segment` at `at`.
    fn finish(segment: &mut [u8], at: usize) {
        let sum = !fold(segment.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum());
        segment[at..at + 2].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    }

    proptest! {
        #[test]
        fn a_reset_is_valid_before_and_after_a_device(src: [u8; 16], dst: [u8; 16], seq: [u8; 4], ack: [u8; 4], flags in 0u8..64, ports: [u8; 4]) {
            prop_assume!(flags & RST == 0);
            let ip = Ipv6 { src, dst, ..Ipv6::default() };
            let tcp = Tcp { sport: [ports[0], ports[1]], dport: [ports[2], ports[3]], seq, ack, offset: 5 << 4, flags, ..Tcp::default() };
            let mut r = TcpReset6::default();
            prop_assert!(tcp_reset6(&ip, &tcp, 20, &mut r));
            let pseudo = pseudo_v6(&r.ip.src, &r.ip.dst, TCP, 20);
            let mut segment = r.tcp.bytes();
            prop_assert!(valid(pseudo, &[&segment]));
            finish(&mut segment, 16);
            prop_assert!(valid(pseudo, &[&segment]));
        }

        #[test]
        fn an_unreachable_is_valid_before_and_after_a_device(src: [u8; 16], dst: [u8; 16], quoted: [u8; 8]) {
            let ip = Ipv6 { version_flow: [0x60, 0, 0, 0], src, dst, ..Ipv6::default() };
            let mut e = IcmpError6::default();
            port_unreachable6(&ip, quoted, &mut e);
            let pseudo = pseudo_v6(&e.ip.src, &e.ip.dst, ICMP6, 56);
            let mut message = [0u8; 56];
            message[..8].copy_from_slice(&e.icmp.bytes());
            message[8..48].copy_from_slice(&e.quoted_ip.bytes());
            message[48..].copy_from_slice(&e.quoted);
            prop_assert!(valid(pseudo, &[&message]));
            finish(&mut message, 6);
            prop_assert!(valid(pseudo, &[&message]));
        }

        #[test]
        fn advertisements_are_valid(src: [u8; 16], dst: [u8; 16], mac: [u8; 6]) {
            let mut a = Advertisement::default();
            advertisement(&dst, &src, mac, &mut a);
            prop_assert!(valid(pseudo_v6(&dst, &src, ICMP6, 32), &[&a.neighbor.icmp.bytes(), &a.neighbor.target, &a.option]));
        }
    }
}
