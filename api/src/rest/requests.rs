//! What is asked for, and the answers that are no view of an object.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use mesh_core::{
    Id, Mac,
    objects::{Availability, EndpointState, Port, Role},
    spec::ServiceSpec,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Makes a cluster with this host as its first manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InitRequest {
    /// Address at which other nodes reach this one's control plane; else that of the uplink.
    #[schema(value_type = Option<String>, example = "192.168.77.11")]
    pub advertise_addr: Option<IpAddr>,
    /// Address for VXLAN; else the advertised one.
    #[schema(value_type = Option<String>)]
    pub data_path_addr: Option<IpAddr>,
    /// Pools that subnets are taken from; else meshd's own.
    #[schema(value_type = Vec<String>)]
    pub default_addr_pools: Vec<IpNet>,
    /// Prefix length of a subnet taken from a pool; else 20.
    pub subnet_size: Option<u8>,
}

/// The new cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InitReply {
    /// Its id.
    #[schema(value_type = String)]
    pub cluster: Id,
    /// This node's id.
    #[schema(value_type = String)]
    pub node: Id,
    /// This node's host name.
    pub hostname: String,
    /// HOST:PORT that others join at.
    pub address: String,
    /// The token that workers join with.
    pub worker_token: String,
}

/// Joins a cluster. The token says as what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token.
    pub token: String,
    /// HOST or HOST:PORT of any manager.
    pub manager: String,
    /// As in [`InitRequest::advertise_addr`].
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub advertise_addr: Option<IpAddr>,
    /// As in [`InitRequest::data_path_addr`].
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub data_path_addr: Option<IpAddr>,
}

/// What this host has become.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinReply {
    /// The cluster's id.
    #[schema(value_type = String)]
    pub cluster: Id,
    /// This node's id.
    #[schema(value_type = String)]
    pub node: Id,
    /// manager or worker.
    #[schema(value_type = String)]
    pub role: Role,
}

/// Leaves the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeaveRequest {
    /// Also when this is a manager that the others need, or no manager can be told.
    pub force: bool,
}

/// A join token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenReply {
    /// What it lets a host become.
    #[schema(value_type = String)]
    pub role: Role,
    /// The token.
    pub token: String,
    /// HOST:PORT of a manager to join at.
    pub address: String,
}

/// Changes a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodePatch {
    /// active, pause or drain.
    #[schema(value_type = Option<String>)]
    pub availability: Option<Availability>,
    /// manager or worker: promotes or demotes. Answered when the vote is there, or gone.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Labels to set.
    pub label_add: BTreeMap<String, String>,
    /// Keys of labels to remove.
    pub label_rm: Vec<String>,
}

/// Attaches a container of this host to a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectRequest {
    /// A Docker or Podman name or id, `netns:NAME-or-PATH`, or `pid:N`.
    pub container: String,
    /// Name or id of the service that it serves.
    pub service: Option<String>,
    /// Address asked for; else the next free one.
    #[schema(value_type = Option<String>)]
    pub ip: Option<IpAddr>,
    /// IPv6 address asked for, in a network that has both.
    #[schema(value_type = Option<String>)]
    pub ip6: Option<Ipv6Addr>,
    /// Ethernet address asked for.
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The endpoint's name; else the container's.
    pub hostname: Option<String>,
    /// Interface name inside the container; else the first free of eth0, eth1, …
    pub ifname: Option<String>,
    /// Ports of its own, which its node answers (mode host); published 0 asks for one of 30000-32767.
    #[schema(value_type = Vec<super::PortView>)]
    pub ports: Vec<Port>,
    /// How much it may receive and send, for as long as it lasts; left out: as much as there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<super::BandwidthView>,
}

/// Detaches a container of this host from a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DisconnectRequest {
    /// As in [`ConnectRequest::container`], or the endpoint's name.
    pub container: String,
    /// Also when the container can no longer be found.
    pub force: bool,
}

/// Networks that were removed because nobody used them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PruneReply {
    /// Their names.
    pub removed: Vec<String>,
}

/// Changes a service to `spec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceUpdate {
    /// Version that the change was made from ([`super::ServiceView::version`]); 0: any.
    #[serde(default)]
    pub version: u64,
    /// What it shall be.
    #[schema(value_type = super::schema::ServiceSpec)]
    pub spec: ServiceSpec,
}

/// Changes an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointPatch {
    /// ready or draining.
    #[schema(value_type = Option<String>)]
    pub state: Option<EndpointState>,
    /// 0 to 1000: how many new flows it takes, beside the others of its service.
    pub weight: Option<u32>,
}

/// Query of [`super::paths::NODE`] with DELETE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForceQuery {
    /// Also when the node is ready.
    pub force: bool,
}

/// Query of [`super::paths::DOCTOR`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DoctorQuery {
    /// Also say what the next reconcile pass would do.
    pub plan: bool,
}
