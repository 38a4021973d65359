//! The objects of the cluster: what was asked (spec) and what is.
//!
//! They are what the control plane stores and streams, what the agent keeps in its ledger, and what
//! [`crate::intent`] reads. Every object has an id, a name, labels, and a version: the raft index of
//! its last change, on which updates are compare-and-set. Fields are only ever added, with a
//! default, so that two releases can read each other's stores.

mod bandwidth;
mod endpoint;
mod endpoints;
mod groups;
mod network;
mod node;
mod obstacle;
mod seldom;
mod service;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize};

use crate::Id;

pub use bandwidth::{Bandwidth, LEAST_RATE, Rate};
pub use endpoint::{Endpoint, EndpointState, Handover, Health, Place, Sandbox};
pub use endpoints::Endpoints;
pub use network::{Encapsulation, Network, Subnet};
pub use node::{Availability, Cluster, Dataplane, FormerRoot, HostRoute, Node, NodeState, Role};
pub use obstacle::{Obstacle, Turn};
pub use seldom::{Collection, Seldom};
pub use service::{Algorithm, EndpointMode, LbReturn, Port, Protocol, PublishMode, Service, SourceRange, Vip};
pub use services::Services;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

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
    pub services: Services,
    /// Endpoints by id.
    pub endpoints: Endpoints,
}

impl Objects {
    /// Puts or removes one object.
    pub fn apply(&mut self, change: &Change) {
        match &change.object {
            Some(Object::Cluster(o)) => self.cluster = Some(o.clone()),
            Some(Object::Node(o)) => drop(self.nodes.insert(o.id, o.clone())),
            Some(Object::Network(o)) => drop(self.networks.insert(o.id, o.clone())),
            Some(Object::Service(o)) => drop(self.services.insert(o.clone())),
            Some(Object::Endpoint(o)) => drop(self.endpoints.insert(o.clone())),
            None => match change.kind {
                Kind::Cluster => self.cluster = None,
                Kind::Node => drop(self.nodes.remove(&change.id)),
                Kind::Network => drop(self.networks.remove(&change.id)),
                Kind::Service => drop(self.services.remove(change.id)),
                Kind::Endpoint => drop(self.endpoints.remove(change.id)),
            },
        }
    }

    /// One object.
    pub fn get(&self, kind: Kind, id: Id) -> Option<Object> {
        match kind {
            Kind::Cluster => self.cluster.clone().map(Object::Cluster),
            Kind::Node => self.nodes.get(&id).cloned().map(Object::Node),
            Kind::Network => self.networks.get(&id).cloned().map(Object::Network),
            Kind::Service => self.services.get(&id).cloned().map(Object::Service),
            Kind::Endpoint => self.endpoints.get(&id).cloned().map(Object::Endpoint),
        }
    }

    /// Gives back memory that changes left unused: for whoever has made very many.
    pub fn compact(&mut self) {
        self.services.compact();
        self.endpoints.compact();
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

    /// A way leads out of the endpoint's network, and so for answers too: it is not internal.
    pub fn is_outward(&self, e: &Endpoint) -> bool {
        self.networks.get(&e.network).is_some_and(|n| !n.internal)
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
        let by_id = r.parse().ok().and_then(|id: Id| self.services.get(&id));
        by_id.or_else(|| self.services.named(r))
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

    /// The endpoints of one service, in no order.
    pub fn members_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Arc<Endpoint>> + 'a {
        let networks = if service.selector.is_empty() { &[][..] } else { &service.networks };
        let near = networks.iter().flat_map(|n| self.endpoints.in_network(*n));
        let selected = near.filter(|e| e.service != Some(service.id) && service.selects(e));
        self.endpoints.of_service(service.id).chain(selected)
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

fn find<'a, T>(map: &'a BTreeMap<Id, Arc<T>>, r: &str, name: impl Fn(&T) -> &str) -> Option<&'a Arc<T>> {
    let by_name = || map.values().find(|o| name(o).eq_ignore_ascii_case(r));
    r.parse().ok().and_then(|id: Id| map.get(&id)).or_else(by_name)
}

/// Reads a list without room for more: objects are kept as they are read.
fn exact<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let mut list = Vec::deserialize(from)?;
    list.shrink_to_fit();
    Ok(list)
}
