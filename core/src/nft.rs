//! What the host's one nftables table must say, as values; overlay turns it into a ruleset.
//!
//! The table is where a host keeps networks apart and gives them a way out; nothing on the path of
//! published ports or VIPs passes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

/// The table `inet meshd`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nft {
    /// VTEPs that VXLAN is taken from.
    pub peers: BTreeSet<IpAddr>,
    /// This host's own, which they send to: their packets to it are let in at once. To another address of the
    /// host they get in as well, after a look at whether it is one.
    pub vtep: Option<IpAddr>,
    /// Bridges by name.
    pub bridges: BTreeMap<String, BridgeRules>,
    /// Where the nodes' own addresses are; what comes from or goes to them is never masqueraded.
    pub ingress: BTreeSet<IpNet>,
    /// Name of the ingress VXLAN device.
    pub ingress_dev: String,
    /// The host's own resolvers.
    pub resolvers: BTreeSet<Ipv4Addr>,
}

/// How one bridge is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeRules {
    /// Its ranges.
    pub subnets: Vec<IpNet>,
    /// Its gateway addresses: what containers may ask the host for (DNS, echo).
    pub gateways: Vec<IpAddr>,
    /// No way out.
    pub internal: bool,
    /// What its containers ask the host's resolvers is answered at the gateway, which asks those for
    /// what it does not know. Docker gives its containers a resolver of its own, which asks the host's.
    pub names: bool,
}
