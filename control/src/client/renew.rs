//! The node's certificate, renewed in time. Used by `client`; the loop is the agent's to start.

use std::{
    ops::Range,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use mesh_api::proto::{RenewRequest, control_client::ControlClient as Stub};
use mesh_core::{Refusal, RefusalKind};
use tokio::time::sleep;

use super::{ATTEMPT, BUDGET, ControlClient, said};
use crate::pki;

/// Shortest time over which nodes spread their renewals when the root was replaced, or the managers are back.
const SPREAD: Duration = Duration::from_secs(2);
/// What each node of the cluster adds to that time: 10,000 nodes take a minute, and ask for 170 certificates a second.
const SPREAD_PER_NODE: Duration = Duration::from_millis(6);
/// The clock is looked at this often, because it may be set while the task sleeps.
const LOOK: Duration = Duration::from_secs(3600);
/// Pause after a renewal that failed. A manager that is heard earlier ends it.
const AGAIN: Duration = Duration::from_secs(60);

impl ControlClient {
    /// Whether the certificate is to be renewed before it is due: the cluster trusts other roots, or it does not name
    /// the raft id that this manager has now.
    pub(super) fn is_stale(&self) -> bool {
        let trusted = self.trusted.load_full();
        let renewed = self.renewed_as.load(Ordering::Relaxed) == self.identity.file().raft_id;
        trusted.is_some_and(|t| *t != self.identity.trust()) || !(renewed || self.identity.names_raft_id())
    }

    /// Gets another certificate, with a new key, and takes it up.
    ///
    /// # Errors
    /// Unavailable when no manager answers; other when the certificate can not be used or kept.
    pub fn renew(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let other = |e: &dyn std::fmt::Display| Refusal::other(format!("can not renew the certificate: {e}"));
            let key = pki::new_key().map_err(|e| other(&e))?;
            let csr = pki::signing_request(&key).map_err(|e| other(&e))?;
            let call = |channel| {
                let csr = csr.clone();
                async move {
                    let reply = Stub::new(channel).renew(RenewRequest { csr }).await?.into_inner();
                    Ok(said(reply.leader, (reply.cert, reply.ca)))
                }
            };
            let (cert, ca) = self.ask(BUDGET, ATTEMPT, &mut false, call).await?;
            let raft_id = self.identity.file().raft_id;
            self.identity.renew(cert, ca, key).map_err(|e| other(&e))?;
            self.renewed_as.store(raft_id, Ordering::Relaxed);
            // Connections that stand speak for the certificate that they were made with.
            self.channels.renew();
            Ok(())
        })
    }

    /// From when to when the certificate is valid; `None` when it can not be read.
    pub fn valid(&self) -> Option<Range<SystemTime>> {
        self.identity.valid()
    }

    /// When the certificate should be renewed: at a random point between 50 and 80 % of its life,
    /// so that nodes which joined together do not return together.
    pub fn renewal_due(&self) -> SystemTime {
        let valid = self.valid().unwrap_or(SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH);
        let life = valid.end.duration_since(valid.start).unwrap_or_default();
        valid.start + life.mul_f64(rand::random_range(0.5..0.8))
    }

    /// Renews the certificate whenever it is due or its root was replaced, for as long as it is polled. What is due
    /// while no manager answers is done when one is heard again.
    pub fn keep_renewed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Drawn once for each certificate: what was due stays due.
            let (mut of, mut due) = (self.valid(), self.renewal_due());
            // Whether to try again as soon as a manager is heard: once, not for as long as they refuse.
            let mut eager = true;
            loop {
                if of != self.valid() {
                    (of, due) = (self.valid(), self.renewal_due());
                }
                let wait = async {
                    while let Ok(left) = due.duration_since(SystemTime::now())
                        && !left.is_zero()
                    {
                        sleep(left.min(LOOK)).await;
                    }
                };
                let again = tokio::select! {
                    () = wait => AGAIN,
                    () = self.stale.notified() => {
                        self.spread().await;
                        // The beats meanwhile woke this again, and a change of the role renews by itself.
                        if !self.is_stale() {
                            continue;
                        }
                        SPREAD
                    }
                };
                match self.renew().await {
                    Ok(()) => {
                        tracing::info!("certificate renewed");
                        eager = true;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "can not renew the certificate; trying again in {} s, or when a manager is heard", again.as_secs());
                        self.owed.store(eager && error.kind == RefusalKind::Unavailable, Ordering::Relaxed);
                        tokio::select! {
                            () = sleep(again.mul_f64(rand::random_range(0.8..1.2))) => eager = true,
                            () = self.stale.notified(), if eager => {
                                eager = false;
                                self.spread().await;
                            }
                        }
                        self.owed.store(false, Ordering::Relaxed);
                    }
                }
            }
        })
    }

    /// A part of the time over which all nodes, which are told in the same second, renew.
    async fn spread(&self) {
        let over = SPREAD.max(SPREAD_PER_NODE * self.nodes.load(Ordering::Relaxed));
        sleep(over.mul_f64(rand::random_range(0.0..1.0))).await;
    }
}
