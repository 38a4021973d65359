//! What agents hold open: the watch and the heartbeat.

use std::{sync::Arc, time::Instant};

use futures::stream::BoxStream;
use mesh_api::proto::{BeatReply, BeatRequest, Standing, WatchBatch, WatchRequest, agents_server::Agents};
use mesh_core::{Refusal, objects::NodeState};
use tonic::{Request, Response, Status};

use super::{Shared, manager_addrs, member, status_of};
use crate::watch::Watcher;

/// Characters of a SHA-256 in hexadecimal: more is no fingerprint of a root.
const MAX_ROOT: usize = 64;

pub(super) struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl Agents for Service {
    type WatchStream = BoxStream<'static, Result<WatchBatch, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let node = member(&request)?.node;
        let WatchRequest { revision, cluster } = request.into_inner();
        let ours = self.0.identity.file().cluster.to_string();
        // A revision of another cluster says nothing about this one.
        let from = if cluster == ours { revision } else { 0 };
        let watcher = Watcher::new(self.0.ring.clone(), self.0.consensus.clone(), node, from, self.0.stop.clone());
        Ok(Response::new(Box::pin(watcher.stream())))
    }

    async fn beat(&self, request: Request<BeatRequest>) -> Result<Response<BeatReply>, Status> {
        let node = member(&request)?.node;
        let BeatRequest {
            applied_revision: revision,
            root,
            host,
            standing,
        } = request.into_inner();
        if root.len() > MAX_ROOT {
            return Err(status_of(&Refusal::malformed(format!(
                "the fingerprint of the root has {} characters, more than {MAX_ROOT}",
                root.len()
            ))));
        }
        let (_, all) = self.0.consensus.objects();
        let managers = manager_addrs(&all);
        let leadership = self.0.consensus.leadership().borrow().clone();
        if !leadership.is_leader {
            let none = || status_of(&Refusal::unavailable("no manager leads the cluster now"));
            return Ok(Response::new(BeatReply {
                leader: leadership.leader_addr.ok_or_else(none)?,
                managers,
                ..Default::default()
            }));
        }
        let admitted = {
            let (mut health, now) = (self.0.health(), Instant::now());
            health.beat(node, now, revision);
            health.certified(node, now, &root);
            health.admit(node, now, host, Standing::try_from(standing).unwrap_or_default())
        };
        if all.nodes.get(&node).is_some_and(|n| n.state != NodeState::Ready) {
            self.0.heard.notify_one();
        }
        Ok(Response::new(BeatReply {
            leader: String::new(),
            managers,
            trust: all.cluster.as_deref().map(|c| self.0.trust.of(c)).unwrap_or_default(),
            nodes: u32::try_from(all.nodes.len()).unwrap_or(u32::MAX),
            other: match all.nodes.get(&node) {
                Some(known) if !admitted => known.addr.to_string(),
                _ => String::new(),
            },
        }))
    }
}
