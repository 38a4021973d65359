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

use mesh_core::{Id, Refusal};
use tokio::sync::broadcast::error::RecvError;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Peer, control_addr, status_of};
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

    /// Whether a manager may speak raft here. A manager that is behind, or has nothing yet, can not
    /// know those that joined meanwhile, and one of them may be the leader that would tell it: there
    /// only what is known to be removed is refused, and raft's own votes decide the rest. For the same reason one
    /// whose certificate says manager, and which is a worker in what this manager has, is refused only by a
    /// leader, or while another one is heard: it was either demoted since, or promoted and this manager is
    /// behind.
    ///
    /// # Errors
    /// Forbidden for a node that was removed, or is a worker.
    pub fn raft(&self, name: &NodeName) -> Result<(), Refusal> {
        match self.local(name) {
            Some(Ok(member)) if member.role == mesh_core::objects::Role::Manager => Ok(()),
            Some(Ok(member)) if !self.may_be_promoted(member.node) => {
                Err(Refusal::forbidden(format!("node {} is no manager", member.node)))
            }
            Some(Ok(_)) => Ok(()),
            Some(Err(e)) => Err(e),
            // The leader's own state is never behind that of a manager it has not let in.
            None if self.consensus.leadership().borrow().is_leader => Err(authz::removed(name.node)),
            None => Ok(()),
        }
    }
}

impl Roll {
    /// Whether a node, a worker as far as is known here, may be a manager by now. A leader that this manager is
    /// too far behind to have heard of has no address yet.
    fn may_be_promoted(&self, id: Id) -> bool {
        let leadership = self.consensus.leadership();
        let now = leadership.borrow();
        let (_, all) = self.consensus.objects();
        let own = all.nodes.get(&id).map(|n| control_addr(n));
        !now.is_leader && (now.leader_addr.is_none() || now.leader_addr == own)
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
