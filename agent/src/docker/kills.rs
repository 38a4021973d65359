//! The signals that an engine sends to its containers, as its [`super::events`] tell them. Read by [`super::stopping`].
//!
//! An engine tells of a signal right after it has sent it, and keeps its last events (Docker: 256) for those
//! who come later.

use jiff::Timestamp;

use super::{
    engine::{Engine, EngineError, signal},
    events::{Event, Events},
};

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
pub struct Kills(Events);

/// `None` for what is none, or not understood.
fn kill(event: &Event) -> Option<Kill> {
    Some(Kill {
        container: event.container()?.to_owned(),
        signal: signal(event.signal())?,
        at: event.at()?,
    })
}

impl Engine {
    /// The signals that were sent since then, as far as the engine remembers, and those to come.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn kills(&self, since: Timestamp) -> Result<Kills, EngineError> {
        self.events(&["kill"], Some(since)).await.map(Kills)
    }
}

impl Kills {
    /// The next one; `None` when the engine ends. Nothing is lost when this is given up meanwhile.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<Kill>, EngineError> {
        while let Some(event) = self.0.next().await? {
            if let Some(kill) = kill(&event) {
                return Ok(Some(kill));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{super::events::take, *};

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
                kills.extend(kill(&event));
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
