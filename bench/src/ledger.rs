//! A large cluster in the ledger of a host: what a meshd of it has to keep, and to bring to the kernel.
//!
//! The file is the agent's (`agent/src/ledger/file.rs`), written as the agent writes it.

use std::path::PathBuf;

use mesh_control::disk;
use mesh_core::{
    Id,
    objects::{Change, Kind, Object, Objects},
};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::{Value, json};

use crate::{
    Failure,
    cluster::{Maker, Size},
};

const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const HEAD: &str = "head";
/// The first of the nodes that are added.
const FIRST_NODE: u64 = 1000;

/// What `meshd-scale ledger` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The ledger: `ledger.redb` in the data directory of a host that belongs to a cluster.
    file: PathBuf,
    #[command(flatten)]
    size: Size,
}

/// Does it; what the ledger is at then.
pub fn grow(args: &Args) -> Result<Value, Failure> {
    if !args.file.exists() {
        return Err(format!("no ledger {}", args.file.display()).into());
    }
    let db = disk::open(&args.file, "ledger", disk::CACHE_BYTES)?;
    let (mut head, objects) = {
        let txn = db.begin_read()?;
        let meta = txn.open_table(META)?;
        let stored = meta.get(HEAD)?.ok_or("the ledger belongs to no cluster")?;
        let head: Value = serde_json::from_slice(disk::unseal(HEAD.as_bytes(), stored.value())?)?;
        let mut objects = Objects::default();
        for row in txn.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let object: Object = serde_json::from_slice(disk::unseal(key.value().as_bytes(), value.value())?)?;
            let (kind, id) = object.key();
            let object = Some(object);
            objects.apply(&Change { kind, id, object });
        }
        (head, objects)
    };
    let cluster: Id = head["cluster"].as_str().ok_or("the ledger belongs to no cluster")?.parse()?;
    let revision = head["revision"].as_u64().ok_or("the ledger has no revision")?;
    let mut maker = Maker::from(objects, cluster, revision);
    maker.grow(&args.size, FIRST_NODE, &[])?;
    head["revision"] = maker.index().into();
    let txn = disk::begin_write(&db)?;
    {
        let mut table = txn.open_table(OBJECTS)?;
        // Agents are not told of the cluster itself, which has its secrets.
        for object in maker.objects().iter().filter(|o| o.key().0 != Kind::Cluster) {
            let key = key(&object);
            table.insert(key.as_str(), disk::seal(key.as_bytes(), &serde_json::to_vec(&object)?).as_slice())?;
        }
        let sealed = disk::seal(HEAD.as_bytes(), &serde_json::to_vec(&head)?);
        txn.open_table(META)?.insert(HEAD, sealed.as_slice())?;
    }
    txn.commit()?;
    Ok(json!({ "revision": maker.index(), "services": maker.objects().services.len(), "endpoints": maker.objects().endpoints.len() }))
}

fn key(object: &Object) -> String {
    let (kind, id) = object.key();
    let kind = match kind {
        Kind::Cluster => "cluster",
        Kind::Node => "node",
        Kind::Network => "network",
        Kind::Service => "service",
        Kind::Endpoint => "endpoint",
    };
    format!("{kind}/{id}")
}
