//! Counters of the service DNS, for the agent's metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Well-formed queries.
    pub queries: u64,
    /// Of them, answered with mesh names or addresses.
    pub answered: u64,
    /// Of them, mesh names that exist without what was asked for (NODATA).
    pub no_data: u64,
    /// Of them, mesh names that the asker does not see, and outside names on internal networks.
    pub name_errors: u64,
    /// Of them, forwarded and answered by a resolver of the host.
    pub forwarded: u64,
    /// Of them, forwarded to resolvers that all failed, or with no resolver to forward to.
    pub forward_failed: u64,
    /// Of them, failed at once because too many were being forwarded already.
    pub forward_busy: u64,
    /// UDP answers cut to the asker's size (TC).
    pub truncated: u64,
    /// Messages that were no query, or a malformed one.
    pub malformed: u64,
    /// TCP connections closed at once because there were too many.
    pub connections_refused: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) queries: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) no_data: AtomicU64,
    pub(crate) name_errors: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) forward_failed: AtomicU64,
    pub(crate) forward_busy: AtomicU64,
    pub(crate) truncated: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> Stats {
        Stats {
            queries: self.queries.load(Relaxed),
            answered: self.answered.load(Relaxed),
            no_data: self.no_data.load(Relaxed),
            name_errors: self.name_errors.load(Relaxed),
            forwarded: self.forwarded.load(Relaxed),
            forward_failed: self.forward_failed.load(Relaxed),
            forward_busy: self.forward_busy.load(Relaxed),
            truncated: self.truncated.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            connections_refused: self.connections_refused.load(Relaxed),
        }
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
