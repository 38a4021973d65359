//! How an endpoint leaves its services: first nobody sends it new flows any more, then those that it
//! has may end, then it goes.
//!
//! Called by [`crate::app`] before an endpoint is removed, and when it is told to drain. That no
//! node sends to it is heard from the nodes themselves, by the revisions that their heartbeats name.

use std::time::Duration;

use mesh_api::query::{Answer, Query};
use mesh_core::{
    Refusal,
    command::Command,
    objects::{Endpoint, EndpointState, NodeState, Object},
};
use mesh_overlay::{Netns, Ports};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{app::App, execute::chain, reconcile::Request};

/// How long nodes are waited for that do not say that they have caught up: long enough for one that hangs to be taken
/// for down, and for one that is busy to get to it.
const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Between two looks at the flows that are left: each reads the whole flow table.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl App {
    /// Lets an endpoint drain: returns once no node that can be heard sends it new flows.
    pub async fn drain(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        let (revision, _) = self
            .propose(Command::EndpointSet {
                id: endpoint.id,
                state: EndpointState::Draining,
            })
            .await?;
        self.acknowledged(revision).await;
        Ok(())
    }

    /// Waits until no flow is left to an endpoint of this host, for `drain` at most. The others are
    /// ended with it.
    pub async fn emptied(&self, endpoint: &Endpoint, drain: Duration) {
        let end = Instant::now() + drain;
        let mut ports = Ports::default();
        loop {
            let flows = match self.left(endpoint, &mut ports).await {
                Ok(0) => return,
                Ok(flows) => flows,
                Err(error) => {
                    tracing::warn!(endpoint = %endpoint.name, %error, "not waiting for flows that cannot be counted");
                    return;
                }
            };
            let now = Instant::now();
            if now >= end {
                tracing::info!(endpoint = %endpoint.name, flows, "the time to drain is up: what is left is ended");
                return;
            }
            sleep(LOOK_EVERY.min(end - now)).await;
        }
    }

    /// Flows that are left to an endpoint of this host. Those that came by a published port are in the tables here,
    /// whichever node they came in at; a container's connections to a VIP are in none, but are sockets of the endpoint's.
    async fn left(&self, endpoint: &Endpoint, ports: &mut Ports) -> Result<u64, String> {
        let (to, answer) = oneshot::channel();
        let asked = self.requests.send(Request::LiveFlows(endpoint.slot, to)).await;
        let carried = match (asked, answer.await) {
            // meshd is stopping.
            (Err(_), _) | (_, Err(_)) => return Ok(0),
            (Ok(()), Ok(carried)) => carried.map_err(|e| chain(&e))?,
        };
        let (sandbox, own) = (&endpoint.sandbox, endpoint.ips().collect());
        if !sandbox.is_known() {
            return Ok(carried);
        }
        // Also where the tables have some: the server may stop listening before those end.
        let made = Netns::connections(&sandbox.netns, sandbox.inode, own, ports).await;
        if carried > 0 { Ok(carried) } else { made.map_err(|e| chain(&e)) }
    }

    /// Waits until every node that is heard has applied `revision`. Those that take too long are
    /// named in the log and left behind: an endpoint can leave also while a node hangs.
    async fn acknowledged(&self, revision: u64) {
        let end = Instant::now() + ACKNOWLEDGE_TIME;
        loop {
            let missing = match self.query(Query::Applied).await {
                Ok(read) => behind(&read, revision),
                Err(e) => vec![format!("all of them: {e}")],
            };
            if missing.is_empty() {
                return;
            }
            if Instant::now() >= end {
                tracing::warn!(nodes = %missing.join(", "), revision, "not waiting any longer for nodes that may still send new flows to an endpoint that leaves");
                return;
            }
            sleep(ASK_EVERY).await;
        }
    }
}

/// Host names of the nodes that are heard and have not applied `revision`. Of those that are not
/// heard nothing can be learnt.
fn behind(read: &Answer, revision: u64) -> Vec<String> {
    let nodes = read.objects.iter().filter_map(|o| match o {
        Object::Node(n) if n.state == NodeState::Ready => Some(n),
        _ => None,
    });
    let late = nodes.filter(|n| read.applied.get(&n.id).is_none_or(|at| *at < revision));
    late.map(|n| n.hostname.clone()).collect()
}
