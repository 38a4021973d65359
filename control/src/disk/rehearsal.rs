//! A view of a redb file whose writes stay in memory, and the little of its header that
//! [`super::open`] judges by itself.
//!
//! The layout of the header is redb's file format 3 (docs/design.md of redb, "Super-header").

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Bound,
    os::unix::fs::FileExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::{BackendError, DatabaseError, StorageBackend, backends::FileBackend};

/// Bytes of a block of the overlay.
const BLOCK: u64 = 4096;
/// Offset of the byte of flags ("god byte") behind the magic number.
pub(super) const FLAGS_OFFSET: u64 = 9;
const MAGIC: &[u8; 9] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// Which of the two commit slots is the current one.
const PRIMARY: u8 = 1;
/// The last writer has not closed the file.
const UNCLEAN: u8 = 2;
/// The current slot was written in two phases: it is valid whatever happened.
const TWO_PHASE: u8 = 4;
const SLOTS_OFFSET: usize = 64;
const SLOT_BYTES: usize = 128;
/// Offset of the transaction id in a slot: version and flags (8), three roots of 32 bytes.
const TRANSACTION_OFFSET: usize = 8 + 3 * 32;
const HEADER_BYTES: usize = SLOTS_OFFSET + 2 * SLOT_BYTES;

/// The flags and transaction ids of a file's header.
pub(super) struct Header {
    flags: u8,
    transactions: [u64; 2],
}

impl Header {
    /// Reads it; `None` when the file is too short or begins with something else.
    pub(super) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0u8; HEADER_BYTES];
        match file.read_exact_at(&mut bytes, 0) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let transaction = |slot: usize| {
            let at = SLOTS_OFFSET + slot * SLOT_BYTES + TRANSACTION_OFFSET;
            bytes[at..].first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
        };
        let transactions = [transaction(0), transaction(1)];
        Ok(bytes.starts_with(MAGIC).then(|| Self {
            flags: bytes[FLAGS_OFFSET as usize],
            transactions,
        }))
    }

    /// The file was closed by its last writer.
    pub(super) fn clean(&self) -> bool {
        self.flags & UNCLEAN == 0
    }

    /// The current commit was made in two phases, as all of ours are.
    pub(super) fn two_phase(&self) -> bool {
        self.flags & TWO_PHASE != 0
    }

    /// The slot that is not the current one holds a later transaction.
    pub(super) fn newer_commit(&self) -> bool {
        let primary = usize::from(self.flags & PRIMARY);
        self.transactions[primary ^ 1] > self.transactions[primary]
    }

    /// The flags with the other slot as the current one.
    pub(super) fn promoted(&self) -> u8 {
        self.flags ^ PRIMARY
    }
}

/// Reads come from the file, writes go to memory. Locks are the file's, so that a file that
/// another process has open is not judged while it changes.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    locks: FileBackend,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    len: u64,
    /// Bytes of the file beyond this were cut off once: they read as zero.
    cut: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK as usize]>>,
}

impl Overlay {
    /// A view of `file`, with other flags in its header where they are given.
    pub(super) fn new(file: File, flags: Option<u8>) -> Result<Self, DatabaseError> {
        let len = file.metadata()?.len();
        let locks = FileBackend::new(file.try_clone()?)?;
        let overlay = Self {
            file,
            locks,
            written: Mutex::new(Written {
                len,
                cut: len,
                blocks: BTreeMap::new(),
            }),
        };
        if let Some(flags) = flags {
            overlay.write(FLAGS_OFFSET, &[flags])?;
        }
        Ok(overlay)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Block `index` as the file has it, zero where it has nothing.
    fn original(&self, index: u64, cut: u64) -> io::Result<Box<[u8; BLOCK as usize]>> {
        let mut block = Box::new([0u8; BLOCK as usize]);
        let have = cut.saturating_sub(index * BLOCK).min(BLOCK) as usize;
        self.file.read_exact_at(&mut block[..have], index * BLOCK)?;
        Ok(block)
    }
}

/// The pieces of blocks that `len` bytes from `offset` on lie in: block, first byte, bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (index, first) = (at / BLOCK, at % BLOCK);
            let count = (BLOCK - first).min(end - at);
            at += count;
            (index, first as usize, count as usize)
        })
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.len) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a page lies beyond the end of the file",
            ));
        }
        let mut rest = out;
        for (index, first, count) in pieces(offset, rest.len()) {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(count);
            rest = tail;
            match written.blocks.get(&index) {
                Some(block) => piece.copy_from_slice(&block[first..first + count]),
                None => piece.copy_from_slice(&self.original(index, written.cut)?[first..first + count]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.written();
        if len < written.len {
            written.cut = written.cut.min(len);
            written.blocks.retain(|index, _| index * BLOCK < len);
            if let Some(block) = written.blocks.get_mut(&(len / BLOCK)) {
                block[(len % BLOCK) as usize..].fill(0);
            }
        }
        written.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        let mut rest = data;
        for (index, first, count) in pieces(offset, data.len()) {
            let (piece, tail) = rest.split_at(count);
            rest = tail;
            if !written.blocks.contains_key(&index) {
                let block = self.original(index, written.cut)?;
                written.blocks.insert(index, block);
            }
            if let Some(block) = written.blocks.get_mut(&index) {
                block[first..first + count].copy_from_slice(piece);
            }
        }
        written.len = written.len.max(offset + data.len() as u64);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.locks.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.lock_shared_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.query_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.unlock_range(start, end)
    }
}
