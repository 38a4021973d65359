//! The replicated state machine: objects, and what each command does to them.
//!
//! control's raft applies every committed command here, on every manager; the result depends on
//! nothing but the state and the command. A refused command changes nothing.

mod authority;
mod endpoints;
mod leases;
mod networks;
mod nodes;
mod ports;
mod services;

pub use nodes::may_stop_managing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    Id, Mac, Refusal,
    command::{Command, Outcome, Reply},
    objects::{Change, Cluster, Endpoint, Kind, Network, Node, Object, Objects, Port, Protocol, Role, Service},
    spec::unknown,
};

/// The objects, and indexes over them that are derived, never stored.
#[derive(Clone, Debug, Default)]
pub struct State {
    objects: Objects,
    /// Ids by kind, scope (the network, for endpoints) and lower-case name.
    names: BTreeMap<(Kind, Option<Id>, String), Id>,
    /// Services by published port, and the address that it is bound to.
    ports: BTreeMap<(Protocol, u16, Option<IpAddr>), Id>,
    /// Endpoints that publish a port of their own, each on its node only.
    node_ports: BTreeMap<(Protocol, u16), BTreeSet<Id>>,
    /// Taken addresses by network: gateways, auxiliary and reserved ones, VIPs, endpoints, nodes.
    used: BTreeMap<Id, BTreeSet<IpAddr>>,
    /// Endpoints by Ethernet address.
    macs: BTreeMap<Mac, Id>,
    /// Endpoints by node and the inode of their container's namespace.
    sandboxes: BTreeMap<(Id, u64), BTreeSet<Id>>,
}

/// What a command does: its answer and the objects that it puts or removes.
type Effect = Result<(Reply, Vec<Change>), Refusal>;

impl State {
    /// Rebuilds the state from its objects (a store or a snapshot).
    pub fn from_objects(objects: Objects) -> Self {
        let mut state = Self {
            objects,
            ..Self::default()
        };
        let all: Vec<Object> = state.objects.iter().collect();
        for object in &all {
            state.index(object);
        }
        state
    }

    /// Its objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Carries out the command of log entry `index`: its answer, and the objects that it changed.
    pub fn apply(&mut self, index: u64, command: &Command) -> (Outcome, Vec<Change>) {
        match self.effect(index, command) {
            Ok((reply, changes)) => {
                for change in &changes {
                    self.commit(change);
                }
                (Ok(reply), changes)
            }
            Err(refusal) => (Err(refusal), Vec::new()),
        }
    }

    fn effect(&self, index: u64, command: &Command) -> Effect {
        use Command as C;
        match command {
            C::Init {
                id,
                ingress,
                at,
                address_pools,
                subnet_prefix,
                ca_cert,
                ca_key,
                worker_secret,
                manager_secret,
                node,
            } => {
                if let Some(cluster) = &self.objects.cluster {
                    return Err(Refusal::conflict(format!(
                        "this node is in cluster {} already: leave it first (meshctl leave)",
                        cluster.id
                    )));
                }
                let cluster = Cluster {
                    id: *id,
                    version: index,
                    created_at: *at,
                    address_pools: address_pools.clone(),
                    subnet_prefix: *subnet_prefix,
                    ca_cert: ca_cert.clone(),
                    ca_key: ca_key.clone(),
                    former_roots: Vec::new(),
                    worker_secret: worker_secret.clone(),
                    manager_secret: manager_secret.clone(),
                    next_vni: networks::FIRST_VNI,
                    next_slot: 1,
                };
                nodes::init(cluster, *ingress, node, *at, index)
            }
            C::NodeJoin { node, at } => nodes::join(self, node, *at, index),
            C::NodeReport {
                id,
                addr,
                data_path_addr,
                underlay_mtu,
                underlay_mac,
                host_routes,
            } => nodes::report(self, *id, index, *data_path_addr, |n| {
                n.addr = *addr;
                n.underlay_mtu = *underlay_mtu;
                n.underlay_mac = *underlay_mac;
                n.host_routes = host_routes.clone();
            }),
            C::NodeLiveness { id, state, dataplane } => nodes::change(self, *id, index, |n| {
                n.state = *state;
                n.dataplane = *dataplane;
            }),
            C::NodeUpdate {
                node,
                availability,
                label_add,
                label_rm,
            } => {
                let id = self.find_node(node)?.id;
                nodes::change(self, id, index, |n| {
                    n.availability = availability.unwrap_or(n.availability);
                    n.labels.retain(|k, _| !label_rm.contains(k));
                    n.labels.extend(label_add.clone());
                })
            }
            C::NodeRole { node, role } => nodes::set_role(self, node, *role, index),
            C::NodeRemove { node, force } => nodes::remove(self, node, *force, index),
            C::TokenRotate { role, secret } => {
                let mut cluster = self.cluster()?.clone();
                cluster.version = index;
                *match role {
                    Role::Worker => &mut cluster.worker_secret,
                    Role::Manager => &mut cluster.manager_secret,
                } = secret.clone();
                Ok((Reply::Done, vec![put(Object::Cluster(Arc::new(cluster)))]))
            }
            C::CaRotate { from, at, made } => authority::rotate(self, from, *at, made.as_ref(), index),
            C::CaForget { roots } => authority::forget(self, roots, index),
            C::NetworkCreate { id, at, spec } => networks::create(self, *id, *at, spec, index),
            C::NetworkRemove { network } => networks::remove(self, network),
            C::NetworkPrune {} => networks::prune(self),
            C::ServiceCreate { id, at, spec } => services::create(self, *id, *at, spec, index),
            C::ServiceUpdate { service, version, spec } => services::update(self, service, *version, spec, index),
            C::ServiceRemove { service } => services::remove(self, service, index),
            C::EndpointCreate { endpoint, at } => endpoints::create(self, endpoint, *at, index),
            C::EndpointSet { id, state } => endpoints::set(self, *id, *state, index),
            C::EndpointStopping { id, until } => endpoints::stopping(self, *id, *until, index),
            C::EndpointHealth { id, healthy } => endpoints::health(self, *id, *healthy, index),
            C::EndpointPublish { id, ports, port_ranges } => endpoints::publish(self, *id, ports, port_ranges, index),
            C::EndpointWeigh { id, weight } => endpoints::weigh(self, *id, *weight, index),
            C::EndpointLearn { id, learnt } => endpoints::learn(self, *id, learnt, index),
            C::EndpointRemove { id } => endpoints::remove(self, *id, index),
            C::AddressReserve { network, node, ip, six } => leases::reserve(self, network, *node, *ip, *six, index),
            C::AddressRelease {
                network,
                node,
                ip,
                with_endpoint,
            } => leases::release(self, network, *node, *ip, *with_endpoint, index),
        }
    }

    fn commit(&mut self, change: &Change) {
        if let Some(old) = self.objects.get(change.kind, change.id) {
            self.unindex(&old);
        }
        if let Some(new) = &change.object {
            self.index(new);
        }
        if change.kind == Kind::Network && change.object.is_none() {
            self.used.remove(&change.id);
        }
        self.objects.apply(change);
    }

    /// The addresses that an object takes, by network.
    fn addresses(&self, object: &Object) -> Vec<(Id, IpAddr)> {
        match object {
            Object::Cluster(_) => Vec::new(),
            Object::Node(n) => self.objects.ingress().map(|i| (i.id, n.ingress_ip)).into_iter().collect(),
            Object::Network(n) => {
                let own = n.subnets.iter().flat_map(|s| s.aux.values().copied().chain([s.gateway]));
                own.chain(n.reserved.keys().copied()).map(|ip| (n.id, ip)).collect()
            }
            Object::Service(s) => s.vips.iter().flat_map(|v| v.ips().map(|ip| (v.network, ip))).collect(),
            Object::Endpoint(e) => e.ips().map(|ip| (e.network, ip)).collect(),
        }
    }

    fn index(&mut self, object: &Object) {
        for (network, ip) in self.addresses(object) {
            self.used.entry(network).or_default().insert(ip);
        }
        let (kind, id) = object.key();
        match object {
            Object::Cluster(_) => {}
            Object::Node(n) => drop(self.names.insert((kind, None, n.hostname.to_ascii_lowercase()), id)),
            Object::Network(n) => drop(self.names.insert((kind, None, n.name.to_ascii_lowercase()), id)),
            Object::Service(s) => {
                self.names.insert((kind, None, s.name.to_ascii_lowercase()), id);
                self.ports.extend(s.ports.iter().map(|p| (place(p), id)));
            }
            Object::Endpoint(e) => {
                self.names.insert((kind, Some(e.network), e.name.to_ascii_lowercase()), id);
                self.macs.insert(e.mac(), id);
                for p in &e.ports {
                    self.node_ports.entry((p.protocol, p.published)).or_default().insert(id);
                }
                self.sandboxes.entry((e.node, e.sandbox.inode)).or_default().insert(id);
            }
        }
    }

    fn unindex(&mut self, object: &Object) {
        for (network, ip) in self.addresses(object) {
            if let Some(used) = self.used.get_mut(&network) {
                used.remove(&ip);
            }
        }
        let (kind, id) = object.key();
        match object {
            Object::Cluster(_) => {}
            Object::Node(n) => drop(self.names.remove(&(kind, None, n.hostname.to_ascii_lowercase()))),
            Object::Network(n) => drop(self.names.remove(&(kind, None, n.name.to_ascii_lowercase()))),
            Object::Service(s) => {
                self.names.remove(&(kind, None, s.name.to_ascii_lowercase()));
                for p in &s.ports {
                    self.ports.remove(&place(p));
                }
            }
            Object::Endpoint(e) => {
                self.names.remove(&(kind, Some(e.network), e.name.to_ascii_lowercase()));
                self.macs.remove(&e.mac());
                for p in &e.ports {
                    forget(&mut self.node_ports, (p.protocol, p.published), id);
                }
                forget(&mut self.sandboxes, (e.node, e.sandbox.inode), id);
            }
        }
    }

    /// The services that publish a port, with the address that each binds it to.
    fn publishers(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = (Option<IpAddr>, Id)> {
        // `None` comes before every address, and IPv6 addresses after all others.
        let last = IpAddr::V6(std::net::Ipv6Addr::from_bits(u128::MAX));
        self.ports
            .range((protocol, port, None)..=(protocol, port, Some(last)))
            .map(|((.., address), id)| (*address, *id))
    }

    /// The endpoints that publish a port of their own, with the address that each binds it to.
    fn node_publishers(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = (Option<IpAddr>, &Endpoint)> {
        let ids = self.node_ports.get(&(protocol, port)).into_iter().flatten();
        let all = ids.filter_map(|id| self.objects.endpoints.get(id));
        all.flat_map(move |e| {
            let same = e.ports.iter().filter(move |p| (p.protocol, p.published) == (protocol, port));
            same.map(|p| (p.address, e.as_ref()))
        })
    }

    fn cluster(&self) -> Result<&Cluster, Refusal> {
        self.objects
            .cluster
            .as_deref()
            .ok_or_else(|| Refusal::other("this node belongs to no cluster: run meshctl init or meshctl join first"))
    }

    fn find_node(&self, r: &str) -> Result<&Arc<Node>, Refusal> {
        self.find(Kind::Node, r, &self.objects.nodes)
    }

    fn find_network(&self, r: &str) -> Result<&Arc<Network>, Refusal> {
        self.find(Kind::Network, r, &self.objects.networks)
    }

    fn find_service(&self, r: &str) -> Result<&Arc<Service>, Refusal> {
        self.find(Kind::Service, r, &self.objects.services)
    }

    fn find<'a, T>(&self, kind: Kind, r: &str, all: &'a BTreeMap<Id, T>) -> Result<&'a T, Refusal> {
        let by_id = r.parse().ok().filter(|id| all.contains_key(id));
        let id = by_id.or_else(|| self.named(kind, None, r));
        let what = match kind {
            Kind::Cluster => "cluster",
            Kind::Node => "node",
            Kind::Network => "network",
            Kind::Service => "service",
            Kind::Endpoint => "endpoint",
        };
        id.and_then(|id| all.get(&id)).ok_or_else(|| unknown(what, r))
    }

    fn named(&self, kind: Kind, scope: Option<Id>, name: &str) -> Option<Id> {
        self.names.get(&(kind, scope, name.to_ascii_lowercase())).copied()
    }

    /// Who has an address of a network, for the error that says so.
    fn holder(&self, network: &Network, ip: IpAddr) -> String {
        let all = &self.objects;
        if let Some(e) = all.endpoints.in_network(network.id).find(|e| e.ips().any(|a| a == ip)) {
            return format!("endpoint {:?}", e.name);
        }
        if let Some(s) = all
            .services
            .values()
            .find(|s| s.vips.iter().any(|v| v.network == network.id && v.ips().any(|a| a == ip)))
        {
            return format!("the virtual address of service {:?}", s.name);
        }
        if network.subnets.iter().any(|s| s.gateway == ip) {
            return "the gateway".to_owned();
        }
        if let Some(node) = network.reserved.get(&ip) {
            let hostname = all.nodes.get(node).map_or("?", |n| n.hostname.as_str());
            return format!("a container that is being started on {hostname}");
        }
        match network.subnets.iter().flat_map(|s| &s.aux).find(|(_, a)| **a == ip) {
            Some((name, _)) => format!("aux address {name:?}"),
            None => "a node".to_owned(),
        }
    }

    /// Takes the next IPv4 address of `network` (a copy that the caller puts back).
    fn take_ip4(&self, network: &mut Network) -> Result<Ipv4Addr, Refusal> {
        match self.take_address(network, IpAddr::is_ipv4)? {
            IpAddr::V4(ip) => Ok(ip),
            IpAddr::V6(ip) => Err(Refusal::other(format!("{ip} is not an IPv4 address"))),
        }
    }

    /// Takes the next IPv6 address of `network`, as [`Self::take_ip4`].
    fn take_ip6(&self, network: &mut Network) -> Result<Ipv6Addr, Refusal> {
        match self.take_address(network, IpAddr::is_ipv6)? {
            IpAddr::V6(ip) => Ok(ip),
            IpAddr::V4(ip) => Err(Refusal::other(format!("{ip} is not an IPv6 address"))),
        }
    }

    fn take_address(&self, network: &mut Network, is_wanted: fn(&IpAddr) -> bool) -> Result<IpAddr, Refusal> {
        let used = self.used.get(&network.id).unwrap_or(const { &BTreeSet::new() });
        let mut last = Err(Refusal::other(format!("network {:?} has no subnet of that family", network.name)));
        for subnet in network.subnets.iter_mut().filter(|s| is_wanted(&s.subnet.addr())) {
            last = crate::ipam::next_address(&network.name, subnet, used);
            if let Ok(ip) = last {
                subnet.cursor = Some(ip);
                break;
            }
        }
        last
    }

    /// Takes the next address of each family that `network` has, but for those given: the one that
    /// the owner is known by, and the IPv6 address beside an IPv4 one.
    fn take_addresses(
        &self,
        network: &mut Network,
        ip4: Option<Ipv4Addr>,
        ip6: Option<Ipv6Addr>,
    ) -> Result<(IpAddr, Option<Ipv6Addr>), Refusal> {
        let ip4 = match ip4 {
            None if network.has_ip4() => Some(self.take_ip4(network)?),
            given => given,
        };
        let ip6 = match ip6 {
            None if network.has_ip6() => Some(self.take_ip6(network)?),
            given => given,
        };
        match (ip4, ip6) {
            (Some(ip4), ip6) => Ok((ip4.into(), ip6)),
            (None, Some(ip6)) => Ok((ip6.into(), None)),
            (None, None) => Err(Refusal::other(format!("network {:?} has no subnet", network.name))),
        }
    }
}

/// Takes `id` out of an index, and what has no more of them.
fn forget<K: Ord>(index: &mut BTreeMap<K, BTreeSet<Id>>, key: K, id: Id) {
    if let Some(ids) = index.get_mut(&key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(&key);
        }
    }
}

/// Where a port is published: what no other can have.
fn place(p: &Port) -> (Protocol, u16, Option<IpAddr>) {
    (p.protocol, p.published, p.address)
}

fn put(object: Object) -> Change {
    let (kind, id) = object.key();
    Change {
        kind,
        id,
        object: Some(object),
    }
}

fn gone(kind: Kind, id: Id) -> Change {
    Change { kind, id, object: None }
}

/// "a, b, c and 4 more", for errors that name what is in the way.
fn some_of(names: impl IntoIterator<Item: Into<String>>) -> String {
    let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
    let rest = names.len().saturating_sub(4);
    names.truncate(4);
    let shown = names.join(", ");
    if rest > 0 { format!("{shown} and {rest} more") } else { shown }
}

/// Adds what an endpoint put to the changes; used by node and service removal.
fn put_endpoint(endpoint: Endpoint) -> Change {
    put(Object::Endpoint(Arc::new(endpoint)))
}
