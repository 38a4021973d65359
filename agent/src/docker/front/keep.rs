//! meshd's side of the front: there is one as long as meshd runs. Called by [`crate::run`].

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{END, Who, ask_front, who};
use crate::{
    config::Logging,
    execute::chain,
    local_api::{self, ListenError},
};

/// Between two tries to start a front.
const AGAIN: Duration = Duration::from_secs(1);
/// A front has so long to answer for the first time, or to be gone.
const START: Duration = Duration::from_secs(30);

/// Why there is no front.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Its socket can not be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No process could be started.
    #[error("cannot start a process for docker's socket")]
    Start(#[source] io::Error),
    /// It was started, and has ended.
    #[error("the process of docker's socket {} ended at once ({status}): its log says why", .at.display())]
    Ended {
        /// Docker's socket.
        at: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
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

/// What a front is started with.
#[derive(Debug)]
pub struct Keeper {
    /// Docker's socket.
    pub plugin: PathBuf,
    /// meshd's, where the front hands requests on to.
    pub to: PathBuf,
    /// The front logs as meshd does.
    pub logging: Logging,
}

impl Keeper {
    /// Sees to it that there is a front; the connection lasts as long as that one.
    ///
    /// # Errors
    /// When it can not be had, or another meshd's is there.
    pub async fn ensure(&self) -> Result<UnixStream, KeepError> {
        let plugin = &self.plugin;
        let ours = Who::ours(&self.to);
        let mut child = match who(plugin).await {
            Some(front) if front == ours => None,
            Some(front) if front.to == self.to => {
                ask_front(plugin, END).await;
                let gone = timeout(START, async {
                    while plugin.exists() {
                        sleep(Duration::from_millis(10)).await;
                    }
                });
                gone.await.map_err(|_| KeepError::Stays {
                    at: plugin.clone(),
                    version: front.version,
                })?;
                Some(self.start().await?)
            }
            // Another meshd's front is no stale socket, which this says.
            Some(_) | None => Some(self.start().await?),
        };
        let begun = Instant::now();
        while who(plugin).await.as_ref() != Some(&ours) {
            if let Some(child) = &mut child
                && let Some(status) = child.try_wait().map_err(KeepError::Start)?
            {
                let at = plugin.clone();
                return Err(KeepError::Ended { at, status });
            }
            if begun.elapsed() >= START {
                // It holds the socket, at which another could not be started.
                if let Some(child) = &mut child {
                    child.kill().await.map_err(KeepError::Start)?;
                }
                return Err(KeepError::Silent(plugin.clone()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        if let Some(mut child) = child {
            tokio::spawn(async move { child.wait().await });
        }
        UnixStream::connect(plugin).await.map_err(|_| KeepError::Silent(plugin.clone()))
    }

    /// Its socket is opened here, where errors have somebody to tell them to, and is the process's standard input.
    async fn start(&self) -> Result<Child, KeepError> {
        let listener = local_api::listen(&self.plugin).await?.into_std().map_err(KeepError::Start)?;
        Command::new("/proc/self/exe")
            .args(self.logging.flags())
            .arg("docker-front")
            .args([&self.plugin, &self.to])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            // What is sent to meshd's group, as from a terminal, is for meshd, which ends the front.
            .process_group(0)
            .spawn()
            .map_err(KeepError::Start)
    }

    /// Starts a front where there is none, or where `front` ends, until `stop`; then ends it.
    pub async fn run(self, mut front: Option<UnixStream>, stop: CancellationToken) {
        let keep = async {
            // What keeps it from being started is told once.
            let mut told = None;
            loop {
                if let Some(mut held) = front.take() {
                    // It says nothing unasked: this is its end.
                    drop(held.read(&mut [0]).await);
                    tracing::warn!("the process of docker's socket ended: another is started");
                }
                match self.ensure().await {
                    Ok(held) => (front, told) = (Some(held), None),
                    Err(e) => {
                        let error = chain(&e);
                        if told.as_ref() != Some(&error) {
                            tracing::warn!(%error, "docker's containers cannot use the driver mesh; trying again");
                            told = Some(error);
                        }
                        sleep(AGAIN).await;
                    }
                }
            }
        };
        tokio::select! {
            () = keep => {}
            () = stop.cancelled() => {}
        }
        end(&self.plugin, &self.to).await;
    }
}

/// Ends the front of a meshd with these sockets; true if there was one.
pub async fn end(plugin: &Path, to: &Path) -> bool {
    let is_ours = who(plugin).await.is_some_and(|front| front.to == to);
    is_ours && ask_front(plugin, END).await.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;

    #[tokio::test]
    async fn a_process_that_ends_at_once_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper {
            plugin: dir.path().join("mesh.sock"),
            to: dir.path().join("meshd.sock"),
            logging: Logging {
                filter: "info".into(),
                format: LogFormat::Text,
            },
        };
        // The program that is started is this very test, which does not know those arguments.
        let error = keeper.ensure().await.unwrap_err();
        assert!(matches!(&error, KeepError::Ended { status, .. } if !status.success()), "{error}");
    }
}
