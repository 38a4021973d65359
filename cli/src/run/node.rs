//! node ls, inspect, rm, promote, demote, update.

use mesh_api::rest::{NodePatch, NodeView, paths};
use mesh_core::{
    Refusal,
    objects::{Dataplane, NodeState, Role},
};
use serde::Deserialize;
use serde_json::Value;

use super::inspect;
use crate::{
    args::node::Node,
    failure::{Failure, say},
    render::{Table, printable},
    session::Session,
};

/// Carries a node command out.
pub async fn run(session: &Session, command: Node) -> Result<(), Failure> {
    match command {
        Node::Ls => list(session).await,
        Node::Inspect { node } => inspect(session, &paths::at(paths::NODE, &node)).await,
        Node::Rm { nodes, force } => {
            let query = if force { "?force=true" } else { "" };
            session.remove(&nodes, |n| format!("{}{query}", paths::at(paths::NODE, n))).await
        }
        Node::Promote { nodes } => set_role(session, &nodes, Role::Manager).await,
        Node::Demote { nodes } => set_role(session, &nodes, Role::Worker).await,
        Node::Update(args) => {
            let patch = NodePatch {
                availability: args.availability,
                role: None,
                label_add: args.label_add.into_iter().collect(),
                label_rm: args.label_rm,
            };
            if patch == NodePatch::default() {
                return Err(Refusal::malformed("nothing to change: give --availability, --label-add or --label-rm").into());
            }
            let value = session.patch(&paths::at(paths::NODE, &args.node), &patch).await?;
            session.answer(&value, |_| Ok(format!("{}\n", args.node)))
        }
    }
}

/// Promotes or demotes one node after the other: goes on after an error, and ends with the first one's code.
async fn set_role(session: &Session, nodes: &[String], role: Role) -> Result<(), Failure> {
    let patch = NodePatch {
        role: Some(role),
        ..NodePatch::default()
    };
    let (mut done, mut first) = (Vec::new(), None);
    for node in nodes {
        match session.patch(&paths::at(paths::NODE, node), &patch).await {
            Ok(value) => done.push(value),
            Err(e) => {
                e.line().iter().for_each(|line| say(line));
                first.get_or_insert(e.code());
            }
        }
    }
    let done = Value::Array(done);
    session.answer(&done, |_| {
        let views = Vec::<NodeView>::deserialize(&done)?;
        let line = |n: &NodeView| format!("Node {} is a {} now.\n", printable(&n.hostname), n.role.as_str());
        Ok(views.iter().map(line).collect())
    })?;
    first.map_or(Ok(()), |code| Err(Failure::Reported(code)))
}

async fn list(session: &Session) -> Result<(), Failure> {
    let value = session.get(paths::NODES).await?;
    session.answer(&value, |paint| {
        let mut table = Table::new(&["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER", "ADDRESS"]);
        for n in Vec::<NodeView>::deserialize(&value)? {
            let manager = match (n.role, n.state) {
                (Role::Worker, _) => "",
                (Role::Manager, _) if n.leader => "Leader",
                (Role::Manager, NodeState::Ready) => "Reachable",
                (Role::Manager, _) => "Unreachable",
            };
            let status = match (n.state, n.dataplane) {
                (NodeState::Ready, _) => "ready",
                // Its meshd is gone, what it carries goes on.
                (NodeState::Down, Dataplane::Reachable) => "down (data plane reachable)",
                (NodeState::Down, Dataplane::Unreachable) => "down",
                (NodeState::Unknown, _) => "unknown",
            };
            let availability = serde_json::to_value(n.availability)?.as_str().unwrap_or_default().to_owned();
            table.row(vec![
                n.id.to_string(),
                n.hostname,
                status.into(),
                availability,
                manager.into(),
                n.addr.to_string(),
            ]);
        }
        Ok(table.render(*paint))
    })
}
