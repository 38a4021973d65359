//! The roots that a cluster trusts, and how one is replaced.
//!
//! A new root signs every certificate from the moment at which it is in the state, and the former ones stay
//! trusted. Each node is told with its heartbeat's answer that the cluster trusts something else than it does,
//! and renews: it gets a certificate of the new root, the roots to trust, and the new root as signed by the
//! former one. By that last one whoever has not heard of it yet trusts it all the same, so nobody has to wait
//! for anybody, and a node that was away finds its way back. When every node has said that its certificate is
//! of the new root, the leader has the former roots forgotten ([`forgettable`]), and the nodes once more follow.
//!
//! A node that stays away keeps them trusted, for [`pki::NODE_LIFETIME`] at most: its certificate has expired
//! then. Used by `server`, `health::lead`, and on the node's side by `identity`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use mesh_core::{
    Id,
    command::NewRoot,
    objects::{Cluster, Objects},
};
use sha2::{Digest as _, Sha256};

use crate::{
    pki::{self, Authority, PkiError},
    token,
};

/// What nodes shall trust, PEM: the root that signs, then the former ones.
pub fn bundle(cluster: &Cluster) -> String {
    let former = cluster.former_roots.iter().map(|r| r.cert.as_str());
    joined(std::iter::once(cluster.ca_cert.as_str()).chain(former))
}

/// A node's certificate as it is shown to others, PEM: with what leads from every former root to the one that
/// signed it.
pub fn chain(cluster: &Cluster, cert: &str) -> String {
    joined(std::iter::once(cert).chain(cluster.former_roots.iter().map(|r| r.cross.as_str())))
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.fold(String::new(), |all, part| all + part.trim_end() + "\n")
}

/// What tells one set of trusted roots from another: the SHA-256 of all, in hexadecimal.
///
/// # Errors
/// [`PkiError::Pem`].
pub fn digest(bundle: &str) -> Result<String, PkiError> {
    let mut hash = Sha256::new();
    for cert in pki::certificates(bundle)? {
        hash.update(&cert);
    }
    Ok(hex(&hash.finalize()))
}

/// The digest of what a cluster trusts, made once for each: every heartbeat's answer has it.
#[derive(Debug, Default)]
pub struct Known(Mutex<(u64, String)>);

impl Known {
    /// The digest of what `cluster` trusts; empty when that can not be read.
    pub fn of(&self, cluster: &Cluster) -> String {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != cluster.version {
            *known = (cluster.version, digest(&bundle(cluster)).unwrap_or_default());
        }
        known.1.clone()
    }
}

/// A certificate's SHA-256, in hexadecimal.
///
/// # Errors
/// [`PkiError::Pem`].
pub fn fingerprint(pem: &str) -> Result<String, PkiError> {
    Ok(hex(&pki::digest(&pki::certificate(pem)?)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        // Writing to a string does not fail.
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// Makes the root that replaces a cluster's, and new secrets for the join tokens: who had the former key also had
/// those.
///
/// # Errors
/// [`PkiError`] when the present one can not be read, or there is no randomness.
pub fn next(cluster: &Cluster) -> Result<NewRoot, PkiError> {
    let present = Authority::load(cluster.id, &cluster.ca_cert, &cluster.ca_key)?;
    let new = Authority::create(cluster.id)?;
    Ok(NewRoot {
        cross: present.cross_sign(&new)?,
        cert: new.cert_pem().to_owned(),
        key: new.key_pem().to_owned(),
        worker_secret: Some(token::new_secret()),
        manager_secret: Some(token::new_secret()),
    })
}

/// The nodes that have a certificate of the present root, by what each said last.
pub fn known_by(cluster: &Cluster, said: &BTreeMap<Id, String>) -> BTreeSet<Id> {
    let Ok(wanted) = fingerprint(&cluster.ca_cert) else {
        return BTreeSet::new();
    };
    said.iter().filter(|(_, s)| **s == wanted).map(|(id, _)| *id).collect()
}

/// The former roots that nobody needs any more: all, once every node knows the present one, and those whose
/// last certificates have expired.
pub fn forgettable(all: &Objects, said: &BTreeMap<Id, String>, now: Timestamp) -> Vec<String> {
    let Some(cluster) = all.cluster.as_deref().filter(|c| !c.former_roots.is_empty()) else {
        return Vec::new();
    };
    let known = known_by(cluster, said);
    let everybody = all.nodes.keys().all(|id| known.contains(id));
    let expired = |since: Timestamp| now.duration_since(since).unsigned_abs() > pki::NODE_LIFETIME && now > since;
    let over = cluster.former_roots.iter().filter(|r| everybody || expired(r.replaced_at));
    over.map(|r| r.cert.clone()).collect()
}

#[cfg(test)]
#[path = "roots_tests.rs"]
mod tests;
