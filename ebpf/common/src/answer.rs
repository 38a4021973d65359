//! Packets that the programs make themselves: a TCP reset, ICMP port unreachable and too big. The answer
//! overwrites the packet that it answers.
//!
//! The packet may be one whose checksum the sender left to its device (CHECKSUM_PARTIAL), which a
//! program can not see. Whoever finishes it later puts the sum over the upper layer into the field
//! where TCP or UDP has its checksum. So resets and port unreachables are made to come out right whether or
//! not that happens. What says that a packet is too big has its MTU there: it is right if that does not happen,
//! as for all that came by a wire.

use crate::{
    checksum::{add, fold, pseudo_v4},
    flow::{ACK, FIN, RST, SYN},
    header::{Icmp, Ipv4, Tcp},
    rows::{ICMP, Plain, TCP},
};

/// Lifetime of an answer in hops.
const TTL: u8 = 64;
/// Don't fragment.
const DF: [u8; 2] = [0x40, 0];

/// A reset.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpReset {
    /// IP.
    pub ip: Ipv4,
    /// TCP.
    pub tcp: Tcp,
}

/// An ICMP error.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IcmpError {
    /// IP.
    pub ip: Ipv4,
    /// ICMP.
    pub icmp: Icmp,
    /// IP header of the packet that is answered.
    pub quoted_ip: Ipv4,
    /// The first eight bytes of what it carries.
    pub quoted: [u8; 8],
}

// SAFETY: byte fields only.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for TcpReset {}
// SAFETY: byte fields only.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Plain for IcmpError {}
const _: () = assert!(size_of::<TcpReset>() == 40 && size_of::<IcmpError>() == 56);

/// The packet must not be fragmented on its way.
#[inline(always)]
pub const fn unfragmentable(ip: &Ipv4) -> bool {
    ip.fragment[0] & DF[0] != 0
}

/// True for an IP header without options whose checksum is right.
#[inline(always)]
pub fn answerable(ip: &Ipv4) -> bool {
    ip.version_ihl == 0x45 && fold(add(0, &ip.bytes())) == 0xffff
}

#[inline(always)]
fn ip_back(ip: &Ipv4, proto: u8, total_len: u16) -> Ipv4 {
    let mut back = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_len: total_len.to_be_bytes(),
        id: [0; 2],
        fragment: DF,
        ttl: TTL,
        proto,
        checksum: [0; 2],
        src: ip.dst,
        dst: ip.src,
    };
    back.checksum = (!fold(add(0, &back.bytes()))).to_be_bytes();
    back
}

/// Sequence number, acknowledgement number and flags of the reset that answers a segment.
#[inline(always)]
pub fn reset_numbers(tcp: &Tcp, l4_len: u32) -> Option<(u32, u32, u8)> {
    if tcp.flags & RST != 0 {
        return None;
    }
    if tcp.flags & ACK != 0 {
        return Some((u32::from_be_bytes(tcp.ack), 0, RST));
    }
    let data = l4_len.wrapping_sub(u32::from(tcp.offset >> 4) * 4);
    let control = u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
    Some((0, u32::from_be_bytes(tcp.seq).wrapping_add(data).wrapping_add(control), RST | ACK))
}

/// The reset that RFC 9293 section 3.10.7.1 asks for in answer to a segment of a connection that
/// does not exist. `l4_len`: length of the segment with its header. `None`: a reset is never answered.
#[inline(always)]
pub fn tcp_reset(ip: &Ipv4, tcp: &Tcp, l4_len: u32) -> Option<TcpReset> {
    let (seq, ack, flags) = reset_numbers(tcp, l4_len)?;
    let mut back = Tcp {
        sport: tcp.dport,
        dport: tcp.sport,
        seq: u32::to_be_bytes(seq),
        ack: u32::to_be_bytes(ack),
        offset: 5 << 4,
        flags,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    // A checksum left to the device has the pseudo header's sum P in its field; the device adds up
    // the segment and stores the complement. The window of a reset means nothing, so it takes the
    // value at which P itself is the right checksum: then segment + P = -P, whose complement is P.
    let pseudo = fold(pseudo_v4(ip.dst, ip.src, TCP, 20));
    let rest = add(2 * u32::from(pseudo), &back.bytes());
    back.window = (!fold(rest)).to_be_bytes();
    back.checksum = pseudo.to_be_bytes();
    Some(TcpReset {
        ip: ip_back(ip, TCP, 40),
        tcp: back,
    })
}

/// Destination unreachable, port unreachable (RFC 792), quoting the packet as far as the RFC asks.
///
/// Where UDP has its checksum, this message has two bytes that mean nothing for this code. The rest
/// adds up to all ones, so that a device that finishes a UDP checksum there stores another zero.
#[inline(always)]
pub fn port_unreachable(ip: &Ipv4, quoted: [u8; 8]) -> IcmpError {
    unreachable(ip, quoted, 3, 0)
}

/// Destination unreachable, fragmentation needed and DF set (RFC 1191 section 4): the next hop takes packets of
/// `mtu` bytes.
#[inline(always)]
pub fn too_big(ip: &Ipv4, quoted: [u8; 8], mtu: u16) -> IcmpError {
    unreachable(ip, quoted, 4, mtu)
}

#[inline(always)]
fn unreachable(ip: &Ipv4, quoted: [u8; 8], code: u8, mtu: u16) -> IcmpError {
    let [a, b] = mtu.to_be_bytes();
    let mut icmp = Icmp {
        kind: 3,
        code,
        checksum: [0; 2],
        rest: [0, 0, a, b],
    };
    icmp.checksum = (!fold(add(add(add(0, &icmp.bytes()), &ip.bytes()), &quoted))).to_be_bytes();
    IcmpError {
        ip: ip_back(ip, ICMP, 56),
        icmp,
        quoted_ip: *ip,
        quoted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(seq: u32, ack: u32, flags: u8) -> Tcp {
        Tcp {
            sport: [1, 2],
            dport: [3, 4],
            seq: seq.to_be_bytes(),
            ack: ack.to_be_bytes(),
            offset: 5 << 4,
            flags,
            ..Tcp::default()
        }
    }

    fn ip(src: [u8; 4], dst: [u8; 4]) -> Ipv4 {
        Ipv4 {
            version_ihl: 0x45,
            src,
            dst,
            ttl: 9,
            proto: TCP,
            ..Ipv4::default()
        }
    }

    #[test]
    fn numbers_of_a_reset() {
        let ip = ip([10, 0, 0, 1], [10, 0, 0, 2]);
        let numbers = |tcp: Tcp, len| {
            let r = tcp_reset(&ip, &tcp, len).unwrap().tcp;
            (u32::from_be_bytes(r.seq), u32::from_be_bytes(r.ack), r.flags)
        };
        assert_eq!(numbers(tcp(100, 0, SYN), 20), (0, 101, RST | ACK));
        assert_eq!(numbers(tcp(u32::MAX, 0, SYN), 20), (0, 0, RST | ACK), "wraps");
        assert_eq!(numbers(tcp(100, 0, FIN), 25), (0, 106, RST | ACK));
        assert_eq!(numbers(tcp(100, 777, ACK), 1000), (777, 0, RST));
        assert_eq!(numbers(tcp(100, 777, SYN | ACK), 20), (777, 0, RST));
        assert_eq!(tcp_reset(&ip, &tcp(1, 2, RST), 20), None);
        assert_eq!(tcp_reset(&ip, &tcp(1, 2, RST | ACK), 20), None);
    }

    /// What a device does that finishes a checksum over `segment` at `at`.
    fn finish(segment: &mut [u8], at: usize) {
        let sum = segment.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        let sum = match !fold(sum) {
            0 => 0xffff,
            sum => sum,
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn valid(sum: u32, segment: &[u8]) -> bool {
        fold(segment.chunks(2).fold(sum, |s, w| s + u32::from(u16::from_be_bytes([w[0], w[1]])))) == 0xffff
    }

    proptest! {
        #[test]
        fn a_reset_is_valid_before_and_after_a_device(src: [u8; 4], dst: [u8; 4], seq: u32, ack: u32, flags in 0u8..64, ports: [u8; 4]) {
            prop_assume!(flags & RST == 0);
            let mut t = tcp(seq, ack, flags);
            (t.sport, t.dport) = ([ports[0], ports[1]], [ports[2], ports[3]]);
            let Some(r) = tcp_reset(&ip(src, dst), &t, 20) else { return Err(TestCaseError::fail("no reset")) };
            prop_assert_eq!(fold(add(0, &r.ip.bytes())), 0xffff);
            let pseudo = pseudo_v4(r.ip.src, r.ip.dst, TCP, 20);
            let mut segment = r.tcp.bytes();
            prop_assert!(valid(pseudo, &segment));
            finish(&mut segment, 16);
            prop_assert!(valid(pseudo, &segment));
        }

        #[test]
        fn an_unreachable_is_valid_before_and_after_a_device(src: [u8; 4], dst: [u8; 4], quoted: [u8; 8]) {
            let asked = ip(src, dst);
            let u = port_unreachable(&asked, quoted);
            prop_assert_eq!(fold(add(0, &u.ip.bytes())), 0xffff);
            prop_assert_eq!(u.quoted_ip, asked);
            let mut message = [0u8; 36];
            message[..8].copy_from_slice(&u.icmp.bytes());
            message[8..28].copy_from_slice(&u.quoted_ip.bytes());
            message[28..].copy_from_slice(&u.quoted);
            prop_assert!(valid(0, &message));
            finish(&mut message, 6);
            prop_assert!(valid(0, &message));
        }

        #[test]
        fn a_too_big_is_valid_and_tells_the_mtu(src: [u8; 4], dst: [u8; 4], quoted: [u8; 8], mtu: u16) {
            let asked = ip(src, dst);
            let e = too_big(&asked, quoted, mtu);
            prop_assert_eq!(fold(add(0, &e.ip.bytes())), 0xffff);
            prop_assert_eq!((e.icmp.kind, e.icmp.code, &e.icmp.rest[2..]), (3, 4, &mtu.to_be_bytes()[..]));
            prop_assert_eq!((e.ip.src, e.ip.dst, e.quoted_ip, e.quoted), (dst, src, asked, quoted));
            prop_assert!(valid(0, &[&e.icmp.bytes()[..], &e.quoted_ip.bytes(), &e.quoted].concat()));
        }
    }

    #[test]
    fn only_sound_headers_are_answered() {
        let good = ip_back(&ip([1, 2, 3, 4], [5, 6, 7, 8]), TCP, 40);
        assert!(answerable(&good));
        assert!(!answerable(&Ipv4 { ttl: 1, ..good }));
        assert!(!answerable(&Ipv4 { version_ihl: 0x46, ..good }));
    }
}
