//! node ls, inspect, rm, update.

use mesh_api::rest::{NodePatch, NodeView, paths};
use mesh_core::{
    Refusal,
    objects::{Dataplane, NodeState, Role},
};
use serde::Deserialize;

use super::inspect;
use crate::{args::node::Node, failure::Failure, render::Table, session::Session};

/// Carries a node command out.
pub async fn run(session: &Session, command: Node) -> Result<(), Failure> {
    match command {
        Node::Ls => list(session).await,
        Node::Inspect { node } => inspect(session, &paths::at(paths::NODE, &node)).await,
        Node::Rm { nodes, force } => {
            let query = if force { "?force=true" } else { "" };
            session.remove(&nodes, |n| format!("{}{query}", paths::at(paths::NODE, n))).await
        }
        Node::Update(args) => {
            let patch = NodePatch {
                availability: args.availability,
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
