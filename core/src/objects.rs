//! The objects of the cluster: what was asked (spec) and what is.
//!
//! They are what the control plane stores and streams, what the agent keeps in its ledger, and what
//! [`crate::intent`] reads. Every object has an id, a name, labels, and a version: the raft index of
//! its last change, on which updates are compare-and-set. Fields are only ever added, with a
//! default, so that two releases can read each other's stores.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Id, Mac};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

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
    /// Secret part of the worker join token.
    pub worker_secret: String,
    /// Secret part of the manager join token.
    pub manager_secret: String,
    /// Next VXLAN network identifier (from 4096).
    pub next_vni: u32,
    /// Next data-plane slot (see [`Endpoint::slot`]); never reused.
    pub next_slot: u32,
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

impl Network {
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
    pub labels: Labels,
    /// Its networks.
    pub networks: Vec<Id>,
    /// How its name resolves.
    pub endpoint_mode: EndpointMode,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Its published ports.
    pub ports: Vec<Port>,
    /// One virtual address per network, for mode vip.
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
    pub source_ranges: Vec<SourceRange>,
    /// The way that replies of its published ports take.
    #[serde(default)]
    pub lb_return: LbReturn,
    /// Endpoints on its networks that have all these labels serve it too; none: only those attached
    /// to it.
    #[serde(default)]
    pub selector: Labels,
}

impl Service {
    /// Whether an endpoint serves it: attached to it, or selected by its labels.
    pub fn has(&self, e: &Endpoint) -> bool {
        e.service == Some(self.id) || self.selects(e)
    }

    fn selects(&self, e: &Endpoint) -> bool {
        let labels = || self.selector.iter().all(|(k, v)| e.labels.get(k) == Some(v));
        !self.selector.is_empty() && self.networks.contains(&e.network) && labels()
    }
}

/// Where an endpoint is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// Has an address, not yet an interface.
    Starting,
    /// Takes flows.
    Ready,
    /// Takes no new flow.
    Draining,
}

/// The network namespace of an endpoint, as its node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sandbox {
    /// What the user called it (`netns:web1`, a container's name).
    pub container: String,
    /// Path by which the node opens the namespace.
    pub netns: String,
    /// The namespace's inode: tells it from a later one at the same path; 0 while it is not known
    /// which namespace an engine has taken the interface into.
    pub inode: u64,
    /// The namespace's cookie (SO_NETNS_COOKIE), by which the kernel programs tell it; 0 where the
    /// kernel has none.
    #[serde(default)]
    pub cookie: u64,
    /// It had a default route before it was attached, and keeps that one.
    #[serde(default)]
    pub routed: bool,
    /// The container engine that takes the interface into the namespace, and configures it there,
    /// by itself; `None`: meshd does both.
    #[serde(default)]
    pub handover: Option<Handover>,
}

impl Sandbox {
    /// Its namespace is known.
    pub fn is_known(&self) -> bool {
        self.inode != 0
    }

    /// Both are the same namespace of one node, as far as they are known.
    pub fn is_same(&self, other: &Self) -> bool {
        self.is_known() && self.inode == other.inode
    }
}

/// An interface that is handed over to a container engine (libnetwork's remote drivers).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handover {
    /// The engine's own id of the endpoint.
    pub endpoint: String,
    /// Its addresses were reserved before ([`Network::reserved`]), and are so again after it, until
    /// the engine gives them back.
    #[serde(default)]
    pub leased: bool,
}

/// One interface of a container in one network.
///
/// As in libnetwork, an endpoint is one attachment: a container on two networks has two endpoints
/// with the same sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: Id,
    /// Raft index of the last change.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its name: a DNS label, unique in its network.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The node that it is on.
    pub node: Id,
    /// Its network.
    pub network: Id,
    /// Its address: IPv4, or IPv6 in a network that has only that.
    pub ip: IpAddr,
    /// Its IPv6 address in a network that has both.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// The service that it serves.
    pub service: Option<Id>,
    /// Its namespace.
    pub sandbox: Sandbox,
    /// Name of its interface inside the namespace.
    pub ifname: String,
    /// Where it is in its life.
    pub state: EndpointState,
    /// Data-plane number, unique in the cluster and never reused.
    pub slot: u32,
    /// How many new flows it takes, beside the others of its service; 0: none.
    #[serde(default = "one")]
    pub weight: u32,
    /// Ports of its own, published on its node only ([`PublishMode::Host`]).
    #[serde(default)]
    pub ports: Vec<Port>,
}

fn one() -> u32 {
    1
}

impl Endpoint {
    /// Its addresses, the one that it is known by first.
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

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`Cluster`]
    Cluster,
    /// [`Node`]
    Node,
    /// [`Network`]
    Network,
    /// [`Service`]
    Service,
    /// [`Endpoint`]
    Endpoint,
}

/// Any object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// The cluster, with its secrets.
    Cluster(Arc<Cluster>),
    /// A node.
    Node(Arc<Node>),
    /// A network.
    Network(Arc<Network>),
    /// A service.
    Service(Arc<Service>),
    /// An endpoint.
    Endpoint(Arc<Endpoint>),
}

impl Object {
    /// Its kind and id.
    pub fn key(&self) -> (Kind, Id) {
        match self {
            Self::Cluster(o) => (Kind::Cluster, o.id),
            Self::Node(o) => (Kind::Node, o.id),
            Self::Network(o) => (Kind::Network, o.id),
            Self::Service(o) => (Kind::Service, o.id),
            Self::Endpoint(o) => (Kind::Endpoint, o.id),
        }
    }
}

/// One object put or removed; what a store persists and a watch streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Kind of the object.
    pub kind: Kind,
    /// Id of the object.
    pub id: Id,
    /// What it is now; `None`: it was removed.
    pub object: Option<Object>,
}

/// All objects that somebody knows: the whole state on a manager, what was streamed on an agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// The cluster; only managers have it.
    pub cluster: Option<Arc<Cluster>>,
    /// Nodes by id.
    pub nodes: BTreeMap<Id, Arc<Node>>,
    /// Networks by id.
    pub networks: BTreeMap<Id, Arc<Network>>,
    /// Services by id.
    pub services: BTreeMap<Id, Arc<Service>>,
    /// Endpoints by id.
    pub endpoints: BTreeMap<Id, Arc<Endpoint>>,
}

impl Objects {
    /// Puts or removes one object.
    pub fn apply(&mut self, change: &Change) {
        match &change.object {
            Some(Object::Cluster(o)) => self.cluster = Some(o.clone()),
            Some(Object::Node(o)) => drop(self.nodes.insert(o.id, o.clone())),
            Some(Object::Network(o)) => drop(self.networks.insert(o.id, o.clone())),
            Some(Object::Service(o)) => drop(self.services.insert(o.id, o.clone())),
            Some(Object::Endpoint(o)) => drop(self.endpoints.insert(o.id, o.clone())),
            None => match change.kind {
                Kind::Cluster => self.cluster = None,
                Kind::Node => drop(self.nodes.remove(&change.id)),
                Kind::Network => drop(self.networks.remove(&change.id)),
                Kind::Service => drop(self.services.remove(&change.id)),
                Kind::Endpoint => drop(self.endpoints.remove(&change.id)),
            },
        }
    }

    /// Every object, those first that others refer to.
    pub fn iter(&self) -> impl Iterator<Item = Object> + '_ {
        (self.cluster.iter().cloned().map(Object::Cluster))
            .chain(self.nodes.values().cloned().map(Object::Node))
            .chain(self.networks.values().cloned().map(Object::Network))
            .chain(self.services.values().cloned().map(Object::Service))
            .chain(self.endpoints.values().cloned().map(Object::Endpoint))
    }

    /// The ingress network.
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.networks.values().find(|n| n.ingress)
    }

    /// Node by id or host name.
    pub fn node(&self, r: &str) -> Option<&Arc<Node>> {
        find(&self.nodes, r, |n| &n.hostname)
    }

    /// Network by id or name.
    pub fn network(&self, r: &str) -> Option<&Arc<Network>> {
        find(&self.networks, r, |n| &n.name)
    }

    /// Service by id or name.
    pub fn service(&self, r: &str) -> Option<&Arc<Service>> {
        find(&self.services, r, |n| &n.name)
    }

    /// The endpoints of every service that has any, by their data-plane numbers; in time that grows
    /// with the objects and not with their product.
    pub fn members(&self) -> BTreeMap<Id, Vec<&Endpoint>> {
        let mut out: BTreeMap<Id, Vec<&Endpoint>> = BTreeMap::new();
        let selecting: Vec<_> = self.services.values().filter(|s| !s.selector.is_empty()).collect();
        let keys: BTreeSet<_> = selecting.iter().filter_map(|s| s.selector.first_key_value()).collect();
        let mut labelled: BTreeMap<_, Vec<&Endpoint>> = BTreeMap::new();
        for e in self.endpoints.values() {
            if let Some(s) = e.service {
                out.entry(s).or_default().push(e);
            }
            if !keys.is_empty() {
                for label in e.labels.iter().filter(|l| keys.contains(l)) {
                    labelled.entry((e.network, label)).or_default().push(e);
                }
            }
        }
        for s in selecting {
            let Some(label) = s.selector.first_key_value() else { continue };
            let near = s.networks.iter().filter_map(|n| labelled.get(&(*n, label))).flatten();
            let found: Vec<_> = near.copied().filter(|e| e.service != Some(s.id) && s.selects(e)).collect();
            if !found.is_empty() {
                out.entry(s.id).or_default().extend(found);
            }
        }
        for list in out.values_mut() {
            list.sort_by_key(|e| e.slot);
        }
        out
    }

    /// MTU in bytes of a network: what was asked for, or what the smallest underlay leaves under
    /// VXLAN.
    pub fn mtu(&self, network: &Network) -> u32 {
        network.mtu.unwrap_or_else(|| self.underlay_room().unwrap_or(1450))
    }

    /// What the smallest underlay leaves for a packet inside VXLAN; `None` without nodes.
    pub fn underlay_room(&self) -> Option<u32> {
        self.nodes
            .values()
            .map(|n| n.underlay_mtu.saturating_sub(vxlan_overhead(n.data_path_addr)))
            .min()
    }
}

/// Bytes that VXLAN adds to a packet (RFC 7348 section 5): 50 over IPv4, 70 over IPv6.
pub fn vxlan_overhead(vtep: IpAddr) -> u32 {
    if vtep.is_ipv4() { 50 } else { 70 }
}

fn both(ip: IpAddr, ip6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> + use<> {
    std::iter::once(ip).chain(ip6.map(IpAddr::V6))
}

pub(crate) fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}

fn find<'a, T>(map: &'a BTreeMap<Id, Arc<T>>, r: &str, name: impl Fn(&T) -> &String) -> Option<&'a Arc<T>> {
    let by_name = || map.values().find(|o| name(o).eq_ignore_ascii_case(r));
    r.parse().ok().and_then(|id: Id| map.get(&id)).or_else(by_name)
}
