//! Services: sets of endpoints with one name, their ports, and how flows are spread over them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Endpoint, Labels, Seldom, both, exact, v4, v6};
use crate::Id;

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Where a published port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node.
    Ingress,
    /// Only on the nodes that run an endpoint, by that endpoint.
    Host,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Port on the nodes; 0 in a request asks for one of 30000-32767.
    pub published: u16,
    /// Port at the endpoint.
    pub target: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Where it answers.
    pub mode: PublishMode,
    /// The only address that it answers at; all of the nodes' where absent.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// Clients of published ports that are let in, or are not. The longest prefix decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRange {
    /// Their addresses.
    pub net: IpNet,
    /// They are let in.
    pub allow: bool,
}

/// The way that replies of a published port take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LbReturn {
    /// Back by the node that the client asked.
    #[default]
    Tunnel,
    /// From the endpoint's node straight to the client.
    Direct,
}

/// How the service's name resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// To one virtual address, balanced in the kernel.
    Vip,
    /// To the addresses of its ready endpoints.
    Dnsrr,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Strictly in turn, by weight.
    Rr,
    /// At random, by weight.
    Random,
    /// By a hash of the flow, the same on every node, which changes little when a backend leaves.
    Maglev,
    /// The same by a hash of the client's address only.
    SourceHash,
}

/// The virtual address of a service in one of its networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// The network.
    pub network: Id,
    /// The address: IPv4, or IPv6 in a network that has only that.
    pub ip: IpAddr,
    /// The IPv6 address in a network that has both.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Data-plane number of the set of backends behind it.
    pub slot: u32,
}

impl Vip {
    /// Its addresses.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        both(self.ip, self.ip6)
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Option<Ipv4Addr> {
        v4(self.ip)
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        v6(self.ip).or(self.ip6)
    }
}

/// A set of endpoints with one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: Id,
    /// Raft index of the last change.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its name: a DNS label, unique without regard to case.
    pub name: String,
    /// Its labels.
    pub labels: Seldom<Labels>,
    /// Its networks.
    #[serde(deserialize_with = "exact")]
    pub networks: Vec<Id>,
    /// How its name resolves.
    pub endpoint_mode: EndpointMode,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Its published ports.
    #[serde(deserialize_with = "exact")]
    pub ports: Vec<Port>,
    /// One virtual address per network, for mode vip.
    #[serde(deserialize_with = "exact")]
    pub vips: Vec<Vip>,
    /// Data-plane number of the set of backends behind its published ports.
    pub slot: u32,
    /// Seconds that a draining endpoint's flows may last.
    pub drain_secs: u32,
    /// Seconds for which a client comes back to its endpoint; 0: it does not.
    #[serde(default)]
    pub affinity_secs: u32,
    /// Clients of its published ports; none: everybody.
    #[serde(default)]
    pub source_ranges: Seldom<Vec<SourceRange>>,
    /// The way that replies of its published ports take.
    #[serde(default)]
    pub lb_return: LbReturn,
    /// Endpoints on its networks that have all these labels serve it too; none: only those attached
    /// to it.
    #[serde(default)]
    pub selector: Seldom<Labels>,
}

impl Service {
    /// Whether an endpoint serves it: attached to it, or selected by its labels.
    pub fn has(&self, e: &Endpoint) -> bool {
        e.service == Some(self.id) || self.selects(e)
    }

    /// Whether it chooses an endpoint by its labels.
    pub fn selects(&self, e: &Endpoint) -> bool {
        let labels = || self.selector.iter().all(|(k, v)| e.labels.get(k) == Some(v));
        !self.selector.is_empty() && self.networks.contains(&e.network) && labels()
    }
}
