//! The raft log and the vote, in `log.redb`.
//!
//! Everything is on disk (fsync) before it is acknowledged. The file also says whose it is: a raft
//! id with another's log could vote twice in a term.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

use super::{
    host::LOG_NAME,
    store::{File, META, StoreError, blocking, decode, encode, get_meta, put_meta},
    types::{Entry, LogId, TypeConfig, Vote},
};
use crate::disk;

/// Entries by index, sealed JSON.
const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const OWNER: &str = "raft_id";

/// The log. Clones share it.
#[derive(Clone)]
pub struct Log {
    db: Arc<File>,
    /// The last vote that was saved: replication reads it for every batch.
    vote: Arc<Mutex<Option<Vote>>>,
}

impl Log {
    /// Takes over an open file, and makes it `raft_id`'s when it is nobody's.
    pub fn load(db: Database, raft_id: u64) -> Result<Result<Self, u64>, StoreError> {
        let txn = disk::begin_write(&db)?;
        let (owner, vote) = {
            let mut meta = txn.open_table(META)?;
            txn.open_table(ENTRIES)?;
            let owner = get_meta::<u64>(&meta, OWNER)?;
            if owner.is_none() {
                put_meta(&mut meta, OWNER, &raft_id)?;
            }
            (owner.unwrap_or(raft_id), get_meta(&meta, VOTE)?)
        };
        if owner != raft_id {
            txn.abort()?;
            return Ok(Err(owner));
        }
        txn.commit()?;
        Ok(Ok(Self {
            db: Arc::new(File::new(db)),
            vote: Arc::new(Mutex::new(vote)),
        }))
    }

    /// The raft id that a log belongs to, if there is one at `path`.
    pub fn owner(path: &Path) -> Result<Option<u64>, OwnerError> {
        if !path.exists() {
            return Ok(None);
        }
        let db = disk::open(path, LOG_NAME, disk::CACHE_BYTES)?;
        let read = || -> Result<_, StoreError> {
            match db.begin_read()?.open_table(META) {
                Ok(meta) => get_meta(&meta, OWNER),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(e) => Err(e.into()),
            }
        };
        Ok(read()?)
    }

    /// For [`super::RaftHost::shutdown`] to see when the file is closed.
    pub fn closing(&self) -> watch::Receiver<()> {
        self.db.closing()
    }

    /// Last entry that was purged.
    pub fn purged(&self) -> Result<Option<LogId>, StoreError> {
        get_meta(&self.db.begin_read()?.open_table(META)?, PURGED)
    }

    fn state(&self) -> Result<LogState<TypeConfig>, StoreError> {
        let txn = self.db.begin_read()?;
        let purged = get_meta(&txn.open_table(META)?, PURGED)?;
        let entries = txn.open_table(ENTRIES)?;
        let last = entries
            .last()?
            .map(|(index, stored)| entry(index.value(), stored.value()))
            .transpose()?;
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.map(|e| e.log_id()).or(purged),
        })
    }

    fn read(&self, range: (Bound<u64>, Bound<u64>)) -> Result<Vec<Entry>, StoreError> {
        let entries = self.db.begin_read()?.open_table(ENTRIES)?;
        let mut out = Vec::new();
        for row in entries.range(range)? {
            let (index, stored) = row?;
            out.push(entry(index.value(), stored.value())?);
        }
        Ok(out)
    }

    fn write_entries(&self, new: &[Entry]) -> Result<(), StoreError> {
        let txn = disk::begin_write(&self.db)?;
        {
            let mut entries = txn.open_table(ENTRIES)?;
            for e in new {
                let index = e.index();
                entries.insert(
                    index,
                    encode(format_args!("log entry {index}"), &index.to_be_bytes(), e)?.as_slice(),
                )?;
            }
        }
        Ok(txn.commit()?)
    }

    fn write_vote(&self, vote: &Vote) -> Result<(), StoreError> {
        let txn = disk::begin_write(&self.db)?;
        put_meta(&mut txn.open_table(META)?, VOTE, vote)?;
        txn.commit()?;
        *self.vote.lock().unwrap_or_else(PoisonError::into_inner) = Some(*vote);
        Ok(())
    }

    /// Removes the entries of a range, and remembers up to where the log was purged.
    fn remove(&self, range: (Bound<u64>, Bound<u64>), purged: Option<LogId>) -> Result<(), StoreError> {
        let txn = disk::begin_write(&self.db)?;
        txn.open_table(ENTRIES)?.retain_in(range, |_, _| false)?;
        if let Some(purged) = purged {
            put_meta(&mut txn.open_table(META)?, PURGED, &purged)?;
        }
        Ok(txn.commit()?)
    }
}

/// Why a log's owner can not be read.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The file can not be opened.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// The file can not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn entry(index: u64, stored: &[u8]) -> Result<Entry, StoreError> {
    decode(format_args!("log entry {index}"), &index.to_be_bytes(), stored)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(&mut self, range: RB) -> io::Result<Vec<Entry>> {
        let (log, range) = (self.clone(), (range.start_bound().cloned(), range.end_bound().cloned()));
        blocking(LOG_NAME, move || log.read(range)).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(*self.vote.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let log = self.clone();
        blocking(LOG_NAME, move || log.state()).await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (log, vote) = (self.clone(), *vote);
        blocking(LOG_NAME, move || log.write_vote(&vote)).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (log, entries) = (self.clone(), entries.into_iter().collect::<Vec<_>>());
        blocking(LOG_NAME, move || log.write_entries(&entries)).await?;
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(Bound::Unbounded, |l| Bound::Excluded(l.index));
        let log = self.clone();
        blocking(LOG_NAME, move || log.remove((from, Bound::Unbounded), None)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let log = self.clone();
        blocking(LOG_NAME, move || {
            log.remove((Bound::Unbounded, Bound::Included(upto.index)), Some(upto))
        })
        .await
    }
}
