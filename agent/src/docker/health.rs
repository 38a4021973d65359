//! A container that Docker checks takes new flows while the check succeeds. Started by [`crate::run`].
//!
//! Docker is asked which of its containers are not well when it tells of a change or of a start, when an endpoint has
//! come, and now and then. Each answer is a whole one: whatever was missed, the next makes up for. While it does not
//! answer, what it said last holds. That an endpoint is not well is a command like any other's.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::FutureExt as _;
use mesh_core::{
    Id, RefusalKind,
    command::{Command, Reply},
    objects::{Endpoint, Health},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    engine::{Engine, EngineError},
    events::Events,
    stopping::of_engines,
};
use crate::{app::App, execute::chain};

/// Between two questions that nothing has given reason for.
const LOOK: Duration = Duration::from_secs(30);
/// Between two tries to hear an engine, or to tell the managers.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two questions.
const TOGETHER: Duration = Duration::from_millis(50);

/// Runs until meshd stops.
pub async fn run(app: Arc<App>) {
    let engine = Engine::at("docker", &app.config.docker_socket);
    let mut applied = app.applied.clone();
    let (mut look, mut again) = (interval(LOOK), interval(AGAIN));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut events = None;
    let mut asked = BTreeSet::new();
    let mut is_due = true;
    loop {
        applied.mark_unchanged();
        let mine = of_engines(&app).await;
        if mine.is_empty() {
            // Nobody is asked on a host without containers of an engine: its socket may be one that starts it.
            (events, is_due) = (None, true);
            asked.clear();
            if applied.changed().await.is_err() {
                return;
            }
            continue;
        }
        if events.is_none() {
            is_due = true;
            match engine.events(&["health_status", "start"], None).await {
                Ok(heard) => events = Some(heard),
                Err(e) => tracing::debug!(error = %chain(&e), "docker does not say which containers are not well"),
            }
        }
        let there: BTreeSet<Id> = mine.iter().map(|e| e.id).collect();
        if events.is_some() && (is_due || !there.is_subset(&asked)) {
            match tell(&app, &engine, &mine).await {
                Ok(()) => {
                    (asked, is_due) = (there, false);
                    sleep(TOGETHER).await;
                }
                Err(why) => {
                    tracing::debug!(%why, "not known yet which containers are not well");
                    is_due = true;
                }
            }
        }
        tokio::select! {
            heard = next(&mut events) => match heard {
                Ok(true) => {
                    while let Some(Ok(true)) = next(&mut events).now_or_never() {}
                    is_due = true;
                }
                Ok(false) => {
                    events = None;
                    sleep(AGAIN).await;
                }
                Err(e) => {
                    tracing::warn!(error = %chain(&e), "docker does not say any more which containers are not well");
                    events = None;
                    sleep(AGAIN).await;
                }
            },
            changed = applied.changed() => if changed.is_err() {
                return;
            },
            _ = look.tick() => is_due = true,
            _ = again.tick(), if is_due || events.is_none() => {}
        }
    }
}

/// Whether there was one; false when the engine ends.
async fn next(events: &mut Option<Events>) -> Result<bool, EngineError> {
    match events {
        Some(events) => Ok(events.next().await?.is_some()),
        None => std::future::pending().await,
    }
}

/// Says of each endpoint whether its container is well, where that has changed. An error is worth another try.
async fn tell(app: &App, engine: &Engine, mine: &[Arc<Endpoint>]) -> Result<(), String> {
    let unwell = engine.unwell().await.map_err(|e| chain(&e))?;
    let theirs: BTreeSet<&str> = unwell.iter().flat_map(|c| c.endpoints()).collect();
    let mut spaces = BTreeSet::new();
    // Those that were connected by name are known by their namespaces.
    if mine.iter().any(|e| e.sandbox.handover.is_none()) {
        for listed in &unwell {
            let container = engine.container(listed.id()).await.map_err(|e| chain(&e))?;
            let pid = container.filter(|c| c.has_own_network()).and_then(|c| c.pid());
            spaces.extend(pid.and_then(|pid| mesh_overlay::netns::inode(&format!("/proc/{pid}/ns/net")).ok()));
        }
    }
    let is_well = |e: &Endpoint| match &e.sandbox.handover {
        Some(handover) => !theirs.contains(handover.endpoint.as_str()),
        None => !e.sandbox.is_known() || !spaces.contains(&e.sandbox.inode),
    };
    let changed = mine.iter().filter(|e| (e.health == Health::Well) != is_well(e));
    let each = changed.map(|e| propose(app, e.id, is_well(e)));
    futures::future::join_all(each).await.into_iter().collect()
}

/// Says of an endpoint that its container is well, or is not.
pub(super) async fn propose(app: &App, id: Id, healthy: bool) -> Result<(), String> {
    match app.propose(Command::EndpointHealth { id, healthy }).await {
        // What was so before is no news.
        Ok((revision, Reply::Endpoint(e))) if e.version == revision => {
            if healthy {
                tracing::info!(endpoint = %id, "docker's check of its container succeeds: it takes new flows");
            } else {
                tracing::info!(endpoint = %id, "docker's check of its container does not succeed: it takes new flows only where no other does");
            }
        }
        Ok(_) => {}
        Err(e) if e.kind == RefusalKind::NotFound => {}
        Err(e) => return Err(e.message),
    }
    Ok(())
}
