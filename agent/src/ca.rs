//! The cluster's root of trust, for whoever asks: shown, and replaced. Called by the local API.
//!
//! A rotation is one command; what follows on managers and nodes is told in `mesh_control::roots`.

use std::time::Duration;

use jiff::Timestamp;
use mesh_api::{
    query::Query,
    rest::{CaNode, CaView, FormerRootView},
};
use mesh_control::{pki, roots};
use mesh_core::{
    Refusal, RefusalKind,
    command::Command,
    objects::{NodeState, Object},
};
use tokio::time::{Instant, interval};

use crate::app::App;

/// How long a rotation is waited for, before whoever asked is told which nodes are missing.
const ROTATION_TIME: Duration = Duration::from_secs(20);
/// How often the leader is asked how far it is.
const LOOK: Duration = Duration::from_millis(250);

impl App {
    /// The cluster's root.
    ///
    /// # Errors
    /// No manager answers.
    pub async fn ca(&self) -> Result<CaView, Refusal> {
        let read = self.query(Query::Authority).await?;
        let all = read.roots.unwrap_or_default();
        let pem = all
            .certs
            .first()
            .cloned()
            .ok_or_else(|| Refusal::other("the manager's answer has no root: is it of another version?"))?;
        let unreadable = |e: &dyn std::fmt::Display| Refusal::other(format!("the cluster's root can not be read: {e}"));
        let der = pki::certificate(&pem).map_err(|e| unreadable(&e))?;
        let valid = pki::validity(&der).map_err(|e| unreadable(&e))?;
        let time = |secs| Timestamp::from_second(secs).map_err(|e| unreadable(&e));
        let former = all.certs.iter().skip(1).zip(&all.replaced_at).map(|(cert, at)| {
            Ok(FormerRootView {
                fingerprint: roots::fingerprint(cert).map_err(|e| unreadable(&e))?,
                replaced_at: *at,
            })
        });
        let nodes = read.objects.iter().filter_map(|o| match o {
            Object::Node(n) => Some(CaNode {
                id: n.id,
                hostname: n.hostname.clone(),
                state: n.state,
                renewed: all.known_by.contains(&n.id),
            }),
            _ => None,
        });
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_by(|a, b| a.hostname.cmp(&b.hostname));
        Ok(CaView {
            fingerprint: roots::fingerprint(&pem).map_err(|e| unreadable(&e))?,
            subject: pki::subject(&der).map_err(|e| unreadable(&e))?,
            not_before: time(valid.start)?,
            not_after: time(valid.end)?,
            former: former.collect::<Result<_, Refusal>>()?,
            nodes,
            pem,
        })
    }

    /// Replaces the cluster's root; returns once the former one is forgotten, or only nodes that are not ready
    /// keep it from that.
    ///
    /// # Errors
    /// A conflict when it was replaced at the same time, or too many former ones wait.
    pub async fn ca_rotate(&self) -> Result<CaView, Refusal> {
        let before = self.ca().await?;
        let command = Command::CaRotate {
            from: before.pem,
            at: Timestamp::now(),
            made: None,
        };
        self.propose(command).await?;
        let end = Instant::now() + ROTATION_TIME;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            match self.ca().await {
                Ok(view) if view.former.is_empty() => return Ok(view),
                Ok(view) => {
                    let missing: Vec<_> = view.missing().collect();
                    let only_away = !missing.is_empty() && missing.iter().all(|n| n.state != NodeState::Ready);
                    if only_away || Instant::now() >= end {
                        return Ok(view);
                    }
                }
                Err(e) if e.kind == RefusalKind::Unavailable && Instant::now() < end => {}
                Err(e) => return Err(e),
            }
        }
    }
}
