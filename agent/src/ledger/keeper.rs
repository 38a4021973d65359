//! Brings the ledger to disk: one thread, so that no task waits for the disk, and the order is kept.
//!
//! Started by [`super::Ledger`]. What changes while a write is under way is written together next. A
//! write that fails (a full disk) costs nothing but the file's being behind: it is tried again until
//! it succeeds, and then all of it is written.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use mesh_core::objects::Change;

use super::{Head, LedgerError, Shared};
use crate::execute::chain;

/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(2);
/// So many changes that writing all objects is no worse: a disk that hangs must not fill the memory.
const MANY: usize = 50_000;

/// What is not on disk yet.
#[derive(Debug, Default, PartialEq)]
pub enum Unsaved {
    /// It is all there.
    #[default]
    Nothing,
    /// These changes, in this order (none: only the revision).
    Changes(Vec<Change>),
    /// Everything.
    Whole,
}

impl Unsaved {
    /// More changes.
    pub fn add(&mut self, more: &[Change]) {
        match self {
            Self::Nothing => *self = Self::Changes(more.to_vec()),
            Self::Changes(changes) if changes.len() < MANY => changes.extend_from_slice(more),
            Self::Changes(_) => *self = Self::Whole,
            Self::Whole => {}
        }
    }
}

/// Starts the thread. It ends when the ledger does, and tries to write what is left then.
pub fn start(
    shared: Arc<Shared>,
    write: impl FnMut(&Head, &[Change], bool) -> Result<(), LedgerError> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("ledger".into()).spawn(move || keep(&shared, write))
}

fn keep(shared: &Shared, mut write: impl FnMut(&Head, &[Change], bool) -> Result<(), LedgerError>) {
    loop {
        let (head, changes, whole) = {
            let idle = |inner: &mut super::Inner| inner.unsaved == Unsaved::Nothing && !inner.stop;
            let waited = shared.news.wait_while(shared.lock(), idle);
            let mut inner = waited.unwrap_or_else(PoisonError::into_inner);
            let head = inner.view.head.clone();
            let (changes, whole) = match std::mem::take(&mut inner.unsaved) {
                Unsaved::Nothing => return,
                Unsaved::Changes(changes) => (changes, false),
                Unsaved::Whole => (super::puts(&inner.view.objects), true),
            };
            inner.writing = true;
            (head, changes, whole)
        };
        // redb panics on some files that are not what it wrote.
        let done = catch_unwind(AssertUnwindSafe(|| write(&head, &changes, whole)));
        let why = match done {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(chain(&e)),
            Err(_) => Some("the ledger's file can not be written: its structure is not valid".to_owned()),
        };
        let mut inner = shared.lock();
        inner.writing = false;
        match (&inner.trouble, &why) {
            (None, Some(why)) => tracing::error!(error = %why, "going on without it, and trying again"),
            (Some(_), None) => tracing::info!("the ledger is on disk again"),
            _ => {}
        }
        let failed = why.is_some();
        inner.trouble = why;
        if failed {
            inner.unsaved = Unsaved::Whole;
        }
        shared.news.notify_all();
        if failed {
            let paused = shared.news.wait_timeout_while(inner, RETRY, |inner| !inner.stop);
            if paused.unwrap_or_else(PoisonError::into_inner).0.stop {
                return;
            }
        }
    }
}
