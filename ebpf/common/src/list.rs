//! How a set's list of backends lies in `MEMBERS`, an array of 64-bit words. Read by the programs for
//! each new flow, written by the loader.
//!
//! A list has a range of words: the number of choices made so far, which the programs count up; the
//! backends, two to a word; and where the list names each of them often, as a Maglev table does, the
//! place of each entry's backend among them, in one byte for up to 256 backends, in two for more.

/// Words before the backends.
const HEAD: u32 = 1;
/// Backends whose places take one byte.
const BYTES: u32 = 256;

/// Where the backend at `place` is: the word, counted from the list's first, and the bits to shift it by.
#[inline(always)]
pub const fn member(place: u32) -> (u32, u32) {
    (HEAD + (place >> 1), (place & 1) * 32)
}

/// Where the entry `index` of a list of that many `members` is: the word, the bits to shift it by, and
/// the mask of what is left.
#[inline(always)]
pub const fn entry(members: u32, index: u32) -> (u32, u32, u64) {
    let before = HEAD + members.div_ceil(2);
    if members <= BYTES {
        (before + (index >> 3), (index & 7) * 8, 0xff)
    } else {
        (before + (index >> 2), (index & 3) * 16, 0xffff)
    }
}

/// Words of a list of `count` entries that name so many `members`; 0: the entries are the backends.
pub const fn words(count: u32, members: u32) -> u32 {
    if count == 0 {
        0
    } else if members == 0 {
        HEAD + count.div_ceil(2)
    } else {
        entry(members, count - 1).0 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!((member(0), member(3)), ((1, 0), (2, 32)));
        assert_eq!((entry(3, 0), entry(3, 9)), ((3, 0, 0xff), (4, 8, 0xff)));
        assert_eq!(entry(257, 5), (1 + 129 + 1, 16, 0xffff));
    }

    #[test]
    fn sizes() {
        assert_eq!([words(0, 0), words(1, 0), words(4, 0), words(5, 0)], [0, 2, 3, 4]);
        assert_eq!(words(16_381, 4), 1 + 2 + 2048);
        assert_eq!(words(65_521, 1000), 1 + 500 + 16_381);
    }
}
