//! Object ids: 60 random bits, written as 12 characters of Crockford's base32 in lower case.
//!
//! Twelve characters, so that an interface name (`mb-`, `mx-` or `mv-` and the whole id) just fits
//! the kernel's 15. Ids are drawn by whoever proposes a command and checked for uniqueness when it
//! is applied, so that applying stays deterministic.

use std::{fmt, num::NonZeroU64, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Characters of a written id.
pub const LEN: usize = 12;
const MASK: u64 = (1 << 60) - 1;

/// The id of an object: its bits, and a one behind them, so that none takes no more room than one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(NonZeroU64);

impl Default for Id {
    fn default() -> Self {
        Self::from_bits(0)
    }
}

impl Id {
    /// Makes an id of the lowest 60 of `random` bits.
    pub fn from_bits(random: u64) -> Self {
        Self(NonZeroU64::MIN | (random & MASK) << 1)
    }

    /// The 60 bits.
    pub fn bits(self) -> u64 {
        self.0.get() >> 1
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = [0u8; LEN];
        for (i, c) in out.iter_mut().enumerate() {
            *c = ALPHABET[(self.bits() >> (5 * (LEN - 1 - i)) & 31) as usize];
        }
        f.pad(std::str::from_utf8(&out).unwrap_or_default())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an id (12 characters of 0-9 and a-z without i, l, o, u)")]
pub struct NotAnId(String);

impl FromStr for Id {
    type Err = NotAnId;

    fn from_str(s: &str) -> Result<Self, NotAnId> {
        if s.len() != LEN {
            return Err(NotAnId(s.into()));
        }
        let mut bits = 0u64;
        for c in s.bytes() {
            let v = ALPHABET.iter().position(|a| *a == c).ok_or_else(|| NotAnId(s.into()))?;
            bits = bits << 5 | v as u64;
        }
        Ok(Self::from_bits(bits))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_reads_back() {
        for bits in [0, 1, 31, 32, MASK, 0x0123_4567_89ab_cdef] {
            let id = Id::from_bits(bits);
            assert_eq!(id.to_string().len(), LEN);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn refuses_what_is_no_id() {
        for bad in ["", "short", "0123456789abc", "0123456789ai", "0123456789AB", "../../../etc"] {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }
}
