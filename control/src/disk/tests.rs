//! Damage in every form: the file is refused and left alone, or what it says is right.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use proptest::prelude::*;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use tempfile::TempDir;

use super::*;

const TABLE: TableDefinition<&str, &[u8]> = TableDefinition::new("things");

fn put(db: &Database, round: u32) {
    let txn = begin_write(db).unwrap();
    {
        let mut table = txn.open_table(TABLE).unwrap();
        for i in 0..40u32 {
            let (key, value) = (format!("thing/{i:03}"), format!("{round}/{i}-{}", "x".repeat(17 * i as usize)));
            table
                .insert(key.as_str(), seal(key.as_bytes(), value.as_bytes()).as_slice())
                .unwrap();
        }
        // A value of several pages, and one that comes and goes.
        let big = vec![round as u8; 20_000];
        table.insert("big", seal(b"big", &big).as_slice()).unwrap();
        if round.is_multiple_of(2) {
            table.remove("thing/007").unwrap();
        }
    }
    txn.commit().unwrap();
}

/// All values, or the first error. Panics of redb count as an error: whoever reads an open file
/// must expect them, as the raft store does.
fn read(db: &Database) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let read = || -> Result<_, String> {
        let table = db
            .begin_read()
            .map_err(|e| e.to_string())?
            .open_table(TABLE)
            .map_err(|e| e.to_string())?;
        let mut all = BTreeMap::new();
        for row in table.iter().map_err(|e| e.to_string())? {
            let (key, stored) = row.map_err(|e| e.to_string())?;
            let value = unseal(key.value().as_bytes(), stored.value()).map_err(|e| e.to_string())?;
            all.insert(key.value().to_owned(), value.to_vec());
        }
        Ok(all)
    };
    quietly(read).and_then(|r| r)
}

type Sample = (Vec<u8>, BTreeMap<String, Vec<u8>>);

/// A file that was closed, and one whose process was killed, each with what they must say.
fn samples() -> &'static [Sample; 2] {
    static SAMPLES: OnceLock<[Sample; 2]> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("db");
        let db = open(&path, "ledger", CACHE_BYTES).unwrap();
        (1..=5).for_each(|round| put(&db, round));
        let expected = read(&db).unwrap();
        // What the file is like at this instant is what kill -9 would leave.
        let killed = fs::read(&path).unwrap();
        drop(db);
        [(fs::read(&path).unwrap(), expected.clone()), (killed, expected)]
    })
}

fn write_sample(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("db");
    fs::write(&path, bytes).unwrap();
    path
}

/// Opens a file that may be damaged: an error leaves it as it was, and what can be read is right.
fn judge(bytes: &[u8], expected: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    let path = write_sample(dir.path(), bytes);
    match open(&path, "ledger", CACHE_BYTES) {
        Ok(db) => {
            if let Ok(all) = read(&db) {
                assert!(&all == expected, "wrong data without an error");
            }
            Ok(())
        }
        Err(e) => {
            let text = e.to_string();
            assert!(!text.contains('\n'), "{text}");
            assert!(text.starts_with(&format!("ledger {} is damaged: ", path.display())), "{text}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "a damaged file was modified");
            Err(text)
        }
    }
}

#[test]
fn makes_private_files() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a/b/db");
    drop(open(&path, "ledger", CACHE_BYTES).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left");
}

#[test]
fn keeps_what_was_written() {
    for (bytes, expected) in samples() {
        let dir = TempDir::new().unwrap();
        let path = write_sample(dir.path(), bytes);
        for _ in 0..3 {
            let db = open(&path, "ledger", CACHE_BYTES).unwrap();
            assert!(&read(&db).unwrap() == expected);
        }
    }
}

#[test]
fn a_second_process_is_told_so() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("db");
    let _first = open(&path, "ledger", CACHE_BYTES).unwrap();
    assert!(matches!(open(&path, "ledger", CACHE_BYTES), Err(DiskError::InUse { .. })));
}

#[test]
fn refuses_what_is_no_database() {
    let expected = BTreeMap::new();
    for bytes in [
        &b""[..],
        b"x",
        b"{\"some\": \"json\"}",
        &[0; 100_000],
        &[0xff; 4096],
        b"redb\x1a\x0a\xa9\x0d\x0a",
    ] {
        assert!(judge(bytes, &expected).is_err());
    }
    let dir = TempDir::new().unwrap();
    assert!(
        matches!(open(dir.path(), "ledger", CACHE_BYTES), Err(DiskError::Damaged { .. })),
        "a directory"
    );
}

#[test]
fn refuses_truncated_files() {
    for (i, (bytes, expected)) in samples().iter().enumerate() {
        for len in [0, 1, 9, 63, 320, 4095, 4096, 8192, bytes.len() / 2, bytes.len() - 1] {
            assert!(judge(&bytes[..len], expected).is_err(), "{len} of {}", bytes.len());
        }
        // After a kill the last pages may be free ones: what is left is complete then.
        let cut = judge(&bytes[..bytes.len() - 4096], expected);
        assert!(cut.is_err() || i == 1);
    }
}

/// The header, most of which no checksum covers: every bit of its first part and of the
/// transaction ids, one bit of every other byte.
#[test]
fn flipped_bits_of_the_header() {
    for (bytes, expected) in samples() {
        for byte in 0..320 {
            let all = byte < 28 || byte >= 64 && (byte - 64) % 128 / 8 == 13;
            for bit in if all { 0..8 } else { byte % 8..byte % 8 + 1 } {
                let mut altered = bytes.clone();
                altered[byte] ^= 1 << bit;
                let _ = judge(&altered, expected);
            }
        }
    }
}

/// A machine that stops between writing a commit and promoting it: both outcomes are right, an
/// error is not.
#[test]
fn stops_before_promoting() {
    let (bytes, expected) = &samples()[1];
    let mut altered = bytes.clone();
    altered[rehearsal::FLAGS_OFFSET as usize] ^= 1;
    judge(&altered, expected).unwrap();
}

/// Copies of a file taken while it is written to, as a crash of the machine would leave them when
/// the disk keeps the order of writes: always one of the states that were committed.
#[test]
fn copies_of_a_live_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("db");
    let db = open(&path, "ledger", CACHE_BYTES).unwrap();
    let mut states = vec![BTreeMap::new()];
    for round in 1..=20 {
        put(&db, round);
        states.push(read(&db).unwrap());
        let copy = TempDir::new().unwrap();
        let copied = write_sample(copy.path(), &fs::read(&path).unwrap());
        assert!(read(&open(&copied, "ledger", CACHE_BYTES).unwrap()).unwrap() == states[round as usize]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bytes(killed in any::<bool>(), flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4)) {
        let (bytes, expected) = &samples()[usize::from(killed)];
        let mut altered = bytes.clone();
        for (at, mask) in flips {
            altered[at.index(bytes.len())] ^= mask;
        }
        let _ = judge(&altered, expected);
    }

    #[test]
    fn overwritten_ranges(killed in any::<bool>(), at in any::<prop::sample::Index>(), len in 1usize..10_000, with in any::<u8>()) {
        let (bytes, expected) = &samples()[usize::from(killed)];
        let mut altered = bytes.clone();
        let from = at.index(bytes.len());
        let to = (from + len).min(bytes.len());
        altered[from..to].fill(with);
        let _ = judge(&altered, expected);
    }

    #[test]
    fn cut_off(killed in any::<bool>(), at in any::<prop::sample::Index>()) {
        let (bytes, expected) = &samples()[usize::from(killed)];
        let result = judge(&bytes[..at.index(bytes.len())], expected);
        prop_assert!(result.is_err() || killed);
    }

    #[test]
    fn seals_find_every_flip(key in ".{0,20}", value in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), mask in 1u8..) {
        let mut sealed = seal(key.as_bytes(), &value);
        prop_assert_eq!(unseal(key.as_bytes(), &sealed).unwrap(), &value[..]);
        let at = at.index(sealed.len());
        sealed[at] ^= mask;
        prop_assert!(unseal(key.as_bytes(), &sealed).is_err());
        prop_assert!(unseal(b"another", &seal(key.as_bytes(), &value)).is_err() || key == "another");
    }
}

/// A byte that goes bad in the middle of a value after the file was opened is found on read.
#[test]
fn finds_damage_behind_an_open_file() {
    let (bytes, expected) = &samples()[0];
    let dir = TempDir::new().unwrap();
    let path = write_sample(dir.path(), bytes);
    let db = open(&path, "ledger", CACHE_BYTES).unwrap();
    let at = bytes.windows(64).rposition(|w| w == [5u8; 64]).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"!", at as u64).unwrap();
    let found = read(&db);
    assert!(found.is_err() || found.as_ref() == Ok(expected));
}
