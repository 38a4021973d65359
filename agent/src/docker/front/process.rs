//! The front itself. It has Docker's requests in its memory until they are answered, and nothing else; it ends
//! when it is told to, or when there has been no meshd for a while.

use std::{
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::to_bytes,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use http::{Method, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::Full;
use mesh_core::Refusal;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{AskError, END, MESSAGE, REPEAT, WHO, Who, ask};
use crate::{Exit, docker::refused, execute::chain};

/// Between two tries to reach meshd.
const AGAIN: Duration = Duration::from_millis(50);
/// So long after Docker asked, meshd is waited for: a busy host takes its time to start one. Docker itself sets no
/// limit to a request.
const PATIENCE: Duration = ORPHANED;
/// Without a meshd for so long, Docker is better told that nobody is there.
const ORPHANED: Duration = Duration::from_secs(60);

struct Front {
    /// Docker's socket.
    plugin: PathBuf,
    /// meshd's.
    to: PathBuf,
    /// The device and the inode of Docker's socket, while it is this front's.
    socket: Option<(u64, u64)>,
    stop: CancellationToken,
}

/// The device and the inode of a file, where there is one.
fn inode(at: &Path) -> Option<(u64, u64)> {
    at.symlink_metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Serves at standard input, which is a socket bound to `plugin`, until the end of the front.
///
/// # Errors
/// When that is none.
pub async fn run(plugin: PathBuf, to: PathBuf) -> Result<(), Exit> {
    let listener = std::os::unix::net::UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let front = Arc::new(Front {
        socket: inode(&plugin),
        plugin,
        to,
        stop: CancellationToken::new(),
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let watched = front.clone();
    tokio::spawn(async move {
        let is_orphan = tokio::select! {
            _ = terminate.recv() => false,
            () = orphaned(&watched.to) => true,
        };
        watched.end();
        if is_orphan {
            tracing::warn!("there is no meshd any more: docker's networks of the driver mesh wait for one");
        }
    });
    serve(front, listener).await.map_err(Exit::from)
}

async fn serve(front: Arc<Front>, listener: UnixListener) -> std::io::Result<()> {
    let stop = front.stop.clone();
    let router = Router::new()
        .route(WHO, post(async |State(front): State<Arc<Front>>| Json(Who::ours(&front.to))))
        .route(END, post(async |State(front): State<Arc<Front>>| front.end()))
        .fallback(forward)
        .with_state(front);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

impl Front {
    /// The socket goes first: Docker waits for one that is there and does not answer. Another's that has taken
    /// its place stays.
    fn end(&self) {
        if !self.stop.is_cancelled()
            && self.socket.is_some()
            && inode(&self.plugin) == self.socket
            && let Err(e) = std::fs::remove_file(&self.plugin)
        {
            tracing::debug!(error = %e, "docker's socket");
        }
        self.stop.cancel();
    }
}

/// Returns when nobody has listened there for long. A connection that stays open tells of the end at once.
async fn orphaned(to: &Path) {
    let mut heard = Instant::now();
    while heard.elapsed() < ORPHANED {
        if let Ok(mut meshd) = UnixStream::connect(to).await {
            // meshd says nothing unasked: this is its end.
            drop(meshd.read(&mut [0]).await);
            heard = Instant::now();
        }
        sleep(AGAIN).await;
    }
}

/// Hands a request of Docker's on until meshd answers it. To be asked twice is no harm: what a request makes is
/// named after Docker's ids. An address has no such name: [`REPEAT`] tells the driver that an earlier meshd may have
/// reserved the one that Docker chose (`docker run --ip`); of those that meshd chooses it takes another.
async fn forward(State(front): State<Arc<Front>>, request: Request) -> Response {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MESSAGE).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let (mut was_cut_off, mut is_repeat) = (false, false);
    loop {
        let asked = match same(&parts.method, &parts.uri, body.clone(), is_repeat) {
            Ok(same) => ask(&front.to, same).await,
            Err(e) => return refused(&Refusal::other(format!("docker's request can not be handed on: {e}"))),
        };
        match asked {
            Ok(answer) => {
                if was_cut_off {
                    tracing::info!(
                        verb = parts.uri.path(),
                        "docker was answered by the meshd that was started meanwhile"
                    );
                }
                let (head, body) = answer.into_parts();
                let kind = head.headers.get(CONTENT_TYPE).cloned();
                let mut response = (head.status, body).into_response();
                response.headers_mut().remove(CONTENT_TYPE);
                response.headers_mut().extend(kind.map(|kind| (CONTENT_TYPE, kind)));
                return response;
            }
            // It would be so again.
            Err(e @ AskError::TooLarge) => return refused(&Refusal::other(format!("meshd cannot answer docker: {e}"))),
            Err(e) if front.stop.is_cancelled() || begun.elapsed() >= PATIENCE => {
                tracing::warn!(verb = parts.uri.path(), error = %chain(&e), "docker's request was given up");
                return refused(&Refusal::unavailable("meshd does not answer: start it, then try again"));
            }
            Err(e) => {
                was_cut_off = true;
                is_repeat |= !matches!(e, AskError::Absent(..));
            }
        }
        sleep(AGAIN).await;
    }
}

fn same(method: &Method, uri: &Uri, body: Bytes, is_repeat: bool) -> Result<http::Request<Full<Bytes>>, http::Error> {
    let mut request = http::Request::builder().method(method).uri(uri.path()).header("host", "meshd");
    if is_repeat {
        request = request.header(REPEAT, "1");
    }
    request.body(Full::new(body))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::{task::JoinHandle, time::timeout};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn front(dir: &Path) -> (Arc<Front>, JoinHandle<std::io::Result<()>>) {
        let plugin = dir.join("mesh.sock");
        let listener = UnixListener::bind(&plugin).unwrap();
        let front = Arc::new(Front {
            socket: inode(&plugin),
            plugin,
            to: dir.join("meshd.sock"),
            stop: CancellationToken::new(),
        });
        (front.clone(), tokio::spawn(serve(front, listener)))
    }

    /// A meshd that answers with what it was asked, or gets no further than to read that.
    fn meshd(dir: &Path, answers: bool) -> (JoinHandle<()>, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let (seen, asked) = tokio::sync::mpsc::unbounded_channel();
        let router = Router::new().fallback(async move |headers: http::HeaderMap, body: String| {
            let told = if headers.contains_key(REPEAT) { "again " } else { "" };
            seen.send(format!("{told}{body}")).unwrap();
            if !answers {
                std::future::pending::<()>().await;
            }
            ([(CONTENT_TYPE, "x/y")], body)
        });
        drop(std::fs::remove_file(dir.join("meshd.sock")));
        let listener = UnixListener::bind(dir.join("meshd.sock")).unwrap();
        // Each connection is served in the task itself, so that it breaks when that is aborted.
        let serve = async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router);
            let io = hyper_util::rt::TokioIo::new(stream);
            drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
        };
        (tokio::spawn(serve), asked)
    }

    fn docker(dir: &Path, body: &'static str) -> JoinHandle<http::Response<Bytes>> {
        let at = dir.join("mesh.sock");
        let request = same(&Method::POST, &Uri::from_static("/NetworkDriver.Join"), body.into(), false).unwrap();
        tokio::spawn(async move { ask(&at, request).await.unwrap() })
    }

    #[tokio::test]
    async fn what_a_killed_meshd_was_asked_the_next_one_is_asked_too() {
        let tmp = tempfile::tempdir().unwrap();
        let (_front, _task) = front(tmp.path());
        let (killed, mut asked) = meshd(tmp.path(), false);
        let answer = docker(tmp.path(), "{}");
        assert_eq!(timeout(LONG, asked.recv()).await.unwrap().unwrap(), "{}");
        killed.abort();
        drop(killed.await);
        let (_meshd, mut asked) = meshd(tmp.path(), true);
        let answer = timeout(LONG, answer).await.unwrap().unwrap();
        assert_eq!(asked.recv().await.unwrap(), "again {}");
        assert_eq!(
            (answer.headers()[CONTENT_TYPE].to_str().unwrap(), answer.body().as_ref()),
            ("x/y", &b"{}"[..])
        );
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_is_not_asked_for_again() {
        let tmp = tempfile::tempdir().unwrap();
        let (_front, _task) = front(tmp.path());
        let router = Router::new().fallback(async || "x".repeat(MESSAGE + 1));
        let listener = UnixListener::bind(tmp.path().join("meshd.sock")).unwrap();
        tokio::spawn(axum::serve(listener, router).into_future());
        let answer = timeout(LONG, docker(tmp.path(), "{}")).await.unwrap().unwrap();
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        assert!(answer["Err"].as_str().unwrap().contains("larger than"), "{answer}");
    }

    #[tokio::test]
    async fn a_front_leaves_the_socket_that_took_its_own_ones_place() {
        let tmp = tempfile::tempdir().unwrap();
        let (front, _task) = front(tmp.path());
        // Both are there for a moment, so that their inodes differ.
        let next = tmp.path().join("next.sock");
        let _other = UnixListener::bind(&next).unwrap();
        std::fs::rename(&next, &front.plugin).unwrap();
        front.end();
        assert!(front.plugin.exists() && front.stop.is_cancelled());
    }

    #[tokio::test]
    async fn a_front_that_is_told_to_end_says_so_to_those_that_wait() {
        let tmp = tempfile::tempdir().unwrap();
        let (front, task) = front(tmp.path());
        assert_eq!(super::super::who(&front.plugin).await, Some(Who::ours(&front.to)));
        let waits = docker(tmp.path(), "{}");
        tokio::task::yield_now().await;
        let at = front.plugin.clone();
        assert!(super::super::ask_front(&at, END).await.is_some());
        assert!(!at.exists());
        if let Ok(answer) = timeout(LONG, waits).await.unwrap() {
            let answer: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(answer["Err"], json!("meshd does not answer: start it, then try again"));
        }
        timeout(LONG, task).await.unwrap().unwrap().unwrap();
    }
}
