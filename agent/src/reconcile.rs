//! The reconcile loop: desired from the ledger, observed from the kernel, plan, execute, status.
//!
//! One task, started by [`crate::run`]. Ledger changes, kernel events and timers only wake it
//! ([`pace`]). It writes nothing but the kernel and its [`Applied`] status.
//!
//! A pass looks at everything anew, or, when the last one left nothing to be done and was not long ago, at
//! the part of the cluster that has changed since ([`mesh_core::part`]) and at the host's own devices,
//! with forwarding entries as they were read last, if no event speaks against them. Changes that ask nothing
//! of this host need no pass ([`quick`]).

mod addr;
mod failures;
mod pace;
mod quick;
pub mod resolvers;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use mesh_core::{
    Id, Mac,
    action::{Action, BpfAction, NetAction, runs},
    desired::Desired,
    intent::{self, Facts, veth_name},
    lb::{Hook, Row},
    objects::{Node, Objects},
    observed::Observed,
    part::{Touched, part},
    plan::plan,
};
use mesh_overlay::{HostFacts, Survey};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::{
    failures::{Failures, Missing},
    pace::Pace,
    quick::Rows,
};
use crate::{
    execute::{Executor, StepError, chain, device_of, veth_of},
    ledger::{Ledger, View},
    metrics::Passes,
    traffic::Counted,
};

/// Routes of the host that are told; a report of so many is well below what a manager takes.
const ROUTES: usize = 4096;

/// Steps of a pass after which memory is worth giving back.
const MANY: usize = 10_000;

/// Flows that are over are looked for so often, in a part of the tables each time.
const RECLAIM: Duration = Duration::from_secs(2);

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
    /// Endpoints of this host whose interface waits for an engine to take it.
    pub waiting: BTreeSet<Id>,
    /// What the host is like.
    pub host: Option<HostState>,
    /// Programs at devices.
    pub hooks: BTreeSet<Hook>,
}

/// What a host is like, apart from meshd.
#[derive(Clone, Debug, PartialEq)]
pub struct HostState {
    /// The address that its data path has, or should be given because the one it had is gone.
    pub data_path_addr: IpAddr,
    /// Its uplink and routes.
    pub facts: HostFacts,
}

/// What a pass would find and do.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    /// The steps that it would take.
    pub steps: Vec<String>,
    /// Programs that must sit at devices.
    pub hooks: BTreeSet<Hook>,
    /// Of them, those that do not.
    pub missing: BTreeSet<Hook>,
}

/// What others ask of the loop.
pub enum Request {
    /// What a pass would do now, without doing it.
    Preview(oneshot::Sender<Result<Preview, String>>),
    /// What the programs have counted.
    Traffic(oneshot::Sender<Result<Counted, mesh_loader::Error>>),
    /// Have the programs tell of what is read now.
    Watch(oneshot::Sender<Result<(), mesh_loader::Error>>),
    /// Flows that are still carried to the endpoint of this data-plane number.
    LiveFlows(u32, oneshot::Sender<Result<u64, mesh_loader::Error>>),
    /// Remove everything: the host has left its cluster. Answers with what could not be removed.
    Teardown(oneshot::Sender<Vec<String>>),
    /// Remove what an earlier cluster left, if anything: the host is about to enter one. Answers as
    /// `Teardown`.
    Clear(oneshot::Sender<Vec<String>>),
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
    /// Who takes packets without encapsulation.
    pub neighbors: watch::Receiver<BTreeSet<Mac>>,
    /// `--uplink`.
    pub uplink: Option<String>,
    /// `--resolv-conf`.
    pub resolv_conf: PathBuf,
    /// Where the outcome goes.
    pub applied: watch::Sender<Applied>,
    /// What others ask.
    pub requests: mpsc::Receiver<Request>,
    /// What the host was like when that could last be read.
    pub host: Option<HostState>,
    /// How the passes fare.
    pub passes: Arc<Passes>,
    /// What the last pass left for the next.
    pub memory: Memory,
}

/// What the reconcile loop knows from its last pass.
#[derive(Default)]
pub struct Memory {
    /// The kernel is as the ledger had it when that was looked at last.
    settled: bool,
    /// What changed since the kernel was brought to it.
    touched: Touched,
    /// What the host knew of itself.
    facts: Option<Facts>,
    /// The rows for the next pass, as far as they were worked out for the objects that are there now.
    rows: Option<Rows>,
    /// What failed for want of a link.
    missing: Missing,
}

impl Reconciler {
    /// Runs until `stop`; leaves the kernel as it is then.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StepError> {
        let mut events = self.executor.overlay.monitor()?;
        let mut revisions = self.ledger.subscribe();
        let mut pace = Pace::new(Instant::now());
        let mut reclaim = tokio::time::interval(RECLAIM);
        reclaim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What came until here, this pass sees.
            while events.next().now_or_never().flatten().is_some() {}
            revisions.mark_unchanged();
            self.memory.settled &= !self.member.has_changed().unwrap_or(true);
            self.member.mark_unchanged();
            self.memory.settled &= !self.neighbors.has_changed().unwrap_or(false);
            self.neighbors.mark_unchanged();
            let begun = Instant::now();
            let (fine, full) = self.pass(pace.is_full(begun)).await;
            let took = begun.elapsed();
            self.passes.took(took);
            if !fine {
                // Its own doing, mostly; what else there was waits for the next try.
                while events.next().now_or_never().flatten().is_some() {}
            }
            pace.passed(fine, full, took, Instant::now());
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    Some(request) = self.requests.recv() => self.answer(request).await,
                    _ = revisions.changed() => if pace.is_full(Instant::now()) || !self.takes_in() {
                        break;
                    },
                    _ = self.member.changed() => {
                        self.memory.settled = false;
                        break;
                    }
                    Ok(()) = self.neighbors.changed() => {
                        self.memory.settled = false;
                        break;
                    }
                    event = events.next(), if !pace.is_blind() => match event {
                        Some(()) => pace.event(Instant::now()),
                        // Its sockets failed; the next pass looks at everything anyway.
                        None => pace.blind(Instant::now()),
                    },
                    _ = reclaim.tick() => match self.executor.reclaim() {
                        Ok(0) => {}
                        Ok(removed) => tracing::debug!(removed, "flows that are over"),
                        Err(e) => tracing::warn!(error = %chain(&e), "flows that are over cannot be removed"),
                    },
                    () = tokio::time::sleep_until(pace.due()) => break,
                }
            }
            if pace.is_blind() {
                events = self.executor.overlay.monitor()?;
            }
        }
    }

    async fn answer(&mut self, request: Request) {
        match request {
            Request::Preview(to) => {
                let view = self.ledger.view();
                let preview = match self.look(view, None, None).await {
                    Ok(Some(look)) => Ok(Preview {
                        steps: plan(&look.desired, &look.seen).iter().map(Action::to_string).collect(),
                        missing: look.desired.hooks.difference(&look.seen.hooks).cloned().collect(),
                        hooks: look.desired.hooks,
                    }),
                    Ok(None) => Ok(Preview::default()),
                    Err(e) => Err(chain(&e)),
                };
                drop(to.send(preview));
            }
            Request::Traffic(to) => drop(to.send(Counted::read(&mut self.executor.loader))),
            Request::Watch(to) => drop(to.send(self.executor.watch())),
            Request::LiveFlows(slot, to) => drop(to.send(self.executor.loader.live_flows(slot))),
            Request::Teardown(to) => {
                let errors = self.executor.teardown().await;
                self.memory.settled = false;
                self.host = None;
                self.applied.send_replace(Applied::default());
                drop(to.send(errors));
            }
            Request::Clear(to) => {
                self.memory.settled = false;
                drop(to.send(self.executor.clear().await));
            }
        }
    }

    /// Desired and observed state; `None` while there is nothing that this host knows it must be:
    /// before it joins, before its first full list, and when the list does not have it. With `touched`
    /// the part that is concerned by it is enough.
    async fn look(&mut self, view: View, touched: Option<&Touched>, rows: Option<Rows>) -> Result<Option<Look>, StepError> {
        let View { head, objects } = view;
        let Some(member) = *self.member.borrow() else { return Ok(None) };
        let Some(me) = objects
            .nodes
            .get(&member.node)
            .filter(|_| head.cluster == Some(member.cluster) && head.revision > 0)
        else {
            return Ok(None);
        };
        let survey = self.executor.overlay.survey().await?;
        let (host, complaint) = self.host(me, &objects, &survey)?;
        let uplink = self.uplink.clone().unwrap_or_else(|| host.facts.uplink.clone());
        let facts = Facts {
            segment: host.facts.segment,
            neighbors: self.neighbors.borrow().clone(),
            uplink,
            addrs: host.facts.addrs.iter().copied().collect(),
            resolvers: resolvers::of_host(&self.resolv_conf),
            cookie: self.executor.overlay.cookie(),
        };
        let desired = |objects: &Objects| intent::desired(objects, head.revision, member.cluster, member.node, &facts);
        let known = match touched {
            Some(touched) => {
                let (former, desired) = match rows.filter(|rows| rows.is_of(head.revision, &facts)) {
                    Some(rows) => (Some(rows.former), rows.desired),
                    None => match part(touched, &objects, member.node) {
                        Some(part) => (Some(desired(&part.before)), desired(&part.after)),
                        None => (None, desired(&objects)),
                    },
                };
                let of = former.as_ref().map(|former| [former, &desired]);
                let seen = self.executor.observe_known(&survey, member.cluster, of).await?;
                seen.map(|seen| (desired, seen))
            }
            None => None,
        };
        let full = known.is_none();
        let (desired, seen) = match known {
            Some(known) => known,
            None => (desired(&objects), self.executor.observe(&survey, Some(member.cluster)).await?),
        };
        self.memory.facts = Some(facts);
        Ok(Some(Look {
            desired,
            seen,
            host,
            complaint,
            full,
        }))
    }

    /// What the host is like. When it does not have its data-path address any more, the one that it
    /// has in its place, and a complaint; and when there is none, what it was like before.
    fn host(&mut self, me: &Node, objects: &Objects, survey: &Survey) -> Result<(HostState, Option<String>), StepError> {
        let gone = match survey.host_facts(me.data_path_addr) {
            Ok(facts) => {
                let host = HostState {
                    data_path_addr: me.data_path_addr,
                    facts: self.told(facts),
                };
                self.host = Some(host.clone());
                return Ok((host, None));
            }
            Err(e @ mesh_overlay::Error::NoSuchAddress(_)) => e,
            Err(e) => return Err(e.into()),
        };
        let uplink = self.uplink.clone().or_else(|| self.host.as_ref().map(|h| h.facts.uplink.clone()));
        if let Some(data_path_addr) = addr::instead_of(me, objects, uplink.as_deref())
            && let Ok(facts) = survey.host_facts(data_path_addr)
        {
            let complaint = format!("the data-path address {} is gone; moving to {data_path_addr}", me.data_path_addr);
            let facts = self.told(facts);
            let host = HostState { data_path_addr, facts };
            self.host = Some(host.clone());
            return Ok((host, Some(complaint)));
        }
        match &self.host {
            Some(last) => Ok((last.clone(), Some(chain(&gone)))),
            None => Err(gone.into()),
        }
    }

    /// What the host tells of itself. Where clients arrive at another device than other nodes do, nothing watches
    /// that one for packets without encapsulation.
    fn told(&self, facts: HostFacts) -> HostFacts {
        let mut facts = capped(facts);
        if self.uplink.as_ref().is_some_and(|uplink| *uplink != facts.uplink) {
            (facts.mac, facts.segment) = (None, None);
        }
        facts
    }

    /// One pass, at everything if it must be `full`: whether nothing is left to be done, and whether it was
    /// at everything.
    async fn pass(&mut self, full: bool) -> (bool, bool) {
        let known = std::mem::take(&mut self.memory.settled) && !full;
        let (view, more) = self.ledger.look();
        let touched = std::mem::take(&mut self.memory.touched).then(more);
        let rows = self.memory.rows.take();
        let Look {
            mut desired,
            seen,
            host,
            complaint,
            full,
        } = match self.look(view, Some(&touched).filter(|_| known), rows).await {
            Ok(Some(look)) => look,
            Ok(None) => return (true, true),
            Err(e) => {
                let error = chain(&e);
                tracing::warn!(%error, "this host's state cannot be read; trying again");
                self.applied.send_modify(|a| a.errors = vec![error]);
                return (false, full);
            }
        };
        let steps = plan(&desired, &seen);
        let mut out = Applied {
            revision: desired.revision,
            host: Some(host),
            errors: complaint.into_iter().collect(),
            hooks: desired.hooks.clone(),
            waiting: seen.overlay.waiting.clone(),
            ..Applied::default()
        };
        // The steps have what is to be done of these, and carrying them out takes room as well.
        drop(seen);
        (desired.fdb, desired.tables) = Default::default();
        let complaints = out.errors.len();
        let mut failures = Failures::default();
        self.memory.missing.begin();
        let endpoints: BTreeMap<String, Id> = desired.veths.values().map(|v| (veth_name(v.endpoint), v.endpoint)).collect();
        let endpoint_of = |step: &Action| veth_of(step).and_then(|name| endpoints.get(name)).copied();
        for run in runs(&steps) {
            run.iter().for_each(|step| tracing::debug!(%step, "step"));
            if run.iter().any(|step| failures.forbid(step, endpoint_of(step))) {
                continue;
            }
            for (step, done) in run.iter().zip(self.executor.execute_run(run).await) {
                let Err(e) = done else {
                    if let Action::Net(NetAction::PutVeth { veth, .. }) = step
                        && veth.peer.waits
                    {
                        out.waiting.insert(veth.endpoint);
                    }
                    continue;
                };
                let endpoint = endpoint_of(step);
                let text = chain(&e);
                failures.note(step, endpoint);
                if endpoint.is_none() {
                    for id in dependants(&desired, step, &e) {
                        out.failed.entry(id).or_insert_with(|| text.clone());
                    }
                }
                match endpoint {
                    Some(id) if e.is_sandbox_gone() => drop(out.gone.insert(id)),
                    _ => {
                        if !e.is_link_gone() || self.memory.missing.note(step) {
                            tracing::warn!(%step, error = %text, "step failed; trying again");
                        } else {
                            tracing::debug!(%step, error = %text, "step failed; trying again");
                        }
                        out.errors.push(text.clone());
                    }
                }
                if let Some(id) = endpoint {
                    out.failed.insert(id, text);
                }
            }
        }
        self.passes.stepped(steps.len(), out.errors.len() - complaints);
        if !steps.is_empty() {
            tracing::info!(revision = out.revision, steps = steps.len(), errors = out.errors.len(), "applied");
        }
        if steps.len() > MANY {
            drop(steps);
            self.executor.loader.compact();
            self.executor.overlay.compact();
        }
        let fine = out.errors.is_empty();
        self.applied.send_if_modified(|a| {
            let news = *a != out;
            *a = out;
            news
        });
        self.memory.settled = fine;
        (fine, full)
    }
}

/// What a pass works on.
struct Look {
    desired: Desired,
    seen: Observed,
    host: HostState,
    /// What is wrong with the host itself.
    complaint: Option<String>,
    /// It is everything.
    full: bool,
}

/// The endpoints of this host that can not work without a step that failed, because it was for their
/// network: its devices, their addresses and entries, its gateway's DNS.
fn dependants(desired: &Desired, step: &Action, error: &StepError) -> Vec<Id> {
    let on_device = |dev: &str| desired.links.get(dev).map(|(network, _)| *network);
    let networks: BTreeSet<Id> = match (step, error) {
        (Action::Net(step), _) => device_of(step).and_then(on_device).into_iter().collect(),
        (Action::Bpf(BpfAction::Row(Row::Network(dev, Some(_)))), _) => on_device(dev).into_iter().collect(),
        (Action::Bpf(BpfAction::Attach(hook)), _) => on_device(&hook.dev).into_iter().collect(),
        (Action::Names(table), StepError::Names(e)) => {
            let failed = e.failed.iter().map(|f| f.address.ip());
            failed.filter_map(|ip| table.listeners.get(&ip).map(|l| l.network)).collect()
        }
        _ => BTreeSet::new(),
    };
    let of = |v: &&mesh_core::desired::Veth| on_device(&v.bridge).is_some_and(|n| networks.contains(&n));
    desired.veths.values().filter(of).map(|v| v.endpoint).collect()
}

/// Keeps a host with very many routes from telling more than a report can carry: the widest stay,
/// which are the likeliest to be in a subnet's way.
pub fn capped(mut facts: HostFacts) -> HostFacts {
    if facts.routes.len() > ROUTES {
        facts.routes.sort_by_key(|r| r.dst.prefix_len());
        facts.routes.truncate(ROUTES);
        facts.routes.sort();
    }
    facts
}
