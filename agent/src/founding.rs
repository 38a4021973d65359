//! The mark of a cluster that is being made: a file that is there from before the first thing is
//! written until the cluster exists.
//!
//! Kept by [`crate::membership`]. A meshd that was killed in between finds it and undoes what it had
//! begun: half a cluster could neither be used nor left, and nobody was told of it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Name of the file in the data directory.
pub const FILE: &str = "founding.json";

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// The making begins. Returns once that is on disk.
///
/// # Errors
/// What could not be written.
pub fn begin(data_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(data_dir)?;
    let mut file = File::create(path(data_dir))?;
    let at = jiff::Timestamp::now();
    file.write_all(serde_json::json!({ "begun_at": at }).to_string().as_bytes())?;
    file.sync_all()?;
    File::open(data_dir)?.sync_all()
}

/// The cluster exists, or what was made of it is gone. Returns once that is on disk.
///
/// # Errors
/// What could not be removed.
pub fn end(data_dir: &Path) -> io::Result<()> {
    match fs::remove_file(path(data_dir)) {
        Ok(()) => File::open(data_dir)?.sync_all(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// The making was cut off. Whatever the file holds: it may have been cut off too.
pub fn is_unfinished(data_dir: &Path) -> bool {
    path(data_dir).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new");
        end(&data).unwrap();
        assert!(!is_unfinished(&data));
        begin(&data).unwrap();
        begin(&data).unwrap();
        assert!(is_unfinished(&data));
        end(&data).unwrap();
        end(&data).unwrap();
        assert!(!is_unfinished(&data));
    }
}
