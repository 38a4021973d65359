//! The balancer's tables as plain rows: what the BPF maps of a host must hold.
//!
//! [`crate::intent`] makes them, the loader writes them and reads them back, [`crate::plan`]
//! compares the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{Mac, objects::Protocol};

/// In the number of a set of backends: those that have an IPv6 address, by that address. Every set
/// that clients of both families can ask exists twice, without and with this bit; the programs add it
/// by the packet's family. One of IPv6 that nobody is in is left out.
pub const V6: u32 = 1 << 31;
/// In the number of a set of backends: those on this host only.
pub const LOCAL: u32 = 1 << 30;

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Set of backends behind it, without [`V6`]; with [`LOCAL`] for a port that only its own node
    /// answers. 0: the port is answered at the addresses of [`Tables::bound`] only.
    pub service: u32,
    /// Port at the endpoint.
    pub target: u16,
    /// Replies go from the backend's node straight to the client, not by the node that it asked.
    pub direct: bool,
}

/// How a backend is taken from the list of a [`Pool`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// One after the other.
    #[default]
    Turn,
    /// At random.
    Random,
    /// By a hash of the client's address.
    Source,
    /// By a hash of the flow's addresses and ports.
    Flow,
}

/// A set of backends that take new flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// How one is taken.
    pub method: Method,
    /// Seconds for which a client comes back to its backend; 0: it does not.
    pub affinity_secs: u32,
    /// Clients are admitted by [`Tables::sources`].
    pub ranged: bool,
    /// Numbers of backends; those of more weight appear more often.
    pub list: Vec<u32>,
}

/// An endpoint that flows can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its IPv4 address.
    pub ip4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ip6: Option<Ipv6Addr>,
    /// Its Ethernet address; names it in the ingress network.
    pub mac: Mac,
    /// Its node's address in the ingress network, by which other hosts' own processes reach it.
    pub node: Option<Ipv4Addr>,
    /// It is on this host.
    pub local: bool,
    /// Takes new flows; false: only those that it has.
    pub accepting: bool,
}

/// A virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Set of backends behind it; with [`V6`] for an IPv6 address.
    pub service: u32,
    /// VXLAN network identifier of its network: to containers of others it is an ordinary address.
    pub network: u32,
}

/// An endpoint on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its data-plane number.
    pub slot: u32,
    /// Its IPv4 address.
    pub ip4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ip6: Option<Ipv6Addr>,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Ethernet address of its network's gateway, which also stands for VIPs.
    pub gateway_mac: Mac,
    /// VXLAN network identifier of its network: it is delivered to from no other, past the bridge.
    pub network: u32,
    /// Name of its network's VXLAN device, by which it reaches endpoints of other hosts.
    pub vxlan: String,
    /// It reaches the endpoints of [`Tables::remotes`], and is reached by other hosts of the segment, without
    /// encapsulation.
    pub segment: bool,
    /// Its interface has a queue that limits what it receives: it is handed nothing past that.
    pub queued: bool,
}

/// How many endpoints of other hosts are reached without encapsulation at most; all others are reached by VXLAN.
pub const REMOTES: usize = 30_000;

/// Where an endpoint of another host is reached without encapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// VXLAN network identifier of its network: containers of others do not reach it.
    pub network: u32,
    /// Its node's Ethernet address in the underlay, on this host's segment.
    pub node: Mac,
    /// This host's own there.
    pub own: Mac,
}

/// A network namespace whose sockets are balanced when they connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// It is the host's own: its processes reach published ports at the node's addresses and at
    /// localhost.
    pub host: bool,
    /// VXLAN network identifiers of the networks whose VIPs it reaches; at most 8 are taken.
    pub networks: BTreeSet<u32>,
}

/// All tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// This node's Ethernet address in the ingress network.
    pub ingress_mac: Mac,
    /// This node's address in the ingress network.
    pub ingress_ip: Option<Ipv4Addr>,
    /// Name of this node's ingress VXLAN device; empty before it belongs to a cluster.
    pub ingress_dev: String,
    /// Name of the device that clients arrive on.
    pub uplink: String,
    /// MTU in bytes inside the ingress network.
    pub ingress_mtu: u32,
    /// Addresses at which this node answers published ports.
    pub node_addrs: BTreeSet<IpAddr>,
    /// Published ports.
    pub published: BTreeMap<(Protocol, u16), Published>,
    /// Ports that are published at one address of one node only. Rows of all nodes' addresses are on
    /// every node: the backend's node translates what another took in.
    pub bound: BTreeMap<(IpAddr, Protocol, u16), Published>,
    /// Virtual addresses.
    pub vips: BTreeMap<IpAddr, Vip>,
    /// Sets of backends by number.
    pub services: BTreeMap<u32, Pool>,
    /// Clients of published ports that are admitted (true) or not, by the set's number without flags
    /// and the client's range; the longest prefix counts, and none means not admitted.
    pub sources: BTreeMap<(u32, IpNet), bool>,
    /// Backends by number.
    pub backends: BTreeMap<u32, Backend>,
    /// This host's endpoints by the name of their host-side interface.
    pub locals: BTreeMap<String, Local>,
    /// VXLAN network identifiers of the networks that are here, by the name of their VXLAN device.
    pub networks: BTreeMap<String, u32>,
    /// Endpoints of other hosts of the segment that are reached without encapsulation, by their addresses;
    /// [`REMOTES`] at most.
    pub remotes: BTreeMap<IpAddr, Remote>,
    /// Ranges of the networks that are here and go without encapsulation, with their VXLAN network identifiers: nobody
    /// sends into another's.
    pub ranges: BTreeMap<IpNet, u32>,
    /// Ethernet addresses of other nodes in the underlay, from which packets to endpoints here are taken
    /// without encapsulation.
    pub neighbors: BTreeSet<Mac>,
    /// Ethernet addresses of other nodes in the ingress network, by which replies find the way back.
    pub peers: BTreeSet<Mac>,
    /// IPv6 addresses of all nodes, this one too, in the ingress network, by their IPv4 ones there; none while no
    /// network has IPv6.
    pub nodes: BTreeMap<Ipv4Addr, Ipv6Addr>,
    /// Network namespaces of this host by their cookie (SO_NETNS_COOKIE).
    pub namespaces: BTreeMap<u64, Namespace>,
}

impl Tables {
    /// Rows of the tables that grow with the cluster's services.
    pub fn rows(&self) -> usize {
        self.published.len() + self.bound.len() + self.vips.len() + self.services.len() + self.backends.len() + self.remotes.len()
    }

    /// The rows that either of two others has too, of the tables that grow with the cluster's services; the
    /// other tables whole. For a look at a part: [`crate::part`].
    pub fn those_of(&self, of: [&Self; 2]) -> Self {
        fn some<K: Ord + Clone, V: Clone>(all: &BTreeMap<K, V>, of: [&BTreeMap<K, V>; 2]) -> BTreeMap<K, V> {
            let keys = of.into_iter().flat_map(BTreeMap::keys);
            keys.filter_map(|k| Some((k.clone(), all.get(k)?.clone()))).collect()
        }
        Self {
            ingress_mac: self.ingress_mac,
            ingress_ip: self.ingress_ip,
            ingress_dev: self.ingress_dev.clone(),
            uplink: self.uplink.clone(),
            ingress_mtu: self.ingress_mtu,
            node_addrs: self.node_addrs.clone(),
            published: some(&self.published, of.map(|t| &t.published)),
            bound: some(&self.bound, of.map(|t| &t.bound)),
            vips: some(&self.vips, of.map(|t| &t.vips)),
            services: some(&self.services, of.map(|t| &t.services)),
            sources: some(&self.sources, of.map(|t| &t.sources)),
            backends: some(&self.backends, of.map(|t| &t.backends)),
            locals: self.locals.clone(),
            networks: self.networks.clone(),
            remotes: some(&self.remotes, of.map(|t| &t.remotes)),
            ranges: self.ranges.clone(),
            neighbors: self.neighbors.clone(),
            peers: self.peers.clone(),
            nodes: self.nodes.clone(),
            namespaces: self.namespaces.clone(),
        }
    }
}

/// One change to one row, in the order in which the plan gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Own place in the ingress network: Ethernet address, devices, MTU. Always put.
    Config {
        /// See [`Tables::ingress_mac`].
        ingress_mac: Mac,
        /// See [`Tables::ingress_ip`].
        ingress_ip: Option<Ipv4Addr>,
        /// See [`Tables::ingress_dev`].
        ingress_dev: String,
        /// See [`Tables::uplink`].
        uplink: String,
        /// See [`Tables::ingress_mtu`].
        ingress_mtu: u32,
    },
    /// See [`Tables::node_addrs`].
    NodeAddr(IpAddr, bool),
    /// See [`Tables::published`]; `None` removes.
    Published((Protocol, u16), Option<Published>),
    /// See [`Tables::bound`]; `None` removes.
    Bound((IpAddr, Protocol, u16), Option<Published>),
    /// See [`Tables::vips`]; `None` removes.
    Vip(IpAddr, Option<Vip>),
    /// See [`Tables::services`]; `None` removes.
    Service(u32, Option<Pool>),
    /// See [`Tables::sources`]; `None` removes.
    Source((u32, IpNet), Option<bool>),
    /// See [`Tables::backends`]; `None` removes.
    Backend(u32, Option<Backend>),
    /// See [`Tables::locals`]; `None` removes.
    Local(String, Option<Box<Local>>),
    /// See [`Tables::networks`]; `None` removes.
    Network(String, Option<u32>),
    /// See [`Tables::remotes`]; `None` removes.
    Remote(IpAddr, Option<Remote>),
    /// See [`Tables::ranges`]; `None` removes.
    Range(IpNet, Option<u32>),
    /// See [`Tables::neighbors`]; false removes.
    Neighbor(Mac, bool),
    /// See [`Tables::peers`]; false removes.
    Peer(Mac, bool),
    /// See [`Tables::nodes`]; `None` removes.
    Node(Ipv4Addr, Option<Ipv6Addr>),
    /// See [`Tables::namespaces`]; `None` removes.
    Namespace(u64, Option<Namespace>),
}

/// The kernel programs, by the place where they sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// TC ingress of the uplink: published ports.
    FromUplink,
    /// TC ingress of the ingress VXLAN device: carried client packets and their replies.
    FromOverlay,
    /// TC ingress of a network's VXLAN device: to its endpoints here, past the bridge.
    FromNetwork,
    /// TC ingress of an endpoint's host-side veth: VIPs, replies of published ports, source check,
    /// and the way to other endpoints, past the bridge.
    FromContainer,
    /// TC egress of an endpoint's host-side veth: replies of VIPs that come over the bridge.
    ToContainer,
    /// The cgroup hooks of sockets (connect, sendmsg, recvmsg, getpeername; IPv4 and IPv6), at the root
    /// of the cgroup hierarchy.
    Sockets,
}

/// A program at a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hook {
    /// The program.
    pub program: Program,
    /// Name of the device; empty for [`Program::Sockets`].
    pub dev: String,
}
