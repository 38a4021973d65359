//! The signals that an engine sends to its containers, as its event stream tells them (Docker Engine API,
//! "Monitor events"). Read by [`super::stopping`].
//!
//! An engine tells of a signal right after it has sent it, and keeps its last events (Docker: 256) for those
//! who come later.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{net::UnixStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::engine::{ANSWER_TIME, Engine, EngineError};

/// An event has its container's labels in it.
const EVENT_BYTES: usize = 1 << 20;

/// A signal that a container was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The container's id.
    pub container: String,
    /// The signal's number.
    pub signal: i32,
    /// When.
    pub at: Timestamp,
}

/// What an engine tells from now on.
pub struct Kills {
    body: Incoming,
    read: BytesMut,
    _connection: AbortOnDropHandle<Result<(), hyper::Error>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Event {
    #[serde(rename = "Actor")]
    actor: Actor,
    #[serde(rename = "timeNano")]
    nanoseconds: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes", deserialize_with = "super::engine::nullable")]
    attributes: Attributes,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attributes {
    signal: String,
}

impl Event {
    /// `None` for what is none, or not understood.
    fn kill(self) -> Option<Kill> {
        Some(Kill {
            container: Some(self.actor.id).filter(|id| !id.is_empty())?,
            signal: super::engine::signal(&self.actor.attributes.signal)?,
            at: Timestamp::from_nanosecond(self.nanoseconds.into()).ok()?,
        })
    }
}

impl Engine {
    /// The signals that were sent since then, as far as the engine remembers, and those to come.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn kills(&self, since: Timestamp) -> Result<Kills, EngineError> {
        let stream = self.connect().await?;
        timeout(ANSWER_TIME, open(stream, since)).await.map_err(|_| EngineError::Slow)?
    }
}

async fn open(stream: UnixStream, since: Timestamp) -> Result<Kills, EngineError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(EngineError::Http)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    // {"type":["container"],"event":["kill"]}
    let filters = "%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22kill%22%5D%7D";
    let (seconds, rest) = (since.as_second(), since.subsec_nanosecond());
    let request = http::Request::get(format!("/events?since={seconds}.{rest:09}&filters={filters}"))
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|e| EngineError::Body(e.to_string()))?;
    let answer = sender.send_request(request).await.map_err(EngineError::Http)?;
    if !answer.status().is_success() {
        return Err(EngineError::Status(answer.status()));
    }
    Ok(Kills {
        body: answer.into_body(),
        read: BytesMut::new(),
        _connection: connection,
    })
}

impl Kills {
    /// The next one; `None` when the engine ends. Nothing is lost when this is given up meanwhile.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<Kill>, EngineError> {
        loop {
            while let Some(event) = take(&mut self.read)? {
                if let Some(kill) = event.kill() {
                    return Ok(Some(kill));
                }
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.map_err(EngineError::Http)?.into_data() {
                self.read.extend_from_slice(&data);
            }
            if self.read.len() > EVENT_BYTES {
                return Err(EngineError::Body(format!("an event is longer than {EVENT_BYTES} bytes")));
            }
        }
    }
}

/// The first event, once all of it was read.
fn take(read: &mut BytesMut) -> Result<Option<Event>, EngineError> {
    let mut events = serde_json::Deserializer::from_slice(read).into_iter::<Event>();
    match events.next() {
        Some(Ok(event)) => {
            let length = events.byte_offset();
            read.advance(length);
            Ok(Some(event))
        }
        Some(Err(e)) if !e.is_eof() => Err(e.into()),
        Some(Err(_)) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_events_in_whatever_pieces_they_come() {
        let told = concat!(
            r#"{"status":"kill","id":"c1","from":"lab","Type":"container","Action":"kill","Actor":{"ID":"c1","#,
            r#""Attributes":{"image":"lab","name":"web","signal":"15"}},"scope":"local","time":1700000000,"#,
            r#""timeNano":1700000000000000005}"#,
            "\n",
            r#"{"Type":"container","Actor":{"ID":"c2","Attributes":null},"timeNano":7}"#,
            "\n",
            r#"{"Actor":{"ID":"c3","Attributes":{"signal":"SIGQUIT"}},"timeNano":1700000001000000000}"#,
        );
        let mut read = BytesMut::new();
        let mut kills = Vec::new();
        for byte in told.bytes() {
            read.extend_from_slice(&[byte]);
            while let Some(event) = take(&mut read).unwrap() {
                kills.extend(event.kill());
            }
        }
        let all: Vec<_> = kills
            .iter()
            .map(|k| (k.container.as_str(), k.signal, k.at.as_nanosecond()))
            .collect();
        assert_eq!(all, [("c1", 15, 1_700_000_000_000_000_005), ("c3", 3, 1_700_000_001_000_000_000)]);
        assert!(take(&mut BytesMut::from("oops")).is_err());
    }
}
