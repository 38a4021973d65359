//! Two hosts with one identity: whether this one counts as the node.
//!
//! A machine that is copied takes the data directory along, and with it the node's key and certificate. Each
//! heartbeat says which host it is of, and the leader admits the first ([`crate::health::Health::admit`]).
//! Used by [`super::ControlClient`]; nothing here asks anybody.

use std::{fs, io, os::unix::fs::MetadataExt, time::Duration};

use mesh_api::proto::Standing;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};

use crate::health::SILENCE;

/// Refused for so long, a host is no other start of the one that counts, whose last heartbeat is forgotten by then.
const CERTAIN: Duration = SILENCE.saturating_mul(2);

/// What the leader said of this host.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Nothing,
    Taken,
    Refused { since: Instant, other: String },
}

pub(super) struct Twin {
    host: u64,
    said: watch::Sender<Said>,
}

impl Default for Twin {
    fn default() -> Self {
        let host = host().unwrap_or_else(|error| {
            tracing::warn!(%error, "can not tell this host from a copy of it");
            0
        });
        Self {
            host,
            said: watch::Sender::new(Said::Nothing),
        }
    }
}

impl Twin {
    /// The number that tells this host from a copy of it; 0: not known.
    pub fn host(&self) -> u64 {
        self.host
    }

    pub fn standing(&self) -> Standing {
        match *self.said.borrow() {
            Said::Nothing => Standing::New,
            Said::Taken => Standing::Taken,
            Said::Refused { .. } => Standing::Refused,
        }
    }

    /// Where the host is that counts instead of this one.
    pub fn other(&self) -> Option<String> {
        match &*self.said.borrow() {
            Said::Refused { other, .. } => Some(other.clone()),
            _ => None,
        }
    }

    /// Returns once this host counts.
    pub async fn taken(&self) {
        // The sender is here, so it does not end without one.
        drop(self.said.subscribe().wait_for(|s| *s == Said::Taken).await);
    }

    /// The leader's answer: `other` is empty when it takes this host for the node. A copy that was told so for long
    /// enough stays one until meshd is started anew, also when the other host is silent for a while.
    pub fn heard(&self, other: String, now: Instant) {
        self.said.send_if_modified(|said| {
            let next = match said {
                Said::Refused { since, .. } if other.is_empty() && now.duration_since(*since) > CERTAIN => return false,
                _ if other.is_empty() => Said::Taken,
                Said::Refused { since, .. } => Said::Refused { since: *since, other },
                _ => Said::Refused { since: now, other },
            };
            let refused = matches!(next, Said::Refused { .. });
            if refused && !matches!(said, Said::Refused { .. }) {
                tracing::warn!("another host counts as this node; waiting whether it is heard on");
            }
            let changed = *said != next;
            *said = next;
            changed
        });
    }
}

/// This start of the kernel and this network namespace: the same when meshd is started again, another on a copy.
fn host() -> io::Result<u64> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
    let namespace = fs::metadata("/proc/self/ns/net")?;
    let digest = Sha256::new()
        .chain_update(boot)
        .chain_update(namespace.dev().to_le_bytes())
        .chain_update(namespace.ino().to_le_bytes())
        .finalize();
    Ok(digest.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_to_itself() {
        assert_eq!(host().unwrap(), host().unwrap());
    }

    #[test]
    fn a_copy_stays_one_and_a_restart_does_not() {
        let (twin, zero) = (Twin::default(), Instant::now());
        assert_eq!(twin.standing(), Standing::New);
        // Started again elsewhere: refused until the first is forgotten.
        twin.heard("192.0.2.1".to_owned(), zero);
        assert_eq!((twin.standing(), twin.other()), (Standing::Refused, Some("192.0.2.1".to_owned())));
        twin.heard(String::new(), zero + SILENCE);
        assert_eq!((twin.standing(), twin.other()), (Standing::Taken, None));
        // A copy: the other is heard on.
        twin.heard("192.0.2.1".to_owned(), zero + SILENCE);
        twin.heard("192.0.2.1".to_owned(), zero + SILENCE * 4);
        twin.heard(String::new(), zero + SILENCE * 5);
        assert_eq!(twin.standing(), Standing::Refused);
    }
}
