//! Files on disk that must not be lost: how meshd opens a redb file, writes to it, and finds damage.
//!
//! Used by the raft log and state ([`crate::raft`]) and by the agent's ledger. A damaged file is
//! reported and left exactly as it was: the open is rehearsed first on a view of the file whose
//! writes stay in memory ([`rehearsal`]), and only a file that passes is opened for real. What an
//! unclean shutdown leaves behind is repaired silently, without losing a transaction that was
//! reported as committed. Below redb's page checksums, which are looked at when a file is opened,
//! every value carries one of its own ([`seal`]), which is looked at on every read.

mod rehearsal;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Once,
};

use redb::{Builder, Database, DatabaseError, Durability, StorageError, WriteTransaction};

/// Bytes of page cache of a file that is written in many places all the time.
pub const CACHE_BYTES: usize = 8 << 20;
/// Bytes of the checksum in front of a sealed value.
const SEAL_BYTES: usize = 4;

/// Why a file can not be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its contents are not what was written. It was not modified.
    #[error("{what} {} is damaged: {why}; restore it from a backup, or move it away and join again", .path.display())]
    Damaged {
        /// What the file is.
        what: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process has it open.
    #[error("{what} {} is in use by another process; stop the other meshd first", .path.display())]
    InUse {
        /// What the file is.
        what: String,
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("can not {verb} {what} {}", .path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// What the file is.
        what: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A value or a table of an open file is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("the value of {key:?} does not match its checksum")]
pub struct Unsealed {
    /// Key of the value.
    pub key: String,
}

/// Opens the redb file at `path`, or makes it: mode 0600, in a directory that is made with mode
/// 0700 when it is missing. `what` names it in errors ("raft log", "ledger"). `cache` bytes of its pages are
/// kept in memory, beside what the operating system keeps.
///
/// Reads all of an existing file once, and its checksums. Never panics, and never modifies a file
/// that it reports as damaged.
///
/// # Errors
/// [`DiskError::Damaged`] for a file that is truncated, foreign or altered, [`DiskError::InUse`]
/// when another process has it, [`DiskError::Io`] else.
pub fn open(path: &Path, what: &str, cache: usize) -> Result<Database, DiskError> {
    let file = DbFile { path, what, cache };
    match path.symlink_metadata() {
        Ok(meta) if !meta.is_file() => return Err(file.damaged("it is not a regular file")),
        Ok(_) => file.check()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => file.create()?,
        Err(e) => return Err(file.io("open", e)),
    }
    let handle = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| file.io("open", e))?;
    handle
        .set_permissions(Permissions::from_mode(0o600))
        .map_err(|e| file.io("set the mode of", e))?;
    file.guarded(|| file.builder().create_file(handle))
}

/// Begins a write transaction that is durable when it is committed, and committed in two phases:
/// only then does a torn write never cost an earlier transaction.
///
/// # Errors
/// Those of redb.
pub fn begin_write(db: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_two_phase_commit(true);
    Ok(txn)
}

/// A value as it is stored: its checksum (CRC-32 of key and value, 4 bytes, little endian), then
/// itself. The key is covered so that a value can not pass for another's.
pub fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEAL_BYTES + value.len());
    out.extend_from_slice(&checksum(key, value).to_le_bytes());
    out.extend_from_slice(value);
    out
}

/// The value inside what [`seal`] made.
///
/// # Errors
/// The checksum does not match.
pub fn unseal<'a>(key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], Unsealed> {
    stored
        .split_first_chunk::<SEAL_BYTES>()
        .filter(|(sum, value)| u32::from_le_bytes(**sum) == checksum(key, value))
        .map(|(_, value)| value)
        .ok_or_else(|| Unsealed {
            key: String::from_utf8_lossy(key).into_owned(),
        })
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(value);
    crc.finalize()
}

/// A file, its name in errors, and how much of it is kept in memory.
struct DbFile<'a> {
    path: &'a Path,
    what: &'a str,
    cache: usize,
}

impl DbFile<'_> {
    fn builder(&self) -> Builder {
        let mut builder = Builder::new();
        builder.set_cache_size(self.cache);
        builder
    }

    /// Makes an empty database under another name and moves it into place, so that a file at
    /// `path` is complete whenever it exists, and an empty one is a damaged one.
    fn create(&self) -> Result<(), DiskError> {
        let dir = self.path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| self.io("make the directory of", e))?;
        let mut draft = self.path.as_os_str().to_owned();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft);
        let file = file.map_err(|e| self.io("create", e))?;
        drop(self.guarded(|| self.builder().create_file(file))?);
        let sync = |path: &Path| File::open(path).and_then(|f| f.sync_all());
        sync(&draft)
            .and_then(|()| std::fs::rename(&draft, self.path))
            .and_then(|()| sync(dir))
            .map_err(|e| self.io("create", e))
    }

    /// Finds out whether the file can be opened, without writing to it.
    fn check(&self) -> Result<(), DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path)
            .map_err(|e| self.io("open", e))?;
        let header = rehearsal::Header::read(&file).map_err(|e| self.io("read", e))?;
        let header = header.ok_or_else(|| self.damaged("it is too short, or no database"))?;
        if !header.two_phase() {
            return Err(self.damaged("its header was altered"));
        }
        self.rehearse(&file, None)?;
        // A newer commit that was not promoted: the machine stopped between writing and promoting
        // it, or the header was altered. After a clean shutdown there is only the second.
        if header.newer_commit() && header.clean() {
            return Err(self.damaged("its newest transaction is not the current one"));
        }
        // Complete, it is as good as promoted; redb would take the older one.
        if header.newer_commit() && self.rehearse(&file, Some(header.promoted())).is_ok() {
            (file.write_all_at(&[header.promoted()], rehearsal::FLAGS_OFFSET))
                .and_then(|()| file.sync_all())
                .map_err(|e| self.io("repair", e))?;
        }
        Ok(())
    }

    /// Opens and checks the file with all writes kept in memory.
    fn rehearse(&self, file: &File, flags: Option<u8>) -> Result<(), DiskError> {
        let copy = file.try_clone().map_err(|e| self.io("open", e))?;
        let sound = self.guarded(|| {
            let backend = rehearsal::Overlay::new(copy, flags)?;
            self.builder().create_with_backend(backend)?.check_integrity()
        })?;
        if sound {
            Ok(())
        } else {
            Err(self.damaged("its pages do not match their checksums"))
        }
    }

    /// Runs a piece of redb that reads a file nobody vouches for: redb panics on some of them.
    fn guarded<T>(&self, run: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T, DiskError> {
        match quietly(run) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(DiskError::InUse {
                what: self.what.into(),
                path: self.path.into(),
            }),
            Ok(Err(DatabaseError::Storage(StorageError::Io(e)))) if e.raw_os_error().is_some() => Err(self.io("open", e)),
            Ok(Err(e)) => Err(self.damaged(e)),
            Err(panic) => Err(self.damaged(panic)),
        }
    }

    fn damaged(&self, why: impl ToString) -> DiskError {
        let why = why.to_string().replace('\n', " ");
        DiskError::Damaged {
            what: self.what.into(),
            path: self.path.into(),
            why,
        }
    }

    fn io(&self, verb: &'static str, source: io::Error) -> DiskError {
        DiskError::Io {
            verb,
            what: self.what.into(),
            path: self.path.into(),
            source,
        }
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Catches a panic of `run` and returns its message, without the report that the panic hook would
/// print: it is about to become an ordinary error of one line.
fn quietly<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    result.map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        format!(
            "its structure is not valid ({})",
            text.and_then(|t| t.lines().next()).unwrap_or("no details")
        )
    })
}
