//! Who may call what: the one table. What is not in it is refused.
//!
//! `server` asks here twice: for every call, by path, before its body is read ([`Rpc::of_path`],
//! [`admit`], [`membership`]), and for every command and query once it is parsed
//! ([`may_propose`], [`may_query`]).

use mesh_api::query::Query;
use mesh_core::{
    Id, Refusal,
    command::Command,
    objects::{Node, Objects, Role},
};

use crate::pki::NodeName;

/// The calls between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rpc {
    /// A host asks to be taken in.
    Enroll,
    /// A command.
    Propose,
    /// A linearizable read.
    Query,
    /// Another certificate.
    Renew,
    /// The stream of changes.
    Watch,
    /// "I am here".
    Beat,
    /// Raft between managers.
    Raft,
}

/// Who may make a call, by certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Without a certificate too.
    Anybody,
    /// Nodes of the cluster.
    Nodes,
    /// Managers of the cluster.
    Managers,
}

/// Who may send a command over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Nobody: managers propose it themselves.
    Inside,
    /// Managers.
    Manager,
    /// Managers; and a worker about itself or its own endpoints.
    Own,
}

/// Calls by path: the table's first part.
const CALLS: [(&str, Rpc, Who); 10] = [
    ("/meshd.v1.Enrollment/Enroll", Rpc::Enroll, Who::Anybody),
    ("/meshd.v1.Control/Propose", Rpc::Propose, Who::Nodes),
    ("/meshd.v1.Control/Query", Rpc::Query, Who::Nodes),
    ("/meshd.v1.Control/Renew", Rpc::Renew, Who::Nodes),
    ("/meshd.v1.Agents/Watch", Rpc::Watch, Who::Nodes),
    ("/meshd.v1.Agents/Beat", Rpc::Beat, Who::Nodes),
    ("/meshd.v1.Raft/Append", Rpc::Raft, Who::Managers),
    ("/meshd.v1.Raft/Vote", Rpc::Raft, Who::Managers),
    ("/meshd.v1.Raft/TransferLeader", Rpc::Raft, Who::Managers),
    ("/meshd.v1.Raft/Snapshot", Rpc::Raft, Who::Managers),
];

/// Commands by who may send them: the table's second part.
pub fn sender(command: &Command) -> Sender {
    use Command as C;
    match command {
        C::Init { .. } | C::NodeJoin { .. } | C::NodeLiveness { .. } | C::CaForget { .. } => Sender::Inside,
        C::NodeUpdate { .. }
        | C::NodeRole { .. }
        | C::TokenRotate { .. }
        | C::CaRotate { .. }
        | C::NetworkCreate { .. }
        | C::NetworkRemove { .. }
        | C::NetworkPrune {}
        | C::ServiceCreate { .. }
        | C::ServiceUpdate { .. }
        | C::ServiceRemove { .. } => Sender::Manager,
        C::NodeReport { .. }
        | C::NodeRemove { .. }
        | C::EndpointCreate { .. }
        | C::EndpointSet { .. }
        | C::EndpointStopping { .. }
        | C::EndpointHealth { .. }
        | C::EndpointWeigh { .. }
        | C::EndpointPublish { .. }
        | C::EndpointLearn { .. }
        | C::EndpointRemove { .. }
        | C::AddressReserve { .. }
        | C::AddressRelease { .. } => Sender::Own,
    }
}

impl Rpc {
    /// The call of an HTTP/2 path, and who may make it; `None`: there is no such call.
    pub fn of_path(path: &str) -> Option<(Self, Who)> {
        CALLS.iter().find(|(p, ..)| *p == path).map(|(_, rpc, who)| (*rpc, *who))
    }
}

/// Whether a certificate's name (`None`: no certificate) opens a call.
///
/// # Errors
/// A refusal that names what is missing.
pub fn admit(who: Who, name: Option<&NodeName>) -> Result<(), Refusal> {
    match (who, name) {
        (Who::Anybody, _) | (Who::Nodes, Some(_)) | (Who::Managers, Some(NodeName { role: Role::Manager, .. })) => Ok(()),
        (Who::Nodes | Who::Managers, None) => Err(Refusal::forbidden(
            "this call needs a certificate of the cluster: join it first (meshctl join --token TOKEN HOST)",
        )),
        (Who::Managers, Some(name)) => Err(Refusal::forbidden(format!(
            "node {} is a worker: only managers may make this call",
            name.node
        ))),
    }
}

/// The node behind a certificate, as long as it is in the cluster.
pub fn membership(name: &NodeName, all: &Objects) -> Option<Member> {
    let node = all.nodes.get(&name.node)?;
    // Both the certificate and the cluster must say so: one of them may be behind the other.
    let manager = name.role == Role::Manager && node.role == Role::Manager;
    Some(Member {
        node: node.id,
        role: if manager { Role::Manager } else { Role::Worker },
    })
}

/// Whether one with a manager's certificate may be a manager for a node whose objects are of `revision` (0: it has none
/// yet). The raft id in the certificate is the index of the entry that made it one: of a later entry than the node
/// knows, it may be; of an earlier one, it was demoted or removed after it.
///
/// # Errors
/// Forbidden for one that is no manager any more.
pub fn may_manage(name: &NodeName, revision: u64, all: &Objects) -> Result<(), Refusal> {
    match all.nodes.get(&name.node) {
        _ if revision == 0 || name.raft_id > revision => Ok(()),
        Some(node) if node.role == Role::Manager => Ok(()),
        Some(node) => Err(Refusal::forbidden(format!(
            "node {} is no manager any more: its certificate is of before that",
            node.hostname
        ))),
        // A certificate without a raft id: of an earlier release, and maybe of a node that has just joined.
        None if name.raft_id == 0 => Ok(()),
        None => Err(Refusal::forbidden(format!(
            "node {} is not in the cluster any more, but has a manager's certificate",
            name.node
        ))),
    }
}

/// A caller that is a node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: Id,
    /// What it may act as.
    pub role: Role,
}

/// What a node is told whose certificate is good, but which is not in the cluster any more.
pub fn removed(node: Id) -> Refusal {
    Refusal::forbidden(format!(
        "node {node} was removed from the cluster: run meshctl leave --force there, then join it again"
    ))
}

/// Whether a member may send this command.
///
/// # Errors
/// Forbidden, naming a manager to use; not found, when the command is about an endpoint that is not
/// there.
pub fn may_propose(member: Member, command: &Command, all: &Objects) -> Result<(), Refusal> {
    if let Command::NodeReport { id, addr, .. } = command {
        not_a_managers_address(*id, *addr, all)?;
    }
    match (sender(command), member.role) {
        (Sender::Inside, _) => Err(Refusal::forbidden(format!(
            "the command {} is never taken from another node",
            command.name()
        ))),
        (Sender::Manager | Sender::Own, Role::Manager) => Ok(()),
        (Sender::Manager, Role::Worker) => Err(worker_refusal(all)),
        (Sender::Own, Role::Worker) => owns(member.node, command, all),
    }
}

/// Nobody may say that the address by which a manager is called is its own. (A worker is never called: two that
/// swap their addresses report one after the other.)
fn not_a_managers_address(id: Id, addr: std::net::IpAddr, all: &Objects) -> Result<(), Refusal> {
    let Some(node) = all.nodes.get(&id).filter(|n| n.addr != addr) else {
        return Ok(());
    };
    let taken = |n: &&std::sync::Arc<Node>| n.id != id && n.role == Role::Manager && (n.addr, n.control_port) == (addr, node.control_port);
    match all.nodes.values().find(taken) {
        Some(manager) => Err(Refusal::forbidden(format!(
            "address {addr} is that of the manager {}: give this host another",
            manager.hostname
        ))),
        None => Ok(()),
    }
}

fn owns(me: Id, command: &Command, all: &Objects) -> Result<(), Refusal> {
    let owner = match command {
        Command::NodeReport { id, .. } => Some(*id),
        // By id, or by a name that is its own now; `server` replaces the name by the id.
        Command::NodeRemove { node, .. } => all.node(node).map(|n| n.id),
        Command::EndpointCreate { endpoint, .. } => Some(endpoint.node),
        Command::AddressReserve { node, .. } | Command::AddressRelease { node, .. } => Some(*node),
        Command::EndpointSet { id, .. }
        | Command::EndpointStopping { id, .. }
        | Command::EndpointHealth { id, .. }
        | Command::EndpointWeigh { id, .. }
        | Command::EndpointPublish { id, .. }
        | Command::EndpointLearn { id, .. }
        | Command::EndpointRemove { id } => {
            let endpoint = all
                .endpoints
                .get(id)
                .ok_or_else(|| Refusal::not_found(format!("no endpoint {id}: see meshctl endpoint ls")))?;
            Some(endpoint.node)
        }
        _ => None,
    };
    if owner == Some(me) { Ok(()) } else { Err(worker_refusal(all)) }
}

/// Whether a member may ask this.
///
/// # Errors
/// Forbidden, naming a manager to use.
pub fn may_query(member: Member, query: &Query, all: &Objects) -> Result<(), Refusal> {
    match (query, member.role) {
        (_, Role::Manager) => Ok(()),
        (Query::Token(_), Role::Worker) => Err(worker_refusal(all)),
        (
            Query::Nodes
            | Query::Node(_)
            | Query::Networks
            | Query::Network(_)
            | Query::Services
            | Query::Service(_)
            | Query::Endpoints
            | Query::Endpoint(_)
            | Query::Applied
            | Query::Authority
            | Query::Head,
            Role::Worker,
        ) => Ok(()),
    }
}

/// "This node is a worker", and where to go.
fn worker_refusal(all: &Objects) -> Refusal {
    let rank = |n: &&std::sync::Arc<Node>| (n.state != mesh_core::objects::NodeState::Ready, n.hostname.clone());
    let hint = match all.nodes.values().filter(|n| n.role == Role::Manager).min_by_key(rank) {
        Some(manager) => format!("run this on a manager ({}, {})", manager.hostname, manager.addr),
        None => "run this on a manager".to_owned(),
    };
    Refusal::forbidden(format!("this node is a worker: {hint}"))
}

#[cfg(test)]
#[path = "authz_tests.rs"]
mod tests;
