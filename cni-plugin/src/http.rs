//! One HTTP/1.1 request over meshd's unix socket, and nothing more: no reuse, no redirects, no
//! chunks, which meshd's answers to requests of this program never have. Blocking, and over at a
//! deadline. Called by [`crate::meshd`].

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_core::{Refusal, RefusalKind};
use socket2::{Domain, SockAddr, Socket, Type};

/// Longest answer in bytes.
const LONGEST: usize = 64 << 20;
/// Longest head of an answer in bytes, and the most fields in it.
const HEAD: usize = 16 << 10;
const FIELDS: usize = 32;

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket there.
    #[error("cannot reach meshd at {}: no such file: is meshd running?", .0.display())]
    NoSocket(PathBuf),
    /// The socket is there, and nobody behind it.
    #[error("cannot reach meshd at {}: nobody listens there: is meshd running?", .0.display())]
    NoListener(PathBuf),
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
    #[error("meshd did not answer in time")]
    Timeout,
    /// The connection broke: meshd ended.
    #[error("the connection to meshd broke")]
    Broken(#[source] io::Error),
    /// The answer is not HTTP as it is spoken here.
    #[error("meshd's answer is not understood: {0}")]
    NotHttp(String),
    /// A body is not the JSON that belongs there.
    #[error("meshd and meshd-cni do not understand each other: are they of the same release?")]
    Json(#[source] serde_json::Error),
    /// meshd refuses.
    #[error(transparent)]
    Refused(Refusal),
}

impl Error {
    /// It may be otherwise in a while: meshd is starting, stopping or slow.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoSocket(_) | Self::NoListener(_) | Self::Timeout | Self::Broken(_))
    }
}

/// Sends a request with a JSON body, unless that is empty, and gives the body of the answer.
///
/// # Errors
/// An answer that is no success is [`Error::Refused`].
pub fn ask(socket: &Path, method: &str, path: &str, body: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
    let mut stream = connect(socket, deadline)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: meshd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body].concat();
    let mut rest = &request[..];
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?)).map_err(Error::Broken)?;
        let n = stream.write(rest).map_err(slow_or_broken)?;
        rest = &rest[n..];
    }
    let (status, body) = answer(&mut stream, deadline)?;
    if (200..300).contains(&status) {
        Ok(body)
    } else {
        Err(refused(status, &body))
    }
}

fn left(deadline: Instant) -> Result<Duration, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Error::Timeout) } else { Ok(left) }
}

fn slow_or_broken(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout,
        _ => Error::Broken(e),
    }
}

/// Connects. A meshd that is stopped takes connections until its queue is full; from then on the
/// kernel waits as long as the send timeout says (unix_stream_connect in net/unix/af_unix.c).
fn connect(path: &Path, deadline: Instant) -> Result<UnixStream, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::NoSocket(path.to_owned()),
        io::ErrorKind::ConnectionRefused => Error::NoListener(path.to_owned()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout,
        _ => Error::Connect {
            path: path.to_owned(),
            source,
        },
    };
    let address = SockAddr::unix(path).map_err(failed)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    socket.set_write_timeout(Some(left(deadline)?)).map_err(failed)?;
    socket.connect(&address).map_err(failed)?;
    Ok(socket.into())
}

/// Status and body.
fn answer(stream: &mut UnixStream, deadline: Instant) -> Result<(u16, Vec<u8>), Error> {
    let mut bytes = Vec::with_capacity(4096);
    let mut chunk = [0; 16 << 10];
    let mut head = None;
    loop {
        if head.is_none() {
            head = parse(&bytes)?;
        }
        if let Some(Head { status, at, length }) = head
            && let Some(end) = length.and_then(|n| at.checked_add(n))
            && bytes.len() >= end
        {
            bytes.truncate(end);
            bytes.drain(..at);
            return Ok((status, bytes));
        }
        stream.set_read_timeout(Some(left(deadline)?)).map_err(Error::Broken)?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(slow_or_broken(e)),
        }
        if bytes.len() > LONGEST {
            return Err(Error::NotHttp(format!("it is longer than {LONGEST} bytes")));
        }
    }
    match head {
        // Without a length the body ends with the connection.
        Some(Head { status, at, length: None }) => {
            bytes.drain(..at);
            Ok((status, bytes))
        }
        _ => Err(Error::Broken(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// The head of an answer.
#[derive(Clone, Copy)]
struct Head {
    status: u16,
    /// Where the body begins.
    at: usize,
    /// The body's length in bytes.
    length: Option<usize>,
}

/// `None` until the whole head is there.
fn parse(bytes: &[u8]) -> Result<Option<Head>, Error> {
    let not_http = |e: &dyn std::fmt::Display| Error::NotHttp(e.to_string());
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let at = match response.parse(bytes).map_err(|e| not_http(&e))? {
        httparse::Status::Complete(at) => at,
        httparse::Status::Partial if bytes.len() > HEAD => return Err(not_http(&"its head does not end")),
        httparse::Status::Partial => return Ok(None),
    };
    let field = |name: &str| response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    if field("transfer-encoding").is_some() {
        return Err(not_http(&"it comes in chunks"));
    }
    let status = response.code.unwrap_or_default();
    let length = field("content-length").map(|v| std::str::from_utf8(v).ok().and_then(|v| v.trim().parse().ok()));
    let length = match length {
        Some(None) => return Err(not_http(&"its length is not a number")),
        Some(length) => length,
        None if status == 204 => Some(0),
        None => None,
    };
    Ok(Some(Head { status, at, length }))
}

fn refused(status: u16, body: &[u8]) -> Error {
    Error::Refused(serde_json::from_slice(body).unwrap_or_else(|_| {
        // Not meshd's own words: a route that it does not have.
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        Refusal::new(
            RefusalKind::Other,
            format!("meshd answers {status} {}", text.trim()).trim_end().to_owned(),
        )
    }))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    /// Answers one request with `answer`, and keeps the connection when `keep`.
    fn asked(answer: &'static [u8], keep: bool) -> Result<Vec<u8>, Error> {
        asked_within(Duration::from_secs(60), answer, keep)
    }

    fn asked_within(limit: Duration, answer: &'static [u8], keep: bool) -> Result<Vec<u8>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = [0; 4096];
            assert!(stream.read(&mut seen).unwrap() > 0);
            // Byte by byte: nothing may be taken for whole before it is.
            for b in answer {
                if stream.write_all(&[*b]).is_err() {
                    break;
                }
            }
            keep.then_some(stream)
        });
        let answer = ask(&path, "GET", "/", b"", Instant::now() + limit);
        drop(server.join());
        answer
    }

    #[test]
    fn bodies_by_length_and_by_end() {
        let body = |a, keep| String::from_utf8(asked(a, keep).unwrap()).unwrap();
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhixx", true), "hi");
        assert_eq!(body(b"HTTP/1.1 200 OK\r\n\r\nhi", false), "hi");
        assert_eq!(body(b"HTTP/1.1 204 No Content\r\n\r\n", true), "");
    }

    #[test]
    fn what_goes_wrong_is_told_apart() {
        let error = |a, keep| asked(a, keep).unwrap_err();
        assert!(matches!(
            asked_within(Duration::from_millis(500), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", true),
            Err(Error::Timeout)
        ));
        assert!(matches!(
            error(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", false),
            Error::Broken(_)
        ));
        assert!(matches!(error(b"", false), Error::Broken(_)));
        for bad in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ] {
            assert!(matches!(error(bad, false), Error::NotHttp(_)), "{bad:?}");
        }
        let refusal = b"HTTP/1.1 409 Conflict\r\nContent-Length: 33\r\n\r\n{\"kind\":\"conflict\",\"message\":\"m\"}";
        assert!(matches!(error(refusal, true), Error::Refused(r) if r.kind == RefusalKind::Conflict && r.message == "m"));
        let other = error(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", true);
        assert_eq!(other.to_string(), "meshd answers 500 oops");
    }

    #[test]
    fn a_socket_that_is_not_there_or_has_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let ask = || ask(&path, "GET", "/", b"", Instant::now() + Duration::from_secs(5)).unwrap_err();
        assert!(matches!(ask(), Error::NoSocket(_)));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(ask(), Error::NoListener(_)));
        let long = dir.path().join("x".repeat(200));
        let e = super::ask(&long, "GET", "/", b"", Instant::now() + Duration::from_secs(5)).unwrap_err();
        assert!(matches!(e, Error::Connect { .. }), "{e}");
    }
}
