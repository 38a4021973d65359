//! The ledger's file: one redb database, every write one durable transaction.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_control::disk::{self, DiskError};
use mesh_core::{
    Id,
    objects::{Change, Kind, Object, Objects},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;

use super::{Head, LedgerError, View};
use crate::execute::chain;

const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const HEAD: &str = "head";
/// Bytes of its pages that are kept in memory: it is read once, at the start.
const CACHE_BYTES: usize = 1 << 20;

/// An open file.
pub struct File {
    path: String,
    db: Database,
}

impl File {
    /// Opens the file or makes an empty one: what is in it.
    ///
    /// # Errors
    /// [`LedgerError`]; a file that is reported as damaged is not modified.
    pub fn open(path: &Path) -> Result<(Self, View), LedgerError> {
        let db = disk::open(path, "ledger", CACHE_BYTES)?;
        let path = path.display().to_string();
        let view = read(&db).map_err(|why| LedgerError::Damaged { path: path.clone(), why })?;
        Ok((Self { path, db }, view))
    }

    /// Writes changes on top of what is there, or in its place.
    ///
    /// # Errors
    /// [`LedgerError::Write`]; the file has to be opened again then.
    pub fn write(&self, head: &Head, changes: &[Change], replace: bool) -> Result<(), LedgerError> {
        let attempt = || -> Result<(), redb::Error> {
            let txn = disk::begin_write(&self.db)?;
            if replace {
                txn.delete_table(OBJECTS)?;
            }
            {
                let mut table = txn.open_table(OBJECTS)?;
                for change in changes {
                    let key = key(change.kind, change.id);
                    match &change.object {
                        Some(object) => drop(table.insert(key.as_str(), sealed(&key, object)?.as_slice())?),
                        None => drop(table.remove(key.as_str())?),
                    }
                }
                txn.open_table(META)?.insert(HEAD, sealed(HEAD, head)?.as_slice())?;
            }
            txn.commit()?;
            Ok(())
        };
        attempt().map_err(|source| LedgerError::Write {
            path: self.path.clone(),
            source: Box::new(source),
        })
    }
}

/// As [`File::open`]; a damaged file is moved aside, and a new one begun.
///
/// # Errors
/// [`LedgerError`] when it can not be used for another reason, or not be moved.
pub fn open_anew(path: &Path) -> Result<(File, View), LedgerError> {
    match File::open(path) {
        Err(e @ (LedgerError::Damaged { .. } | LedgerError::Disk(DiskError::Damaged { .. }))) => {
            let aside = move_aside(path)?;
            tracing::error!(error = %chain(&e), kept = %aside.display(), "beginning a new ledger; what was in it comes from a manager");
            File::open(path)
        }
        opened => opened,
    }
}

/// Moves a damaged file to `PATH.damaged`, in the place of one that was moved there before.
///
/// # Errors
/// [`LedgerError::Stuck`].
fn move_aside(path: &Path) -> Result<PathBuf, LedgerError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside).map_err(|source| LedgerError::Stuck {
        path: path.display().to_string(),
        source,
    })?;
    Ok(aside)
}

fn sealed<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, redb::Error> {
    let json = serde_json::to_vec(value).map_err(|e| redb::Error::Io(e.into()))?;
    Ok(disk::seal(key.as_bytes(), &json))
}

fn key(kind: Kind, id: Id) -> String {
    let kind = match kind {
        Kind::Cluster => "cluster",
        Kind::Node => "node",
        Kind::Network => "network",
        Kind::Service => "service",
        Kind::Endpoint => "endpoint",
    };
    format!("{kind}/{id}")
}

fn read(db: &Database) -> Result<View, String> {
    let attempt = || -> Result<View, Box<dyn std::error::Error>> {
        let txn = db.begin_read()?;
        let mut view = View::default();
        let table = match txn.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(view),
            Err(e) => return Err(e.into()),
        };
        if let Some(head) = table.get(HEAD)? {
            view.head = serde_json::from_slice(disk::unseal(HEAD.as_bytes(), head.value())?)?;
        }
        let mut objects = Objects::default();
        for row in txn.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let object: Object = serde_json::from_slice(disk::unseal(key.value().as_bytes(), value.value())?)?;
            let (kind, id) = object.key();
            let mut change = Change {
                kind,
                id,
                object: Some(object),
            };
            view.head.keeps(&mut change);
            objects.apply(&change);
        }
        objects.compact();
        view.objects = Arc::new(objects);
        Ok(view)
    };
    attempt().map_err(|e| e.to_string())
}
