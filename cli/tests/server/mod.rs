//! A meshd that says what a test wants.

#![expect(clippy::unwrap_used, reason = "test")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use crate::common::{Run, command};

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// `METHOD PATH?QUERY`
    pub line: String,
    /// The body; null without one.
    pub body: Value,
}

/// The server. Ends with the test's process: its thread waits for connections that no longer come.
pub struct Server {
    dir: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Answers every request with what `answer` says: a status line and a body.
    pub fn new(answer: impl Fn(&Seen) -> (u16, String) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &answer, &log);
            }
        });
        Self { dir, seen }
    }

    /// Always the same answer.
    pub fn always(status: u16, body: &str) -> Self {
        let body = body.to_owned();
        Self::new(move |_| (status, body.clone()))
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Runs meshctl with these words.
    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(command(args).env("MESHD_SOCKET", self.socket()).output().unwrap())
    }

    /// What was asked since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn serve(stream: UnixStream, answer: &impl Fn(&Seen) -> (u16, String), log: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).unwrap()
    };
    let seen = Seen {
        line: first.trim().trim_end_matches(" HTTP/1.1").to_owned(),
        body,
    };
    let (status, reply) = answer(&seen);
    log.lock().unwrap().push(seen);
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        reply.len()
    );
    // A client that hangs up early is the test's business, not the server's.
    let _ = reader.into_inner().write_all(format!("{head}{reply}").as_bytes());
}
