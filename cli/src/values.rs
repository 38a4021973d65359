//! Values on the command line that are more than a word: pairs, addresses, references, words.
//!
//! Called by clap; the errors are sentences that it puts behind the option's name.

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use ipnet::IpNet;
use mesh_core::{
    Mac,
    objects::{Algorithm, Availability, EndpointMode, EndpointState, LEAST_RATE, LbReturn, Role, SourceRange},
    spec::{MOST_WEIGHT, check_name, check_weight},
};

/// A subnet, with its prefix length.
pub fn subnet(s: &str) -> Result<IpNet, String> {
    s.parse()
        .map_err(|_| "not a subnet: use ADDRESS/LENGTH, like 172.30.0.0/16".to_owned())
}

/// An address.
pub fn ip(s: &str) -> Result<IpAddr, String> {
    s.parse().map_err(|_| "not an IP address: use one like 172.30.0.5".to_owned())
}

/// An IPv6 address.
pub fn ip6(s: &str) -> Result<Ipv6Addr, String> {
    s.parse()
        .map_err(|_| "not an IPv6 address: use one like fd12:3456:789a:1::5".to_owned())
}

/// An Ethernet address that a host may have.
pub fn mac(s: &str) -> Result<Mac, String> {
    let mac = Mac::from_str(s).map_err(|e| e.to_string())?;
    if mac.is_usable() {
        Ok(mac)
    } else {
        Err("multicast, or all zero: use one like 02:6d:0a:00:01:02".to_owned())
    }
}

/// `key=value`; a key alone has an empty value, as with Docker.
pub fn label(s: &str) -> Result<(String, String), String> {
    let (key, value) = s.split_once('=').unwrap_or((s, ""));
    if key.trim().is_empty() {
        Err("the key is empty: use KEY=VALUE".to_owned())
    } else {
        Ok((key.to_owned(), value.to_owned()))
    }
}

/// `key=value`, both of which must be there.
pub fn option(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("use KEY=VALUE, like mtu=1400".to_owned()),
    }
}

/// `name=address`.
pub fn aux_address(s: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = s
        .split_once('=')
        .filter(|(n, _)| !n.is_empty())
        .ok_or("use NAME=ADDRESS, like router=172.30.0.2")?;
    Ok((name.to_owned(), ip(address)?))
}

/// The name or id of something that exists.
pub fn reference(s: &str) -> Result<String, String> {
    if s.trim().is_empty() {
        Err("it is empty: give a name or an id".to_owned())
    } else {
        Ok(s.to_owned())
    }
}

/// The name of an interface, as the kernel takes it (net/core/dev.c, dev_valid_name).
pub fn ifname(s: &str) -> Result<String, String> {
    let bad = s.is_empty()
        || s.len() > 15
        || s == "."
        || s == ".."
        || s.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if bad {
        Err("not an interface name: use 1 to 15 characters without '/', ':' or blanks, like eth0".to_owned())
    } else {
        Ok(s.to_owned())
    }
}

/// A host name, of one label or several, as the kernel takes it (sethostname(2): 64 characters).
pub fn hostname(s: &str) -> Result<String, String> {
    if s.len() > 64 {
        return Err(format!("it has {} characters: use 64 at most", s.len()));
    }
    s.split('.')
        .try_for_each(|label| check_name("host", label))
        .map_err(|e| e.message)?;
    Ok(s.to_owned())
}

/// `NAME=VALUE` of an environment.
pub fn variable(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("use NAME=VALUE, like LANG=C".to_owned()),
    }
}

/// `HOST` or `HOST:PORT`.
pub fn manager(s: &str) -> Result<String, String> {
    let hint = "use HOST or HOST:PORT, like 192.168.77.11:2377";
    let bare = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(s);
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(s.to_owned());
    }
    if s.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(format!("not a host: {hint}"));
    }
    let (host, port) = s.rsplit_once(':').map_or((s, None), |(h, p)| (h, Some(p)));
    if host.is_empty() || (host.contains(':') && !host.starts_with('[')) {
        return Err(format!("not a host: {hint}"));
    }
    match port.map(str::parse::<u16>) {
        None | Some(Ok(1..)) => Ok(s.to_owned()),
        Some(_) => Err(format!("the port is not one of 1 to 65535: {hint}")),
    }
}

/// A join token, as far as its shape tells.
pub fn token(s: &str) -> Result<String, String> {
    if s.starts_with("MESH-1-") {
        Ok(s.to_owned())
    } else {
        Err("not a join token: it begins with MESH-1-; meshctl token worker, on a manager, prints one".to_owned())
    }
}

fn words<T: Clone + Send + Sync + 'static>(table: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(table.iter().map(|(word, _)| *word)).try_map(|s| {
        // Clap has already refused every other word.
        table
            .iter()
            .find(|(word, _)| *word == s)
            .map(|(_, value)| value.clone())
            .ok_or_else(|| format!("{s:?} is not known"))
    })
}

/// worker or manager.
pub fn role() -> impl TypedValueParser<Value = Role> {
    words(&[("worker", Role::Worker), ("manager", Role::Manager)])
}

/// active, pause or drain.
pub fn availability() -> impl TypedValueParser<Value = Availability> {
    words(&[
        ("active", Availability::Active),
        ("pause", Availability::Pause),
        ("drain", Availability::Drain),
    ])
}

/// vip or dnsrr.
pub fn endpoint_mode() -> impl TypedValueParser<Value = EndpointMode> {
    words(&[("vip", EndpointMode::Vip), ("dnsrr", EndpointMode::Dnsrr)])
}

/// ready or draining.
pub fn endpoint_state() -> impl TypedValueParser<Value = EndpointState> {
    words(&[("ready", EndpointState::Ready), ("draining", EndpointState::Draining)])
}

/// rr, random, maglev or source-hash.
pub fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    words(&[
        ("rr", Algorithm::Rr),
        ("random", Algorithm::Random),
        ("maglev", Algorithm::Maglev),
        ("source-hash", Algorithm::SourceHash),
    ])
}

/// tunnel or direct.
pub fn lb_return() -> impl TypedValueParser<Value = LbReturn> {
    words(&[("tunnel", LbReturn::Tunnel), ("direct", LbReturn::Direct)])
}

/// A range of clients, or a single one; `!` before it denies.
pub fn source_range(s: &str) -> Result<SourceRange, String> {
    let (allow, text) = s.strip_prefix('!').map_or((true, s), |rest| (false, rest));
    let single = text.parse::<IpAddr>().map(IpNet::from);
    let net = text.parse().or(single);
    net.map(|net| SourceRange { net, allow })
        .map_err(|_| "not a range of clients: use ADDRESS/LENGTH or !ADDRESS/LENGTH, like 10.0.0.0/8 or !10.1.0.0/16".to_owned())
}

/// A range of clients as it was given, without its `!`.
pub fn source_net(s: &str) -> Result<IpNet, String> {
    source_range(s).map(|r| r.net)
}

/// Bits per second, with a decimal prefix.
pub fn rate(s: &str) -> Result<u64, String> {
    let hint = || format!("not a rate: use bits per second, {LEAST_RATE} at least, like 500K, 20M or 1G");
    let prefixes = [
        ("k", 1_000),
        ("K", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let found = prefixes.iter().find_map(|(prefix, by)| Some((s.strip_suffix(prefix)?, *by)));
    let (number, by) = found.unwrap_or((s, 1));
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let rate = number.parse::<u64>().ok().filter(|_| digits).and_then(|n| n.checked_mul(by));
    rate.filter(|rate| *rate >= LEAST_RATE).ok_or_else(hint)
}

/// An endpoint's weight.
pub fn weight(s: &str) -> Result<u32, String> {
    let weight = s.parse().map_err(|_| format!("not a weight: use 0 to {MOST_WEIGHT}"))?;
    check_weight(weight).map_err(|e| e.message)?;
    Ok(weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates() {
        for (text, bits) in [
            ("8", 8),
            ("500K", 500_000),
            ("500k", 500_000),
            ("20M", 20_000_000),
            ("1G", 1_000_000_000),
            ("2T", 2_000_000_000_000),
        ] {
            assert_eq!(rate(text), Ok(bits), "{text}");
        }
        for bad in [
            "",
            "0",
            "7",
            "M",
            "-1",
            "+1M",
            "1.5M",
            "20 M",
            "20m",
            "20Mbit",
            "99999999999999999999",
            "99999999T",
        ] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs() {
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(label("a"), Ok(("a".into(), String::new())));
        assert!(label("=b").is_err() && label("").is_err());
        assert!(option("mtu").is_err() && option("mtu=").is_err() && option("mtu=1400").is_ok());
        assert!(aux_address("r=1.2.3.4").is_ok() && aux_address("1.2.3.4").is_err() && aux_address("r=x").is_err());
    }

    #[test]
    fn managers() {
        for good in [
            "h1",
            "192.168.77.11",
            "192.168.77.11:2377",
            "h1.example:1",
            "[fd00::1]:2377",
            "fd00::1",
            "[fd00::1]",
        ] {
            assert!(manager(good).is_ok(), "{good}");
        }
        for bad in ["", ":2377", "h1:", "h1:0", "h1:70000", "h1:x", "a b", "http://h1"] {
            assert!(manager(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn interface_names() {
        assert!(ifname("eth0").is_ok());
        for bad in ["", "a/b", "a b", "a:b", "..", "sixteen-letters!"] {
            assert!(ifname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_of_clients() {
        for (text, net, allow) in [
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("!10.1.0.0/16", "10.1.0.0/16", false),
            ("192.0.2.7", "192.0.2.7/32", true),
            ("!fd00::7", "fd00::7/128", false),
            ("::/0", "::/0", true),
        ] {
            let net = net.parse().unwrap_or_else(|e| panic!("{net}: {e}"));
            assert_eq!(source_range(text), Ok(SourceRange { net, allow }), "{text}");
        }
        for bad in ["", "!", "!!10.0.0.0/8", "10.0.0.0/33", "all", " 10.0.0.0/8"] {
            assert!(source_range(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(s in "\\PC*") {
            let _ = (hostname(&s), variable(&s), manager(&s), label(&s), option(&s), aux_address(&s), ifname(&s), mac(&s), subnet(&s), source_range(&s), weight(&s), rate(&s));
        }
    }
}
