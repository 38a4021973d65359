//! What the log and the state have in common: sealed JSON in redb tables, off the async threads.

use std::{io, ops::Deref};

use redb::{Database, ReadableTable, Table, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::disk::{self, Unsealed};

/// Small facts by name, sealed JSON.
pub const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// A file that is open could not be read or written. Fatal for consensus.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing.
    #[error("the file can not be read or written")]
    Redb(#[source] Box<redb::Error>),
    /// A value is damaged.
    #[error("the file is damaged")]
    Unsealed(#[from] Unsealed),
    /// A value is sound but means nothing to this release.
    #[error("the value of {key} can not be understood")]
    Json {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(e: $error) -> Self {
                Self::Redb(Box::new(e.into()))
            }
        }
    )*};
}
from_redb!(
    redb::Error,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// An open file that others can see closing.
pub struct File {
    // Fields are dropped in this order: the sender goes when the file is closed and unlocked.
    db: Database,
    open: watch::Sender<()>,
}

impl File {
    /// Takes over an open database.
    pub fn new(db: Database) -> Self {
        Self {
            db,
            open: watch::Sender::new(()),
        }
    }

    /// A channel that closes when the file is closed.
    pub fn closing(&self) -> watch::Receiver<()> {
        self.open.subscribe()
    }
}

impl Deref for File {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.db
    }
}

/// Reads a value of a table of facts.
pub fn get_meta<T: DeserializeOwned>(table: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Option<T>, StoreError> {
    table
        .get(key)?
        .map(|stored| decode(key, key.as_bytes(), stored.value()))
        .transpose()
}

/// Writes a value of a table of facts.
pub fn put_meta(table: &mut Table<'_, &'static str, &'static [u8]>, key: &str, value: &impl Serialize) -> Result<(), StoreError> {
    table.insert(key, encode(key, key.as_bytes(), value)?.as_slice())?;
    Ok(())
}

/// Sealed JSON of a value.
pub fn encode(name: impl ToString, key: &[u8], value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let json = serde_json::to_vec(value).map_err(|source| StoreError::Json {
        key: name.to_string(),
        source,
    })?;
    Ok(disk::seal(key, &json))
}

/// The value inside sealed JSON.
pub fn decode<T: DeserializeOwned>(name: impl ToString, key: &[u8], stored: &[u8]) -> Result<T, StoreError> {
    let json = disk::unseal(key, stored)?;
    serde_json::from_slice(json).map_err(|source| StoreError::Json {
        key: name.to_string(),
        source,
    })
}

/// Runs a piece of disk work on a thread that may block. A panic in there (redb's, on pages that
/// went bad under it) becomes an error.
///
/// `what` is the file that it works on, for the error: openraft keeps only the text.
pub async fn blocking<T: Send + 'static>(what: &str, work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(io::Error::other(format!("{what}: {}", chain(&e)))),
        Err(_) => Err(io::Error::other(format!("{what}: the file is damaged, reading it went wrong"))),
    }
}

/// An error and its causes in one line.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}
