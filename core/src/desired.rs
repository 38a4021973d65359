//! What one host must look like: links, addresses, routes, forwarding entries, packet filter,
//! balancer tables, hooks and names.
//!
//! Made by [`crate::intent`] from the objects; compared by [`crate::plan`] with
//! [`crate::observed::Observed`], which has the same rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{Id, Mac, lb, names::NameTable, nft::Nft, objects::Rate};

/// UDP port of VXLAN (RFC 7348 section 5).
pub const VXLAN_PORT: u16 = 4789;

/// A bridge or VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// The bridge of a network, with the anycast gateway's Ethernet address.
    Bridge {
        /// Ethernet address.
        mac: Mac,
        /// MTU in bytes.
        mtu: u32,
        /// The host has IPv6 on it.
        ipv6: bool,
    },
    /// The VXLAN device of a network: no learning, static entries only.
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// Source of the outer packets.
        local: IpAddr,
        /// MTU in bytes.
        mtu: u32,
        /// Bridge that it is a port of (neighbour suppression on, flooding off); `None` for the
        /// ingress network.
        bridge: Option<String>,
        /// Ethernet address; the kernel's choice when `None`.
        mac: Option<Mac>,
        /// The host has IPv6 on it.
        ipv6: bool,
    },
}

/// The host side of an endpoint: a veth that is a port of its network's bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// The endpoint.
    pub endpoint: Id,
    /// Bridge that it is a port of.
    pub bridge: String,
    /// MTU in bytes, at both ends.
    pub mtu: u32,
    /// Limits what the container receives.
    pub queue: Option<Queue>,
    /// What the other end must be when it is made.
    pub peer: Peer,
}

/// The container's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Path of the network namespace.
    pub netns: String,
    /// Its inode; another one there means that the container is gone.
    pub inode: u64,
    /// It is made in the host's own namespace, down and without addresses, for a container engine to
    /// take and configure. Once it is not there any more, it was taken, and is the engine's matter.
    pub waits: bool,
    /// An engine has taken it, into a container that is known now: what it is there is the engine's, and meshd adds
    /// the ways back.
    pub taken: bool,
    /// Interface name.
    pub ifname: String,
    /// Ethernet address.
    pub mac: Mac,
    /// Addresses with their subnets' prefix lengths, one of each family at most.
    pub addrs: Vec<IpNet>,
    /// Gateways of the default routes, one of each family at most; none: another network of the
    /// container has the route, or this one is internal.
    pub gateways: Vec<IpAddr>,
    /// Gateways for what leaves from its addresses of the families whose default route is not over it: who
    /// asks for a published port there is answered from there.
    pub returns: Vec<IpAddr>,
    /// Limits what the container sends.
    pub queue: Option<Queue>,
}

/// A token bucket at one end of a veth, which limits what leaves by that end (tc-tbf(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes of the bucket; what is longer passes in pieces, or not at all if it has none.
    pub burst: u32,
    /// Bytes that may wait; what comes then is dropped.
    pub limit: u32,
}

/// Bytes of an Ethernet header, which a queue counts too.
const ETHERNET: u32 = 14;
/// What passes in this part of a second may wait: 25 ms, as with the reference plugin.
const WAITING: u64 = 40;
/// What of a burst may wait beside that: a large one would make everybody wait for it.
const MOST_WAITING: u32 = 256 * 1024;

impl Queue {
    /// For a rate, on an interface of that MTU in bytes: the bucket holds a packet at least.
    pub fn new(rate: Rate, mtu: u32) -> Self {
        let bytes = |bits: u64| u32::try_from(bits / 8).unwrap_or(u32::MAX);
        let burst = bytes(rate.burst).max(mtu.saturating_add(ETHERNET));
        let limit = bytes(rate.rate / WAITING).saturating_add(burst.min(MOST_WAITING));
        Self {
            rate: (rate.rate / 8).max(1),
            burst,
            limit,
        }
    }

    /// Tells it from others, in 14 bits, so that it can be read off a handle: FNV-1a, folded.
    pub fn mark(&self) -> u16 {
        let parts = [
            self.rate.to_be_bytes(),
            (u64::from(self.burst) << 32 | u64::from(self.limit)).to_be_bytes(),
        ];
        let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        let hash = parts.as_flattened().iter().fold(0x811c_9dc5, step);
        // Of 28 bits, so that the fold loses none of the hash's upper ones.
        ((hash ^ hash >> 14 ^ hash >> 28) & 0x3fff) as u16
    }
}

/// A forwarding entry. With `vtep` it belongs to the VXLAN device itself, without it to the bridge
/// that the device is a port of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    /// Device.
    pub dev: String,
    /// Ethernet address.
    pub mac: Mac,
    /// Remote VTEP.
    pub vtep: Option<IpAddr>,
}

/// A permanent neighbour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neigh {
    /// Device.
    pub dev: String,
    /// Address.
    pub ip: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// A route of the host into a network, scope link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Device.
    pub dev: String,
    /// Preferred source: the node's own ingress address.
    pub src: IpAddr,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Revision of the objects that it was made from.
    pub revision: u64,
    /// The cluster, part of every link's mark; `None`: this host belongs to none.
    pub cluster: Option<Id>,
    /// Bridges and VXLAN devices by name, each with the id of its network.
    pub links: BTreeMap<String, (Id, Link)>,
    /// Host-side veths by name.
    pub veths: BTreeMap<String, Veth>,
    /// Addresses by device.
    pub addrs: BTreeSet<(String, IpNet)>,
    /// Routes; the kernel must not add its own for `addrs` (IFA_F_NOPREFIXROUTE).
    pub routes: BTreeSet<Route>,
    /// Forwarding entries.
    pub fdb: BTreeSet<Fdb>,
    /// Neighbours.
    pub neighs: BTreeSet<Neigh>,
    /// Packet filter; `None`: no table.
    pub nft: Option<Nft>,
    /// Balancer.
    pub tables: lb::Tables,
    /// Programs at devices.
    pub hooks: BTreeSet<lb::Hook>,
    /// Names.
    pub names: NameTable,
    /// Addresses of hosts that do not answer, in the ingress network, and of the endpoints on them.
    pub unreachable: BTreeSet<IpAddr>,
}

/// The mark of a link: `mesh:CLUSTER:OBJECT` in its ifalias.
pub fn mark(cluster: Id, object: Id) -> String {
    format!("mesh:{cluster}:{object}")
}

/// Reads a mark back: cluster and object.
pub fn read_mark(alias: &str) -> Option<(Id, Id)> {
    let (cluster, object) = alias.strip_prefix("mesh:")?.split_once(':')?;
    Some((cluster.parse().ok()?, object.parse().ok()?))
}
