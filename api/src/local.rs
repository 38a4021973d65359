//! Client of the REST interface on meshd's unix socket ([`crate::rest`]), for meshctl and other
//! programs of the host.
//!
//! One connection per request: the socket is local, and a program asks a few things and ends. All
//! waiting is bounded, except for the next line of a stream.

use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use mesh_core::{Refusal, RefusalKind};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    task::JoinHandle,
    time::{error::Elapsed, timeout},
};

pub use crate::DEFAULT_SOCKET;

/// A line of a stream is never longer, in bytes.
const LINE_MAX: usize = 1 << 20;

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket there.
    #[error("cannot reach meshd at {}: no such file: is meshd running? (systemctl status meshd)", .0.display())]
    NoSocket(PathBuf),
    /// The socket is there, and nobody behind it.
    #[error("cannot reach meshd at {}: nobody listens there: is meshd running? (systemctl status meshd)", .0.display())]
    NoListener(PathBuf),
    /// The socket may not be opened.
    #[error("cannot reach meshd at {}: permission denied: run as root or as a member of the socket's group", .0.display())]
    Denied(PathBuf),
    /// The socket can not be opened for another reason.
    #[error("cannot reach meshd at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("meshd did not answer within {} s: see its log (journalctl -u meshd)", .0.as_secs())]
    Timeout(Duration),
    /// The connection broke, or what came is not HTTP.
    #[error("the connection to meshd broke")]
    Broken(#[source] hyper::Error),
    /// As [`Self::Broken`], in the middle of a change.
    #[error(
        "the connection to meshd broke before it answered: the change may have been made, look with ls or inspect before you repeat it"
    )]
    Cut(#[source] hyper::Error),
    /// As [`Self::Timeout`], in the middle of a change.
    #[error("meshd did not answer within {} s: the change may still be made, look with ls or inspect before you repeat it, and at meshd's log (journalctl -u meshd)", .0.as_secs())]
    Late(Duration),
    /// The request can not be put into HTTP.
    #[error("the request can not be sent")]
    Request(#[source] http::Error),
    /// A body is not the JSON that belongs there.
    #[error("meshd and this program do not understand each other: are they of the same release?")]
    Json(#[source] serde_json::Error),
    /// An endless line.
    #[error("meshd sent a line of more than {LINE_MAX} bytes")]
    Line,
    /// meshd refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Error {
    /// meshctl's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(refusal) => refusal.kind.exit_code(),
            _ => 1,
        }
    }

    /// The whole chain in one line.
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            // Writing to a string does not fail.
            let _ = write!(line, ": {source}");
            next = source.source();
        }
        line.replace(['\n', '\r'], " ")
    }
}

/// The client. Cheap: it opens a connection per request.
#[derive(Clone, Debug)]
pub struct LocalClient {
    socket: PathBuf,
    connect_limit: Duration,
    limit: Duration,
}

impl LocalClient {
    /// A client of the meshd behind `socket`: 2 s for the connection, 60 s for a whole request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            connect_limit: Duration::from_secs(2),
            limit: Duration::from_secs(60),
        }
    }

    /// The same client with another limit for a whole request.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads. `path` is one of [`crate::rest::paths`], with its query.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// Makes or does something.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.call(Method::POST, path, json(body)?).await
    }

    /// Replaces something.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.call(Method::PUT, path, json(body)?).await
    }

    /// Changes something.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.call(Method::PATCH, path, json(body)?).await
    }

    /// Removes something.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    /// Reads lines for as long as they come. Only the beginning has a time limit.
    pub async fn stream_lines(&self, path: &str) -> Result<Lines, Error> {
        let begin = async {
            let (conn, response) = self.send(Method::GET, path, Bytes::new()).await?;
            if response.status().is_success() {
                return Ok(Lines {
                    _conn: conn,
                    body: response.into_body(),
                    buffer: BytesMut::new(),
                });
            }
            Err(self.refused(response).await)
        };
        timeout(self.limit, begin)
            .await
            .map_err(|Elapsed { .. }| Error::Timeout(self.limit))?
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Error> {
        let reads = method == Method::GET;
        let whole = async {
            let (_conn, response) = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(self.refused(response).await);
            }
            let body = response.into_body().collect().await.map_err(Error::Broken)?.to_bytes();
            // 204 has no body; callers who expect nothing ask for ().
            let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
            serde_json::from_slice(&body).map_err(Error::Json)
        };
        match timeout(self.limit, whole).await {
            Ok(Err(Error::Broken(e))) if !reads => Err(Error::Cut(e)),
            Ok(done) => done,
            Err(Elapsed { .. }) if reads => Err(Error::Timeout(self.limit)),
            Err(Elapsed { .. }) => Err(Error::Late(self.limit)),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(Connection, Response<Incoming>), Error> {
        let stream = timeout(self.connect_limit, UnixStream::connect(&self.socket))
            .await
            .map_err(|Elapsed { .. }| Error::Timeout(self.connect_limit))?
            .map_err(|source| self.unreachable(source))?;
        let (mut sender, conn) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::Broken)?;
        // Its error, if any, is also the request's.
        let conn = Connection(tokio::spawn(async move { drop(conn.await) }));
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "meshd");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(Error::Request)?;
        Ok((conn, sender.send_request(request).await.map_err(Error::Broken)?))
    }

    fn unreachable(&self, source: io::Error) -> Error {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound => Error::NoSocket(path),
            io::ErrorKind::ConnectionRefused => Error::NoListener(path),
            io::ErrorKind::PermissionDenied => Error::Denied(path),
            _ => Error::Connect { path, source },
        }
    }

    async fn refused(&self, response: Response<Incoming>) -> Error {
        let status = response.status();
        let body = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) => return Error::Broken(e),
        };
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => Error::Refused(refusal),
            // Not meshd's own words: a route that it does not have, or a body that it could not read.
            Err(_) => {
                let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                let message = format!("meshd answers {status} {}", text.trim())
                    .trim_end()
                    .replace(['\n', '\r'], " ");
                Error::Refused(Refusal::new(RefusalKind::Other, message))
            }
        }
    }
}

fn json(body: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(body).map(Bytes::from).map_err(Error::Json)
}

/// The task that drives a connection; ends with its owner.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream of lines.
#[derive(Debug)]
pub struct Lines {
    _conn: Connection,
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line without its end, or `None` when meshd ended the stream. Empty lines are skipped.
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            if self.buffer.len() > LINE_MAX {
                return Err(Error::Line);
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(Error::Broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => {
                    let rest = String::from_utf8_lossy(&self.buffer.split()).trim().to_owned();
                    return Ok((!rest.is_empty()).then_some(rest));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
