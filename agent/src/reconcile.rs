//! The reconcile loop: desired from the ledger, observed from the kernel, plan, execute, status.
//!
//! One task, started by [`crate::app`]. Ledger changes, kernel events and timers only wake it; each
//! pass looks at everything anew. It writes nothing but the kernel and its [`Applied`] status.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use mesh_core::{
    Id,
    action::Action,
    desired::Desired,
    intent::{self, Facts, veth_name},
    lb::Hook,
    observed::Observed,
    plan::plan,
};
use mesh_overlay::HostFacts;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    execute::{Executor, StepError, chain, veth_of},
    ledger::{Ledger, View},
};

/// A full look at the kernel at least this often, for what sends no event.
const RESYNC: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Outcome of the last pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Revision that the kernel was brought to, as far as `errors` allow.
    pub revision: u64,
    /// What went wrong, one line each.
    pub errors: Vec<String>,
    /// Endpoints of this host that could not be attached, with the reason.
    pub failed: BTreeMap<Id, String>,
    /// Endpoints of this host whose container is gone.
    pub gone: BTreeSet<Id>,
    /// What the host is like.
    pub facts: Option<HostFacts>,
    /// Programs at devices.
    pub hooks: BTreeSet<Hook>,
}

/// What others ask of the loop.
pub enum Request {
    /// The steps that a pass would take now, without taking them.
    Preview(oneshot::Sender<Result<Vec<String>, String>>),
    /// Remove everything: the host has left its cluster. Answers with what could not be removed.
    Teardown(oneshot::Sender<Vec<String>>),
}

/// Who this host is, once it belongs to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The cluster.
    pub cluster: Id,
    /// The node.
    pub node: Id,
}

/// The loop.
pub struct Reconciler {
    /// Hands.
    pub executor: Executor,
    /// Desired state.
    pub ledger: Arc<Ledger>,
    /// Who this host is.
    pub member: watch::Receiver<Option<Member>>,
    /// `--uplink`.
    pub uplink: Option<String>,
    /// Where the outcome goes.
    pub applied: watch::Sender<Applied>,
    /// What others ask.
    pub requests: mpsc::Receiver<Request>,
}

impl Reconciler {
    /// Runs until `stop`; leaves the kernel as it is then.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StepError> {
        let mut events = self.executor.overlay.monitor()?;
        let mut revisions = self.ledger.subscribe();
        let mut backoff = RETRY_FIRST;
        loop {
            let fine = self.pass().await;
            backoff = if fine { RETRY_FIRST } else { (backoff * 2).min(RETRY_LAST) };
            let wake = Instant::now() + if fine { RESYNC } else { backoff };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(request) = self.requests.recv() => self.answer(request).await,
                _ = revisions.changed() => {}
                _ = self.member.changed() => {}
                event = events.next() => if event.is_none() {
                    // Its sockets failed; the next pass looks at everything anyway.
                    events = self.executor.overlay.monitor()?;
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            revisions.mark_unchanged();
            self.member.mark_unchanged();
            while futures::FutureExt::now_or_never(events.next()).flatten().is_some() {}
        }
    }

    async fn answer(&mut self, request: Request) {
        match request {
            Request::Preview(to) => {
                let steps = match self.look().await {
                    Ok(Some((desired, seen, _))) => Ok(plan(&desired, &seen).iter().map(Action::to_string).collect()),
                    Ok(None) => Ok(Vec::new()),
                    Err(e) => Err(chain(&e)),
                };
                drop(to.send(steps));
            }
            Request::Teardown(to) => {
                let errors = self.executor.teardown().await;
                self.applied.send_replace(Applied::default());
                drop(to.send(errors));
            }
        }
    }

    /// Desired and observed state; `None` while there is nothing that this host knows it must be:
    /// before it joins, before its first full list, and when the list does not have it.
    async fn look(&mut self) -> Result<Option<(Desired, Observed, HostFacts)>, StepError> {
        let (Some(member), View { head, objects }) = (*self.member.borrow(), self.ledger.view()) else {
            return Ok(None);
        };
        let Some(me) = objects
            .nodes
            .get(&member.node)
            .filter(|_| head.cluster == Some(member.cluster) && head.revision > 0)
        else {
            return Ok(None);
        };
        let host = self.executor.overlay.host_facts(me.data_path_addr).await?;
        let uplink = self.uplink.clone().unwrap_or_else(|| host.uplink.clone());
        let facts = Facts {
            uplink,
            addrs: host.addrs.iter().copied().collect(),
        };
        let desired = intent::desired(&objects, head.revision, member.cluster, member.node, &facts);
        let seen = self.executor.observe(Some(member.cluster)).await?;
        Ok(Some((desired, seen, host)))
    }

    /// One pass; true when nothing is left to be done.
    async fn pass(&mut self) -> bool {
        let (desired, seen, facts) = match self.look().await {
            Ok(Some(all)) => all,
            Ok(None) => return true,
            Err(e) => {
                let error = chain(&e);
                tracing::warn!(%error, "this host's state cannot be read; trying again");
                self.applied.send_modify(|a| a.errors = vec![error]);
                return false;
            }
        };
        let steps = plan(&desired, &seen);
        let mut out = Applied {
            revision: desired.revision,
            facts: Some(facts),
            hooks: desired.hooks.clone(),
            ..Applied::default()
        };
        let endpoints: BTreeMap<String, Id> = desired.veths.values().map(|v| (veth_name(v.endpoint), v.endpoint)).collect();
        for step in &steps {
            tracing::debug!(%step, "step");
            let endpoint = veth_of(step).and_then(|name| endpoints.get(name)).copied();
            // Its other steps can only fail for want of the interface, and hide the reason.
            if endpoint.is_some_and(|id| out.failed.contains_key(&id)) {
                continue;
            }
            let Err(e) = self.executor.execute(step).await else { continue };
            let text = chain(&e);
            match endpoint {
                Some(id) if e.is_sandbox_gone() => drop(out.gone.insert(id)),
                _ => {
                    tracing::warn!(%step, error = %text, "step failed; trying again");
                    out.errors.push(text.clone());
                }
            }
            if let Some(id) = endpoint {
                out.failed.insert(id, text);
            }
        }
        if !steps.is_empty() {
            tracing::info!(revision = out.revision, steps = steps.len(), errors = out.errors.len(), "applied");
        }
        let fine = out.errors.is_empty();
        self.applied.send_if_modified(|a| {
            let news = *a != out;
            *a = out;
            news
        });
        fine
    }
}
