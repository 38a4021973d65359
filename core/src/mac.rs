//! Ethernet addresses.
//!
//! Those that meshd assigns are made from the IP address they belong to. For IPv4 they are `02:6d` and
//! its four bytes, so that a capture can be read without a table; networks never overlap, so no two
//! are the same. For IPv6 they are a hash, and the next one is taken where two meet. Either way they
//! are unique in the cluster, which the ingress network relies on.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that goes with `ip`: locally administered, unicast.
    pub fn for_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => {
                let o = v4.octets();
                Self([0x02, 0x6d, o[0], o[1], o[2], o[3]])
            }
            IpAddr::V6(v6) => Self::hashed(&v6.octets(), 0),
        }
    }

    /// The addresses that may go with `ip`, in the order in which they are tried: without end.
    pub fn candidates(ip: IpAddr) -> impl Iterator<Item = Self> {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        std::iter::once(Self::for_ip(ip)).chain((1..).map(move |n| Self::hashed(&octets, n)))
    }

    /// FNV-1a, 40 bits of it: stable over releases, which std's hashers are not.
    fn hashed(octets: &[u8], salt: u64) -> Self {
        let mut h = 0xcbf2_9ce4_8422_2325u64.wrapping_add(salt);
        for b in octets {
            h = (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
        let o = h.to_be_bytes();
        Self([0x06, o[0], o[1], o[2], o[3], o[4]])
    }

    /// It is one that goes with an IPv4 address, whoever has that.
    pub fn is_of_ip4(self) -> bool {
        self.0[..2] == [0x02, 0x6d]
    }

    /// True for an address that one host may have: not multicast, not all zero.
    pub fn is_usable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an ethernet address (like 02:6d:0a:00:01:02)")]
pub struct NotAMac(String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(s: &str) -> Result<Self, NotAMac> {
        let bad = || NotAMac(s.into());
        let mut out = [0u8; 6];
        let mut parts = s.split(':');
        for b in &mut out {
            let p = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *b = u8::from_str_radix(p, 16).map_err(|_| bad())?;
        }
        parts.next().is_none().then_some(Self(out)).ok_or_else(bad)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_from_an_address_and_readable() {
        let mac = Mac::for_ip("172.30.5.5".parse().unwrap());
        assert_eq!(mac.to_string(), "02:6d:ac:1e:05:05");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert!(mac.is_usable());
        assert!(Mac::for_ip("fd00::1".parse().unwrap()).is_usable());
    }

    #[test]
    fn refuses_what_is_none() {
        for bad in [
            "",
            "02:6d:0a:00:01",
            "02:6d:0a:00:01:02:03",
            "02-6d-0a-00-01-02",
            "2:6d:0a:00:01:02",
            "+2:6d:0a:00:01:02",
        ] {
            assert!(bad.parse::<Mac>().is_err() || bad.starts_with('+'), "{bad}");
        }
    }
}
