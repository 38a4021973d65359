//! The Internet checksum (RFC 1071) over what the programs write themselves. Changed fields of
//! forwarded packets are the kernel's helpers' work (`bpf_l3_csum_replace`, `bpf_l4_csum_replace`).

/// Adds 16-bit words, in network byte order, to a running sum. `N` must be even and at most 64 KiB.
#[inline(always)]
pub fn add<const N: usize>(mut sum: u32, bytes: &[u8; N]) -> u32 {
    let mut i = 0;
    while i + 1 < N {
        sum += u32::from(u16::from_be_bytes([bytes[i], bytes[i + 1]]));
        i += 2;
    }
    sum
}

/// Folds a running sum to 16 bits with the carries added back.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of the TCP and UDP pseudo header (RFC 9293 section 3.1).
#[inline(always)]
pub fn pseudo_v4(src: [u8; 4], dst: [u8; 4], proto: u8, len: u16) -> u32 {
    add(add(u32::from(proto) + u32::from(len), &src), &dst)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_1071_example() {
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    proptest! {
        #[test]
        fn what_is_summed_with_its_checksum_is_all_ones(mut bytes: [u8; 20]) {
            bytes[10..12].copy_from_slice(&[0, 0]);
            let sum = !fold(add(0, &bytes));
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            prop_assert_eq!(fold(add(0, &bytes)), 0xffff);
        }
    }
}
