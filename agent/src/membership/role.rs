//! What the cluster makes of a node that is in it: a worker that is promoted, a manager that is demoted.
//!
//! The role is the cluster's word (`Command::NodeRole`); this brings the host to it while everything else
//! runs on. A manager goes out of raft first: only when the leader counts neither its vote nor its copy
//! of the log any more, it stops, removes that copy and gets a worker's certificate. A new manager gets its
//! certificate first, then opens an empty log under its new raft id and waits to be taken in. Whatever is
//! cut off half way is begun again by the next look.

use std::{collections::BTreeSet, sync::Arc};

use mesh_api::query::Query;
use mesh_control::{identity::NodeFile, raft::RaftHost};
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
        // What runs here decides, or else what is on disk, not the certificate: it may have been renewed already.
        let kept = match self.hosted().await {
            Some(raft_id) => Some(raft_id),
            None => RaftHost::owner(&self.raft_dir()).map_err(other)?,
        };
        let wanted = wanted(&node);
        if may_end(kept, wanted, &read.members)? {
            self.end_manager().await?;
            tracing::info!(
                raft_id = kept,
                "this node is not that manager any more; its copy of the cluster's state is removed"
            );
        } else if kept.is_none() {
            // Half of what a manager writes when it begins.
            self.remove_raft().map_err(Refusal::other)?;
        }
        identity.set_place(node.raft_id, node.addr).map_err(other)?;
        // The certificate of a manager names its raft id.
        if identity.file().role != node.role || !identity.names_raft_id() {
            client.renew().await?;
            if identity.file().role != node.role {
                return Err(Refusal::unavailable(
                    "the manager that renewed the certificate does not know of the new role yet",
                ));
            }
        }
        if wanted.is_some() && self.hosted().await.is_none() {
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
                let hosted = joined.manager.as_ref().map(|h| h.consensus.raft_id());
                let left_over = hosted.is_none() && RaftHost::exists(&self.raft_dir());
                (file.role, file.raft_id) == (node.role, node.raft_id) && hosted == wanted(node) && !left_over
            }
            None => true,
        }
    }

    /// The raft id of the manager that runs here.
    async fn hosted(&self) -> Option<u64> {
        let joined = self.joined.read().await;
        Some(joined.as_ref()?.manager.as_ref()?.consensus.raft_id())
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

/// Whether a host that starts takes part in consensus. One that was demoted has no raft id any more, even if it
/// stopped before it had a worker's certificate.
pub(super) fn hosts(file: &NodeFile) -> bool {
    file.role == Role::Manager && file.raft_id != 0
}

/// The raft id that a node is to run under; none on a worker.
fn wanted(node: &Node) -> Option<u64> {
    (node.role == Role::Manager).then_some(node.raft_id)
}

/// Whether the copy of the cluster's state that is kept here as raft id `kept` is to be removed, now that the
/// node is to run as `wanted`. `members` are the raft ids that the leader counts, learners too.
///
/// # Errors
/// Unavailable while the leader still counts `kept`: what was acknowledged may be on its disk only.
fn may_end(kept: Option<u64>, wanted: Option<u64>, members: &BTreeSet<u64>) -> Result<bool, Refusal> {
    match kept {
        Some(own) if wanted != Some(own) => {
            // A leader always has a vote of its own: an empty list says nothing.
            if members.is_empty() || members.contains(&own) {
                return Err(Refusal::unavailable("the leader still counts this node among the managers"));
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::Id;

    use super::*;

    fn file(role: Role, raft_id: u64) -> NodeFile {
        NodeFile {
            cluster: Id::from_bits(1),
            node: Id::from_bits(2),
            raft_id,
            role,
            managers: vec![],
            addr: [192, 0, 2, 1].into(),
            control_port: 2377,
        }
    }

    /// What is left after each step of a demotion (vote taken, copy removed, raft id gone, certificate) at which
    /// meshd may be cut off, and what the next look makes of it.
    #[test]
    fn a_demotion_goes_on_wherever_it_was_cut_off() {
        let others = BTreeSet::from([1, 2]);
        // Nothing done: the vote counts, or nobody says that it does not.
        for members in [BTreeSet::from([1, 2, 5]), BTreeSet::new()] {
            assert_eq!(
                may_end(Some(5), None, &members).unwrap_err().kind,
                mesh_core::RefusalKind::Unavailable
            );
        }
        // The vote is gone: whatever certificate there is.
        assert!(may_end(Some(5), None, &others).unwrap());
        // The copy is gone, too; one that a restart began anew goes the same way.
        assert!(!may_end(None, None, &others).unwrap());
        // No raft id any more, but still a manager's certificate: nothing is hosted under an id that is nobody's.
        assert!(!hosts(&file(Role::Manager, 0)));
        assert!(!hosts(&file(Role::Worker, 0)));
        // A certificate that was renewed before all that.
        assert!(!hosts(&file(Role::Worker, 5)));
        assert!(hosts(&file(Role::Manager, 5)));
    }

    #[test]
    fn one_that_is_promoted_again_ends_what_it_was_before() {
        let others = BTreeSet::from([1, 2, 9]);
        assert!(may_end(Some(5), Some(9), &others).unwrap());
        assert!(may_end(Some(5), Some(9), &BTreeSet::from([1, 2, 5, 9])).is_err());
        // It runs as what it is to be: counted or not yet.
        assert!(!may_end(Some(9), Some(9), &others).unwrap());
        assert!(!may_end(Some(9), Some(9), &BTreeSet::from([1, 2])).unwrap());
    }
}
