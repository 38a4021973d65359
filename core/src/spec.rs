//! What users ask for when they make a network or a service, and the checks that need no state.
//!
//! meshctl checks a request here before it sends it (exit 2), and the state checks it again when it
//! is applied.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Refusal,
    objects::{Algorithm, Encapsulation, EndpointMode, Labels, LbReturn, Port, SourceRange},
};

/// Greatest weight of an endpoint.
pub const MOST_WEIGHT: u32 = 1000;
/// Longest affinity in seconds: a day.
const MOST_AFFINITY: u32 = 86400;
/// The least MTU in bytes that IPv6 works with (RFC 8200 section 5).
pub const IPV6_MIN_MTU: u32 = 1280;
/// The least MTU in bytes that a network may have: what every IPv4 host must accept (RFC 791).
pub const MIN_MTU: u32 = 576;

/// A network as asked for. `subnets`, `gateways` and `ip_ranges` belong together by family and by
/// containment, not by position, as with `docker network create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Only `overlay`; empty means that.
    pub driver: String,
    /// Ranges; empty: one from the cluster's pools.
    pub subnets: Vec<IpNet>,
    /// IPv6 too: a range from the cluster's pools unless `subnets` has one. With IPv6 subnets alone
    /// the network has no IPv4.
    pub ipv6: bool,
    /// Gateways; a subnet without one gets its first address.
    pub gateways: Vec<IpAddr>,
    /// Parts of subnets that addresses are handed out from.
    pub ip_ranges: Vec<IpNet>,
    /// Addresses never handed out.
    pub aux_addresses: BTreeMap<String, IpAddr>,
    /// No way out.
    pub internal: bool,
    /// Containers outside a service may attach.
    pub attachable: bool,
    /// Driver options: `mtu`, `encapsulation`.
    pub options: Labels,
    /// Labels.
    pub labels: Labels,
}

/// A service as asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// Names or ids of its networks.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Its published ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// How its name resolves.
    #[serde(default = "vip")]
    pub endpoint_mode: EndpointMode,
    /// How a backend is chosen.
    #[serde(default = "rr")]
    pub algorithm: Algorithm,
    /// Seconds that a draining endpoint's flows may last.
    #[serde(default = "ten")]
    pub drain_secs: u32,
    /// Seconds for which a client comes back to its endpoint; 0: it does not.
    #[serde(default)]
    pub affinity_secs: u32,
    /// Clients that its published ports let in, or do not; none: everybody is let in.
    #[serde(default)]
    pub source_ranges: Vec<SourceRange>,
    /// The way that replies of its published ports take.
    #[serde(default)]
    pub lb_return: LbReturn,
    /// Endpoints on its networks that have all these labels serve it too.
    #[serde(default)]
    pub selector: Labels,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}

fn vip() -> EndpointMode {
    EndpointMode::Vip
}

fn rr() -> Algorithm {
    Algorithm::Rr
}

fn ten() -> u32 {
    10
}

/// Checks that `name` is a DNS label (RFC 1123 section 2.1): 1 to 63 letters, digits and inner
/// hyphens. `what` is the word for the object in the error.
pub fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let rule = "1 to 63 letters, digits and hyphens, no hyphen first or last";
    let wrong = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > 63 {
        format!("{:?} has {} characters", crop(name), name.chars().count())
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') || name.starts_with('-') || name.ends_with('-') {
        format!("{name:?} is not a DNS label")
    } else {
        return Ok(());
    };
    Err(Refusal::malformed(format!("{what} name {wrong}: use {rule}")))
}

/// The error for a name or id that nothing has; `what` is a kind of object, and a command. A name that is longer
/// than any can be is shortened.
pub fn unknown(what: &str, reference: &str) -> Refusal {
    let named = if reference.len() > 63 {
        crop(reference)
    } else {
        reference.to_owned()
    };
    Refusal::not_found(format!("no {what} named {named:?}: see meshctl {what} ls"))
}

fn crop(s: &str) -> String {
    let head: String = s.chars().take(24).collect();
    if head.len() < s.len() { format!("{head}…") } else { head }
}

impl NetworkSpec {
    /// Checks all that can be checked without the cluster's state.
    pub fn check(&self) -> Result<(), Refusal> {
        check_name("network", &self.name)?;
        if !matches!(self.driver.as_str(), "" | "overlay") {
            return Err(Refusal::malformed(format!("driver {:?} is not known: use overlay", self.driver)));
        }
        for net in &self.subnets {
            check_subnet(*net)?;
        }
        for (i, a) in self.subnets.iter().enumerate() {
            if let Some(b) = self.subnets[..i].iter().find(|b| overlap(**b, *a)) {
                return Err(Refusal::malformed(format!(
                    "subnets {b} and {a} overlap: give ranges apart from each other"
                )));
            }
        }
        for gateway in &self.gateways {
            let Some(net) = self.subnets.iter().find(|n| n.contains(gateway)) else {
                return Err(Refusal::malformed(format!(
                    "gateway {gateway} is in none of the subnets{}",
                    list(&self.subnets)
                )));
            };
            check_host(*net, *gateway, "gateway")?;
            if self.gateways.iter().filter(|g| net.contains(*g)).count() > 1 {
                return Err(Refusal::malformed(format!("subnet {net} has more than one gateway: give one")));
            }
        }
        for range in &self.ip_ranges {
            let Some(net) = self.subnets.iter().find(|n| n.contains(range)) else {
                return Err(Refusal::malformed(format!(
                    "ip range {range} is in none of the subnets{}",
                    list(&self.subnets)
                )));
            };
            if self.ip_ranges.iter().filter(|r| net.contains(*r)).count() > 1 {
                return Err(Refusal::malformed(format!("subnet {net} has more than one ip range: give one")));
            }
        }
        for (name, ip) in &self.aux_addresses {
            let Some(net) = self.subnets.iter().find(|n| n.contains(ip)) else {
                return Err(Refusal::malformed(format!(
                    "aux address {name}={ip} is in none of the subnets{}",
                    list(&self.subnets)
                )));
            };
            check_host(*net, *ip, "aux address")?;
            if self.gateways.contains(ip) {
                return Err(Refusal::malformed(format!(
                    "aux address {name}={ip} is the gateway: choose another"
                )));
            }
        }
        if let Some(mtu) = self.mtu()?
            && self.wants_ip6()
            && mtu < IPV6_MIN_MTU
        {
            return Err(Refusal::malformed(format!(
                "mtu {mtu} is too small for IPv6: use {IPV6_MIN_MTU} or more"
            )));
        }
        if let Some(k) = self.options.keys().find(|k| !is_mtu(k) && *k != Encapsulation::OPTION) {
            return Err(Refusal::malformed(format!("option {k:?} is not known: use mtu or encapsulation")));
        }
        if let Some(how) = self.options.get(Encapsulation::OPTION)
            && Encapsulation::named(how).is_none()
        {
            return Err(Refusal::malformed(format!(
                "encapsulation {how:?} is not known: use vxlan, or cross-subnet (none between hosts of one segment)"
            )));
        }
        Ok(())
    }

    /// It shall have IPv4 addresses.
    pub fn wants_ip4(&self) -> bool {
        self.subnets.is_empty() || self.subnets.iter().any(|n| n.addr().is_ipv4())
    }

    /// It shall have IPv6 addresses.
    pub fn wants_ip6(&self) -> bool {
        self.ipv6 || self.subnets.iter().any(|n| n.addr().is_ipv6())
    }

    /// MTU in bytes from the options.
    pub fn mtu(&self) -> Result<Option<u32>, Refusal> {
        let Some((_, v)) = self.options.iter().find(|(k, _)| is_mtu(k)) else {
            return Ok(None);
        };
        match v.parse() {
            Ok(mtu @ MIN_MTU..=65485) => Ok(Some(mtu)),
            _ => Err(Refusal::malformed(format!("mtu {v:?} is not a number of bytes from 576 to 65485"))),
        }
    }
}

fn is_mtu(option: &str) -> bool {
    matches!(option, "mtu" | "com.docker.network.driver.mtu")
}

fn list(nets: &[IpNet]) -> String {
    match nets {
        [] => ": give its subnet too".to_owned(),
        nets => format!(" ({})", nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Ranges whose addresses no host can have for its own beyond its link: "this network", loopback,
/// link-local, multicast, reserved; unspecified and loopback, IPv4-mapped, link-local, multicast.
const NOT_UNICAST: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// Checks a subnet by itself: no host bits, unicast, room for a gateway and an endpoint.
pub fn check_subnet(net: IpNet) -> Result<(), Refusal> {
    if net.addr() != net.network() {
        return Err(Refusal::malformed(format!("subnet {net} has host bits set: use {}", net.trunc())));
    }
    check_unicast(net, "subnet")?;
    let smallest = net.max_prefix_len() - 2;
    if net.prefix_len() > smallest {
        return Err(Refusal::malformed(format!(
            "subnet {net} is too small: it needs a gateway and an endpoint, so /{smallest} or larger"
        )));
    }
    if net.prefix_len() < 8 {
        return Err(Refusal::malformed(format!("subnet {net} is too large: use /8 or smaller")));
    }
    Ok(())
}

/// Checks that all addresses of a range are unicast. `what` is the word for the range in the error.
pub fn check_unicast(net: IpNet, what: &str) -> Result<(), Refusal> {
    let example = if net.addr().is_ipv4() {
        "172.30.0.0/16"
    } else {
        "fd12:3456:789a:1::/64"
    };
    if NOT_UNICAST.iter().filter_map(|n| n.parse().ok()).any(|n| overlap(n, net)) {
        return Err(Refusal::malformed(format!(
            "{what} {net} is not a range of unicast addresses: use one like {example}"
        )));
    }
    Ok(())
}

/// Checks that `ip` may belong to a host in `net`: not the network's own or broadcast address.
pub fn check_host(net: IpNet, ip: IpAddr, what: &str) -> Result<(), Refusal> {
    if ip == net.network() || (ip == net.broadcast() && ip.is_ipv4()) {
        let which = if ip == net.network() { "network" } else { "broadcast" };
        return Err(Refusal::malformed(format!(
            "{what} {ip} is the {which} address of {net}: choose another"
        )));
    }
    Ok(())
}

/// Whether two ranges share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Checks an address that a port is bound to. Whether a node has it is not asked: the port answers
/// there once one does.
fn check_bound(address: IpAddr) -> Result<(), Refusal> {
    if address.is_unspecified() {
        return Err(Refusal::malformed(format!(
            "published address {address} is no address of a node: leave it out to answer at all of them"
        )));
    }
    if address.is_loopback() || address.is_multicast() || matches!(address, IpAddr::V4(v) if v.is_broadcast()) {
        return Err(Refusal::malformed(format!(
            "published address {address} is not one that clients can reach: use an address of a node"
        )));
    }
    Ok(())
}

/// Checks the ports of one service or endpoint.
pub fn check_ports(ports: &[Port]) -> Result<(), Refusal> {
    for (i, p) in ports.iter().enumerate() {
        if p.target == 0 {
            return Err(Refusal::malformed("target port 0 is not a port: use 1 to 65535"));
        }
        if let Some(address) = p.address {
            check_bound(address)?;
        }
        let same = |q: &&Port| {
            let alike = q.published != 0 && q.published == p.published && q.protocol == p.protocol;
            alike && (q.address.is_none() || p.address.is_none() || q.address == p.address)
        };
        if ports[..i].iter().any(|q| same(&q)) {
            return Err(Refusal::malformed(format!(
                "port {}/{} is published twice: publish it once",
                p.published,
                p.protocol.as_str()
            )));
        }
    }
    Ok(())
}

/// Checks an endpoint's weight.
pub fn check_weight(weight: u32) -> Result<(), Refusal> {
    match weight {
        0..=MOST_WEIGHT => Ok(()),
        _ => Err(Refusal::malformed(format!("weight {weight} is too great: use 0 to {MOST_WEIGHT}"))),
    }
}

impl ServiceSpec {
    /// Checks all that can be checked without the cluster's state.
    pub fn check(&self) -> Result<(), Refusal> {
        check_name("service", &self.name)?;
        if self.name.eq_ignore_ascii_case("tasks") {
            return Err(Refusal::malformed(
                "service name \"tasks\" is reserved for tasks.SERVICE: choose another",
            ));
        }
        if self.networks.is_empty() {
            return Err(Refusal::malformed(format!(
                "service {:?} has no network: give at least one --network",
                self.name
            )));
        }
        check_ports(&self.ports)?;
        if self.affinity_secs > MOST_AFFINITY {
            return Err(Refusal::malformed(format!(
                "affinity of {} s is too long: use at most 24h, or 0s for none",
                self.affinity_secs
            )));
        }
        self.check_ranges()
    }

    fn check_ranges(&self) -> Result<(), Refusal> {
        for (i, range) in self.source_ranges.iter().enumerate() {
            let net = range.net;
            if net.addr() != net.network() {
                return Err(Refusal::malformed(format!(
                    "source range {net} has host bits set: use {}",
                    net.trunc()
                )));
            }
            if self.source_ranges[..i].iter().any(|other| other.net == net) {
                return Err(Refusal::malformed(format!("source range {net} is given twice: give it once")));
            }
        }
        Ok(())
    }
}
