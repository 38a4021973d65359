//! Objects as Consul's catalog has them. Pure.
//!
//! A service of the mesh is a service there, and each of its endpoints an instance: the endpoint's own address
//! with the first port that the service has at its endpoints (0 without one), on the node that it is on. An
//! instance has a check that passes while the balancers of other nodes would give it new flows, and its node has one
//! that passes while its data plane answers. Labels are meta; the label `mesh.tags` (`a,b`) of service and endpoint are tags.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use http::StatusCode;
use mesh_core::{
    Id,
    objects::{Dataplane, Endpoint, EndpointState, Node, NodeState, Objects, Obstacle, Role, Service, Turn},
};
use serde_json::{Value, json};

use super::question::{Ask, Question, Wrong};

/// The one datacenter.
pub const DATACENTER: &str = "mesh";
/// Label with the tags, separated by commas.
const TAGS: &str = "mesh.tags";

/// Answers a question; `own` is this node.
///
/// # Errors
/// This node is not in the list: it was removed.
pub fn answer(all: &Objects, own: Id, question: &Question) -> Result<Value, Wrong> {
    let fits = |n: &&Arc<Node>| question.node_meta.iter().all(|(k, v)| n.labels.get(k) == Some(v));
    let mine = || {
        let gone = || Wrong::new(StatusCode::INTERNAL_SERVER_ERROR, "this node is not in the catalog");
        all.nodes.get(&own).ok_or_else(gone)
    };
    Ok(match &question.ask {
        Ask::Leader => json!(managers(all).next().unwrap_or_default()),
        Ask::Peers => managers(all).collect(),
        Ask::Datacenters => json!([DATACENTER]),
        Ask::AgentSelf => agent_self(mine()?),
        Ask::AgentServices => {
            let own = mine()?.id;
            let services = services_on(all, own).into_iter().flat_map(|s| instances(all, s, question));
            let here = services.filter(|i| i.endpoint.node == own);
            here.map(|i| (i.id(), i.service_json())).collect::<serde_json::Map<_, _>>().into()
        }
        Ask::Nodes => {
            let mut nodes: Vec<_> = all.nodes.values().filter(fits).collect();
            nodes.sort_by(|a, b| a.hostname.cmp(&b.hostname));
            nodes.into_iter().map(|n| node_json(n)).collect()
        }
        Ask::Services => {
            let mut services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for i in every(all, question) {
                services.entry(&i.service.name).or_default().extend(i.tags());
            }
            json!(services)
        }
        Ask::Service(name) => of(all, name, question).iter().map(Instance::catalog_json).collect(),
        Ask::Health(name) => of(all, name, question).iter().map(Instance::health_json).collect(),
        Ask::State(wanted) => {
            let nodes = all.nodes.values().filter(fits).map(|n| node_check(n));
            let instances = every(all, question).into_iter().map(|i| i.check());
            let wants = |c: &Value| wanted == "any" || c["Status"] == wanted.as_str();
            nodes.chain(instances).filter(wants).collect()
        }
    })
}

/// `host:port` of the managers, those that are ready first.
fn managers(all: &Objects) -> impl Iterator<Item = String> + use<> {
    let mut nodes: Vec<_> = all.nodes.values().filter(|n| n.role == Role::Manager).collect();
    nodes.sort_by_key(|n| (n.state != NodeState::Ready, n.hostname.clone()));
    let addrs: Vec<_> = nodes
        .iter()
        .map(|n| std::net::SocketAddr::new(n.addr, n.control_port).to_string())
        .collect();
    addrs.into_iter()
}

/// One endpoint of one service.
struct Instance<'a> {
    service: &'a Service,
    endpoint: &'a Endpoint,
    node: &'a Node,
    /// It is the turn of the likes of it to take new flows, among those of the service in its network (as in
    /// `core::intent`).
    due: bool,
}

/// The instances of all services.
fn every<'a>(all: &'a Objects, question: &Question) -> Vec<Instance<'a>> {
    let mut members = all.members();
    let services = all.services.values();
    let found = services.flat_map(|s| {
        let members = members.remove(&s.id).unwrap_or_default();
        members.into_iter().map(move |e| (s.as_ref(), e))
    });
    chosen(all, found, question)
}

/// The instances of the service with a name.
fn of<'a>(all: &'a Objects, name: &str, question: &Question) -> Vec<Instance<'a>> {
    let service = all.services.named(name);
    service.map(|s| instances(all, s, question)).unwrap_or_default()
}

/// The instances of one service.
fn instances<'a>(all: &'a Objects, service: &'a Service, question: &Question) -> Vec<Instance<'a>> {
    chosen(all, all.members_of(service).map(|e| (service, e.as_ref())), question)
}

/// The services that have an endpoint on a node.
fn services_on(all: &Objects, node: Id) -> Vec<&Service> {
    let mut found = BTreeMap::new();
    for e in all.endpoints.on_node(node) {
        let attached = e.service.and_then(|id| all.services.get(&id));
        let selecting = all.services.selecting_in(e.network).filter(|s| s.selects(e));
        found.extend(attached.into_iter().chain(selecting).map(|s| (s.id, s.as_ref())));
    }
    found.into_values().collect()
}

/// A digest of the objects that an answer is made of, by their ids and versions: while it is the same, so is the answer. `None` where
/// that is everything.
pub fn read(all: &Objects, own: Id, question: &Question) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    let mut add = |id: Id, version: u64| (id, version).hash(&mut hasher);
    match &question.ask {
        Ask::Datacenters => {}
        Ask::AgentSelf => all.nodes.get(&own).into_iter().for_each(|n| add(n.id, n.version)),
        Ask::Leader | Ask::Peers | Ask::Nodes => all.nodes.values().for_each(|n| add(n.id, n.version)),
        Ask::Service(name) | Ask::Health(name) => {
            if let Some(service) = all.services.named(name) {
                add(service.id, service.version);
                for e in all.members_of(service) {
                    add(e.id, e.version);
                    all.nodes.get(&e.node).into_iter().for_each(|n| add(n.id, n.version));
                }
            }
        }
        Ask::AgentServices | Ask::Services | Ask::State(_) => return None,
    }
    Some(hasher.finish())
}

/// Those that fit, in the one order that all lists have: by node, then by id.
fn chosen<'a>(all: &'a Objects, found: impl Iterator<Item = (&'a Service, &'a Endpoint)>, question: &Question) -> Vec<Instance<'a>> {
    // One that starts has no interface yet.
    let there = found.filter(|(_, e)| e.state != EndpointState::Starting);
    let instances = there.filter_map(|(service, endpoint)| {
        let node = all.nodes.get(&endpoint.node)?;
        Some(Instance {
            service,
            endpoint,
            node,
            due: false,
        })
    });
    let mut chosen: Vec<_> = instances.collect();
    let place = |i: &Instance<'_>| (i.service.id, i.endpoint.network);
    let mut first = BTreeMap::new();
    for i in &chosen {
        if let Some(turn) = i.turn() {
            first.entry(place(i)).and_modify(|t: &mut Turn| *t = turn.min(*t)).or_insert(turn);
        }
    }
    for i in &mut chosen {
        i.due = i.turn().is_some_and(|turn| first.get(&place(i)) == Some(&turn));
    }
    let fits = |i: &Instance<'_>| {
        let tags = i.tags();
        question.tags.iter().all(|t| tags.contains(t.as_str()))
            && question.node_meta.iter().all(|(k, v)| i.node.labels.get(k) == Some(v))
            && (!question.passing || i.trouble().is_none())
    };
    chosen.retain(fits);
    chosen.sort_by(|a, b| (&a.node.hostname, a.endpoint.id, &a.service.name).cmp(&(&b.node.hostname, b.endpoint.id, &b.service.name)));
    chosen
}

impl<'a> Instance<'a> {
    fn id(&self) -> String {
        format!("{}-{}", self.service.name, self.endpoint.id)
    }

    fn tags(&self) -> BTreeSet<&'a str> {
        let labels = [&self.service.labels, &self.endpoint.labels];
        let all = labels.into_iter().filter_map(|l| l.get(TAGS)).flat_map(|t| t.split(','));
        all.map(str::trim).filter(|t| !t.is_empty()).collect()
    }

    /// Why the balancers of other nodes give it no new flow: none of an instance whose node is down, too.
    fn trouble(&self) -> Option<&'static str> {
        if self.due {
            return None;
        }
        Some(match self.endpoint.obstacle(Some(self.node), None)? {
            Obstacle::Starting => "it is being attached",
            Obstacle::Draining => "it drains",
            Obstacle::Unreachable => "its node's data plane does not answer",
            Obstacle::NodeDrains => "its node drains",
            Obstacle::Unhealthy => "its container's health check fails, or has not succeeded yet",
            Obstacle::Stopping => "its container was asked to stop",
            Obstacle::Weightless => "its weight is 0",
        })
    }

    /// When it is its turn; never without a weight.
    fn turn(&self) -> Option<Turn> {
        self.endpoint.turn(Some(self.node), None).filter(|_| self.endpoint.weight > 0)
    }

    fn port(&self) -> u16 {
        self.service.ports.first().map_or(0, |p| p.target)
    }

    fn meta(&self) -> BTreeMap<&str, &str> {
        let service = self.service.labels.iter();
        service
            .chain(&self.endpoint.labels)
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect()
    }

    fn weights(&self) -> Value {
        json!({"Passing": self.endpoint.weight, "Warning": self.endpoint.weight})
    }

    fn version(&self) -> u64 {
        self.endpoint.version.max(self.service.version)
    }

    fn catalog_json(&self) -> Value {
        let mut row = json!({
            "ServiceKind": "",
            "ServiceID": self.id(),
            "ServiceName": self.service.name,
            "ServiceTags": self.tags(),
            "ServiceAddress": self.endpoint.ip,
            "ServiceTaggedAddresses": {},
            "ServiceWeights": self.weights(),
            "ServiceMeta": self.meta(),
            "ServicePort": self.port(),
            "ServiceEnableTagOverride": false,
            "NodeMeta": self.node.labels,
            "CreateIndex": self.version(),
            "ModifyIndex": self.version(),
        });
        for field in ["ID", "Node", "Address", "Datacenter", "TaggedAddresses"] {
            row[field] = node_json(self.node)[field].take();
        }
        row
    }

    fn health_json(&self) -> Value {
        json!({"Node": node_json(self.node), "Service": self.service_json(), "Checks": [node_check(self.node), self.check()]})
    }

    fn service_json(&self) -> Value {
        json!({
            "Kind": "",
            "ID": self.id(),
            "Service": self.service.name,
            "Tags": self.tags(),
            "Address": self.endpoint.ip,
            "TaggedAddresses": {},
            "Meta": self.meta(),
            "Port": self.port(),
            "Weights": self.weights(),
            "EnableTagOverride": false,
            "Datacenter": DATACENTER,
            "CreateIndex": self.version(),
            "ModifyIndex": self.version(),
        })
    }

    fn check(&self) -> Value {
        let trouble = self.trouble();
        json!({
            "Node": self.node.hostname,
            "CheckID": format!("service:{}", self.id()),
            "Name": "takes new flows",
            "Status": status(trouble.is_none()),
            "Notes": "",
            "Output": trouble.unwrap_or_default(),
            "ServiceID": self.id(),
            "ServiceName": self.service.name,
            "ServiceTags": self.tags(),
            "Type": "",
            "CreateIndex": self.version(),
            "ModifyIndex": self.version(),
        })
    }
}

fn status(passing: bool) -> &'static str {
    if passing { "passing" } else { "critical" }
}

/// Its data plane answers, with or without its meshd.
fn is_up(node: &Node) -> bool {
    node.dataplane == Dataplane::Reachable
}

/// The id in the form of a UUID, which Consul's nodes have.
fn uuid(id: Id) -> String {
    let bits = id.bits();
    format!("6d657368-{:04x}-4000-8000-{:012x}", bits >> 48, bits & 0xffff_ffff_ffff)
}

fn node_json(n: &Node) -> Value {
    json!({
        "ID": uuid(n.id),
        "Node": n.hostname,
        "Address": n.addr,
        "Datacenter": DATACENTER,
        "TaggedAddresses": {"lan": n.addr, "wan": n.addr},
        "Meta": n.labels,
        "CreateIndex": n.version,
        "ModifyIndex": n.version,
    })
}

fn node_check(n: &Node) -> Value {
    json!({
        "Node": n.hostname,
        // Consul's own name for the check of a node.
        "CheckID": "serfHealth",
        "Name": "data plane answers",
        "Status": status(is_up(n)),
        "Notes": "",
        "Output": if is_up(n) { "" } else { "neither its meshd nor its kernel answers" },
        "ServiceID": "",
        "ServiceName": "",
        "ServiceTags": [],
        "Type": "",
        "CreateIndex": n.version,
        "ModifyIndex": n.version,
    })
}

fn agent_self(n: &Node) -> Value {
    json!({
        "Config": {
            "Datacenter": DATACENTER,
            "PrimaryDatacenter": DATACENTER,
            "NodeName": n.hostname,
            "NodeID": uuid(n.id),
            "Server": n.role == Role::Manager,
            "Version": env!("CARGO_PKG_VERSION"),
        },
        "Member": {"Name": n.hostname, "Addr": n.addr, "Port": n.control_port, "Tags": {}, "Status": 1},
        "Meta": n.labels,
    })
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
