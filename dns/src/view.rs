//! What one asker may see of the name table.
//!
//! [`crate::handler`] asks a [`View`] for every query. Nothing here knows the wire format: names are
//! lower case, in presentation form, without the trailing dot.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use mesh_core::{
    Id,
    names::{NameTable, Zone},
};

/// One name table with the indexes that looking names up needs. Made at every swap, then only read.
pub(crate) struct View {
    table: Arc<NameTable>,
    /// Grows by one with every swap; the serial of the negative answers' SOA.
    serial: u32,
    /// Names of all networks, lower case, with their number of labels.
    networks: HashMap<String, u8>,
    /// Networks that have a way out.
    forwarding: HashSet<Id>,
}

/// What is known about a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'t> {
    /// The name exists, with these addresses of either family.
    Addresses {
        addresses: &'t [IpAddr],
        /// Labels at the end of the name that are its network's name; 0 when the name stands alone.
        zone_labels: u8,
    },
    /// It is a mesh name, and the asker sees no such name.
    Unknown { zone_labels: u8 },
    /// It is none of the mesh's business.
    Outside,
}

/// What is known about an address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The name of the address, followed by its network's.
    Name(String),
    /// A mesh address whose name the asker may not see, or that has none.
    Unknown,
    /// It is none of the mesh's business.
    Outside,
}

impl View {
    pub(crate) fn new(table: Arc<NameTable>, serial: u32) -> Self {
        let networks = table
            .zones
            .values()
            .map(|z| (z.network.to_ascii_lowercase(), labels(&z.network)))
            .collect();
        let forwarding = table.listeners.values().filter(|l| l.forward).map(|l| l.network).collect();
        Self {
            table,
            serial,
            networks,
            forwarding,
        }
    }

    pub(crate) fn table(&self) -> &Arc<NameTable> {
        &self.table
    }

    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    /// The networks that `source` sees, in the order to look in: its own if it is a container of this
    /// host, else (the host itself, a stranger) the one whose gateway it asks.
    pub(crate) fn networks_of(&self, gateway: IpAddr, source: IpAddr) -> &[Id] {
        match self.table.clients.get(&source) {
            Some(networks) => networks,
            None => self.table.listeners.get(&gateway).map_or(&[], |l| std::slice::from_ref(&l.network)),
        }
    }

    /// True if names outside the mesh are to be forwarded for an asker on `networks`: the gateway
    /// asked has a way out, or the asker has one through another of its networks. (A container on an
    /// internal and on a normal network resolves the same names whichever gateway it asks.)
    pub(crate) fn may_forward(&self, gateway: IpAddr, networks: &[Id]) -> bool {
        self.table.listeners.get(&gateway).is_some_and(|l| l.forward) || networks.iter().any(|n| self.forwarding.contains(n))
    }

    /// True if `address` is one of this host's gateway addresses; forwarding there would loop.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        self.table.listeners.contains_key(&address)
    }

    /// Looks a name up for an asker on `networks`: first as it stands in each of them, then with the
    /// network's name cut off.
    pub(crate) fn name(&self, networks: &[Id], name: &str) -> Found<'_> {
        let zones = || networks.iter().filter_map(|n| self.table.zones.get(n));
        if let Some(addresses) = zones().find_map(|z| z.names.get(name)) {
            return Found::Addresses {
                addresses,
                zone_labels: self.zone_labels(name),
            };
        }
        if let Some((zone, addresses)) = zones().find_map(|z| Some((z, z.names.get(without_suffix(name, &z.network)?)?))) {
            return Found::Addresses {
                addresses,
                zone_labels: labels(&zone.network),
            };
        }
        if zones().any(|z| is_branch(z, name)) {
            return Found::Addresses {
                addresses: &[],
                zone_labels: self.zone_labels(name),
            };
        }
        let zone_labels = self.zone_labels(name);
        let single = !name.is_empty() && !name.contains('.');
        let tasks = name.strip_prefix("tasks.").is_some_and(|rest| !rest.contains('.'));
        if single || tasks || zone_labels > 0 {
            Found::Unknown { zone_labels }
        } else {
            Found::Outside
        }
    }

    /// Looks the name of an address up for an asker on `networks`.
    pub(crate) fn address(&self, networks: &[Id], address: IpAddr) -> Owner {
        let mut zones = networks.iter().filter_map(|n| self.table.zones.get(n));
        if let Some((zone, name)) = zones.find_map(|z| Some((z, z.reverse.get(&address)?))) {
            let full = name.is_empty() || zone.network.is_empty() || without_suffix(name, &zone.network).is_some();
            return Owner::Name(if full { name.clone() } else { format!("{name}.{}", zone.network) });
        }
        let elsewhere = self.is_gateway(address)
            || self.table.clients.contains_key(&address)
            || self.table.zones.values().any(|z| z.reverse.contains_key(&address));
        if elsewhere { Owner::Unknown } else { Owner::Outside }
    }

    /// How many labels at the end of `name` are the name of any network, with at least one before it.
    fn zone_labels(&self, name: &str) -> u8 {
        let suffixes = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        suffixes.filter_map(|s| self.networks.get(s)).max().copied().unwrap_or(0)
    }

    /// The table with only the listeners in `bound`.
    pub(crate) fn without_unbound(&self, bound: impl Fn(IpAddr) -> bool) -> Arc<NameTable> {
        if self.table.listeners.keys().all(|a| bound(*a)) {
            return self.table.clone();
        }
        let listeners: BTreeMap<_, _> = self
            .table
            .listeners
            .iter()
            .filter(|(a, _)| bound(**a))
            .map(|(a, l)| (*a, l.clone()))
            .collect();
        Arc::new(NameTable {
            listeners,
            zones: self.table.zones.clone(),
            clients: self.table.clients.clone(),
        })
    }
}

fn labels(name: &str) -> u8 {
    u8::try_from(name.split('.').count()).unwrap_or(u8::MAX)
}

/// True if nothing but longer names hang below `name`: the network's own name and the `tasks` of
/// `tasks.web`. RFC 8020: an NXDOMAIN there would deny those below it too.
fn is_branch(zone: &Zone, name: &str) -> bool {
    if name.eq_ignore_ascii_case(&zone.network) {
        return true;
    }
    let own = without_suffix(name, &zone.network).unwrap_or(name);
    own == "tasks"
        && zone
            .names
            .range("tasks.".to_owned()..)
            .next()
            .is_some_and(|(n, _)| n.starts_with("tasks."))
}

/// `name` without `.suffix` at its end.
fn without_suffix<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let dot = name.len().checked_sub(suffix.len() + 1)?;
    let own = name.get(..dot)?;
    let rest = name.get(dot..)?.strip_prefix('.')?;
    (!own.is_empty() && !suffix.is_empty() && rest.eq_ignore_ascii_case(suffix)).then_some(own)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
