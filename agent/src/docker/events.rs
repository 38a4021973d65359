//! What an engine says of its containers as it happens (Docker Engine API, "Monitor events"). Read by
//! [`super::kills`] and [`super::health`].

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

/// What an engine tells from now on.
pub struct Events {
    body: Incoming,
    read: BytesMut,
    _connection: AbortOnDropHandle<Result<(), hyper::Error>>,
}

/// Something that happened to a container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
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
    /// The container's id.
    pub fn container(&self) -> Option<&str> {
        Some(self.actor.id.as_str()).filter(|id| !id.is_empty())
    }

    /// The signal that it is about, as the engine writes it.
    pub fn signal(&self) -> &str {
        &self.actor.attributes.signal
    }

    /// When it happened.
    pub fn at(&self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(self.nanoseconds.into()).ok()
    }
}

impl Engine {
    /// The events of those kinds to come, and those since then, as far as the engine remembers.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn events(&self, kinds: &[&str], since: Option<Timestamp>) -> Result<Events, EngineError> {
        let stream = self.connect().await?;
        timeout(ANSWER_TIME, open(stream, kinds, since))
            .await
            .map_err(|_| EngineError::Slow)?
    }
}

async fn open(stream: UnixStream, kinds: &[&str], since: Option<Timestamp>) -> Result<Events, EngineError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(EngineError::Http)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    // {"type":["container"],"event":[…]}
    let kinds = kinds.join("%22%2C%22");
    let mut path = format!("/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22{kinds}%22%5D%7D");
    if let Some(since) = since {
        path += &format!("&since={}.{:09}", since.as_second(), since.subsec_nanosecond());
    }
    let request = http::Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|e| EngineError::Body(e.to_string()))?;
    let answer = sender.send_request(request).await.map_err(EngineError::Http)?;
    if !answer.status().is_success() {
        return Err(EngineError::Status(answer.status()));
    }
    Ok(Events {
        body: answer.into_body(),
        read: BytesMut::new(),
        _connection: connection,
    })
}

impl Events {
    /// The next one; `None` when the engine ends. Nothing is lost when this is given up meanwhile.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<Event>, EngineError> {
        loop {
            if let Some(event) = take(&mut self.read)? {
                return Ok(Some(event));
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
pub(super) fn take(read: &mut BytesMut) -> Result<Option<Event>, EngineError> {
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
