//! The REST interface between a host's programs and its meshd, on `RUN_DIR/meshd.sock`.
//!
//! meshd's local API serves it, [`crate::local`] and meshctl speak it. Bodies are JSON with stable
//! snake_case fields; what meshctl prints with `-o json` is the body as it came. A refusal is a
//! [`mesh_core::Refusal`] (`{"kind", "message"}`) under the status of its kind. Networks and services
//! are made by POSTing [`mesh_core::spec::NetworkSpec`] and [`mesh_core::spec::ServiceSpec`].

mod attachments;
mod ca;
mod events;
mod flows;
mod requests;
pub mod schema;
mod status;
#[cfg(test)]
mod tests;
mod traffic;
mod views;

pub use attachments::{
    AttachRequest, AttachmentView, AttachmentsQuery, DetachReply, DetachRequest, InsideLinkView, InsideRouteView, InsideView,
};
pub use ca::{CaNode, CaView, FormerRootView};
pub use events::{Event, EventAction, EventsQuery, NotAPoint, Since};
pub use flows::{FlowBackend, FlowEvent, FlowLine, FlowsQuery};
pub use requests::{
    ConnectRequest, DisconnectRequest, DoctorQuery, EndpointPatch, ForceQuery, InitReply, InitRequest, JoinReply, JoinRequest,
    LeaveRequest, NodePatch, PruneReply, ServiceUpdate, TokenReply,
};
pub use status::{Check, DataplaneView, Doctor, ManagerView, NodeName, Peer, StatusView};
pub use traffic::{BackendTraffic, MapUse, ReasonCount, TrafficView};
pub use views::{
    BandwidthView, EndpointView, MemberView, NetworkView, NodeView, PortView, RateView, ServiceView, SourceRangeView, StateView,
    SubnetView, VipView,
};

/// Paths, as route templates: `{ref}` is an id or a name, `{role}` is `worker` or `manager`.
pub mod paths {
    /// GET [`super::StatusView`]
    pub const STATUS: &str = "/v1/status";
    /// GET `?plan=true` [`super::Doctor`]
    pub const DOCTOR: &str = "/v1/doctor";
    /// GET `?since=` lines of [`super::Event`] (application/x-ndjson), until the caller hangs up
    pub const EVENTS: &str = "/v1/events";
    /// GET `?drops=true&service=` lines of [`super::FlowLine`] (application/x-ndjson), until the caller
    /// hangs up
    pub const FLOWS: &str = "/v1/flows";
    /// GET [`super::TrafficView`]
    pub const TRAFFIC: &str = "/v1/traffic";
    /// POST [`super::InitRequest`] → [`super::InitReply`]
    pub const CLUSTER_INIT: &str = "/v1/cluster/init";
    /// POST [`super::JoinRequest`] → [`super::JoinReply`]
    pub const CLUSTER_JOIN: &str = "/v1/cluster/join";
    /// POST [`super::LeaveRequest`]
    pub const CLUSTER_LEAVE: &str = "/v1/cluster/leave";
    /// GET [`super::TokenReply`]
    pub const TOKEN: &str = "/v1/tokens/{role}";
    /// POST → [`super::TokenReply`]
    pub const TOKEN_ROTATE: &str = "/v1/tokens/{role}/rotate";
    /// GET [`super::CaView`]
    pub const CA: &str = "/v1/ca";
    /// POST → [`super::CaView`]
    pub const CA_ROTATE: &str = "/v1/ca/rotate";
    /// GET list of [`super::NodeView`]
    pub const NODES: &str = "/v1/nodes";
    /// GET [`super::NodeView`], PATCH [`super::NodePatch`] → [`super::NodeView`], DELETE `?force=true`
    pub const NODE: &str = "/v1/nodes/{ref}";
    /// GET list of [`super::NetworkView`], POST [`mesh_core::spec::NetworkSpec`] → [`super::NetworkView`]
    pub const NETWORKS: &str = "/v1/networks";
    /// POST → [`super::PruneReply`]
    pub const NETWORKS_PRUNE: &str = "/v1/networks/prune";
    /// GET [`super::NetworkView`], DELETE
    pub const NETWORK: &str = "/v1/networks/{ref}";
    /// POST [`super::ConnectRequest`] → [`super::EndpointView`]
    pub const NETWORK_CONNECT: &str = "/v1/networks/{ref}/connect";
    /// POST [`super::DisconnectRequest`]
    pub const NETWORK_DISCONNECT: &str = "/v1/networks/{ref}/disconnect";
    /// GET `?labels=&inside=true` list of [`super::AttachmentView`], POST [`super::AttachRequest`] →
    /// [`super::AttachmentView`]
    pub const ATTACHMENTS: &str = "/v1/attachments";
    /// POST [`super::DetachRequest`] → [`super::DetachReply`]
    pub const ATTACHMENTS_DETACH: &str = "/v1/attachments/detach";
    /// GET list of [`super::ServiceView`], POST [`mesh_core::spec::ServiceSpec`] → [`super::ServiceView`]
    pub const SERVICES: &str = "/v1/services";
    /// GET [`super::ServiceView`], PUT [`super::ServiceUpdate`] → [`super::ServiceView`], DELETE
    pub const SERVICE: &str = "/v1/services/{ref}";
    /// GET list of [`super::EndpointView`]
    pub const SERVICE_ENDPOINTS: &str = "/v1/services/{ref}/endpoints";
    /// GET list of [`super::EndpointView`]
    pub const ENDPOINTS: &str = "/v1/endpoints";
    /// GET [`super::EndpointView`], PATCH [`super::EndpointPatch`] → [`super::EndpointView`]
    pub const ENDPOINT: &str = "/v1/endpoints/{ref}";

    /// Fills in the one parameter of a template; what a path can not hold is percent-encoded
    /// (RFC 3986 section 2.3 names what needs none).
    pub fn at(template: &str, value: &str) -> String {
        let (Some(open), Some(close)) = (template.find('{'), template.find('}')) else {
            return template.to_owned();
        };
        let mut path = template[..open].to_owned();
        path.push_str(&escape(value));
        path.push_str(&template[close + 1..]);
        path
    }

    /// Percent-encodes a path segment or the value of a query parameter.
    pub fn escape(value: &str) -> String {
        let mut out = String::with_capacity(value.len());
        for b in value.bytes() {
            match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(b)),
                _ => out.push_str(&format!("%{b:02X}")),
            }
        }
        out
    }
}
