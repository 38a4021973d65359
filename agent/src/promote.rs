//! Nodes promoted and demoted, for whoever asks: called by the local API.
//!
//! The change itself is one command; what follows it on the node is [`crate::membership::role`]'s, and the
//! leader takes votes away before it answers a demotion.

use std::time::Duration;

use mesh_api::query::Query;
use mesh_core::{
    Id, Refusal, RefusalKind,
    command::Command,
    objects::{Object, Role},
};
use tokio::time::{interval, timeout};

use crate::app::App;

/// How long a new manager may take to get its certificate, catch up and get its vote, before whoever asked is
/// told that it takes longer.
const VOTE_TIME: Duration = Duration::from_secs(20);
/// How often the leader is asked for the vote.
const LOOK: Duration = Duration::from_millis(150);

impl App {
    /// Makes a node a manager or a worker; returns once it has its vote, or it is taken away.
    ///
    /// # Errors
    /// A conflict when it is that already, or when the managers would lose their majority.
    pub async fn set_role(&self, r: &str, role: Role) -> Result<(), Refusal> {
        let read = self.query(Query::Node(r.to_owned())).await?;
        // It comes first, then what it refers to.
        let Some(Object::Node(node)) = read.objects.first() else {
            return Err(Refusal::other("the manager's answer has no node: is it of another version?"));
        };
        if node.role == role {
            return Err(Refusal::conflict(format!("node {} is a {} already", node.hostname, role.as_str())));
        }
        let command = Command::NodeRole {
            node: node.id.to_string(),
            role,
        };
        self.propose(command).await?;
        if role == Role::Worker {
            return Ok(());
        }
        match timeout(VOTE_TIME, self.voter(node.id)).await {
            Ok(done) => done,
            Err(_) => Err(Refusal::other(format!(
                "node {} is to be a manager, but has no vote yet after {} s: it is tried on; see meshd's log there, or take it back (meshctl node demote {})",
                node.hostname,
                VOTE_TIME.as_secs(),
                node.hostname
            ))),
        }
    }

    /// Waits until a manager votes.
    async fn voter(&self, id: Id) -> Result<(), Refusal> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            match self.query(Query::Head).await {
                Ok(head) => match head.managers.iter().find(|m| m.node == id) {
                    Some(m) if m.voter => return Ok(()),
                    Some(_) => {}
                    None => return Err(Refusal::conflict("the node was demoted or removed meanwhile")),
                },
                // Managers that elect a leader, perhaps because there is one more of them.
                Err(e) if e.kind == RefusalKind::Unavailable => {}
                Err(e) => return Err(e),
            }
        }
    }
}
