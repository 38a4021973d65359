//! openraft's own storage tests on the log and the state machine, and restarts of the files.

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::{log::Log, machine::Machine, types::TypeConfig};
use crate::disk;

struct Files;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Files {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let log = Log::load(disk::open(&dir.path().join("log.redb"), "log", disk::CACHE_BYTES).unwrap(), 1)
            .unwrap()
            .unwrap();
        let machine = Machine::load(disk::open(&dir.path().join("state.redb"), "state", disk::CACHE_BYTES).unwrap()).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn openraft_storage_suite() {
    Suite::test_all(Files).await.unwrap();
}
