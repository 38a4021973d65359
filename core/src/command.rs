//! What can be asked of the replicated state: the entries of the raft log.
//!
//! [`crate::state::State::apply`] carries them out. All that is not deterministic (ids, secrets,
//! the time) is drawn by the proposer and carried in the command.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    Id, Mac, Refusal,
    objects::{
        Availability, Dataplane, Endpoint, EndpointState, HostRoute, Labels, Network, Node, NodeState, Port, Role, Sandbox, Service,
    },
    spec::{NetworkSpec, ServiceSpec},
};

/// A node that asks to be taken in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewNode {
    /// Its id, also in its certificate.
    pub id: Id,
    /// Its host name.
    pub hostname: String,
    /// Manager or worker.
    pub role: Role,
    /// Address of its control plane.
    pub addr: IpAddr,
    /// Port of its control plane.
    pub control_port: u16,
    /// Its VTEP.
    pub data_path_addr: IpAddr,
    /// MTU in bytes of the link that carries the VTEP.
    pub underlay_mtu: u32,
    /// Routes that it has without meshd.
    pub host_routes: Vec<HostRoute>,
}

/// A container to be attached to a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewEndpoint {
    /// Id that it will have.
    pub id: Id,
    /// Its node.
    pub node: Id,
    /// Name or id of the network.
    pub network: String,
    /// Name or id of the service that it serves.
    pub service: Option<String>,
    /// Its name.
    pub name: String,
    /// Address asked for, of either family.
    pub ip: Option<IpAddr>,
    /// IPv6 address asked for.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Ethernet address asked for.
    pub mac: Option<Mac>,
    /// Further names.
    pub aliases: Vec<String>,
    /// Its labels.
    pub labels: Labels,
    /// Its namespace.
    pub sandbox: Sandbox,
    /// Interface name inside; `None`: the first free of eth0, eth1, …
    pub ifname: Option<String>,
    /// Ports of its own, published on its node only.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Further ones, each at the first free port of a range.
    #[serde(default)]
    pub port_ranges: Vec<PortRange>,
}

/// A port for which its node's first free one of a range is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortRange {
    /// The port; its `published` is the first of the range.
    pub port: Port,
    /// The last of the range.
    pub last: u16,
}

/// What a host has learnt of an endpoint's container after the endpoint was made. What is absent
/// stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learnt {
    /// Its namespace.
    pub sandbox: Option<Sandbox>,
    /// Interface name inside.
    pub ifname: Option<String>,
    /// Its name. Where another endpoint of the network has it, it becomes a further name.
    pub name: Option<String>,
    /// Further names.
    pub aliases: Option<Vec<String>>,
    /// Its labels.
    pub labels: Option<Labels>,
    /// Name or id of the service that it serves.
    pub service: Option<String>,
}

/// A new root of the cluster, and what changes with it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct NewRoot {
    /// Its certificate, PEM.
    pub cert: String,
    /// Its private key, PEM.
    pub key: String,
    /// The same root, signed by the one before, PEM.
    pub cross: String,
    /// New secret of the worker token: the digest beside it is no secret, so the old one would go on joining
    /// nodes. `None`: it stays.
    #[serde(default)]
    pub worker_secret: Option<String>,
    /// New secret of the manager token, likewise.
    #[serde(default)]
    pub manager_secret: Option<String>,
}

impl fmt::Debug for NewRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewRoot").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// An entry of the raft log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Makes the cluster, its ingress network and its first node. Refused when there is one.
    Init {
        /// Id of the cluster.
        id: Id,
        /// Id of the ingress network.
        ingress: Id,
        /// Now.
        at: Timestamp,
        /// Default pools.
        address_pools: Vec<IpNet>,
        /// Prefix length of subnets from the pools.
        subnet_prefix: u8,
        /// CA certificate, PEM.
        ca_cert: String,
        /// CA key, PEM.
        ca_key: String,
        /// Secret of the worker token.
        worker_secret: String,
        /// Secret of the manager token.
        manager_secret: String,
        /// The first node, a manager with raft id 1.
        node: NewNode,
    },
    /// Takes a node in.
    NodeJoin {
        /// The node.
        node: NewNode,
        /// Now.
        at: Timestamp,
    },
    /// What a node says of itself when something changed there.
    NodeReport {
        /// The node.
        id: Id,
        /// Address of its control plane.
        addr: IpAddr,
        /// Its VTEP.
        data_path_addr: IpAddr,
        /// MTU in bytes of the link that carries the VTEP.
        underlay_mtu: u32,
        /// See [`crate::objects::Node::underlay_mac`].
        #[serde(default)]
        underlay_mac: Option<Mac>,
        /// Routes that it has without meshd.
        host_routes: Vec<HostRoute>,
    },
    /// What the leader has seen of a node.
    NodeLiveness {
        /// The node.
        id: Id,
        /// Whether its meshd is heard.
        state: NodeState,
        /// Whether its data plane answers.
        dataplane: Dataplane,
    },
    /// What the operator wants of a node.
    NodeUpdate {
        /// Id or host name.
        node: String,
        /// New availability.
        availability: Option<Availability>,
        /// Labels to set.
        label_add: Labels,
        /// Labels to remove.
        label_rm: Vec<String>,
    },
    /// Makes a worker a manager, or a manager a worker. What the node is already stays as it is.
    NodeRole {
        /// Id or host name.
        node: String,
        /// What it shall be.
        role: Role,
    },
    /// Removes a node and its endpoints.
    NodeRemove {
        /// Id or host name.
        node: String,
        /// Also when it is ready.
        force: bool,
    },
    /// New secret for a join token.
    TokenRotate {
        /// Whose token.
        role: Role,
        /// The new secret.
        secret: String,
    },
    /// Replaces the cluster's root; the former one stays trusted until [`Command::CaForget`].
    CaRotate {
        /// Certificate of the root that shall be replaced, PEM: a repetition, which has the same time, replaces
        /// nothing.
        from: String,
        /// Now.
        at: Timestamp,
        /// The new root: the leader makes it, who has the old one's key.
        made: Option<NewRoot>,
    },
    /// Trusts former roots no more.
    CaForget {
        /// Their certificates, PEM.
        roots: Vec<String>,
    },
    /// Makes a network.
    NetworkCreate {
        /// Its id.
        id: Id,
        /// Now.
        at: Timestamp,
        /// What it shall be.
        spec: NetworkSpec,
    },
    /// Removes a network that nobody uses.
    NetworkRemove {
        /// Id or name.
        network: String,
    },
    /// Removes every network that nobody uses.
    NetworkPrune {},
    /// Makes a service.
    ServiceCreate {
        /// Its id.
        id: Id,
        /// Now.
        at: Timestamp,
        /// What it shall be.
        spec: ServiceSpec,
    },
    /// Changes a service to `spec`.
    ServiceUpdate {
        /// Id or name.
        service: String,
        /// Version that the change was made from; 0: any.
        version: u64,
        /// What it shall be.
        spec: ServiceSpec,
    },
    /// Removes a service; its endpoints stay, without it.
    ServiceRemove {
        /// Id or name.
        service: String,
    },
    /// Attaches a container.
    EndpointCreate {
        /// The attachment.
        endpoint: NewEndpoint,
        /// Now.
        at: Timestamp,
    },
    /// Moves an endpoint on in its life.
    EndpointSet {
        /// The endpoint.
        id: Id,
        /// Its new state.
        state: EndpointState,
    },
    /// Says that an endpoint's container was asked to stop, or that it runs on in spite of that.
    EndpointStopping {
        /// The endpoint.
        id: Id,
        /// By when it has ended; `None`: it runs on.
        until: Option<Timestamp>,
    },
    /// Says whether an endpoint's container is well, by its engine's own check.
    EndpointHealth {
        /// The endpoint.
        id: Id,
        /// What the check says; a container without one is well.
        healthy: bool,
    },
    /// Gives an endpoint more or fewer of its services' new flows.
    EndpointWeigh {
        /// The endpoint.
        id: Id,
        /// Its new weight.
        weight: u32,
    },
    /// Gives an endpoint these ports of its own, on its node, in the place of those that it has.
    EndpointPublish {
        /// The endpoint.
        id: Id,
        /// The ports.
        ports: Vec<Port>,
        /// Further ones, each at the first free port of a range.
        port_ranges: Vec<PortRange>,
    },
    /// Says what became known of an endpoint's container.
    EndpointLearn {
        /// The endpoint.
        id: Id,
        /// What became known.
        learnt: Learnt,
    },
    /// Detaches a container.
    EndpointRemove {
        /// The endpoint.
        id: Id,
    },
    /// Sets an address aside for an endpoint that is to come.
    AddressReserve {
        /// Id or name of the network.
        network: String,
        /// The node that it will be on.
        node: Id,
        /// The address asked for; `None`: the next free one.
        ip: Option<IpAddr>,
        /// Where none is asked for: an IPv6 one.
        #[serde(default)]
        six: bool,
    },
    /// Gives an address back. One that is not reserved for the node is none of its business.
    AddressRelease {
        /// Id or name of the network.
        network: String,
        /// The node.
        node: Id,
        /// The address.
        ip: IpAddr,
        /// Also when an endpoint of the node that was handed over to an engine has it: the endpoint
        /// goes then.
        #[serde(default)]
        with_endpoint: bool,
    },
}

impl Command {
    /// The node that this would take from the managers, if it is one of them: id or host name.
    pub fn leaver(&self) -> Option<&str> {
        match self {
            Self::NodeRemove { node, .. } | Self::NodeRole { node, role: Role::Worker } => Some(node),
            _ => None,
        }
    }

    /// For logs and the table of who may call what.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Init { .. } => "init",
            Self::NodeJoin { .. } => "node_join",
            Self::NodeReport { .. } => "node_report",
            Self::NodeLiveness { .. } => "node_liveness",
            Self::NodeUpdate { .. } => "node_update",
            Self::NodeRole { .. } => "node_role",
            Self::NodeRemove { .. } => "node_remove",
            Self::TokenRotate { .. } => "token_rotate",
            Self::CaRotate { .. } => "ca_rotate",
            Self::CaForget { .. } => "ca_forget",
            Self::NetworkCreate { .. } => "network_create",
            Self::NetworkRemove { .. } => "network_remove",
            Self::NetworkPrune {} => "network_prune",
            Self::ServiceCreate { .. } => "service_create",
            Self::ServiceUpdate { .. } => "service_update",
            Self::ServiceRemove { .. } => "service_remove",
            Self::EndpointCreate { .. } => "endpoint_create",
            Self::EndpointSet { .. } => "endpoint_set",
            Self::EndpointStopping { .. } => "endpoint_stopping",
            Self::EndpointHealth { .. } => "endpoint_health",
            Self::EndpointWeigh { .. } => "endpoint_weigh",
            Self::EndpointPublish { .. } => "endpoint_publish",
            Self::EndpointLearn { .. } => "endpoint_learn",
            Self::EndpointRemove { .. } => "endpoint_remove",
            Self::AddressReserve { .. } => "address_reserve",
            Self::AddressRelease { .. } => "address_release",
        }
    }
}

/// What a command answers: the object that it made or changed, where there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// The node.
    Node(Box<Node>),
    /// The network.
    Network(Box<Network>),
    /// Names of the networks that were removed.
    Networks(Vec<String>),
    /// The service.
    Service(Box<Service>),
    /// The endpoint.
    Endpoint(Box<Endpoint>),
    /// The address, with the prefix length of its subnet.
    Address(IpNet),
}

/// Outcome of one command.
pub type Outcome = Result<Reply, Refusal>;
