//! The views of an endpoint: by itself, and inside its network or service.

use std::net::{IpAddr, Ipv6Addr};

use jiff::Timestamp;
use mesh_core::{
    Id, Mac,
    objects::{Availability, Dataplane, Endpoint, EndpointState, Health, Labels, Objects},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BandwidthView, PortView};

/// Where an endpoint is in its life, as far as others can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateView {
    /// Has an address, not yet an interface.
    Starting,
    /// Takes flows.
    Ready,
    /// Takes no new flow: itself, or its node, is being drained, or its container is stopping.
    Draining,
    /// Its container's own check fails, or has not succeeded yet: it takes no new flow while others of its service do.
    Unhealthy,
    /// Its node's data plane does not answer: nobody is sent there.
    Unreachable,
}

impl StateView {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
            Self::Unreachable => "unreachable",
        }
    }

    fn of(endpoint: &Endpoint, all: &Objects) -> Self {
        let node = all.nodes.get(&endpoint.node);
        if node.is_some_and(|n| n.dataplane == Dataplane::Unreachable) {
            return Self::Unreachable;
        }
        match endpoint.state {
            EndpointState::Starting => Self::Starting,
            EndpointState::Ready if node.is_some_and(|n| n.availability == Availability::Drain) => Self::Draining,
            EndpointState::Ready if endpoint.stopping.is_some() => Self::Draining,
            EndpointState::Ready if endpoint.health == Health::Unwell => Self::Unhealthy,
            EndpointState::Ready => Self::Ready,
            EndpointState::Draining => Self::Draining,
        }
    }
}

/// An endpoint inside the view of its network or service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Host name of its node.
    pub node: String,
    /// Name of its network.
    pub network: String,
    /// Its address.
    #[schema(value_type = String)]
    pub ip: IpAddr,
    /// Its IPv6 address in a network that has both families; left out elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ip6: Option<Ipv6Addr>,
    /// Its Ethernet address.
    #[schema(value_type = String)]
    pub mac: Mac,
    /// Where it is in its life.
    pub state: StateView,
    /// How many new flows it takes, beside the others; 0: none.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

impl MemberView {
    pub(super) fn of(endpoint: &Endpoint, all: &Objects) -> Self {
        Self {
            id: endpoint.id,
            name: endpoint.name.to_string(),
            node: node_name(endpoint.node, all),
            network: network_name(endpoint.network, all),
            ip: endpoint.ip,
            ip6: endpoint.ip6.as_deref().copied(),
            mac: endpoint.mac(),
            state: StateView::of(endpoint, all),
            weight: endpoint.weight,
        }
    }
}

fn node_name(id: Id, all: &Objects) -> String {
    all.nodes.get(&id).map_or_else(|| id.to_string(), |n| n.hostname.clone())
}

/// A network's name, or its id where the network is not known.
pub(super) fn network_name(id: Id, all: &Objects) -> String {
    all.networks.get(&id).map_or_else(|| id.to_string(), |n| n.name.clone())
}

/// An endpoint, with what a program needs to configure the container (addresses, resolv.conf).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EndpointView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Host name of its node.
    pub node: String,
    /// Name of its network.
    pub network: String,
    /// Its address.
    #[schema(value_type = String)]
    pub ip: IpAddr,
    /// Its IPv6 address in a network that has both families; left out elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ip6: Option<Ipv6Addr>,
    /// Prefix length that goes with the address; null when the network is not known here.
    pub prefix_len: Option<u8>,
    /// Gateway of the address's subnet, which also answers DNS.
    #[schema(value_type = Option<String>)]
    pub gateway: Option<IpAddr>,
    /// Prefix length that goes with `ip6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_len6: Option<u8>,
    /// Gateway of the subnet of `ip6`, which also answers DNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway6: Option<IpAddr>,
    /// MTU in bytes of its interface.
    pub mtu: Option<u32>,
    /// Its Ethernet address.
    #[schema(value_type = String)]
    pub mac: Mac,
    /// Name of its interface inside the container.
    pub ifname: String,
    /// What the user called the container.
    pub container: String,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// Name of the service that it serves.
    pub service: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// Where it is in its life.
    pub state: StateView,
    /// How many new flows it takes, beside the others of its service; 0: none.
    #[serde(default = "one")]
    pub weight: u32,
    /// Ports of its own, which its node answers.
    #[serde(default)]
    pub ports: Vec<PortView>,
    /// How much it may receive and send; left out where nothing limits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BandwidthView>,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Raft index of the last change.
    pub version: u64,
}

impl EndpointView {
    /// The endpoint as users see it. `all` holds the nodes, its network and its service.
    pub fn of(endpoint: &Endpoint, all: &Objects) -> Self {
        let network = all.networks.get(&endpoint.network);
        let subnet = network.and_then(|n| n.subnet_of(endpoint.ip));
        let subnet6 = network.and_then(|n| n.subnet_of((**endpoint.ip6.as_ref()?).into()));
        let service = |id: Id| all.services.get(&id).map_or_else(|| id.to_string(), |s| s.name.clone());
        Self {
            id: endpoint.id,
            name: endpoint.name.to_string(),
            node: node_name(endpoint.node, all),
            network: network_name(endpoint.network, all),
            ip: endpoint.ip,
            ip6: endpoint.ip6.as_deref().copied(),
            prefix_len: subnet.map(|s| s.subnet.prefix_len()),
            gateway: subnet.map(|s| s.gateway),
            prefix_len6: subnet6.map(|s| s.subnet.prefix_len()),
            gateway6: subnet6.map(|s| s.gateway),
            mtu: network.map(|n| all.mtu(n)),
            mac: endpoint.mac(),
            ifname: endpoint.ifname.to_string(),
            container: endpoint.sandbox.container.clone(),
            aliases: endpoint.aliases.to_vec(),
            service: endpoint.service.map(service),
            labels: Labels::clone(&endpoint.labels),
            state: StateView::of(endpoint, all),
            weight: endpoint.weight,
            ports: endpoint.ports.iter().map(PortView::from).collect(),
            bandwidth: endpoint.sandbox.bandwidth.as_deref().copied().map(BandwidthView::from),
            created_at: endpoint.created_at(),
            version: endpoint.version,
        }
    }

    /// Its addresses, the one that it is known by first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(self.ip).chain(self.ip6.map(IpAddr::V6))
    }

    /// Every endpoint by its name, which others may have too.
    pub fn list(all: &Objects) -> Vec<Self> {
        let mut list: Vec<_> = all.endpoints.values().map(|e| Self::of(e, all)).collect();
        list.sort_unstable_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        list
    }
}
