//! What `meshctl doctor` looks at: a check for each thing that a host needs, with what was found and
//! what would help. Called by the local API; changes nothing.

mod judge;

use std::collections::BTreeMap;

use futures::StreamExt;
use jiff::Timestamp;
use mesh_api::{
    query::Query,
    rest::{Check, Doctor, NodeName, StatusView},
};
use mesh_control::health::probe::{IcmpProber, Prober};
use mesh_core::{
    Id, intent,
    objects::{Dataplane, NodeState, Objects},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::{
    app::{App, hook_name},
    ledger::View,
    reconcile::{Preview, Request},
};

/// Peers that are asked at a time.
const AT_A_TIME: usize = 256;
/// How long the managers may take to tell the time.
const CLOCK_TIME: std::time::Duration = std::time::Duration::from_secs(2);

/// Looks at everything; with `plan`, also lists the steps of the next pass.
pub async fn examine(app: &App, plan: bool) -> Doctor {
    let status = app.status().await;
    let view = app.ledger.view();
    let mut checks = vec![cluster(&status, app.copied().await)];
    let preview = preview(app).await;
    if let Some(NodeName { id, .. }) = &status.node {
        checks.push(managers(&status));
        checks.extend(clock(app).await);
        checks.extend(certificate(app).await);
        checks.push(applied(&status, &view));
        checks.push(judge::pending(&preview));
        checks.push(nodes(&view.objects));
        checks.push(peers(&view.objects, *id).await);
        checks.extend(segment(app, &view.objects, *id));
        let uplink = app.applied.borrow().host.as_ref().map(|f| (f.facts.uplink.clone(), f.facts.mtu));
        checks.push(judge::mtu(&view.objects, *id, uplink));
    } else {
        checks.push(judge::vxlan_port());
    }
    checks.push(hooks(&preview));
    checks.push(match crate::traffic::read(&app.requests).await {
        Ok(counted) => judge::maps(&counted.maps),
        Err(e) => check("maps", false, e.message),
    });
    checks.push(Check {
        name: "features".to_owned(),
        ok: app.degraded.is_empty(),
        detail: if app.degraded.is_empty() {
            format!("kernel {} has all that is used", status.dataplane.kernel)
        } else {
            app.degraded.join("; ")
        },
    });
    let trouble = app.ledger.trouble();
    checks.push(check(
        "ledger",
        trouble.is_none(),
        trouble.unwrap_or_else(|| format!("on disk, at revision {}", view.head.revision)),
    ));
    let plan = if plan {
        preview.map(|p| p.steps).unwrap_or_default()
    } else {
        Vec::new()
    };
    Doctor { checks, plan }
}

fn check(name: &str, ok: bool, detail: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        ok,
        detail: detail.into(),
    }
}

async fn preview(app: &App) -> Result<Preview, String> {
    let (to, answer) = oneshot::channel();
    let stopping = || "meshd is stopping".to_owned();
    app.requests.send(Request::Preview(to)).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())?
}

fn cluster(status: &StatusView, copied: Option<String>) -> Check {
    if let Some(copied) = copied {
        return check("cluster", false, copied);
    }
    let role = status.role.map_or("none", |r| r.as_str());
    let detail = match &status.node {
        Some(n) => format!("node {} ({}), {role}", n.hostname, n.id),
        None => "belongs to no cluster: run meshctl init or meshctl join".to_owned(),
    };
    check("cluster", status.node.is_some(), detail)
}

fn managers(status: &StatusView) -> Check {
    let leader = status.manager.as_ref().and_then(|m| m.leader.clone());
    let detail = match &leader {
        Some(leader) => format!("{leader} leads"),
        None => "no manager leads: this host goes on from its ledger, but nothing can be changed".to_owned(),
    };
    check("managers", leader.is_some(), detail)
}

/// The leader's clock against this host's, by the middle of a round trip. Nothing to say when no
/// manager answers: the check of the managers says so already.
async fn clock(app: &App) -> Option<Check> {
    let client = app.membership.client().await?;
    let (begun, before) = (Instant::now(), Timestamp::now());
    let theirs = timeout(CLOCK_TIME, client.query(Query::Head)).await.ok()?.ok()?.time?;
    let trip = begun.elapsed();
    Some(judge::clock(before, trip, theirs))
}

/// This node's certificate, by this host's clock. Nothing to say while the node enters or leaves the cluster.
async fn certificate(app: &App) -> Option<Check> {
    let valid = app.membership.client().await?.valid()?;
    let time = |t| Timestamp::try_from(t).ok();
    Some(judge::certificate(&(time(valid.start)?..time(valid.end)?), Timestamp::now()))
}

fn applied(status: &StatusView, view: &View) -> Check {
    let behind = view.head.revision.saturating_sub(status.applied_generation);
    let detail = match status.errors.first() {
        Some(first) => format!("{} steps failed and are tried again, first: {first}", status.errors.len()),
        None => format!("revision {} of {}", status.applied_generation, view.head.revision),
    };
    check("applied", status.errors.is_empty() && behind == 0, detail)
}

/// What the leader says of the nodes.
fn nodes(all: &Objects) -> Check {
    let names = |wanted: &dyn Fn(&mesh_core::objects::Node) -> bool| -> Vec<String> {
        let found = all.nodes.values().filter(|n| wanted(n));
        found.map(|n| n.hostname.clone()).collect()
    };
    let down = names(&|n| n.state == NodeState::Down);
    let lost = names(&|n| n.dataplane == Dataplane::Unreachable);
    let detail = if down.is_empty() && lost.is_empty() {
        format!("all {} are ready", all.nodes.len())
    } else {
        let none = |list: &[String]| if list.is_empty() { "none".to_owned() } else { judge::some(list) };
        format!("meshd is silent on {}; no traffic is sent to {}", none(&down), none(&lost))
    };
    check("nodes", down.is_empty() && lost.is_empty(), detail)
}

/// Every other node's kernel is asked for an echo over the ingress network, the way of the flows
/// that are sent there.
async fn peers(all: &Objects, me: Id) -> Check {
    let Some(own) = all.nodes.get(&me).map(|n| n.ingress_ip) else {
        return check("peers", false, "this node is not in the cluster's list: see meshctl node ls");
    };
    let others: Vec<_> = all.nodes.values().filter(|n| n.id != me).cloned().collect();
    let asked = futures::stream::iter(others).map(|n| async move {
        // A packet may be lost: one more try before a peer is called unreachable.
        let ok = IcmpProber.probe(own, n.ingress_ip).await || IcmpProber.probe(own, n.ingress_ip).await;
        (format!("{} ({})", n.hostname, n.data_path_addr), ok)
    });
    let answers: BTreeMap<String, bool> = asked.buffer_unordered(AT_A_TIME).collect().await;
    judge::peers(&answers)
}

/// Who is sent to without encapsulation. Nothing to say where no network asks for that.
fn segment(app: &App, all: &Objects, me: Id) -> Option<Check> {
    let range = app.applied.borrow().host.as_ref()?.facts.segment;
    let targets = intent::on_segment(all, me, range);
    judge::segment(all, me, range, &targets, &app.neighbors.borrow())
}

fn hooks(preview: &Result<Preview, String>) -> Check {
    match preview {
        Ok(p) if p.hooks.is_empty() => check("hooks", true, "none is needed".to_owned()),
        Ok(p) if p.missing.is_empty() => {
            let all: Vec<_> = p.hooks.iter().map(hook_name).collect();
            check(
                "hooks",
                true,
                format!("{} of {} attached: {}", all.len(), all.len(), judge::some(&all)),
            )
        }
        Ok(p) => {
            let missing: Vec<_> = p.missing.iter().map(hook_name).collect();
            check(
                "hooks",
                false,
                format!("{} of {} not attached: {}", missing.len(), p.hooks.len(), judge::some(&missing)),
            )
        }
        Err(e) => check("hooks", false, e.clone()),
    }
}
