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

/// What words in the place of others add to a sum (RFC 1624): a sum over a packet whose words `old`
/// become `new` grows by this. In the byte order of the words, as the kernel's helpers take it.
#[inline(always)]
pub const fn diff<const N: usize>(old: [u32; N], new: [u32; N]) -> u32 {
    let mut sum = 0u64;
    let mut i = 0;
    while i < N {
        sum += (!old[i]) as u64 + new[i] as u64;
        i += 1;
    }
    // N is small: two folds take all carries.
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Adds two sums of 32 bits, carry added back.
#[inline(always)]
pub const fn both(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// A checksum field as it lies in a packet, after words that it covers have changed by `diff`.
#[inline(always)]
pub const fn changed(field: [u8; 2], diff: u32) -> [u8; 2] {
    let sum = !u16::from_ne_bytes(field);
    (!fold(both(sum as u32, diff))).to_ne_bytes()
}

/// The sum of the TCP and UDP pseudo header (RFC 9293 section 3.1).
#[inline(always)]
pub fn pseudo_v4(src: [u8; 4], dst: [u8; 4], proto: u8, len: u16) -> u32 {
    add(add(u32::from(proto) + u32::from(len), &src), &dst)
}

/// The sum of the pseudo header over IPv6 (RFC 8200 section 8.1).
#[inline(always)]
pub fn pseudo_v6(src: &[u8; 16], dst: &[u8; 16], proto: u8, len: u16) -> u32 {
    add(add(u32::from(proto) + u32::from(len), src), dst)
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
        fn a_changed_sum_is_the_sum_of_what_changed(mut bytes: [u8; 20], new: [u8; 8]) {
            bytes[10..12].copy_from_slice(&[0, 0]);
            let sum = !fold(add(0, &bytes));
            let word = |b: &[u8]| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
            let d = diff([word(&bytes[12..]), word(&bytes[16..])], [word(&new), word(&new[4..])]);
            bytes[12..].copy_from_slice(&new);
            bytes[10..12].copy_from_slice(&changed(sum.to_be_bytes(), d));
            prop_assert_eq!(fold(add(0, &bytes)), 0xffff);
        }

        #[test]
        fn what_is_summed_with_its_checksum_is_all_ones(mut bytes: [u8; 20]) {
            bytes[10..12].copy_from_slice(&[0, 0]);
            let sum = !fold(add(0, &bytes));
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            prop_assert_eq!(fold(add(0, &bytes)), 0xffff);
        }
    }
}
