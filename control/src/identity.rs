//! Who this node is: its names, its certificate and key, and the managers it knows; on disk in
//! `DATA_DIR/identity/` and in memory.
//!
//! Written by `manager` (init), `join`, `client` (managers, renewal); read by `tls` at every handshake,
//! so that a renewed certificate needs no restart. The directory is 0700 and its files 0600:
//! `ca.pem`, `cert.pem`, `key.pem`, `node.json`. A node without the directory is in no cluster.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    ops::Range,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_core::{Id, objects::Role};
use rustls::{RootCertStore, sign::CertifiedKey};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    pki::{self, NodeName},
    roots,
};

const CA: &str = "ca.pem";
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";
/// The key of a certificate that is just being replaced.
const NEXT_KEY: &str = "key-next.pem";
const NODE: &str = "node.json";

/// An identity could not be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or directory could not be read or written.
    #[error("can not {what} {}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is one already.
    #[error("this node has an identity in {} already: it is in a cluster", .0.display())]
    Exists(PathBuf),
}

/// What `node.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// The cluster.
    pub cluster: Id,
    /// This node.
    pub node: Id,
    /// Its raft id; 0 for workers.
    pub raft_id: u64,
    /// Manager or worker.
    pub role: Role,
    /// `host:port` of every manager that is known.
    pub managers: Vec<String>,
    /// Address of this node's control plane.
    pub addr: IpAddr,
    /// Port of this node's control plane.
    pub control_port: u16,
}

/// An identity: [`NodeFile`] and the PEM texts.
#[derive(Clone)]
pub struct Identity {
    /// Names and addresses.
    pub file: NodeFile,
    /// The roots that the cluster trusts, PEM, the one that signs first ([`crate::roots::bundle`]).
    pub ca_pem: String,
    /// The node's certificate, PEM, and what leads from former roots to it ([`crate::roots::chain`]).
    pub cert_pem: String,
    /// The node's private key, PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Identity {
    /// The chain and key as TLS uses them.
    ///
    /// # Errors
    /// Why the texts do not belong together, or are not this node's.
    pub fn certified_key(&self) -> Result<CertifiedKey, String> {
        let mut chain = pki::certificates(&self.cert_pem).map_err(|e| e.to_string())?;
        let cert = chain.first().ok_or("there is no certificate")?;
        let name = NodeName::of_member(cert, self.file.cluster).map_err(|e| e.to_string())?;
        if name.node != self.file.node {
            return Err(format!(
                "the certificate is that of node {}, and this is node {}",
                name.node, self.file.node
            ));
        }
        // Joiners look for it: they know its digest only.
        chain.push(pki::certificate(&self.ca_pem).map_err(|e| e.to_string())?);
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|e| format!("the private key can not be read: {e}"))?;
        CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|e| format!("certificate and key: {e}"))
    }
}

/// The identity in use, and its place on disk.
#[derive(Debug)]
pub struct IdentityStore {
    dir: PathBuf,
    /// Serializes writers.
    writing: Mutex<()>,
    current: ArcSwap<(Identity, Arc<CertifiedKey>)>,
    /// Tells of changes of the trusted roots.
    trusting: watch::Sender<()>,
}

impl IdentityStore {
    /// Reads `data_dir/identity`; `None` when this node has none.
    ///
    /// # Errors
    /// [`IdentityError`] with the file that can not be read or is damaged.
    pub fn load(data_dir: &Path) -> Result<Option<Arc<Self>>, IdentityError> {
        let dir = data_dir.join("identity");
        match fs::metadata(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &dir)(e)),
            Ok(_) => {}
        }
        let node = dir.join(NODE);
        let file = serde_json::from_str(&read(&node)?).map_err(|e| IdentityError::Damaged {
            path: node,
            why: e.to_string(),
        })?;
        let mut identity = Identity {
            file,
            ca_pem: read(&dir.join(CA))?,
            cert_pem: read(&dir.join(CERT))?,
            key_pem: read(&dir.join(KEY))?,
        };
        let key = match identity.certified_key() {
            Ok(key) => key,
            Err(why) => Self::finish_renewal(&dir, &mut identity).ok_or_else(|| IdentityError::Damaged { path: dir.join(CERT), why })??,
        };
        Ok(Some(Self::hold(dir, identity, key)))
    }

    /// A renewal that was cut off after the certificate was replaced left its key beside the old one.
    fn finish_renewal(dir: &Path, identity: &mut Identity) -> Option<Result<CertifiedKey, IdentityError>> {
        let next = dir.join(NEXT_KEY);
        identity.key_pem = fs::read_to_string(&next).ok()?;
        let key = identity.certified_key().ok()?;
        Some(
            fs::rename(&next, dir.join(KEY))
                .map_err(failed("rename", &next))
                .and_then(|()| sync_dir(dir))
                .map(|()| key),
        )
    }

    /// Makes `data_dir/identity`, whole or not at all.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when there is one; else what could not be written.
    pub fn create(data_dir: &Path, identity: Identity) -> Result<Arc<Self>, IdentityError> {
        let dir = data_dir.join("identity");
        if fs::symlink_metadata(&dir).is_ok() {
            return Err(IdentityError::Exists(dir));
        }
        let key = identity
            .certified_key()
            .map_err(|why| IdentityError::Damaged { path: dir.join(CERT), why })?;
        fs::create_dir_all(data_dir).map_err(failed("make", data_dir))?;
        let temp = data_dir.join("identity.new");
        match fs::remove_dir_all(&temp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &temp)(e)),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&temp).map_err(failed("make", &temp))?;
        write(&temp.join(CA), &identity.ca_pem)?;
        write(&temp.join(CERT), &identity.cert_pem)?;
        write(&temp.join(KEY), &identity.key_pem)?;
        write(&temp.join(NODE), &node_json(&identity.file))?;
        sync_dir(&temp)?;
        fs::rename(&temp, &dir).map_err(failed("rename", &temp))?;
        sync_dir(data_dir)?;
        Ok(Self::hold(dir, identity, key))
    }

    /// Removes `data_dir/identity`: the node leaves its cluster. Nothing there is no error.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn remove(data_dir: &Path) -> Result<(), IdentityError> {
        let dir = data_dir.join("identity");
        // Renamed first, so that what is left after a crash is not half an identity.
        let gone = data_dir.join("identity.gone");
        match fs::rename(&dir, &gone) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("rename", &dir)(e)),
            Ok(()) => sync_dir(data_dir)?,
        }
        match fs::remove_dir_all(&gone) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &gone)(e)),
            _ => Ok(()),
        }
    }

    fn hold(dir: PathBuf, identity: Identity, key: CertifiedKey) -> Arc<Self> {
        Arc::new(Self {
            dir,
            writing: Mutex::new(()),
            current: ArcSwap::from_pointee((identity, Arc::new(key))),
            trusting: watch::Sender::new(()),
        })
    }

    /// The identity now.
    pub fn get(&self) -> Identity {
        self.current.load().0.clone()
    }

    /// The node's names and addresses now.
    pub fn file(&self) -> NodeFile {
        self.current.load().0.file.clone()
    }

    /// Chain and key now.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.current.load().1.clone()
    }

    /// Keeps another list of managers, sorted and without repeats. An empty list is not kept: who
    /// has no manager can not ask for one.
    ///
    /// # Errors
    /// What could not be written; the list in memory then stays as it was.
    pub fn set_managers(&self, mut managers: Vec<String>) -> Result<(), IdentityError> {
        managers.sort_unstable();
        managers.dedup();
        if managers.is_empty() || self.current.load().0.file.managers == managers {
            return Ok(());
        }
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut identity, key) = (*self.current.load_full()).clone();
        identity.file.managers = managers;
        replace(&self.dir, NODE, &node_json(&identity.file))?;
        self.current.store(Arc::new((identity, key)));
        Ok(())
    }

    /// Keeps another raft id, and the address that the cluster knows this node's control plane by.
    ///
    /// # Errors
    /// What could not be written; what is in memory then stays as it was.
    pub fn set_place(&self, raft_id: u64, addr: IpAddr) -> Result<(), IdentityError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut identity, key) = (*self.current.load_full()).clone();
        (identity.file.raft_id, identity.file.addr) = (raft_id, addr);
        replace(&self.dir, NODE, &node_json(&identity.file))?;
        self.current.store(Arc::new((identity, key)));
        Ok(())
    }

    /// The roots that this node trusts.
    ///
    /// # Errors
    /// Why what is kept can not be used.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, String> {
        let mut roots = RootCertStore::empty();
        for ca in pki::certificates(&self.current.load().0.ca_pem).map_err(|e| e.to_string())? {
            roots.add(ca).map_err(|e| e.to_string())?;
        }
        Ok(Arc::new(roots))
    }

    /// Tells whenever this node trusts other roots than before.
    pub fn trust_changes(&self) -> watch::Receiver<()> {
        self.trusting.subscribe()
    }

    /// Digest of the roots that this node trusts; empty when they can not be read.
    pub fn trust(&self) -> String {
        roots::digest(&self.current.load().0.ca_pem).unwrap_or_default()
    }

    /// Fingerprint of the root that this node's certificate is of; empty when it can not be read.
    pub fn root(&self) -> String {
        roots::fingerprint(&self.current.load().0.ca_pem).unwrap_or_default()
    }

    /// From when to when the node's certificate is valid; `None` when it can not be read.
    pub fn valid(&self) -> Option<Range<SystemTime>> {
        let cert = pki::certificate(&self.current.load().0.cert_pem).ok()?;
        let valid = pki::validity(&cert).ok()?;
        let time = |seconds: i64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?));
        Some(time(valid.start)?..time(valid.end)?)
    }

    /// Whether the certificate names the raft id that this node has as a manager: one of an earlier promotion, or of
    /// a release that did not write it, does not. Workers have none.
    pub fn names_raft_id(&self) -> bool {
        let current = self.current.load();
        let file = &current.0.file;
        let name = pki::certificate(&current.0.cert_pem)
            .ok()
            .and_then(|c| NodeName::of_certificate(&c).ok());
        file.role == Role::Worker || name.is_none_or(|n| n.raft_id == file.raft_id)
    }

    /// Takes up a renewed certificate, its key, and what the cluster trusts now; the role follows the certificate.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`] when they do not belong together or to this node; else what could
    /// not be written.
    pub fn renew(&self, cert_pem: String, ca_pem: String, key_pem: String) -> Result<(), IdentityError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut identity = self.current.load().0.clone();
        let trusts_others = identity.ca_pem != ca_pem;
        (identity.cert_pem, identity.ca_pem, identity.key_pem) = (cert_pem, ca_pem, key_pem);
        let damaged = |why| IdentityError::Damaged {
            path: self.dir.join(CERT),
            why,
        };
        let key = identity.certified_key().map_err(damaged)?;
        let cert = pki::certificate(&identity.cert_pem).map_err(|e| damaged(e.to_string()))?;
        identity.file.role = NodeName::of_member(&cert, identity.file.cluster)
            .map_err(|e| damaged(e.to_string()))?
            .role;
        replace(&self.dir, NEXT_KEY, &identity.key_pem)?;
        replace(&self.dir, CERT, &identity.cert_pem)?;
        fs::rename(self.dir.join(NEXT_KEY), self.dir.join(KEY)).map_err(failed("rename", &self.dir.join(NEXT_KEY)))?;
        replace(&self.dir, NODE, &node_json(&identity.file))?;
        // Last: who is found to have a root as its first has a certificate of it.
        replace(&self.dir, CA, &identity.ca_pem)?;
        self.current.store(Arc::new((identity, Arc::new(key))));
        if trusts_others {
            self.trusting.send_replace(());
        }
        Ok(())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { what, path, source }
}

fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

fn node_json(file: &NodeFile) -> String {
    // A struct of plain fields always has a JSON form.
    serde_json::to_string_pretty(file).unwrap_or_default() + "\n"
}

fn write(path: &Path, text: &str) -> Result<(), IdentityError> {
    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    let mut file = options.open(path).map_err(failed("write", path))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed("write", path))
}

/// Replaces a file so that after a crash there is the old or the new one.
fn replace(dir: &Path, name: &str, text: &str) -> Result<(), IdentityError> {
    let (temp, path) = (dir.join(format!(".{name}.new")), dir.join(name));
    write(&temp, text)?;
    fs::rename(&temp, &path).map_err(failed("rename", &temp))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync", dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use mesh_core::Id;

    use super::*;
    use crate::pki::Authority;

    fn identity(ca: &Authority, node: u64) -> Identity {
        let key_pem = pki::new_key().unwrap();
        let cert_pem = ca
            .sign(&pki::signing_request(&key_pem).unwrap(), Id::from_bits(node), Role::Worker, 0)
            .unwrap();
        let file = NodeFile {
            cluster: Id::from_bits(1),
            node: Id::from_bits(node),
            raft_id: 0,
            role: Role::Worker,
            managers: vec!["10.0.0.1:2377".into()],
            addr: [10, 0, 0, 2].into(),
            control_port: 2377,
        };
        Identity {
            file,
            ca_pem: ca.cert_pem().into(),
            cert_pem,
            key_pem,
        }
    }

    #[test]
    fn is_written_read_and_changed() {
        let tmp = tempfile::tempdir().unwrap();
        let ca = Authority::create(Id::from_bits(1)).unwrap();
        assert!(IdentityStore::load(tmp.path()).unwrap().is_none());
        let store = IdentityStore::create(tmp.path(), identity(&ca, 2)).unwrap();
        assert!(matches!(
            IdentityStore::create(tmp.path(), identity(&ca, 2)),
            Err(IdentityError::Exists(_))
        ));
        store.set_managers(vec!["b:1".into(), "a:1".into(), "b:1".into()]).unwrap();
        store.set_managers(vec![]).unwrap();
        let renewed = identity(&ca, 2);
        store
            .renew(renewed.cert_pem.clone(), ca.cert_pem().into(), renewed.key_pem.clone())
            .unwrap();
        assert!(
            store
                .renew(identity(&ca, 3).cert_pem, ca.cert_pem().into(), renewed.key_pem.clone())
                .is_err(),
            "another node's"
        );
        assert!(
            store
                .renew(identity(&ca, 2).cert_pem, ca.cert_pem().into(), renewed.key_pem.clone())
                .is_err(),
            "another key's"
        );

        store.set_place(7, [10, 0, 0, 9].into()).unwrap();

        let again = IdentityStore::load(tmp.path()).unwrap().unwrap();
        assert_eq!(again.file().managers, ["a:1", "b:1"]);
        assert_eq!((again.file().raft_id, again.file().addr), (7, IpAddr::from([10, 0, 0, 9])));
        assert_eq!(again.get().key_pem, renewed.key_pem);
        let dir = tmp.path().join("identity");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap()).collect();
        names.sort_by_key(fs::DirEntry::file_name);
        assert_eq!(names.iter().map(fs::DirEntry::file_name).collect::<Vec<_>>(), [CA, CERT, KEY, NODE]);
        assert!(names.iter().all(|e| e.metadata().unwrap().permissions().mode() & 0o777 == 0o600));

        IdentityStore::remove(tmp.path()).unwrap();
        IdentityStore::remove(tmp.path()).unwrap();
        assert!(IdentityStore::load(tmp.path()).unwrap().is_none());
    }

    #[test]
    fn a_renewal_cut_off_between_its_files_is_finished() {
        let tmp = tempfile::tempdir().unwrap();
        let ca = Authority::create(Id::from_bits(1)).unwrap();
        IdentityStore::create(tmp.path(), identity(&ca, 2)).unwrap();
        let dir = tmp.path().join("identity");
        let next = identity(&ca, 2);
        // The key is there, the certificate not yet: the old pair still holds.
        write(&dir.join(NEXT_KEY), &next.key_pem).unwrap();
        assert_ne!(IdentityStore::load(tmp.path()).unwrap().unwrap().get().key_pem, next.key_pem);
        write(&dir.join(CERT), &next.cert_pem).unwrap();
        assert_eq!(IdentityStore::load(tmp.path()).unwrap().unwrap().get().key_pem, next.key_pem);
        assert!(!dir.join(NEXT_KEY).exists());
    }

    #[test]
    fn damage_is_named() {
        let ca = Authority::create(Id::from_bits(1)).unwrap();
        for (file, text, part) in [
            (NODE, "{", "node.json is damaged"),
            (CERT, "", "cert.pem is damaged"),
            (KEY, "junk", "private key"),
        ] {
            let tmp = tempfile::tempdir().unwrap();
            IdentityStore::create(tmp.path(), identity(&ca, 2)).unwrap();
            write(&tmp.path().join("identity").join(file), text).unwrap();
            let e = IdentityStore::load(tmp.path()).unwrap_err().to_string();
            assert!(e.contains(part), "{e}");
            fs::remove_file(tmp.path().join("identity").join(file)).unwrap();
            let e = IdentityStore::load(tmp.path()).unwrap_err().to_string();
            assert!(e.starts_with("can not read") && e.ends_with(file), "{e}");
        }
    }
}
