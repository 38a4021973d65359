//! The cluster's root of trust: replaced, and forgotten.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Effect, State, put};
use crate::{
    Refusal,
    command::{NewRoot, Reply},
    objects::{FormerRoot, Object},
};

/// Roots that may wait to be forgotten at a time: every one makes every node's chain longer.
const MOST_FORMER: usize = 4;

pub(super) fn rotate(state: &State, from: &str, at: Timestamp, made: Option<&NewRoot>, index: u64) -> Effect {
    let mut cluster = state.cluster()?.clone();
    // Repeated after a lost answer.
    if cluster.former_roots.iter().any(|r| r.cert == from && r.replaced_at == at) {
        return Ok((Reply::Done, Vec::new()));
    }
    if cluster.ca_cert != from {
        return Err(Refusal::conflict("the root was replaced meanwhile: see meshctl ca show"));
    }
    let made = made.ok_or_else(|| Refusal::malformed("a rotation without a new root: the leader makes it"))?;
    if cluster.former_roots.len() >= MOST_FORMER {
        return Err(Refusal::conflict(format!(
            "{MOST_FORMER} former roots are still trusted, because nodes have no certificate of the present one: see meshctl ca show, and bring those nodes back or remove them"
        )));
    }
    let former = FormerRoot {
        cert: std::mem::replace(&mut cluster.ca_cert, made.cert.clone()),
        cross: made.cross.clone(),
        replaced_at: at,
    };
    cluster.former_roots.insert(0, former);
    cluster.ca_key = made.key.clone();
    cluster.worker_secret = made.worker_secret.clone().unwrap_or(cluster.worker_secret);
    cluster.manager_secret = made.manager_secret.clone().unwrap_or(cluster.manager_secret);
    cluster.version = index;
    Ok((Reply::Done, vec![put(Object::Cluster(Arc::new(cluster)))]))
}

pub(super) fn forget(state: &State, roots: &[String], index: u64) -> Effect {
    let mut cluster = state.cluster()?.clone();
    let before = cluster.former_roots.len();
    cluster.former_roots.retain(|r| !roots.contains(&r.cert));
    if cluster.former_roots.len() == before {
        return Ok((Reply::Done, Vec::new()));
    }
    cluster.version = index;
    Ok((Reply::Done, vec![put(Object::Cluster(Arc::new(cluster)))]))
}
