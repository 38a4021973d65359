//! This host's endpoints as the programs see them that attach containers (meshd-cni): asked for,
//! found again and removed by their labels.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use mesh_core::Mac;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ConnectRequest, EndpointView};

/// Attaches a container of this host; as a POST to [`super::paths::NETWORK_CONNECT`], but for what
/// is answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Name or id of the network.
    pub network: String,
    /// The container, and what it shall have.
    pub connect: ConnectRequest,
}

/// Query of [`super::paths::ATTACHMENTS`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachmentsQuery {
    /// A JSON object of labels that an endpoint must have, all of them.
    pub labels: Option<String>,
    /// Also look into the containers.
    pub inside: bool,
}

/// An endpoint of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentView {
    /// The endpoint.
    pub endpoint: EndpointView,
    /// Name of the host's end of its pair of interfaces.
    pub host_ifname: String,
    /// Path by which meshd opens the container's network namespace.
    pub netns: String,
    /// That namespace's inode.
    pub inode: u64,
    /// Gateways of the container's default routes that go over this endpoint.
    #[schema(value_type = Vec<String>)]
    pub default_gateways: Vec<IpAddr>,
    /// What the container has of it; null when that was not asked for, or can not be looked at.
    pub inside: Option<InsideView>,
    /// Why the container can not be looked at.
    pub error: Option<String>,
}

/// What is in a container of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InsideView {
    /// Its interface; null when it has none of that name.
    pub link: Option<InsideLinkView>,
    /// Addresses of the interface.
    #[schema(value_type = Vec<String>)]
    pub addrs: Vec<IpNet>,
    /// Unicast routes over the interface, of every table.
    pub routes: Vec<InsideRouteView>,
}

/// An interface in a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InsideLinkView {
    /// Its Ethernet address.
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is administratively up.
    pub up: bool,
    /// What the container sends is limited as was asked, which may be not at all.
    #[serde(default = "no_complaint")]
    pub limit_holds: bool,
}

/// Of a meshd that does not tell yet.
fn no_complaint() -> bool {
    true
}

/// A route in a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InsideRouteView {
    /// Its destination.
    #[schema(value_type = String)]
    pub dst: IpNet,
    /// Its next hop; null when the destination is on the link.
    #[schema(value_type = Option<String>)]
    pub gateway: Option<IpAddr>,
}

/// Detaches what has all these labels. Success also when nothing has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// The labels, at least one.
    pub labels: BTreeMap<String, String>,
    /// Answer once the cluster has let them go, before their interfaces are gone, which takes the kernel
    /// some 20 ms: for who removes their namespaces next.
    #[serde(default)]
    pub at_once: bool,
}

/// What was detached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DetachReply {
    /// Names of the endpoints that are gone.
    pub removed: Vec<String>,
    /// Names of those that go as soon as a manager answers.
    pub pending: Vec<String>,
}
