//! Networks that span hosts, and their address ranges.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Labels;
use crate::Id;

/// One address range of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The range.
    pub subnet: IpNet,
    /// The anycast gateway, the same on every host.
    pub gateway: IpAddr,
    /// Part of the range that addresses are handed out from; all of it when absent.
    #[serde(default)]
    pub ip_range: Option<IpNet>,
    /// Addresses that are not handed out, by name.
    #[serde(default)]
    pub aux: BTreeMap<String, IpAddr>,
    /// Last address handed out: the search goes on behind it, so that a released address rests.
    #[serde(default)]
    pub cursor: Option<IpAddr>,
}

/// A network that spans hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: Id,
    /// Raft index of the last change.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its name: a DNS label, unique without regard to case.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Always `overlay`.
    pub driver: String,
    /// Its address ranges.
    pub subnets: Vec<Subnet>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// MTU in bytes that was asked for; else it follows from the underlay.
    pub mtu: Option<u32>,
    /// No way out.
    pub internal: bool,
    /// Containers outside a service may attach.
    pub attachable: bool,
    /// Carries published ports from node to node; made by `init`, never by users.
    pub ingress: bool,
    /// Driver options as given.
    pub options: Labels,
    /// Addresses that a container engine was promised for an endpoint that is to come, or has not
    /// given back yet after its endpoint went, each with the engine's node.
    #[serde(default)]
    pub reserved: BTreeMap<IpAddr, Id>,
}

/// When packets between endpoints of two hosts are put into VXLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// Always.
    #[default]
    Vxlan,
    /// When the hosts' VTEPs are on different segments; on one segment packets go from host to host as they are.
    CrossSubnet,
}

impl Encapsulation {
    /// The network option that says so.
    pub const OPTION: &str = "encapsulation";

    /// By the option's value.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "vxlan" => Some(Self::Vxlan),
            "cross-subnet" => Some(Self::CrossSubnet),
            _ => None,
        }
    }
}

impl Network {
    /// What its option says.
    pub fn encapsulation(&self) -> Encapsulation {
        let option = self.options.get(Encapsulation::OPTION);
        option.and_then(|name| Encapsulation::named(name)).unwrap_or_default()
    }

    /// It has IPv4 addresses.
    pub fn has_ip4(&self) -> bool {
        self.subnets.iter().any(|s| s.subnet.addr().is_ipv4())
    }

    /// It has IPv6 addresses.
    pub fn has_ip6(&self) -> bool {
        self.subnets.iter().any(|s| s.subnet.addr().is_ipv6())
    }

    /// The subnet that an address lies in.
    pub fn subnet_of(&self, ip: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|s| s.subnet.contains(&ip))
    }
}
