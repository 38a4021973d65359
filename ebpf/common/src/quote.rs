//! ICMP errors: which messages quote a packet, and what changes in them when the flow that the quoted
//! packet belongs to is translated. Called by the programs for every ICMP packet of a service.

use crate::{
    checksum::{both, changed, diff},
    header::{Icmp, Ipv4},
    rows::{Addr, ICMP},
};

/// Destination unreachable, time exceeded, parameter problem: the errors that quote (RFC 792); source
/// quench is of the past (RFC 6633), redirects are about routes.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// Destination unreachable to parameter problem (RFC 4443 section 2.1).
const ERRORS_V6: core::ops::RangeInclusive<u8> = 1..=4;

/// True if the message quotes the packet that it is about. `proto`: of the message.
#[inline(always)]
pub const fn quotes(proto: u8, icmp: &Icmp) -> bool {
    if proto == ICMP {
        icmp.kind == ERRORS_V4[0] || icmp.kind == ERRORS_V4[1] || icmp.kind == ERRORS_V4[2]
    } else {
        icmp.kind >= *ERRORS_V6.start() && icmp.kind <= *ERRORS_V6.end()
    }
}

/// A quoted IPv4 header with other addresses. Its own checksum makes up for them, so that the sum over
/// the message stays what it was.
#[inline(always)]
pub fn requoted(ip: &Ipv4, src: u32, dst: u32) -> Ipv4 {
    let old = [u32::from_ne_bytes(ip.src), u32::from_ne_bytes(ip.dst)];
    Ipv4 {
        src: src.to_ne_bytes(),
        dst: dst.to_ne_bytes(),
        checksum: changed(ip.checksum, diff(old, [src, dst])),
        ..*ip
    }
}

/// By how much two addresses in the place of others change a sum.
#[inline(always)]
pub const fn addresses_diff(old: (Addr, Addr), new: (Addr, Addr)) -> u32 {
    both(diff(old.0.0, new.0.0), diff(old.1.0, new.1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        checksum::{add, fold},
        rows::ICMP6,
    };

    #[test]
    fn errors_quote_and_nothing_else_does() {
        let icmp = |kind| Icmp { kind, ..Icmp::default() };
        let of = |proto| (0..=255).filter(|k| quotes(proto, &icmp(*k))).collect::<std::vec::Vec<_>>();
        assert_eq!(of(ICMP), [3, 11, 12]);
        assert_eq!(of(ICMP6), [1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn a_quoted_header_keeps_the_sum(src: [u8; 4], dst: [u8; 4], new_src: u32, new_dst: u32, ttl: u8) {
            let mut ip = Ipv4 { version_ihl: 0x45, ttl, src, dst, ..Ipv4::default() };
            ip.checksum = (!fold(add(0, &ip.bytes()))).to_be_bytes();
            let new = requoted(&ip, new_src, new_dst);
            prop_assert_eq!(fold(add(0, &new.bytes())), 0xffff);
            prop_assert_eq!((u32::from_ne_bytes(new.src), u32::from_ne_bytes(new.dst)), (new_src, new_dst));
        }
    }
}
