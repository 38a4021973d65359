//! Docker's plugin socket is a process of its own, the front, which hands each request on to meshd and asks again
//! where that was killed meanwhile: it still has the words of the question. Docker has not: its plugin client sends
//! a request whose connection broke once more without the body, of which it has read to the end (callWithRetry
//! in moby's pkg/plugins/client.go).
//!
//! [`process`] is the front, the hidden command `meshd docker-front`; [`keep`] is meshd's side, which starts it,
//! takes it over from a meshd that was killed, and ends it. What they say to each other is here.

pub mod keep;
pub mod process;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{net::UnixStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

/// Who the front is. Docker's verbs begin otherwise.
const WHO: &str = "/meshd.Front";
/// The front is to end: its socket is gone when it answers.
const END: &str = "/meshd.End";
/// The header of a request that another meshd may have carried out already.
pub const REPEAT: &str = "meshd-repeat";
/// Beside the local API's: where the front finds meshd.
pub const SOCKET: &str = "meshd-docker.sock";
/// The front answers by itself, so it answers soon, where the machine lets it.
const SOON: Duration = Duration::from_secs(10);
/// The largest message of Docker's, and the largest answer.
const MESSAGE: usize = 2 << 20;

/// What a front says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Who {
    /// Where it hands requests on to.
    to: PathBuf,
    /// Of which meshd it is.
    version: String,
}

impl Who {
    fn ours(to: &Path) -> Self {
        Self {
            to: to.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    /// Nobody listens, or not any more.
    #[error("nobody answers at {}", .0.display())]
    Absent(PathBuf, #[source] std::io::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Http(#[source] hyper::Error),
    /// The answer was cut off.
    #[error("the answer could not be read: {0}")]
    Body(String),
    /// The answer is longer than one is read.
    #[error("the answer is larger than {MESSAGE} bytes")]
    TooLarge,
}

/// One request on a connection of its own.
async fn ask(at: &Path, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, AskError> {
    let stream = UnixStream::connect(at).await.map_err(|e| AskError::Absent(at.to_owned(), e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(AskError::Http)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let (parts, body) = sender.send_request(request).await.map_err(AskError::Http)?.into_parts();
    let body = Limited::new(body, MESSAGE).collect().await;
    let body = body.map_err(|e| match e.is::<LengthLimitError>() {
        true => AskError::TooLarge,
        false => AskError::Body(e.to_string()),
    })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// A question to a front; `None` where none answers.
async fn ask_front(at: &Path, path: &'static str) -> Option<Bytes> {
    let request = Request::post(path).header("host", "meshd").body(Full::default()).ok()?;
    let answer = timeout(SOON, ask(at, request)).await.ok()?.ok()?;
    answer.status().is_success().then(|| answer.into_body())
}

/// The front at a plugin's socket, if one is there.
async fn who(at: &Path) -> Option<Who> {
    serde_json::from_slice(&ask_front(at, WHO).await?).ok()
}
