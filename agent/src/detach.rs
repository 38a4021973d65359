//! Attachments by their labels: how the runtimes' plugins find and remove what they made.
//!
//! Read from the ledger, which has whatever was attached on this host, with or without managers.

use std::sync::Arc;

use mesh_api::rest::{DetachReply, DetachRequest};
use mesh_core::{
    Refusal, RefusalKind,
    command::Command,
    objects::{Endpoint, Labels, Objects},
};
use tokio::time::timeout;

use crate::{
    app::{ATTACH_TIME, App},
    attachments::has_all,
};

impl App {
    /// The endpoints of this host that have all of these labels, with all objects.
    pub async fn attachments_with(&self, labels: &Labels) -> Result<(Vec<Arc<Endpoint>>, Arc<Objects>), Refusal> {
        let node = self.own_node().await?;
        let all = self.ledger.view().objects;
        let found = all.endpoints.on_node(node).filter(|e| has_all(&e.labels, labels));
        Ok((found.cloned().collect(), all.clone()))
    }

    /// Detaches what has all of these labels; returns once its interfaces are gone, unless told not to
    /// wait. Nothing is drained: the runtime has ended the container already. What is still being
    /// attached is given up, and what no manager answers for is removed as soon as one does.
    pub async fn detach(&self, request: &DetachRequest) -> Result<DetachReply, Refusal> {
        if request.labels.is_empty() {
            return Err(Refusal::malformed("no labels are given: name those of the endpoints to detach"));
        }
        self.attachments.abandon_awaited(&request.labels);
        let (found, _) = self.attachments_with(&request.labels).await?;
        let asked = found.iter().map(|e| self.propose(Command::EndpointRemove { id: e.id }));
        let answers = futures::future::join_all(asked).await;
        let (mut reply, mut last, mut failed) = (DetachReply::default(), 0, None);
        for (e, answer) in found.iter().zip(answers) {
            match answer {
                Ok((revision, _)) => {
                    last = last.max(revision);
                    reply.removed.push(e.name.to_string());
                }
                // Its container has ended, and it was removed for that.
                Err(r) if r.kind == RefusalKind::NotFound => reply.removed.push(e.name.to_string()),
                Err(r) if r.kind == RefusalKind::Unavailable => {
                    self.attachments.abandon(e.id);
                    reply.pending.push(e.name.to_string());
                }
                Err(r) => failed = Some(r),
            }
        }
        if !request.at_once && timeout(ATTACH_TIME, self.reached(last)).await.is_err() {
            tracing::warn!(removed = ?reply.removed, "endpoints are removed, but this host has not caught up");
        }
        failed.map_or(Ok(reply), Err)
    }
}
