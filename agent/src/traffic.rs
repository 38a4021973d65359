//! What the data plane counts, as the local API and the metrics show it.
//!
//! The maps belong to the reconcile loop, which reads them when asked; names are put to the numbers
//! here.

pub mod flows;
mod names;

use std::time::Duration;

use jiff::Timestamp;
use mesh_api::rest::{MapUse, ReasonCount, TrafficView};
use mesh_core::{Refusal, objects::Objects};
use mesh_loader::{Loader, Stat, Usage};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

pub use names::Names;

use crate::{execute::chain, reasons, reconcile::Request};

/// How long the reconcile loop may take to answer: it may be in the middle of a long pass.
const READ_TIME: Duration = Duration::from_secs(10);

/// The counter that is of no packet: events that the ring had no room for.
const EVENTS_LOST: &str = "events_lost";

/// The counters as they were at one moment.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Packets by reason.
    pub reasons: Vec<(&'static str, u64)>,
    /// Events that the ring had no room for.
    pub events_lost: u64,
    /// By set of backends and backend.
    pub stats: Vec<Stat>,
    /// How full the maps are.
    pub maps: Vec<Usage>,
}

impl Counted {
    /// Reads the maps.
    pub fn read(loader: &mut Loader) -> Result<Self, mesh_loader::Error> {
        let (lost, reasons): (Vec<_>, Vec<_>) = loader.counters()?.into_iter().partition(|(name, _)| *name == EVENTS_LOST);
        Ok(Self {
            reasons,
            events_lost: lost.iter().map(|(_, n)| n).sum(),
            stats: loader.stats()?,
            maps: loader.usage()?,
        })
    }

    /// With names and words for people.
    pub fn view(&self, objects: &Objects) -> TrafficView {
        let names = Names::counted(objects, &self.stats);
        let map = |u: &Usage| MapUse {
            map: u.map.to_owned(),
            rows: u.rows,
            capacity: u.capacity,
        };
        let reason = |(name, packets): &(&str, u64)| ReasonCount {
            reason: (*name).to_owned(),
            dropped: reasons::is_drop(name),
            packets: *packets,
            meaning: reasons::meaning(name).to_owned(),
        };
        TrafficView {
            time: Timestamp::now(),
            clock_ns: monotonic_ns(),
            reasons: self.reasons.iter().map(reason).collect(),
            events_lost: self.events_lost,
            backends: self.stats.iter().filter_map(|s| names.traffic(s)).collect(),
            maps: self.maps.iter().map(map).collect(),
        }
    }
}

/// Asks the reconcile loop for the counters.
pub async fn read(requests: &mpsc::Sender<Request>) -> Result<Counted, Refusal> {
    let (to, answer) = oneshot::channel();
    let stopping = || Refusal::unavailable("meshd is stopping");
    let asked = async {
        requests.send(Request::Traffic(to)).await.map_err(|_| stopping())?;
        let counted = answer.await.map_err(|_| stopping())?;
        counted.map_err(|e| Refusal::other(format!("the counters cannot be read: {}", chain(&e))))
    };
    timeout(READ_TIME, asked).await.unwrap_or_else(|_| {
        Err(Refusal::other(format!(
            "meshd is busy changing this host's network for more than {} s: see its log",
            READ_TIME.as_secs()
        )))
    })
}

/// CLOCK_MONOTONIC, in nanoseconds: what the programs stamp their events with.
pub fn monotonic_ns() -> u64 {
    // It can not fail for a clock that every Linux has; 0 would only make a rate look small.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| Duration::from(t).as_nanos() as u64)
}
