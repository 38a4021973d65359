//! A container that Docker asks to stop takes no new flow from then on, and one that was connected by its
//! name goes when it has ended. Started by [`crate::run`].
//!
//! The engine tells of the signal ([`super::kills`]); what follows is a command like any other's. Whoever
//! has been sent the signal is marked with the time by which it has ended, and one that runs on then is
//! not any more. Both can be told again after a restart, because the engine remembers its signals and the
//! endpoint the time. What was told already is not: an operator may have said since that the container goes on.
//!
//! A namespace can outlive its container: Podman's service keeps those that it was asked about open for up
//! to a minute.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use mesh_core::{
    Id, RefusalKind,
    command::Command,
    objects::{Endpoint, Sandbox},
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    engine::{Container, Engine, EngineError},
    kills::{Kill, Kills},
    learn,
};
use crate::{app::App, execute::chain};

/// Between two looks at who has outlived its time.
const LOOK: Duration = Duration::from_secs(5);
/// Between two tries to hear an engine, or to tell the managers.
const AGAIN: Duration = Duration::from_secs(1);
/// So long after the time that its engine gives it, a container means to go on.
const SURVIVED: Duration = Duration::from_secs(50);
/// So far back it is asked what was sent while nobody listened.
const PAST: Duration = Duration::from_secs(24 * 3600);

/// Below `RUN_DIR`: from when on the engine's signals have not been told yet.
pub const TOLD: &str = "meshd-docker.told";

/// Runs until meshd stops.
pub async fn run(app: Arc<App>) {
    let engine = Engine::at("docker", &app.config.docker_socket);
    let mut applied = app.applied.clone();
    let (mut look, mut again) = (interval(LOOK), interval(AGAIN));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let told = app.config.run_dir.join(TOLD);
    let mut since = read_told(&told, Timestamp::now());
    // Nobody is asked on a host without containers of an engine: its socket may be one that starts it.
    let mut has_any = false;
    let mut kills = None;
    let mut open: Vec<Kill> = Vec::new();
    let mut ended = BTreeMap::new();
    loop {
        tokio::select! {
            heard = next(&mut kills) => match heard {
                Ok(Some(kill)) => {
                    // Not the same once more.
                    since = since.max(kill.at.saturating_add(Duration::from_nanos(1)).unwrap_or(kill.at));
                    open.push(kill);
                }
                Ok(None) => kills = None,
                Err(e) => {
                    tracing::warn!(error = %chain(&e), "docker does not say any more which containers it stops");
                    kills = None;
                }
            },
            _ = look.tick() => {
                let mine = of_engines(&app).await;
                has_any = !mine.is_empty();
                if !has_any {
                    kills = None;
                }
                release(&app, &mine).await;
                learn::remove_ended(&app, &abandoned(mine).await, &mut ended).await;
                continue;
            }
            changed = applied.changed(), if !has_any => {
                if changed.is_err() {
                    return;
                }
                has_any = !of_engines(&app).await.is_empty();
                continue;
            }
            _ = again.tick(), if has_any && kills.is_none() || !open.is_empty() => {
                if has_any && kills.is_none() {
                    match engine.kills(since).await {
                        Ok(heard) => kills = Some(heard),
                        Err(e) => tracing::debug!(error = %chain(&e), "docker does not say which containers it stops"),
                    }
                }
            }
        }
        let (mut left, had_any) = (Vec::new(), !open.is_empty());
        for kill in open {
            match tell(&app, &engine, &kill).await {
                Ok(()) => {}
                Err(why) => {
                    tracing::debug!(container = kill.container, %why, "not known yet to be stopping");
                    left.push(kill);
                }
            }
        }
        open = left;
        if had_any && open.is_empty() {
            // Without it, they are told again.
            if let Err(e) = tokio::fs::write(&told, since.to_string()).await {
                tracing::debug!(file = %told.display(), error = %e, "which stops were told is not written down");
            }
        }
    }
}

/// From when on signals are asked for. The file goes with a reboot, as the containers do.
fn read_told(file: &Path, now: Timestamp) -> Timestamp {
    let past = now.saturating_sub(PAST).unwrap_or_default();
    let told = std::fs::read_to_string(file).ok().and_then(|text| text.parse().ok());
    // One of the future is from before the clock was set.
    told.filter(|told| *told <= now).map_or(past, |told: Timestamp| told.max(past))
}

async fn next(kills: &mut Option<Kills>) -> Result<Option<Kill>, EngineError> {
    match kills {
        Some(kills) => kills.next().await,
        None => std::future::pending().await,
    }
}

/// This host's endpoints in containers of an engine.
pub(super) async fn of_engines(app: &App) -> Vec<Arc<Endpoint>> {
    let Ok(node) = app.own_node().await else { return Vec::new() };
    let objects = app.ledger.view().objects;
    let here = objects.endpoints.on_node(node);
    here.filter(|e| is_engines(&e.sandbox)).cloned().collect()
}

/// What is not an engine's is called `netns:…` or `pid:…`.
fn is_engines(sandbox: &Sandbox) -> bool {
    sandbox.handover.is_some() || !sandbox.container.contains(':')
}

/// Says of the endpoints of a container that it was asked to stop, if it was. An error is worth another try.
async fn tell(app: &App, engine: &Engine, kill: &Kill) -> Result<(), String> {
    let container = match engine.container(&kill.container).await {
        Ok(Some(container)) => container,
        Ok(None) => return Ok(()),
        // It goes together with its containers, or comes back and tells again.
        Err(EngineError::Absent(_)) => return Ok(()),
        Err(e) => return Err(chain(&e)),
    };
    let Some(until) = ends_by(&container, kill).filter(|until| *until > Timestamp::now()) else {
        return Ok(());
    };
    let mine = of_engines(app).await;
    let ids = endpoints_in(&container, &mine);
    propose(app, &ids, Some(until)).await
}

/// By when a container that was sent this signal has ended, if that means to stop.
fn ends_by(container: &Container, kill: &Kill) -> Option<Timestamp> {
    let is_asked = container.stops_by(kill.signal) && container.ran_at(kill.at);
    if !is_asked {
        return None;
    }
    kill.at.checked_add(container.stop_time() + SURVIVED).ok()
}

/// The endpoints of a container, by its engine's ids of them or by its namespace.
fn endpoints_in(container: &Container, mine: &[Arc<Endpoint>]) -> Vec<Id> {
    let theirs: BTreeSet<&str> = container.endpoints().collect();
    let inode = container
        .pid()
        .and_then(|pid| mesh_overlay::netns::inode(&format!("/proc/{pid}/ns/net")).ok());
    let is_in = |e: &Endpoint| {
        let handed_over = e.sandbox.handover.as_ref().is_some_and(|h| theirs.contains(h.endpoint.as_str()));
        handed_over || e.sandbox.is_known() && inode == Some(e.sandbox.inode)
    };
    mine.iter().filter(|e| is_in(e)).map(|e| e.id).collect()
}

/// Those that should have ended and have not.
async fn release(app: &App, mine: &[Arc<Endpoint>]) {
    let now = Timestamp::now();
    let survivors = mine.iter().filter(|e| e.stopping.as_deref().is_some_and(|until| *until <= now));
    let ids: Vec<_> = survivors.map(|e| e.id).collect();
    if let Err(why) = propose(app, &ids, None).await {
        tracing::debug!(%why, "not known yet to go on");
    }
}

/// Those that were connected to a container that has ended, and whose namespace nobody else is in: others of
/// a pod, or who shares a container's network, may live on.
async fn abandoned(mine: Vec<Arc<Endpoint>>) -> Vec<Arc<Endpoint>> {
    let left = |e: &Arc<Endpoint>| e.sandbox.handover.is_none() && learn::has_ended(e);
    let left: Vec<_> = mine.into_iter().filter(left).collect();
    if left.is_empty() {
        return left;
    }
    let inhabited = tokio::task::spawn_blocking(inhabited).await.unwrap_or_default();
    match inhabited {
        Some(inhabited) => left.into_iter().filter(|e| !inhabited.contains(&e.sandbox.inode)).collect(),
        None => Vec::new(),
    }
}

/// The network namespaces that processes are in; `None` where that cannot be read.
fn inhabited() -> Option<BTreeSet<u64>> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let spaces = processes.filter_map(|entry| mesh_overlay::netns::inode(&entry.path().join("ns/net").to_string_lossy()).ok());
    Some(spaces.collect())
}

async fn propose(app: &App, ids: &[Id], until: Option<Timestamp>) -> Result<(), String> {
    let each = ids
        .iter()
        .map(async |id| match app.propose(Command::EndpointStopping { id: *id, until }).await {
            Ok(_) if until.is_some() => {
                tracing::info!(endpoint = %id, "docker stops its container: it takes no new flow");
                Ok(())
            }
            Ok(_) => {
                tracing::info!(endpoint = %id, "its container was asked to stop and goes on: it takes new flows again");
                Ok(())
            }
            Err(e) if e.kind == RefusalKind::NotFound => Ok(()),
            Err(e) => Err(e.message),
        });
    futures::future::join_all(each).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(told: serde_json::Value) -> Container {
        serde_json::from_value(told).unwrap()
    }

    fn kill(signal: i32, at: &str) -> Kill {
        Kill {
            container: "c".to_owned(),
            signal,
            at: at.parse().unwrap(),
        }
    }

    #[test]
    fn a_container_is_stopping_by_its_own_signal_or_the_usual_ones() {
        let plain = container(serde_json::json!({
            "State": {"Pid": 7, "StartedAt": "2026-01-01T00:00:00.5Z"}, "Config": {}, "HostConfig": {"NetworkMode": "ov"},
        }));
        let until = |c: &Container, signal: i32, at: &str| ends_by(c, &kill(signal, at)).map(|t| t.to_string());
        assert_eq!(until(&plain, 15, "2026-01-01T00:00:10Z").unwrap(), "2026-01-01T00:01:10Z");
        assert!(until(&plain, 2, "2026-01-01T00:00:10Z").is_some());
        // What reloads or ends at once, and what was sent to the one before a restart.
        assert_eq!(until(&plain, 1, "2026-01-01T00:00:10Z"), None);
        assert_eq!(until(&plain, 9, "2026-01-01T00:00:10Z"), None);
        assert_eq!(until(&plain, 15, "2026-01-01T00:00:00Z"), None);

        let own = container(serde_json::json!({
            "State": {"Pid": 7, "StartedAt": "2026-01-01T00:00:00Z"},
            "Config": {"StopSignal": "SIGRTMIN+3", "StopTimeout": 120}, "HostConfig": {},
        }));
        assert_eq!(until(&own, 37, "2026-01-01T00:00:10Z").unwrap(), "2026-01-01T00:03:00Z");
        assert_eq!(until(&own, 3, "2026-01-01T00:00:10Z"), None);

        // It has another's network: that one's endpoints stay.
        let guest = container(serde_json::json!({
            "State": {"Pid": 7, "StartedAt": "2026-01-01T00:00:00Z"}, "HostConfig": {"NetworkMode": "container:c1"},
        }));
        assert_eq!(until(&guest, 15, "2026-01-01T00:00:10Z"), None);
    }

    #[test]
    fn what_was_told_is_not_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(TOLD);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-10T00:00:00Z");
        assert_eq!(read_told(&file, now), at("2026-01-09T00:00:00Z"));
        for (text, since) in [
            ("2026-01-09T23:59:30.000000001Z", "2026-01-09T23:59:30.000000001Z"),
            ("2026-01-01T00:00:00Z", "2026-01-09T00:00:00Z"),
            ("2026-02-01T00:00:00Z", "2026-01-09T00:00:00Z"),
            ("2026-01-09T23:5", "2026-01-09T00:00:00Z"),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read_told(&file, now), at(since), "{text}");
        }
    }

    #[test]
    fn namespaces_with_processes_are_inhabited() {
        let own = mesh_overlay::netns::inode("/proc/self/ns/net").unwrap();
        assert!(inhabited().unwrap().contains(&own) && !inhabited().unwrap().contains(&0));
    }

    #[test]
    fn an_engines_container_has_a_plain_name() {
        let sandbox = |container: &str, handover| {
            let place = mesh_core::objects::Place {
                container: container.to_owned(),
                handover,
                ..Default::default()
            };
            Sandbox::new(0, place)
        };
        assert!(is_engines(&sandbox("web_1", None)) && !is_engines(&sandbox("netns:web", None)));
        let handover = mesh_core::objects::Handover {
            endpoint: "e".to_owned(),
            leased: false,
        };
        assert!(is_engines(&sandbox("docker:e", Some(Box::new(handover)))));
    }
}
