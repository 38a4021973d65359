//! The view of a network, with how full its subnets are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use jiff::Timestamp;
use mesh_core::{
    Id, ipam,
    objects::{Endpoint, Labels, Network, Objects, Service, Subnet, Vip},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MemberView;

/// An address range of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubnetView {
    /// The range.
    #[schema(value_type = String, example = "172.30.0.0/16")]
    pub subnet: IpNet,
    /// Its gateway, the same on every host.
    #[schema(value_type = String)]
    pub gateway: IpAddr,
    /// The part that addresses are handed out from; null: all of it.
    #[schema(value_type = Option<String>)]
    pub ip_range: Option<IpNet>,
    /// Addresses that are not handed out, by name.
    #[schema(value_type = BTreeMap<String, String>)]
    pub aux: BTreeMap<String, IpAddr>,
    /// Addresses that somebody has: gateway, auxiliary, virtual, endpoints', nodes'.
    pub used: u64,
    /// The others that can be handed out: of `ip_range`, or of all but the network's own and the broadcast address.
    pub free: u64,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Always overlay.
    pub driver: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// MTU in bytes that its interfaces have.
    pub mtu: u32,
    /// Its address ranges.
    pub subnets: Vec<SubnetView>,
    /// No way out.
    pub internal: bool,
    /// Containers outside a service may attach.
    pub attachable: bool,
    /// It carries published ports from node to node.
    pub ingress: bool,
    /// Driver options as given.
    pub options: Labels,
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

impl NetworkView {
    /// The network as users see it. `all` holds the nodes, its services and its endpoints.
    pub fn of(network: &Network, all: &Objects) -> Self {
        let members = all.endpoints.in_network(network.id).map(AsRef::as_ref);
        let services = all.services.values().map(AsRef::as_ref);
        Self::with(network, all, members.collect(), services.collect())
    }

    /// Every network by its name, in time that grows with the objects and not with their product.
    pub fn list(all: &Objects) -> Vec<Self> {
        let mut members: BTreeMap<Id, Vec<&Endpoint>> = BTreeMap::new();
        for e in all.endpoints.values() {
            members.entry(e.network).or_default().push(e);
        }
        let mut services: BTreeMap<Id, Vec<&Service>> = BTreeMap::new();
        for s in all.services.values() {
            for v in &s.vips {
                services.entry(v.network).or_default().push(s);
            }
        }
        let mut take = |n: &Network| {
            Self::with(
                n,
                all,
                members.remove(&n.id).unwrap_or_default(),
                services.remove(&n.id).unwrap_or_default(),
            )
        };
        let mut list: Vec<_> = all.networks.values().map(|n| take(n)).collect();
        list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        list
    }

    fn with(network: &Network, all: &Objects, members: Vec<&Endpoint>, services: Vec<&Service>) -> Self {
        let vips = services
            .iter()
            .flat_map(|s| &s.vips)
            .filter(|v| v.network == network.id)
            .flat_map(Vip::ips);
        let nodes = all.nodes.values().filter(|_| network.ingress).map(|n| n.ingress_ip);
        let taken: BTreeSet<IpAddr> = members.iter().flat_map(|e| e.ips()).chain(vips).chain(nodes).collect();
        Self {
            id: network.id,
            name: network.name.clone(),
            driver: network.driver.clone(),
            vni: network.vni,
            mtu: all.mtu(network),
            subnets: network.subnets.iter().map(|s| SubnetView::of(s, &taken)).collect(),
            internal: network.internal,
            attachable: network.attachable,
            ingress: network.ingress,
            options: network.options.clone(),
            labels: network.labels.clone(),
            endpoints: members.iter().map(|e| MemberView::of(e, all)).collect(),
            created_at: network.created_at,
            version: network.version,
        }
    }
}

impl SubnetView {
    fn of(subnet: &Subnet, taken: &BTreeSet<IpAddr>) -> Self {
        let own = std::iter::once(subnet.gateway).chain(subnet.aux.values().copied());
        let used: BTreeSet<IpAddr> = taken.iter().copied().chain(own).filter(|ip| subnet.subnet.contains(ip)).collect();
        // What is outside the range that addresses are handed out of takes nothing from it.
        let range = subnet.ip_range.unwrap_or(subnet.subnet);
        let within = used.iter().filter(|ip| range.contains(*ip)).count() as u128;
        let free = ipam::capacity(subnet).saturating_sub(within);
        Self {
            subnet: subnet.subnet,
            gateway: subnet.gateway,
            ip_range: subnet.ip_range,
            aux: subnet.aux.clone(),
            used: used.len() as u64,
            free: u64::try_from(free).unwrap_or(u64::MAX),
        }
    }
}
