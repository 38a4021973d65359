//! Which container an interface went to that Docker took over, and whether that still runs. Libnetwork
//! tells its drivers neither; the engine's API does, once the container runs. Started by [`crate::run`].
//!
//! It proposes what it finds, and touches no kernel. A container's namespace can outlive it, because
//! Docker holds it open: the container is gone when its first process is.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::{
    Id, Refusal, RefusalKind,
    command::{Command, Learnt},
    objects::{Endpoint, Labels, Place, Sandbox},
    spec::check_name,
};
use mesh_overlay::occupied::Occupied;

use super::{
    engine::{Container, Engine},
    forgotten::Forgotten,
    wire,
};
use crate::{app::App, execute::chain};

/// Between two looks at the containers that run.
const LOOK: Duration = Duration::from_secs(5);
/// Between two questions to an engine that does not know its container yet.
const ASK_FIRST: Duration = Duration::from_millis(50);
const ASK_LAST: Duration = Duration::from_secs(2);
/// Docker's own clearing up after a container that ended gets so long.
const ENDED: Duration = Duration::from_secs(10);

/// Runs until meshd stops.
pub async fn run(app: Arc<App>) {
    let engine = Engine::at("docker", &app.config.docker_socket);
    let mut applied = app.applied.clone();
    let mut ask = ASK_FIRST;
    let mut said = String::new();
    let (mut ended, mut forgotten) = (BTreeMap::new(), Forgotten::default());
    loop {
        applied.mark_unchanged();
        let mine = handed_over(&app).await;
        let taken = mine.iter().filter(|e| app.is_taken(e)).cloned().collect::<Vec<_>>();
        let open = match learn(&app, &engine, &taken).await {
            Ok(open) => {
                said.clear();
                open
            }
            Err(why) => {
                // Said once, however long it lasts.
                if why != said {
                    tracing::warn!(error = %why, "docker does not say which containers are attached");
                    said = why;
                }
                taken.len()
            }
        };
        remove_ended(&app, &mine, &mut ended).await;
        if let Err(e) = forgotten.remove(&app, &engine, &mine).await {
            tracing::debug!(error = %chain(&e), "docker does not say which endpoints it has");
        }
        let pause = if open == 0 {
            ask = ASK_FIRST;
            LOOK
        } else {
            ask = (ask * 2).min(ASK_LAST);
            ask
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = applied.changed(), if open == 0 => if changed.is_err() { return },
        }
    }
}

/// This host's endpoints that Docker takes over.
async fn handed_over(app: &App) -> Vec<Arc<Endpoint>> {
    let Ok(node) = app.own_node().await else { return Vec::new() };
    let objects = app.ledger.view().objects;
    let is_its = |e: &&Arc<Endpoint>| e.sandbox.handover.is_some();
    objects.endpoints.on_node(node).filter(is_its).cloned().collect()
}

/// Asks after each; how many are still open.
async fn learn(app: &App, engine: &Engine, taken: &[Arc<Endpoint>]) -> Result<usize, String> {
    if taken.is_empty() {
        return Ok(0);
    }
    let known = engine.endpoints().await.map_err(|e| chain(&e))?;
    let ask = taken.iter().map(async |e| {
        let theirs = e.sandbox.handover.as_ref().map(|h| h.endpoint.as_str()).unwrap_or_default();
        let Some(container) = known.get(theirs) else { return false };
        match one(app, engine, e, theirs, container).await {
            Ok(done) => done,
            Err(why) => {
                tracing::debug!(endpoint = %e.id, %why, "not learnt yet");
                false
            }
        }
    });
    let done = futures::future::join_all(ask).await;
    Ok(done.iter().filter(|done| !**done).count())
}

/// Learns of one; false while its container does not run.
async fn one(app: &App, engine: &Engine, e: &Endpoint, theirs: &str, container: &str) -> Result<bool, String> {
    let Some(container) = engine.container(container).await.map_err(|e| chain(&e))? else {
        return Ok(false);
    };
    let Some(pid) = container.pid() else { return Ok(false) };
    let netns = format!("/proc/{pid}/ns/net");
    let inside = Occupied::of(&netns).await.map_err(|e| chain(&e))?;
    // Its first process ended, and another has its id.
    let Some(ifname) = inside.with_mac(e.mac()) else { return Ok(false) };
    let inode = mesh_overlay::netns::inode(&netns).map_err(|e| e.to_string())?;
    let place = Place {
        container: container.name(),
        cookie: mesh_overlay::netns::cookie(&netns).map_err(|e| e.to_string())?,
        netns,
        ..Place::default()
    };
    let mut learnt = names(&container, theirs);
    learnt.sandbox = Some(Sandbox::new(inode, place));
    learnt.ifname = Some(ifname.to_owned());
    if e.service.is_none() {
        learnt.service = container.labels().get(wire::SERVICE).cloned();
    }
    let command = |learnt: &Learnt| Command::EndpointLearn {
        id: e.id,
        learnt: learnt.clone(),
    };
    if !container.is_well() {
        // Before it is known whose service it is.
        super::health::propose(app, e.id, false).await?;
    }
    let outcome = match app.propose(command(&learnt)).await {
        // Only the service can be refused for good; the rest is known all the same.
        Err(refusal) if learnt.service.is_some() && is_final(&refusal) => {
            tracing::warn!(container = container.name(), error = %refusal.message, "its service label is passed over");
            learnt.service = None;
            app.propose(command(&learnt)).await
        }
        outcome => outcome,
    };
    outcome.map(|_| true).map_err(|refusal| refusal.message)
}

fn is_final(refusal: &Refusal) -> bool {
    !matches!(refusal.kind, RefusalKind::Unavailable)
}

/// What the engine calls a container; what is no DNS label is left out.
fn names(container: &Container, theirs: &str) -> Learnt {
    let is_label = |name: &String| check_name("container", name).is_ok();
    let name = Some(container.name()).filter(is_label);
    let mut aliases = container.aliases(theirs);
    aliases.retain(|a| is_label(a) && Some(a) != name.as_ref());
    Learnt {
        name,
        aliases: Some(aliases),
        labels: Some(Labels::clone(container.labels())),
        ..Learnt::default()
    }
}

/// Removes the endpoints of containers that ended, which Docker itself has not removed in time: it
/// does not run, or was killed and has forgotten them.
pub(super) async fn remove_ended(app: &App, mine: &[Arc<Endpoint>], since: &mut BTreeMap<Id, Instant>) {
    let gone: Vec<_> = mine.iter().filter(|e| has_ended(e)).map(|e| e.id).collect();
    since.retain(|id, _| gone.contains(id));
    let mut overdue = Vec::new();
    for id in gone {
        if since.entry(id).or_insert_with(Instant::now).elapsed() >= ENDED {
            overdue.push(id);
        }
    }
    remove(app, &overdue, "its container ended, and its engine did not say so").await;
}

/// The process is gone by which the container's namespace was found.
pub(super) fn has_ended(e: &Endpoint) -> bool {
    let there = || mesh_overlay::netns::inode(&e.sandbox.netns).ok();
    e.sandbox.is_known() && there() != Some(e.sandbox.inode)
}

/// Removes endpoints for that reason, all at once; what no manager takes is tried again by the caller's next look.
pub(super) async fn remove(app: &App, ids: &[Id], why: &str) {
    if !app.membership.client().await.is_some_and(|c| c.counts()) {
        // A copy of this host has none of the node's containers.
        return;
    }
    let each = ids
        .iter()
        .map(async |id| match app.propose(Command::EndpointRemove { id: *id }).await {
            Ok(_) => tracing::info!(endpoint = %id, "removed: {why}"),
            Err(e) => tracing::debug!(endpoint = %id, error = %e.message, "not removed yet"),
        });
    futures::future::join_all(each).await;
}
