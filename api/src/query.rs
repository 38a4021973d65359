//! What a node can ask a manager to read, and how the answer is selected from the objects.
//!
//! Sent by the agent's local API, answered by control's server.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use mesh_core::{
    Id, Refusal,
    objects::{Object, Objects, Role},
    spec::unknown,
};
use serde::{Deserialize, Serialize};

/// A question. References are ids or names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// Every node.
    Nodes,
    /// One node.
    Node(String),
    /// Every network with all its endpoints, services and the nodes.
    Networks,
    /// One network with its endpoints, services and the nodes.
    Network(String),
    /// Every service with its endpoints, networks and the nodes.
    Services,
    /// One service with its endpoints, networks and the nodes.
    Service(String),
    /// Every endpoint, with what it refers to.
    Endpoints,
    /// One endpoint, with what it refers to and the nodes.
    Endpoint(String),
    /// A join token; managers only.
    Token(Role),
    /// Every node, and the revision that each has applied.
    Applied,
    /// The roots that the cluster trusts, every node, and which of them have a certificate of the present one.
    Authority,
    /// Nothing but the answer's head.
    Head,
}

/// The roots that a cluster trusts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roots {
    /// Certificates, PEM: first the one that signs, then those before it, the last one first.
    pub certs: Vec<String>,
    /// Since when each of those before is to be forgotten.
    pub replaced_at: Vec<Timestamp>,
    /// The nodes that have said that they have a certificate of the first.
    pub known_by: BTreeSet<Id>,
}

/// A manager as others see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manager {
    /// Its node id.
    pub node: Id,
    /// Its host name.
    pub hostname: String,
    /// host:port of its control plane.
    pub addr: String,
    /// It leads.
    pub leader: bool,
    /// It votes (false: it is being brought up to date).
    pub voter: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Revision that was read.
    pub revision: u64,
    /// The managers.
    pub managers: Vec<Manager>,
    /// Raft ids of those that vote or are being brought up to date, as the leader has them.
    #[serde(default)]
    pub members: BTreeSet<u64>,
    /// The manager's clock when it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// What was asked for first, then what it refers to.
    pub objects: Vec<Object>,
    /// Revision that each node's data plane was last heard to be at, for [`Query::Applied`]; nodes not
    /// heard since the leader leads are absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub applied: BTreeMap<Id, u64>,
    /// For [`Query::Authority`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roots: Option<Roots>,
    /// The whole join token, for [`Query::Token`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Selects what `query` asks for. Nothing of the cluster object is ever selected.
pub fn select(all: &Objects, query: &Query) -> Result<Vec<Object>, Refusal> {
    let nodes = || all.nodes.values().cloned().map(Object::Node);
    let mut out = Vec::new();
    match query {
        Query::Head | Query::Token(_) => {}
        Query::Nodes | Query::Applied | Query::Authority => out.extend(nodes()),
        Query::Node(r) => {
            let node = all.node(r).ok_or_else(|| unknown("node", r))?;
            out.push(Object::Node(node.clone()));
            out.extend(all.endpoints.on_node(node.id).cloned().map(Object::Endpoint));
        }
        Query::Networks | Query::Services | Query::Endpoints => {
            out.extend(all.iter().filter(|o| !matches!(o, Object::Cluster(_))));
        }
        Query::Network(r) => {
            let net = all.network(r).ok_or_else(|| unknown("network", r))?;
            out.push(Object::Network(net.clone()));
            out.extend(nodes());
            out.extend(
                all.services
                    .values()
                    .filter(|s| s.networks.contains(&net.id))
                    .cloned()
                    .map(Object::Service),
            );
            out.extend(all.endpoints.in_network(net.id).cloned().map(Object::Endpoint));
        }
        Query::Service(r) => {
            let svc = all.service(r).ok_or_else(|| unknown("service", r))?;
            out.push(Object::Service(svc.clone()));
            out.extend(nodes());
            out.extend(
                svc.networks
                    .iter()
                    .filter_map(|n| all.networks.get(n))
                    .cloned()
                    .map(Object::Network),
            );
            out.extend(all.members_of(svc).cloned().map(Object::Endpoint));
        }
        Query::Endpoint(r) => {
            let by_id = r.parse().ok().and_then(|id: Id| all.endpoints.get(&id));
            let ep = by_id.or_else(|| all.endpoints.values().find(|e| e.name.eq_ignore_ascii_case(r)));
            let ep = ep.ok_or_else(|| unknown("endpoint", r))?;
            out.push(Object::Endpoint(ep.clone()));
            // All nodes: the network's MTU follows from every underlay.
            out.extend(nodes());
            out.extend(all.networks.get(&ep.network).cloned().map(Object::Network));
            out.extend(ep.service.and_then(|s| all.services.get(&s)).cloned().map(Object::Service));
        }
    }
    Ok(out)
}
