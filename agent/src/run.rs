//! The wiring: what is opened in which order, which tasks run, and how they end.
//!
//! Tasks: the reconcile loop (the kernel), the session's five loops (the managers), the local API,
//! and on managers those of [`mesh_control`]. Order of the beginning: everything that can be wrong
//! with the disk first, then the kernel, then the socket; only then is anything changed.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_control::disk::DiskError;
use mesh_dns::Dns;
use mesh_loader::Loader;
use mesh_overlay::Overlay;
use sd_notify::NotifyState;
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Exit,
    app::App,
    attachments::Attachments,
    config::Config,
    consul,
    cri::{self, Pods},
    docker::{
        self,
        front::keep::{self, Keeper},
    },
    events::EventLog,
    execute::{Executor, chain},
    founding,
    ledger::{Ledger, LedgerError},
    local_api,
    membership::{Membership, Parts, role},
    metrics::{self, Metrics, Passes},
    reconcile::{Applied, Memory, Reconciler},
    segment::Asker,
    traffic::flows::Hub,
};

/// How long the tasks get to end after SIGTERM; the contract gives meshd 5 s in all.
const STOP_TIME: Duration = Duration::from_secs(4);

/// How long the last of the ledger may take to get to disk: what is missing comes from the managers.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// A meshd that was killed has its files until the kernel has ended the last of its threads, which one
/// that was changing links may take a while to.
const PREDECESSOR_TIME: Duration = Duration::from_secs(3);

async fn open_ledger(path: &Path) -> Result<Ledger, LedgerError> {
    let end = Instant::now() + PREDECESSOR_TIME;
    loop {
        match Ledger::open(path) {
            Err(LedgerError::Disk(DiskError::InUse { .. })) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done => return done,
        }
    }
}

/// Runs the agent until it is told to stop. The data plane stays as it is then.
pub async fn agent(config: Config) -> Result<(), Exit> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Exit::new("meshd programs the kernel's network: run it as root"));
    }
    let ledger = Arc::new(open_ledger(&config.data_dir.join("ledger.redb")).await?);
    let (attachments, pods) = (Arc::new(Attachments::default()), Arc::new(Pods::default()));
    let events = Arc::new(EventLog::default());
    let dns = Arc::new(Dns::new(mesh_dns::Config {
        resolv_conf: config.resolv_conf.clone(),
        ..mesh_dns::Config::default()
    }));
    let stop = CancellationToken::new();
    let (requests, incoming) = mpsc::channel(16);
    let (flows, rings) = Hub::new(ledger.clone(), requests.clone(), stop.clone());
    let executor = Executor::open(config.bpffs.clone(), config.flow_table_size, dns.clone(), flows.clone())?;
    let degraded = executor.loader.degraded();
    let socket = config.socket();
    let listener = local_api::listen(&socket).await?;
    let docker_sockets = listen_for_docker(&config).await?;
    let scraped = metrics::listen(config.metrics).await?;
    let catalog = consul::listen(config.consul_http).await?;

    let (fatal, mut fatal_errors) = mpsc::channel(4);
    let (applied, seen_applied) = watch::channel(Applied::default());
    let member = watch::Sender::new(None);
    let passes = Arc::new(Passes::default());
    let neighbors = watch::Sender::new(executor.loader.neighbors());
    let reconciler = Reconciler {
        neighbors: neighbors.subscribe(),
        executor,
        ledger: ledger.clone(),
        member: member.subscribe(),
        uplink: config.uplink.clone(),
        resolv_conf: config.resolv_conf.clone(),
        applied,
        requests: incoming,
        host: None,
        passes: passes.clone(),
        memory: Memory::default(),
    };
    let mut kernel = tokio::spawn(reconciler.run(stop.clone()));
    let heard = neighbors.subscribe();
    let asker = Asker {
        ledger: ledger.clone(),
        member: member.subscribe(),
        applied: seen_applied.clone(),
        neighbors,
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(asker.run()));
    let parts = Parts {
        ledger: ledger.clone(),
        events: events.clone(),
        applied: seen_applied.clone(),
        attachments: attachments.clone(),
        pods: pods.clone(),
        requests: requests.clone(),
        member,
        fatal,
    };
    let membership = Membership::new(&config, parts);
    membership.resume().await.map_err(|r| Exit::new(r.message))?;
    let app = Arc::new(App {
        config,
        ledger: ledger.clone(),
        events_log: events.clone(),
        applied: seen_applied,
        requests,
        membership,
        attachments,
        flows: flows.clone(),
        neighbors: heard,
        degraded,
    });
    tokio::spawn(flows.run(rings));
    let api = tokio::spawn(local_api::serve(app.clone(), listener, stop.clone()));
    tokio::spawn(stop.clone().run_until_cancelled_owned(role::follow(app.clone())));
    tokio::spawn(stop.clone().run_until_cancelled_owned(docker::stopping::run(app.clone())));
    tokio::spawn(stop.clone().run_until_cancelled_owned(docker::health::run(app.clone())));
    let driver = tokio::spawn(serve_docker(app.clone(), docker_sockets, stop.clone()));
    tokio::spawn(stop.clone().run_until_cancelled_owned(cri::run(app.clone(), pods)));
    if let Some(listener) = scraped {
        let metrics = Metrics {
            app: app.clone(),
            dns: dns.clone(),
            passes,
            started: SystemTime::now(),
        };
        tokio::spawn(metrics::serve(metrics, listener, stop.clone()));
    }
    if let Some(listener) = catalog {
        tokio::spawn(consul::serve(app.clone(), listener, stop.clone()));
    }
    let watchdog = tokio::spawn(stop.clone().run_until_cancelled_owned(watchdog()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "meshd is ready");
    notify(&[NotifyState::Ready]);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(why) = fatal_errors.recv() => Err(Exit::new(why)),
        done = &mut kernel => Err(match done {
            Ok(Ok(())) => Exit::new("the reconcile loop ended"),
            Ok(Err(e)) => Exit::new(chain(&e)),
            Err(e) => Exit::new(format!("the reconcile loop failed: {e}")),
        }),
    };
    notify(&[NotifyState::Stopping]);
    stop.cancel();
    events.end();
    let rest = async {
        app.membership.stop().await;
        drop(api.await);
        drop(driver.await);
        drop(watchdog.await);
        dns.shutdown().await;
        if !kernel.is_finished() {
            drop(kernel.await);
        }
        let flush = tokio::task::spawn_blocking(move || ledger.flush(FLUSH_TIME));
        drop(flush.await);
    };
    if timeout(STOP_TIME, rest).await.is_err() {
        tracing::warn!("some tasks did not end in time and are cut off");
    }
    match std::fs::remove_file(&socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => tracing::warn!(error = %e, "cannot remove the socket"),
        _ => {}
    }
    ended
}

/// What Docker's driver is asked by.
struct DockerSockets {
    /// Where the front hands requests on to.
    listener: UnixListener,
    /// Has Docker's socket.
    keeper: Keeper,
    /// Lasts as long as the front.
    front: Option<UnixStream>,
}

/// The sockets for Docker's driver. Where Docker's can not be had and nobody asked for it, it is tried for again later.
async fn listen_for_docker(config: &Config) -> Result<Option<DockerSockets>, Exit> {
    let Some(plugin) = &config.docker_plugin else { return Ok(None) };
    let listener = local_api::listen(&config.docker_front()).await?;
    let keeper = Keeper {
        plugin: plugin.path.clone(),
        to: config.docker_front(),
        logging: config.logging.clone(),
    };
    let front = match keeper.ensure().await {
        Ok(front) => Some(front),
        Err(e) if plugin.asked => return Err(e.into()),
        // Told by the keeper, if it stays so.
        Err(_) => None,
    };
    Ok(Some(DockerSockets { listener, keeper, front }))
}

/// Docker's driver, until `stop`. Docker's socket goes before the last requests are finished.
async fn serve_docker(app: Arc<App>, sockets: Option<DockerSockets>, stop: CancellationToken) {
    let Some(sockets) = sockets else { return };
    let own = app.config.docker_front();
    let front = tokio::spawn(sockets.keeper.run(sockets.front, stop.clone()));
    let learn = tokio::spawn(stop.clone().run_until_cancelled_owned(docker::learn::run(app.clone())));
    let serve = tokio::spawn(docker::serve(app, sockets.listener, stop));
    drop((front.await, learn.await, serve.await));
    if let Err(e) = std::fs::remove_file(&own) {
        tracing::debug!(error = %e, "the socket of docker's driver");
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!(error = %e, "systemd was not told");
    }
}

/// Tells systemd's watchdog that the runtime still turns, where there is one.
async fn watchdog() {
    let Some(every) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(every / 2);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// Removes what meshd made on this host. Collects all errors; what can be removed is.
pub async fn cleanup(config: &Config, force: bool) -> Result<(), Exit> {
    if UnixStream::connect(config.socket()).await.is_ok() {
        return Err(Exit::new(format!("meshd is running ({} answers): stop it first", config.socket().display())).with_code(4));
    }
    let mut errors = Vec::new();
    let mut said = |what: Result<Vec<String>, Vec<String>>| match what {
        Ok(removed) => removed.iter().for_each(|r| println!("removed {r}")),
        Err(e) => errors.extend(e),
    };
    let overlay = Overlay::new()?;
    said(overlay.sweep().await.map_err(|all| all.iter().map(|e| chain(e)).collect()));
    said(Loader::cleanup(&config.bpffs).map_err(|e| vec![chain(&e)]));
    // It may wait for a meshd that was killed to be started again.
    if let Some(plugin) = &config.docker_plugin
        && keep::end(&plugin.path, &config.docker_front()).await
    {
        said(Ok(vec![plugin.path.display().to_string()]));
    }
    // The lock is meshd-cni's, whose calls for one container take turns by it.
    said(remove(
        &config.run_dir,
        &["meshd.sock", "cni.lock", docker::front::SOCKET, docker::stopping::TOLD],
    ));
    if let Some(plugin) = config.docker_plugin.as_ref().filter(|p| p.path.exists())
        // Where another meshd answers, it is that one's.
        && UnixStream::connect(&plugin.path).await.is_err()
    {
        said(match std::fs::remove_file(&plugin.path) {
            Ok(()) => Ok(vec![plugin.path.display().to_string()]),
            Err(e) => Err(vec![format!("cannot remove {}: {e}", plugin.path.display())]),
        });
    }
    match mesh_control::identity::IdentityStore::load(&config.data_dir) {
        Ok(Some(identity)) if !force => {
            let file = identity.file();
            eprintln!(
                "meshd: kept {}: this host is still node {} of cluster {}; run meshctl leave first, or meshd cleanup --force",
                config.data_dir.display(),
                file.node,
                file.cluster
            );
        }
        // What cannot be read may still be a manager's.
        Err(e) if !force => said(Err(vec![format!(
            "kept {}: {} (--force removes it)",
            config.data_dir.display(),
            chain(&e)
        )])),
        _ => said(remove(&config.data_dir, &["identity", "raft", "ledger.redb", founding::FILE])),
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Exit::new(errors.join("; ")))
    }
}

/// Removes from `dir` what meshd made there, by name or by what a name begins with (files that were
/// being replaced), and `dir` itself if nothing else is in it: it is the operator's choice, and may
/// hold more.
fn remove(dir: &Path, ours: &[&str]) -> Result<Vec<String>, Vec<String>> {
    let fail = |what: &Path, e: std::io::Error| format!("cannot remove {}: {e}", what.display());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(vec![fail(dir, e)]),
    };
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        if !ours.iter().any(|o| name.to_string_lossy().starts_with(o)) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        match if is_dir {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        } {
            Ok(()) => removed.push(path.display().to_string()),
            Err(e) => errors.push(fail(&path, e)),
        }
    }
    if std::fs::remove_dir(dir).is_ok() {
        removed.push(dir.display().to_string());
    }
    if errors.is_empty() { Ok(removed) } else { Err(errors) }
}
