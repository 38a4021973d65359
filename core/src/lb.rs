//! The balancer's tables as plain rows: what the BPF maps of a host must hold.
//!
//! [`crate::intent`] makes them, the loader writes them and reads them back, [`crate::plan`]
//! compares the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{Mac, objects::Protocol};

/// A published port, the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Set of backends behind it.
    pub service: u32,
    /// Port at the endpoint.
    pub target: u16,
}

/// An endpoint that flows can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub ip: IpAddr,
    /// Its Ethernet address; names it in the ingress network.
    pub mac: Mac,
    /// It is on this host.
    pub local: bool,
    /// Takes new flows; false: only those that it has.
    pub accepting: bool,
}

/// A virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Set of backends behind it.
    pub service: u32,
    /// VXLAN network identifier of its network: to containers of others it is an ordinary address.
    pub network: u32,
}

/// An endpoint on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its data-plane number.
    pub slot: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The gateway of its network, whose Ethernet address also stands for VIPs.
    pub gateway: IpAddr,
    /// VXLAN network identifier of its network: it is delivered to from no other, past the bridge.
    pub network: u32,
    /// Name of its network's VXLAN device, by which it reaches endpoints of other hosts.
    pub vxlan: String,
}

/// All tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// This node's Ethernet address in the ingress network.
    pub ingress_mac: Mac,
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
    /// Virtual addresses.
    pub vips: BTreeMap<IpAddr, Vip>,
    /// Sets of backends by number, in the order in which they take turns.
    pub services: BTreeMap<u32, Vec<u32>>,
    /// Backends by number.
    pub backends: BTreeMap<u32, Backend>,
    /// This host's endpoints by the name of their host-side interface.
    pub locals: BTreeMap<String, Local>,
    /// VXLAN network identifiers of the networks that are here, by the name of their VXLAN device.
    pub networks: BTreeMap<String, u32>,
    /// Ethernet addresses of other nodes in the ingress network, by which replies find the way back.
    pub peers: BTreeSet<Mac>,
}

/// One change to one row, in the order in which the plan gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Own place in the ingress network: Ethernet address, devices, MTU. Always put.
    Config {
        /// See [`Tables::ingress_mac`].
        ingress_mac: Mac,
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
    /// See [`Tables::vips`]; `None` removes.
    Vip(IpAddr, Option<Vip>),
    /// See [`Tables::services`]; `None` removes.
    Service(u32, Option<Vec<u32>>),
    /// See [`Tables::backends`]; `None` removes.
    Backend(u32, Option<Backend>),
    /// See [`Tables::locals`]; `None` removes.
    Local(String, Option<Local>),
    /// See [`Tables::networks`]; `None` removes.
    Network(String, Option<u32>),
    /// See [`Tables::peers`]; false removes.
    Peer(Mac, bool),
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
}

/// A program at a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hook {
    /// The program.
    pub program: Program,
    /// Name of the device.
    pub dev: String,
}
