//! A manager's own certificate when its dates do not hold: the managers were all off for longer than certificates
//! last, or a clock was set. Nobody could renew it then, since managers, too, speak to each other by certificates; but
//! a manager has the cluster's authority in its store, so that it can do what the leader would have done. Used by
//! `manager`, at start and while it runs.

use std::time::{Duration, SystemTime};

use mesh_core::objects::Role;
use tokio::time::sleep;

use crate::{
    client::Channels,
    consensus::Consensus,
    identity::IdentityStore,
    pki::{self, Authority},
    roots,
};

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Has a certificate that holds, for as long as it is polled.
pub(super) async fn keep(identity: &IdentityStore, consensus: &dyn Consensus, channels: &Channels) {
    loop {
        revive(identity, consensus, channels, SystemTime::now());
        sleep(LOOK).await;
    }
}

/// Makes another certificate if the present one does not hold at `now`. One that holds is the leader's to renew.
pub(super) fn revive(identity: &IdentityStore, consensus: &dyn Consensus, channels: &Channels, now: SystemTime) {
    let Some(valid) = identity.valid().filter(|v| !v.contains(&now)) else {
        return;
    };
    let from = |t: SystemTime| jiff::Timestamp::try_from(t).map_or_else(|e| e.to_string(), |t| t.to_string());
    let (begin, end) = (from(valid.start), from(valid.end));
    match certify(identity, consensus) {
        Ok(()) => {
            channels.renew();
            tracing::warn!("this manager's certificate was valid from {begin} to {end} only: it has made itself another one");
        }
        Err(why) => {
            tracing::error!(
                "this manager's certificate is valid from {begin} to {end} only, and it can not make itself another one: {why}"
            );
        }
    }
}

fn certify(identity: &IdentityStore, consensus: &dyn Consensus) -> Result<(), String> {
    let all = consensus.objects().1;
    let cluster = all.cluster.as_ref().ok_or("its store has no cluster yet")?;
    let file = identity.file();
    let node = all.nodes.get(&file.node).filter(|n| n.role == Role::Manager);
    let node = node.ok_or("by its own store it is no manager any more")?;
    let bundle = roots::bundle(cluster);
    // A store that is behind the identity would take back what a rotation has brought.
    if !knows(&bundle, &identity.root()).map_err(|e| e.to_string())? {
        return Err("its store is older than the root that it trusts".into());
    }
    let ca = Authority::load(cluster.id, &cluster.ca_cert, &cluster.ca_key).map_err(|e| e.to_string())?;
    let key = pki::new_key().map_err(|e| e.to_string())?;
    let request = pki::signing_request(&key).map_err(|e| e.to_string())?;
    let cert = ca.sign(&request, node.id, node.role, node.raft_id).map_err(|e| e.to_string())?;
    identity.renew(roots::chain(cluster, &cert), bundle, key).map_err(|e| e.to_string())
}

/// Whether the root with a fingerprint is among these.
fn knows(bundle: &str, fingerprint: &str) -> Result<bool, pki::PkiError> {
    let roots = pki::certificates(bundle)?;
    Ok(roots.iter().any(|r| roots::hex(&pki::digest(r)) == fingerprint))
}
