//! The view of a service.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use jiff::Timestamp;
use mesh_core::{
    Id,
    objects::{Algorithm, Endpoint, EndpointMode, Labels, LbReturn, Objects, Port, Protocol, PublishMode, Service, SourceRange},
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
    /// ingress: on every node; host: only on those that run an endpoint, by that endpoint.
    #[schema(value_type = String)]
    pub mode: PublishMode,
    /// The only address that it answers at; null: all of the nodes'.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// Clients of published ports that are let in, or are not. The longest prefix decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceRangeView {
    /// Their addresses.
    #[schema(value_type = String, example = "10.0.0.0/8")]
    pub net: IpNet,
    /// They are let in.
    pub allow: bool,
}

impl From<&Port> for PortView {
    fn from(p: &Port) -> Self {
        Self {
            published: p.published,
            target: p.target,
            protocol: p.protocol,
            mode: p.mode,
            address: p.address,
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
    /// Its IPv6 address in a network that has both families; left out elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ip6: Option<Ipv6Addr>,
}

impl VipView {
    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(self.ip).chain(self.ip6.map(IpAddr::V6))
    }
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
    /// How a backend is chosen: rr, random, maglev or source-hash.
    #[schema(value_type = String)]
    pub algorithm: Algorithm,
    /// Seconds that a draining endpoint's flows may last.
    pub drain_secs: u32,
    /// Seconds for which a client comes back to its endpoint; 0: it does not.
    #[serde(default)]
    pub affinity_secs: u32,
    /// Clients of its published ports; empty: everybody.
    #[serde(default)]
    pub source_ranges: Vec<SourceRangeView>,
    /// The way of its published ports' replies: tunnel, by the node that was asked, or direct.
    #[serde(default)]
    #[schema(value_type = String)]
    pub lb_return: LbReturn,
    /// Endpoints on its networks that have all these labels serve it too.
    #[serde(default)]
    pub selector: Labels,
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
        let mut members: Vec<&Endpoint> = all.members_of(service).map(AsRef::as_ref).collect();
        members.sort_by_key(|e| e.slot);
        Self::with(service, all, members)
    }

    /// Every service by its name, in time that grows with the objects and not with their product.
    pub fn list(all: &Objects) -> Vec<Self> {
        let mut members = all.members();
        let mut list: Vec<_> = all
            .services
            .values()
            .map(|s| Self::with(s, all, members.remove(&s.id).unwrap_or_default()))
            .collect();
        list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        list
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
                    ip6: v.ip6,
                })
                .collect(),
            ports: service.ports.iter().map(PortView::from).collect(),
            algorithm: service.algorithm,
            drain_secs: service.drain_secs,
            affinity_secs: service.affinity_secs,
            source_ranges: service
                .source_ranges
                .iter()
                .map(|r| SourceRangeView {
                    net: r.net,
                    allow: r.allow,
                })
                .collect(),
            lb_return: service.lb_return,
            selector: Labels::clone(&service.selector),
            labels: Labels::clone(&service.labels),
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
            address: p.address,
        };
        let range = |r: &SourceRangeView| SourceRange {
            net: r.net,
            allow: r.allow,
        };
        ServiceSpec {
            name: self.name.clone(),
            networks: self.networks.clone(),
            ports: self.ports.iter().map(port).collect(),
            endpoint_mode: self.endpoint_mode,
            algorithm: self.algorithm,
            drain_secs: self.drain_secs,
            affinity_secs: self.affinity_secs,
            source_ranges: self.source_ranges.iter().map(range).collect(),
            lb_return: self.lb_return,
            selector: self.selector.clone(),
            labels: self.labels.clone(),
        }
    }
}
