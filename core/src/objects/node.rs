//! The cluster, and the hosts that it consists of.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Labels;
use crate::{Id, Mac};

/// The cluster itself. It carries the cluster's secrets: it never leaves the managers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: Id,
    /// Raft index of the last change.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Pools that subnets are taken from when none is asked for.
    pub address_pools: Vec<IpNet>,
    /// Prefix length of an IPv4 subnet taken from a pool.
    pub subnet_prefix: u8,
    /// Certificate of the cluster's CA, PEM.
    pub ca_cert: String,
    /// Its private key, PEM.
    pub ca_key: String,
    /// The roots before that one which are still trusted, the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_roots: Vec<FormerRoot>,
    /// Secret part of the worker join token.
    pub worker_secret: String,
    /// Secret part of the manager join token.
    pub manager_secret: String,
    /// Next VXLAN network identifier (from 4096).
    pub next_vni: u32,
    /// Next data-plane slot (see [`Endpoint::slot`]); never reused.
    pub next_slot: u32,
}

/// A root that was replaced, until every node has a certificate of the one that replaced it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormerRoot {
    /// Its certificate, PEM.
    pub cert: String,
    /// The root that replaced it, as signed by it, PEM: who trusts only the old one comes to trust the new one
    /// by this.
    pub cross: String,
    /// When it was replaced.
    pub replaced_at: Timestamp,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Votes, and holds the cluster's state.
    Manager,
    /// Runs a data plane only.
    Worker,
}

impl Role {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        }
    }
}

/// Whether a node's meshd is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Heartbeats arrive.
    Ready,
    /// They have stopped.
    Down,
    /// Not heard yet since it joined.
    Unknown,
}

/// Whether a node's data plane answers. It does so without meshd, so it outlives [`NodeState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dataplane {
    /// Its meshd is heard, or its kernel answers probes over the ingress network.
    Reachable,
    /// Neither: nobody is sent there.
    Unreachable,
}

/// What the operator wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// Everything.
    Active,
    /// Nothing new.
    Pause,
    /// Nothing new, and its endpoints take no new flows.
    Drain,
}

/// A route that a host had before meshd, which no mesh subnet may overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord)]
pub struct HostRoute {
    /// Destination.
    pub dst: IpNet,
    /// Device.
    pub dev: String,
}

/// A host that runs meshd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: Id,
    /// Raft index of the last change.
    pub version: u64,
    /// When it joined.
    pub created_at: Timestamp,
    /// Its host name, unique in the cluster.
    pub hostname: String,
    /// Its labels.
    pub labels: Labels,
    /// Manager or worker.
    pub role: Role,
    /// Raft id; 0 for workers.
    pub raft_id: u64,
    /// What the operator wants of it.
    pub availability: Availability,
    /// Address of its control plane (2377/tcp).
    pub addr: IpAddr,
    /// Port of its control plane.
    pub control_port: u16,
    /// Its VTEP: source of its VXLAN packets.
    pub data_path_addr: IpAddr,
    /// MTU in bytes of the link that carries the VTEP.
    pub underlay_mtu: u32,
    /// Ethernet address of that link, where clients arrive on it too: packets that are not encapsulated come from
    /// there and go there.
    #[serde(default)]
    pub underlay_mac: Option<Mac>,
    /// Its own address in the ingress network.
    pub ingress_ip: IpAddr,
    /// Routes that it had before meshd.
    pub host_routes: Vec<HostRoute>,
    /// Whether its meshd is heard.
    pub state: NodeState,
    /// Whether its data plane answers.
    pub dataplane: Dataplane,
}

impl Node {
    /// Its Ethernet address in the ingress network.
    pub fn ingress_mac(&self) -> Mac {
        Mac::for_ip(self.ingress_ip)
    }
}
