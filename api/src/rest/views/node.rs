//! The view of a node.

use std::net::IpAddr;

use jiff::Timestamp;
use mesh_core::{
    Id, Mac,
    objects::{Availability, Dataplane, Labels, Node, NodeState, Role},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its host name.
    pub hostname: String,
    /// manager or worker.
    #[schema(value_type = String)]
    pub role: Role,
    /// ready, down or unknown: whether its meshd is heard.
    #[schema(value_type = String)]
    pub state: NodeState,
    /// reachable or unreachable: whether its kernel takes traffic, which it does without meshd too.
    #[schema(value_type = String)]
    pub dataplane: Dataplane,
    /// active, pause or drain.
    #[schema(value_type = String)]
    pub availability: Availability,
    /// It leads the managers.
    pub leader: bool,
    /// Address of its control plane.
    #[schema(value_type = String)]
    pub addr: IpAddr,
    /// Port of its control plane.
    pub control_port: u16,
    /// Address of its VTEP.
    #[schema(value_type = String)]
    pub data_path_addr: IpAddr,
    /// MTU in bytes of the link that carries the VTEP.
    pub underlay_mtu: u32,
    /// Ethernet address of that link, where packets are taken without encapsulation.
    #[schema(value_type = Option<String>)]
    pub underlay_mac: Option<Mac>,
    /// Its own address in the ingress network.
    #[schema(value_type = String)]
    pub ingress_ip: IpAddr,
    /// Labels.
    pub labels: Labels,
    /// When it joined.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Raft index of the last change.
    pub version: u64,
}

impl NodeView {
    /// The node as users see it.
    pub fn of(node: &Node, leader: bool) -> Self {
        Self {
            id: node.id,
            hostname: node.hostname.clone(),
            role: node.role,
            state: node.state,
            dataplane: node.dataplane,
            availability: node.availability,
            leader,
            addr: node.addr,
            control_port: node.control_port,
            data_path_addr: node.data_path_addr,
            underlay_mtu: node.underlay_mtu,
            underlay_mac: node.underlay_mac,
            ingress_ip: node.ingress_ip,
            labels: node.labels.clone(),
            created_at: node.created_at,
            version: node.version,
        }
    }
}
