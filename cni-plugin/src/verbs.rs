//! The calls (specification section 2, "CNI operations"), one file each.

mod add;
mod check;
mod del;
mod gc;
mod status;

use std::{
    env,
    io::{self, Read},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use mesh_api::DEFAULT_SOCKET;
use serde_json::Value;

use crate::{
    call::{Call, Verb},
    config::Document,
    failure::Failure,
    version::{self, Version},
};

/// Longest configuration in bytes, and how long a runtime may take to write it.
const LONGEST: u64 = 1 << 20;
const INPUT_TIME: Duration = Duration::from_secs(10);

/// Does what the environment and standard input say: the version that the answer is to be in, as far as
/// that is known, and the document for standard output.
pub fn run() -> (Option<Version>, Result<Option<Value>, Failure>) {
    let call = match Call::from_env(|name| env::var_os(name)) {
        Ok(call) => call,
        Err(e) => return (None, Err(e)),
    };
    let input = match input() {
        Ok(input) => input,
        Err(e) => return (None, Err(e)),
    };
    if call.verb == Verb::Version {
        return (None, version_of(&input).map(|asked| Some(version::document(asked))));
    }
    let socket = env::var_os("MESHD_SOCKET").filter(|s| !s.is_empty());
    let socket = socket.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from);
    match Document::read(&input, socket) {
        Ok(document) => (Some(document.head.version), carry_out(&call, document)),
        Err(e) => (None, Err(e)),
    }
}

fn carry_out(call: &Call, document: Document) -> Result<Option<Value>, Failure> {
    let version = document.head.version;
    let since = |verb, first: Version| {
        let known = version >= first;
        let unknown = || Failure::VerbVersion {
            verb,
            version,
            since: first.as_str(),
        };
        known.then_some(()).ok_or_else(unknown)
    };
    match call.verb {
        Verb::Add => add::add(call, document).map(Some),
        Verb::Del => del::del(call, &document.head).map(|()| None),
        Verb::Check => {
            since("CHECK", Version::V040)?;
            check::check(call, document).map(|()| None)
        }
        Verb::Gc => {
            since("GC", Version::V110)?;
            gc::gc(document).map(|()| None)
        }
        Verb::Status => {
            since("STATUS", Version::V110)?;
            status::status(document).map(|()| None)
        }
        Verb::Version => Ok(Some(version::document(Some(version)))),
    }
}

/// Reads standard input to its end. On a thread of its own, which ends with the process: a runtime
/// that never closes its end must not hold this up.
fn input() -> Result<Vec<u8>, Failure> {
    let (done, bytes) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        let result = io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes);
        // Nobody waits any more when the receiver is gone.
        let _ = done.send(result.map(|_| bytes));
    };
    thread::Builder::new().spawn(read).map_err(Failure::Input)?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {} s", INPUT_TIME.as_secs()));
    let bytes = bytes
        .recv_timeout(INPUT_TIME)
        .unwrap_or_else(|_| Err(late()))
        .map_err(Failure::Input)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Failure::Shape(format!(
            "the network configuration: it is longer than {LONGEST} bytes"
        )));
    }
    Ok(bytes)
}

/// The version that VERSION is asked in. It is how versions are found out, so one that is not spoken
/// is no error, and runtimes before 0.3 wrote nothing at all.
fn version_of(input: &[u8]) -> Result<Option<Version>, Failure> {
    if input.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let what = "the version information";
    let value: Value = serde_json::from_slice(input).map_err(|source| Failure::Decode { what, source })?;
    match (&value, value.get("cniVersion")) {
        (Value::Object(_), None) => Ok(None),
        (Value::Object(_), Some(Value::String(text))) => Ok(Version::parse(text)),
        _ => Err(Failure::Shape(format!("{what}: cniVersion is not a text"))),
    }
}
