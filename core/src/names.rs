//! The service DNS's table: which names exist in which network, and who may see them.
//!
//! [`crate::intent`] makes it, mesh-dns answers from it. Keys are lower case; names hold no trailing
//! dot.

use std::{collections::BTreeMap, net::IpAddr};

use crate::Id;

/// Everything that this host's DNS answers from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameTable {
    /// Gateway addresses to listen at (53/udp and 53/tcp), each with its network and bridge.
    pub listeners: BTreeMap<IpAddr, Listener>,
    /// Names by network.
    pub zones: BTreeMap<Id, Zone>,
    /// Networks of this host's containers by their address, the one that they asked through first.
    pub clients: BTreeMap<IpAddr, Vec<Id>>,
}

/// One gateway address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its network.
    pub network: Id,
    /// The bridge that carries it.
    pub dev: String,
    /// Names outside the mesh are answered here too; false on internal networks.
    pub forward: bool,
}

/// The names of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// The network's name, which may follow any of its names (`web.shop`).
    pub network: String,
    /// Addresses by name: `web`, `tasks.web`, endpoint names and aliases. An empty list is a name
    /// that exists without an address (NODATA).
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// Names by address, for PTR.
    pub reverse: BTreeMap<IpAddr, String>,
}
