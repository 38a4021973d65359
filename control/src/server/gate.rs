//! The gate in front of every service: a call goes through only if the table in [`crate::authz`]
//! has it and the caller is (still) what its certificate says.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use mesh_core::{
    Id, Refusal,
    objects::{Objects, Role},
};
use tokio::sync::broadcast::error::RecvError;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Peer, status_of};
use crate::{
    authz::{self, Member, Rpc, Who},
    consensus::{Batch, Consensus, ConsensusError},
    pki::NodeName,
};

/// How long a follower that does not know a caller waits to be told of it.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Tells members from those that are not, or not any more.
pub struct Roll {
    consensus: Arc<dyn Consensus>,
    /// Nodes that were removed while this process ran.
    removed: Mutex<BTreeSet<Id>>,
}

impl Roll {
    /// For the members that `consensus` knows.
    pub fn new(consensus: Arc<dyn Consensus>) -> Self {
        Self {
            consensus,
            removed: Mutex::default(),
        }
    }

    /// Takes note of the nodes that a batch removes.
    pub fn note(&self, batch: &Batch) {
        let gone = batch
            .changes
            .iter()
            .filter(|c| c.kind == mesh_core::objects::Kind::Node && c.object.is_none());
        self.removed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(gone.map(|c| c.id));
    }

    fn local(&self, name: &NodeName) -> Option<Result<Member, Refusal>> {
        let (_, all) = self.consensus.objects();
        if let Some(member) = authz::membership(name, &all) {
            return Some(Ok(member));
        }
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains(&name.node);
        removed.then(|| Err(authz::removed(name.node)))
    }

    /// The member behind a certificate. A node that this manager does not know may be one that it
    /// has not been told of yet: the leader makes sure, a follower waits a little.
    ///
    /// # Errors
    /// Forbidden for a node that was removed; unavailable when this manager can not tell.
    pub async fn member(&self, name: &NodeName) -> Result<Member, Refusal> {
        let mut batches = self.consensus.subscribe();
        if let Some(known) = self.local(name) {
            return known;
        }
        match self.consensus.read_barrier().await {
            Ok(_) => return self.local(name).unwrap_or_else(|| Err(authz::removed(name.node))),
            Err(ConsensusError::NotLeader { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        let told = async {
            while !matches!(batches.recv().await, Err(RecvError::Closed)) {
                if let Some(known) = self.local(name) {
                    return known;
                }
            }
            Err(Refusal::unavailable("this manager is stopping"))
        };
        let behind = || {
            Err(Refusal::unavailable(format!(
                "this manager does not know node {}, and does not lead: ask another",
                name.node
            )))
        };
        tokio::time::timeout(CATCH_UP, told).await.unwrap_or_else(|_| behind())
    }

    /// Whether one with a manager's certificate may speak raft here; see [`may_speak_raft`].
    ///
    /// # Errors
    /// Forbidden for a node that was removed, or is a worker.
    pub fn raft(&self, name: &NodeName) -> Result<(), Refusal> {
        let (revision, all) = self.consensus.objects();
        if !all.nodes.contains_key(&name.node) && self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains(&name.node) {
            return Err(authz::removed(name.node));
        }
        may_speak_raft(name, revision, &all, self.consensus.leadership().borrow().is_leader)
    }
}

/// Whether one with a manager's certificate may speak raft to a manager that has applied `revision`. A manager
/// that is behind, or has nothing yet, can not know those that became managers meanwhile, and one of them may be
/// the leader that would tell it. The certificate tells the two cases apart: its raft id is the index of the entry
/// that made the node a manager. When that entry is not applied here yet, the node is let in, and raft's own votes
/// decide the rest; when it is, the node was demoted or removed after it.
fn may_speak_raft(name: &NodeName, revision: u64, all: &Objects, leads: bool) -> Result<(), Refusal> {
    let node = all.nodes.get(&name.node);
    if node.is_some_and(|n| n.role == Role::Manager) || name.raft_id > revision {
        return Ok(());
    }
    match node {
        Some(_) => Err(Refusal::forbidden(format!("node {} is no manager", name.node))),
        None if name.raft_id > 0 && all.cluster.is_some() => Err(authz::removed(name.node)),
        // A certificate without a raft id. The leader's own state is never behind that of a manager it has not
        // let in.
        None if leads => Err(authz::removed(name.node)),
        None => Ok(()),
    }
}

/// Puts [`Gated`] around the services.
#[derive(Clone)]
pub struct Gate(pub Arc<Roll>);

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            inner,
            roll: self.0.clone(),
        }
    }
}

/// The services behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    inner: S,
    roll: Arc<Roll>,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The ready service is used, the clone takes its place (tower's contract).
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let roll = self.roll.clone();
        // The request itself can not be held across a wait: its body is not shared between threads.
        let call = Rpc::of_path(request.uri().path());
        let peer = request.extensions().get::<Peer>().copied();
        Box::pin(async move {
            match check(&roll, call, peer).await {
                Ok(Some(member)) => drop(request.extensions_mut().insert(member)),
                Ok(None) => {}
                Err(refusal) => {
                    tracing::debug!(path = request.uri().path(), reason = %refusal, "call refused");
                    return Ok(status_of(&refusal).into_http());
                }
            }
            inner.call(request).await
        })
    }
}

async fn check(roll: &Roll, call: Option<(Rpc, Who)>, peer: Option<Peer>) -> Result<Option<Member>, Refusal> {
    let unknown = || Refusal::forbidden("there is no such call");
    let (rpc, who) = call.ok_or_else(unknown)?;
    let name = peer.and_then(|peer| peer.name);
    authz::admit(who, name.as_ref())?;
    match (rpc, &name) {
        (Rpc::Enroll, _) => Ok(None),
        (Rpc::Raft, Some(name)) => roll.raft(name).map(|()| None),
        (_, Some(name)) => roll.member(name).await.map(Some),
        (_, None) => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::RefusalKind;
    use serde_json::json;

    use super::*;

    /// A manager 1 since entry 1, and node 2, whose last role is `role`.
    fn objects(role: Option<&str>) -> Objects {
        let cluster = json!({
            "id": Id::from_bits(9), "version": 1, "created_at": "2026-01-01T00:00:00Z", "address_pools": [], "subnet_prefix": 24,
            "ca_cert": "", "ca_key": "", "worker_secret": "", "manager_secret": "", "next_vni": 1, "next_slot": 1,
        });
        let node = |n: u64, role: &str| {
            let node: mesh_core::objects::Node = serde_json::from_value(json!({
                "id": Id::from_bits(n), "version": 1, "created_at": "2026-01-01T00:00:00Z", "hostname": format!("h{n}"), "labels": {},
                "role": role, "raft_id": 0, "availability": "active", "addr": "192.0.2.1", "control_port": 2377,
                "data_path_addr": "192.0.2.1", "underlay_mtu": 1500, "ingress_ip": "10.0.0.2", "host_routes": [],
                "state": "ready", "dataplane": "reachable",
            }))
            .unwrap();
            (node.id, Arc::new(node))
        };
        Objects {
            cluster: Some(Arc::new(serde_json::from_value(cluster).unwrap())),
            nodes: std::iter::once(node(1, "manager")).chain(role.map(|r| node(2, r))).collect(),
            ..Objects::default()
        }
    }

    fn name(raft_id: u64) -> NodeName {
        NodeName {
            cluster: Id::from_bits(9),
            node: Id::from_bits(2),
            role: Role::Manager,
            raft_id,
        }
    }

    #[test]
    fn a_certificate_of_before_a_demotion_opens_raft_nowhere_that_has_heard_of_it() {
        let (worker, manager, unknown, nothing) = (objects(Some("worker")), objects(Some("manager")), objects(None), Objects::default());
        // Promoted by entry 10; what this manager has is of entry 7, 10 or 30.
        for (all, raft_id, revision, passes) in [
            (&manager, 10, 30, true),
            (&manager, 0, 30, true),
            (&worker, 10, 7, true),
            (&worker, 10, 10, false),
            (&worker, 10, 30, false),
            (&worker, 0, 30, false),
            (&unknown, 10, 7, true),
            (&unknown, 10, 30, false),
            (&nothing, 10, 0, true),
            // The first entries of a log are raft's own.
            (&nothing, 1, 1, true),
        ] {
            for leads in [false, true] {
                let got = may_speak_raft(&name(raft_id), revision, all, leads);
                let expected = passes && !(leads && all.nodes.is_empty() && raft_id <= revision);
                assert_eq!(got.is_ok(), expected, "raft id {raft_id}, revision {revision}, leads {leads}");
                assert!(got.err().is_none_or(|r| r.kind == RefusalKind::Forbidden));
            }
        }
        // Of a release that did not write the raft id.
        assert!(may_speak_raft(&name(0), 30, &unknown, false).is_ok());
        assert!(may_speak_raft(&name(0), 30, &unknown, true).is_err());
    }
}
