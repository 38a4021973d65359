//! What the cluster makes of a node that is in it: a worker that is promoted, a manager that is demoted.
//!
//! The role is the cluster's word (`Command::NodeRole`); this brings the host to it while everything else
//! runs on. A manager goes out of raft first: only when the leader counts neither its vote nor its copy
//! of the log any more, it stops, removes that copy and gets a worker's certificate. A new manager gets its
//! certificate first, then opens an empty log under its new raft id and waits to be taken in. Whatever is
//! cut off half way is begun again by the next look.

use std::sync::Arc;

use mesh_api::query::Query;
use mesh_control::raft::RaftHost;
use mesh_core::{
    Refusal,
    objects::{Node, Object, Role},
};

use super::{Membership, other};
use crate::{app::App, session::Backoff};

/// Brings this host to the role that the cluster has for it, whenever that changes.
pub async fn follow(app: Arc<App>) {
    let mut ledger = app.ledger.subscribe();
    let mut backoff = Backoff::default();
    let mut said = String::new();
    loop {
        ledger.mark_unchanged();
        match app.membership.take_role().await {
            Ok(()) => {
                backoff.reset();
                said.clear();
                if ledger.changed().await.is_err() {
                    return;
                }
            }
            Err(e) => {
                // Said once, however long it lasts.
                if e.message != said {
                    tracing::warn!(error = %e.message, "this host is not yet what the cluster made it; trying on");
                    said = e.message;
                }
                backoff.wait().await;
            }
        }
    }
}

impl Membership {
    /// One look at the role; `Ok` when there is nothing left to do.
    async fn take_role(&self) -> Result<(), Refusal> {
        let Some(id) = self.node().await else { return Ok(()) };
        match self.ledger.view().objects.nodes.get(&id) {
            Some(node) if !self.is_what(node).await => {}
            _ => return Ok(()),
        }
        let _one = self.changing.lock().await;
        let (client, identity, channels) = match self.joined.read().await.as_ref() {
            Some(j) => (j.client.clone(), j.identity.clone(), j.channels.clone()),
            // It left meanwhile.
            None => return Ok(()),
        };
        // The ledger may be older than the last change of the role.
        let read = client.query(Query::Node(id.to_string())).await?;
        let node = read.objects.iter().find_map(|o| match o {
            Object::Node(n) if n.id == id => Some(n.clone()),
            _ => None,
        });
        let node = node.ok_or_else(|| Refusal::other("the manager's answer lacks this node: is it of another version?"))?;
        if self.is_what(&node).await {
            return Ok(());
        }
        let file = identity.file();
        if file.role == Role::Manager && file.raft_id != node.raft_id {
            // A leader always has a vote of its own: an empty list says nothing.
            if read.members.is_empty() || read.members.contains(&file.raft_id) {
                return Err(Refusal::unavailable("the leader still counts this node among the managers"));
            }
            self.end_manager().await?;
            tracing::info!("this node is no manager any more; its copy of the cluster's state is removed");
        }
        identity.set_place(node.raft_id, node.addr).map_err(other)?;
        if identity.file().role != node.role {
            client.renew().await?;
            if identity.file().role != node.role {
                return Err(Refusal::unavailable(
                    "the manager that renewed the certificate does not know of the new role yet",
                ));
            }
        }
        if node.role == Role::Manager {
            // What an earlier raft id left is of no use to this one.
            if RaftHost::owner(&self.raft_dir()).map_err(other)? != Some(node.raft_id) {
                self.remove_raft().map_err(Refusal::other)?;
            }
            let hosted = self.manager_for(&identity, &channels).await?;
            match self.joined.write().await.as_mut() {
                Some(joined) => joined.manager = hosted,
                None => {
                    // meshd is stopping.
                    if let Some(hosted) = hosted {
                        hosted.end().await;
                    }
                }
            }
            // Itself among them: the leader may be gone before a heartbeat's answer names them.
            let managers = identity
                .file()
                .managers
                .into_iter()
                .chain(read.managers.into_iter().map(|m| m.addr));
            identity.set_managers(managers.collect()).map_err(other)?;
            tracing::info!(raft_id = node.raft_id, "this node is a manager now");
        }
        Ok(())
    }

    /// Whether this host is already what a node object says of it.
    async fn is_what(&self, node: &Node) -> bool {
        match self.joined.read().await.as_ref() {
            Some(joined) => {
                let file = joined.identity.file();
                (file.role, file.raft_id) == (node.role, node.raft_id) && joined.manager.is_some() == (node.role == Role::Manager)
            }
            None => true,
        }
    }

    /// Ends the control plane here and removes its files.
    async fn end_manager(&self) -> Result<(), Refusal> {
        let hosted = self.joined.write().await.as_mut().and_then(|j| j.manager.take());
        if let Some(hosted) = hosted {
            hosted.end().await;
        }
        self.remove_raft().map_err(Refusal::other)
    }
}
