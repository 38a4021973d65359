//! Which address, subnet or port is handed out next. Pure: the replicated state calls it, so every
//! manager finds the same answer.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Id, Refusal, objects::Subnet, spec::overlap};

/// Ports that are handed out when none is asked for (those that users of Swarm know).
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Prefix length of an IPv6 subnet that is handed out (RFC 4291 section 2.5.4).
pub const IPV6_PREFIX: u8 = 64;

/// The range that a cluster's IPv6 subnets are taken from when no pool of IPv6 was given: unique
/// local addresses (RFC 4193 section 3.1), `fd` and 40 random bits, which are those of the cluster's
/// id.
pub fn local_pool(cluster: Id) -> Ipv6Net {
    let global_id = u128::from(cluster.bits()) & ((1 << 40) - 1);
    Ipv6Net::new_assert(Ipv6Addr::from(0xfd << 120 | global_id << 80), 48)
}

/// The first subnet of [`local_pool`]: where the nodes' own IPv6 addresses are.
pub fn node_range(cluster: Id) -> Ipv6Net {
    Ipv6Net::new_assert(local_pool(cluster).addr(), IPV6_PREFIX)
}

/// A node's own IPv6 address, from which it speaks into networks. It follows from the two ids and so
/// is taken by nobody else.
pub fn node_address(cluster: Id, node: Id) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(node_range(cluster).addr()) | u128::from(node.bits()))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v) => u128::from(u32::from(v)),
        IpAddr::V6(v) => u128::from(v),
    }
}

fn address(like: IpAddr, n: u128) -> IpAddr {
    match like {
        // Callers stay inside one IPv4 range, so the value fits.
        IpAddr::V4(_) => IpAddr::V4((n as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(n.into()),
    }
}

/// First and last address of `subnet` that a host may have and that lie in its range.
fn bounds(subnet: &Subnet) -> (u128, u128) {
    let net = subnet.subnet;
    let range = subnet.ip_range.unwrap_or(net);
    let last_host = number(net.broadcast()) - u128::from(net.addr().is_ipv4());
    (
        number(range.network()).max(number(net.network()) + 1),
        number(range.broadcast()).min(last_host),
    )
}

/// Addresses that can be handed out at all, gateway and auxiliary ones included.
pub fn capacity(subnet: &Subnet) -> u128 {
    let (first, last) = bounds(subnet);
    last.checked_sub(first).map_or(0, |room| room + 1)
}

/// The next free address behind the cursor, round once. A released address is thus the last to be
/// handed out again. `used` holds every taken address of the network.
///
/// # Errors
/// The pool is exhausted; the text names it and its use.
pub fn next_address(network: &str, subnet: &Subnet, used: &BTreeSet<IpAddr>) -> Result<IpAddr, Refusal> {
    let (first, last) = bounds(subnet);
    let like = subnet.subnet.addr();
    let start = subnet
        .cursor
        .map(number)
        .filter(|c| (first..last).contains(c))
        .map_or(first, |c| c + 1);
    let gap = |from: u128, to: u128| -> Option<u128> {
        let mut candidate = from;
        for taken in used.range(address(like, from)..=address(like, to)).map(|ip| number(*ip)) {
            if taken > candidate {
                break;
            }
            candidate = taken + 1;
        }
        (candidate <= to).then_some(candidate)
    };
    let found = if first > last {
        None
    } else {
        gap(start, last).or_else(|| if start > first { gap(first, start - 1) } else { None })
    };
    found.map(|n| address(like, n)).ok_or_else(|| {
        let taken = used.range(address(like, first)..=address(like, last.max(first))).count();
        let pool = subnet.ip_range.unwrap_or(subnet.subnet);
        Refusal::other(format!(
            "network {network:?} has no free address: all {taken} of {pool} are in use; remove endpoints or make a larger network"
        ))
    })
}

/// The first subnet of `prefix` length in the pools that overlaps none of `taken`.
///
/// # Errors
/// Every pool is used up.
pub fn next_subnet(pools: &[IpNet], prefix: u8, taken: &[IpNet]) -> Result<IpNet, Refusal> {
    for pool in pools {
        let prefix = prefix.max(pool.prefix_len());
        if prefix > pool.max_prefix_len() {
            continue;
        }
        let step = 1u128 << (pool.max_prefix_len() - prefix);
        let (mut at, end) = (number(pool.network()), number(pool.broadcast()));
        while at <= end {
            let candidate = match address(pool.addr(), at) {
                IpAddr::V4(v) => Ipv4Net::new(v, prefix).map(IpNet::V4),
                IpAddr::V6(v) => Ipv6Net::new(v, prefix).map(IpNet::V6),
            };
            let Ok(candidate) = candidate else { break };
            match taken.iter().find(|t| overlap(**t, candidate)) {
                None => return Ok(candidate),
                // Go on behind what is in the way, however large it is.
                Some(t) => at = (number(t.broadcast()) / step + 1).saturating_mul(step).max(at + step),
            }
        }
    }
    let pools = pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Refusal::other(format!(
        "no /{prefix} is free in the address pools ({pools}): give --subnet, or remove networks"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(net: &str) -> Subnet {
        Subnet {
            subnet: net.parse().unwrap(),
            gateway: "10.0.0.1".parse().unwrap(),
            ip_range: None,
            aux: Default::default(),
            cursor: None,
        }
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn hands_out_in_order_and_lets_the_released_rest() {
        let mut s = subnet("10.0.0.0/29");
        let mut used = BTreeSet::from([ip("10.0.0.1")]);
        for want in ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"] {
            let got = next_address("n", &s, &used).unwrap();
            assert_eq!(got, ip(want));
            used.insert(got);
            s.cursor = Some(got);
        }
        let full = next_address("n", &s, &used).unwrap_err();
        assert!(full.message.contains("all 6 of 10.0.0.0/29"), "{full}");
        used.remove(&ip("10.0.0.3"));
        assert_eq!(next_address("n", &s, &used).unwrap(), ip("10.0.0.3"));
        s.cursor = Some(ip("10.0.0.3"));
        used.remove(&ip("10.0.0.5"));
        assert_eq!(next_address("n", &s, &used).unwrap(), ip("10.0.0.5"), "behind the cursor first");
    }

    #[test]
    fn keeps_to_the_range() {
        let mut s = subnet("10.0.0.0/24");
        s.ip_range = Some("10.0.0.252/30".parse().unwrap());
        assert_eq!(capacity(&s), 3);
        let mut used = BTreeSet::new();
        for want in ["10.0.0.252", "10.0.0.253", "10.0.0.254"] {
            let got = next_address("n", &s, &used).unwrap();
            assert_eq!(got, ip(want));
            used.insert(got);
        }
        assert!(next_address("n", &s, &used).is_err(), "the broadcast address is not handed out");
    }

    #[test]
    fn jumps_over_what_is_taken() {
        let pools = ["10.0.0.0/8".parse().unwrap()];
        let taken: Vec<IpNet> = ["10.0.0.0/16", "10.1.0.0/20"].iter().map(|s| s.parse().unwrap()).collect();
        assert_eq!(next_subnet(&pools, 20, &taken).unwrap().to_string(), "10.1.16.0/20");
        assert_eq!(next_subnet(&pools, 12, &taken).unwrap().to_string(), "10.16.0.0/12");
        assert!(next_subnet(&pools, 20, &["0.0.0.0/0".parse().unwrap()]).is_err());
    }
}
