//! meshd's side of the front: there is one as long as meshd runs. Called by [`crate::run`].

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    process::Command,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{END, Who, ask_front, who};
use crate::{
    execute::chain,
    local_api::{self, ListenError},
};

/// Between two tries to start a front.
const AGAIN: Duration = Duration::from_secs(1);
/// A front has so long to answer for the first time, or to be gone.
const START: Duration = Duration::from_secs(5);

/// Why there is no front.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Its socket can not be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No process could be started.
    #[error("cannot start a process for docker's socket")]
    Start(#[source] io::Error),
    /// It was started, and does not answer.
    #[error("the process of docker's socket {} does not answer", .0.display())]
    Silent(PathBuf),
    /// One of another release does not end.
    #[error("the process that a meshd {version} has left at {} does not end", .at.display())]
    Stays {
        /// Docker's socket.
        at: PathBuf,
        /// The other release.
        version: String,
    },
}

/// Sees to it that a front at `plugin` hands requests on to `to`; the connection lasts as long as that front.
///
/// # Errors
/// When it can not be had, or another meshd's is there.
pub async fn ensure(plugin: &Path, to: &Path) -> Result<UnixStream, KeepError> {
    let silent = || KeepError::Silent(plugin.to_owned());
    let ours = Who::ours(to);
    match who(plugin).await {
        Some(front) if front == ours => {}
        Some(front) if front.to == to => {
            ask_front(plugin, END).await;
            let gone = timeout(START, async {
                while plugin.exists() {
                    sleep(Duration::from_millis(10)).await;
                }
            });
            gone.await.map_err(|_| KeepError::Stays {
                at: plugin.to_owned(),
                version: front.version,
            })?;
            start(plugin, to).await?;
        }
        // Another meshd's front is no stale socket, which this says.
        Some(_) | None => start(plugin, to).await?,
    }
    let begun = Instant::now();
    while who(plugin).await.as_ref() != Some(&ours) {
        if begun.elapsed() >= START {
            return Err(silent());
        }
        sleep(Duration::from_millis(10)).await;
    }
    UnixStream::connect(plugin).await.map_err(|_| silent())
}

/// Its socket is opened here, where errors have somebody to tell them to, and is the process's standard input.
async fn start(plugin: &Path, to: &Path) -> Result<(), KeepError> {
    let listener = local_api::listen(plugin).await?.into_std().map_err(KeepError::Start)?;
    let mut child = Command::new("/proc/self/exe")
        .arg("docker-front")
        .args([plugin, to])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        // What is sent to meshd's group, as from a terminal, is for meshd, which ends the front.
        .process_group(0)
        .spawn()
        .map_err(KeepError::Start)?;
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

/// Starts another where the front ends, until `stop`; then ends it.
pub async fn run(plugin: PathBuf, to: PathBuf, first: UnixStream, stop: CancellationToken) {
    let mut front = Some(first);
    let keep = async {
        loop {
            if let Some(mut held) = front.take() {
                // It says nothing unasked: this is its end.
                drop(held.read(&mut [0]).await);
                tracing::warn!("the process of docker's socket ended: another is started");
            }
            match ensure(&plugin, &to).await {
                Ok(held) => front = Some(held),
                Err(e) => {
                    tracing::warn!(error = %chain(&e), "docker's containers cannot use the driver mesh");
                    sleep(AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        () = keep => {}
        () = stop.cancelled() => {}
    }
    end(&plugin, &to).await;
}

/// Ends the front of a meshd with these sockets; true if there was one.
pub async fn end(plugin: &Path, to: &Path) -> bool {
    let is_ours = who(plugin).await.is_some_and(|front| front.to == to);
    is_ours && ask_front(plugin, END).await.is_some()
}
