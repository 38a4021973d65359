//! What one host looks like, as far as it carries meshd's mark.
//!
//! Read by overlay (links to neighbours, packet filter), by the loader (tables, hooks) and by the
//! DNS (names); compared by [`crate::plan`]. A dump that was interrupted is no observation: it is
//! an error and the pass is made again.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    Id,
    desired::{Fdb, Link, Neigh, Queue, Route},
    lb,
    names::NameTable,
    nft::Nft,
};

/// A veth as seen from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenVeth {
    /// The endpoint, from the mark.
    pub endpoint: Id,
    /// Bridge that it is a port of.
    pub bridge: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is administratively up.
    pub up: bool,
    /// The ways back of an interface that an engine has taken are there.
    pub returns: bool,
    /// The queue that meshd gave it.
    pub queue: Option<SeenQueue>,
}

/// A queue as seen: all that the kernel tells, which is not how much the bucket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenQueue {
    /// [`Queue::mark`] of what meshd gave.
    pub mark: u16,
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
}

impl From<Queue> for SeenQueue {
    fn from(queue: Queue) -> Self {
        Self {
            mark: queue.mark(),
            rate: queue.rate,
            limit: queue.limit,
        }
    }
}

/// A bridge or VXLAN device as seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenLink {
    /// Cluster and network, from the mark.
    pub mark: (Id, Id),
    /// What it is.
    pub link: Link,
    /// Administratively up, and port settings (suppression, flooding) as they must be.
    pub settled: bool,
}

/// What netlink and nftables show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeenOverlay {
    /// Marked bridges and VXLAN devices by name.
    pub links: BTreeMap<String, SeenLink>,
    /// Marked veths by name.
    pub veths: BTreeMap<String, SeenVeth>,
    /// Endpoints whose other end is in the host's namespace: no engine has taken it, or it was given
    /// back.
    pub waiting: BTreeSet<Id>,
    /// Addresses on marked links.
    pub addrs: BTreeSet<(String, IpNet)>,
    /// Routes over marked links that meshd made (its routing protocol number).
    pub routes: BTreeSet<Route>,
    /// Static entries on marked links.
    pub fdb: BTreeSet<Fdb>,
    /// Permanent neighbours on marked links.
    pub neighs: BTreeSet<Neigh>,
    /// The packet filter's table; `None` when there is none. A table that is not as overlay would
    /// write it for any [`Nft`] is seen as `Nft::default()`, which no host wants.
    pub nft: Option<Nft>,
    /// Another table of the host drops what is forwarded to and from our bridges.
    pub blocked: bool,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Links, addresses, routes, entries, packet filter.
    pub overlay: SeenOverlay,
    /// What the BPF maps hold.
    pub tables: lb::Tables,
    /// Programs at devices; a hook on a device that is gone is not listed.
    pub hooks: BTreeSet<lb::Hook>,
    /// What the DNS answers from.
    pub names: NameTable,
}
