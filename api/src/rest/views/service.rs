//! The view of a service.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use mesh_core::{
    Id,
    objects::{Algorithm, Endpoint, EndpointMode, Labels, Objects, Port, Protocol, PublishMode, Service},
    spec::ServiceSpec,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MemberView, endpoint::network_name};

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// Port on the nodes.
    pub published: u16,
    /// Port at the endpoint.
    pub target: u16,
    /// tcp or udp.
    #[schema(value_type = String)]
    pub protocol: Protocol,
    /// ingress: on every node.
    #[schema(value_type = String)]
    pub mode: PublishMode,
}

impl From<&Port> for PortView {
    fn from(p: &Port) -> Self {
        Self {
            published: p.published,
            target: p.target,
            protocol: p.protocol,
            mode: p.mode,
        }
    }
}

/// A virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VipView {
    /// Name of its network.
    pub network: String,
    /// The address.
    #[schema(value_type = String)]
    pub ip: IpAddr,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its name.
    pub name: String,
    /// vip or dnsrr.
    #[schema(value_type = String)]
    pub endpoint_mode: EndpointMode,
    /// Names of its networks.
    pub networks: Vec<String>,
    /// Its virtual addresses, one per network with mode vip.
    pub vips: Vec<VipView>,
    /// Its published ports.
    pub ports: Vec<PortView>,
    /// How a backend is chosen: rr.
    #[schema(value_type = String)]
    pub algorithm: Algorithm,
    /// Seconds that a draining endpoint's flows may last.
    pub drain_secs: u32,
    /// Labels.
    pub labels: Labels,
    /// Its endpoints.
    pub endpoints: Vec<MemberView>,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Raft index of the last change.
    pub version: u64,
}

impl ServiceView {
    /// The service as users see it. `all` holds the nodes, its networks and its endpoints.
    pub fn of(service: &Service, all: &Objects) -> Self {
        let members = all.endpoints.values().filter(|e| e.service == Some(service.id)).map(AsRef::as_ref);
        Self::with(service, all, members.collect())
    }

    /// Every service, in time that grows with the objects and not with their product.
    pub fn list(all: &Objects) -> Vec<Self> {
        let mut members: BTreeMap<Id, Vec<&Endpoint>> = BTreeMap::new();
        for e in all.endpoints.values() {
            if let Some(s) = e.service {
                members.entry(s).or_default().push(e);
            }
        }
        all.services
            .values()
            .map(|s| Self::with(s, all, members.remove(&s.id).unwrap_or_default()))
            .collect()
    }

    fn with(service: &Service, all: &Objects, members: Vec<&Endpoint>) -> Self {
        Self {
            id: service.id,
            name: service.name.clone(),
            endpoint_mode: service.endpoint_mode,
            networks: service.networks.iter().map(|n| network_name(*n, all)).collect(),
            vips: service
                .vips
                .iter()
                .map(|v| VipView {
                    network: network_name(v.network, all),
                    ip: v.ip,
                })
                .collect(),
            ports: service.ports.iter().map(PortView::from).collect(),
            algorithm: service.algorithm,
            drain_secs: service.drain_secs,
            labels: service.labels.clone(),
            endpoints: members.iter().map(|e| MemberView::of(e, all)).collect(),
            created_at: service.created_at,
            version: service.version,
        }
    }

    /// What would have to be asked for to get this service: where an update begins.
    pub fn spec(&self) -> ServiceSpec {
        let port = |p: &PortView| Port {
            published: p.published,
            target: p.target,
            protocol: p.protocol,
            mode: p.mode,
        };
        ServiceSpec {
            name: self.name.clone(),
            networks: self.networks.clone(),
            ports: self.ports.iter().map(port).collect(),
            endpoint_mode: self.endpoint_mode,
            algorithm: self.algorithm,
            drain_secs: self.drain_secs,
            labels: self.labels.clone(),
        }
    }
}
