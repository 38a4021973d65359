//! What happened in the cluster, as this host learnt it: the stream behind `meshctl events`.
//!
//! The session records, the local API reads. A ring in memory: the objects themselves are durable,
//! their history is not meant to be.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use mesh_api::rest::{Event, EventAction};
use mesh_core::objects::Object;
use tokio::sync::broadcast;

use crate::ledger::News;

/// Events that are remembered for `--since`.
const REMEMBERED: usize = 4096;
/// Events that a slow reader may be behind before it is told that it missed some.
const BEHIND: usize = 1024;

/// The ring and its readers.
pub struct EventLog {
    ring: Mutex<Ring>,
}

struct Ring {
    events: VecDeque<Event>,
    /// `None` once meshd stops.
    live: Option<broadcast::Sender<Event>>,
}

impl Default for EventLog {
    /// An empty log.
    fn default() -> Self {
        Self {
            ring: Mutex::new(Ring {
                events: VecDeque::new(),
                live: Some(broadcast::Sender::new(BEHIND)),
            }),
        }
    }
}

impl EventLog {
    /// Adds what changes mean.
    pub fn record(&self, revision: u64, news: &[News]) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        for News { change, before } in news {
            let new = change.object.as_ref().and_then(name);
            let old = before.as_ref().and_then(name);
            let action = match (&old, &new) {
                (_, None) => EventAction::Remove,
                (None, Some(_)) => EventAction::Create,
                (Some(_), Some(_)) => EventAction::Update,
            };
            let Some(name) = new.or(old) else { continue };
            let event = Event {
                time: Timestamp::now(),
                revision,
                action,
                kind: change.kind,
                id: change.id,
                name,
            };
            if ring.events.len() == REMEMBERED {
                ring.events.pop_front();
            }
            ring.events.push_back(event.clone());
            if let Some(live) = &ring.live {
                // Nobody listening is fine.
                drop(live.send(event));
            }
        }
    }

    /// What is remembered, and what comes after it without a gap.
    pub fn read(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let live = ring
            .live
            .as_ref()
            .map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe);
        (ring.events.iter().cloned().collect(), live)
    }

    /// Ends all readers' streams: meshd stops, and would wait for them.
    pub fn end(&self) {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).live = None;
    }
}

fn name(object: &Object) -> Option<String> {
    match object {
        Object::Cluster(_) => None,
        Object::Node(o) => Some(o.hostname.clone()),
        Object::Network(o) => Some(o.name.clone()),
        Object::Service(o) => Some(o.name.clone()),
        Object::Endpoint(o) => Some(o.name.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    #[test]
    fn streams_end_with_meshd() {
        let log = EventLog::default();
        let (_, mut before) = log.read();
        assert_eq!(before.try_recv().unwrap_err(), TryRecvError::Empty);
        log.end();
        assert_eq!(before.try_recv().unwrap_err(), TryRecvError::Closed);
        let (_, mut after) = log.read();
        assert_eq!(after.try_recv().unwrap_err(), TryRecvError::Closed);
    }
}
