//! Which nodes of this host's segment take packets without encapsulation: each that an endpoint here may send to is
//! asked for an echo that way, and answers by VXLAN. Only who answers is sent to so ([`intent::Facts::neighbors`]):
//! switches and clouds that drop addresses they do not know are common, and nobody would be told.
//!
//! One task, started by [`crate::run`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use mesh_control::health::probe::answers;
use mesh_core::{Mac, intent};
use mesh_overlay::Segment;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    ledger::Ledger,
    reconcile::{Applied, Member},
};

/// How often a node is asked.
const EVERY: Duration = Duration::from_secs(1);
/// A node that has not answered so often is sent to by VXLAN.
const PATIENCE: u32 = 3;
/// How many are asked at the same time.
const AT_A_TIME: usize = 64;

/// What the task needs.
pub struct Asker {
    /// The nodes.
    pub ledger: Arc<Ledger>,
    /// Who this host is.
    pub member: watch::Receiver<Option<Member>>,
    /// What it is like.
    pub applied: watch::Receiver<Applied>,
    /// Who answers. What it has at first was so when meshd ended last.
    pub neighbors: watch::Sender<BTreeSet<Mac>>,
}

/// Whom to ask.
struct Round {
    /// The uplink.
    dev: String,
    /// Its Ethernet address.
    own: Mac,
    /// This node's address in the ingress network.
    source: Ipv4Addr,
    /// Those of the nodes, by their Ethernet addresses.
    targets: BTreeMap<Mac, Ipv4Addr>,
}

impl Asker {
    /// Asks until it is dropped.
    pub async fn run(self) {
        let segment = match Segment::open() {
            Ok(segment) => segment,
            Err(error) => {
                tracing::warn!(%error, "nodes of the segment cannot be asked: all is encapsulated");
                self.neighbors.send_replace(BTreeSet::new());
                return;
            }
        };
        // How often each has not answered since it did.
        let mut silent: BTreeMap<Mac, u32> = self.neighbors.borrow().iter().map(|mac| (*mac, 0)).collect();
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(round) = self.round() else { continue };
            let asked = futures::stream::iter(round.targets.clone()).map(|(mac, ip)| {
                let (segment, round) = (&segment, &round);
                let send = move |icmp: &[u8]| segment.send(&round.dev, (mac, round.own), (round.source, ip), icmp);
                async move { (mac, answers(round.source, ip, send).await) }
            });
            let answers: Vec<_> = asked.buffer_unordered(AT_A_TIME).collect().await;
            silent.retain(|mac, _| round.targets.contains_key(mac));
            for (mac, answered) in answers {
                if answered {
                    silent.insert(mac, 0);
                } else if let Some(times) = silent.get_mut(&mac) {
                    *times += 1;
                }
            }
            silent.retain(|mac, times| {
                let stays = *times < PATIENCE;
                if !stays {
                    tracing::warn!(%mac, "a node of the segment takes no packets without encapsulation: it is sent to by VXLAN");
                }
                stays
            });
            let now = silent.keys().copied().collect();
            self.neighbors.send_if_modified(|known| {
                let news = *known != now;
                *known = now;
                news
            });
        }
    }

    /// `None` while this host does not know what it is.
    fn round(&self) -> Option<Round> {
        let member = (*self.member.borrow())?;
        let objects = self.ledger.view().objects;
        let IpAddr::V4(source) = objects.nodes.get(&member.node)?.ingress_ip else {
            return None;
        };
        let facts = self.applied.borrow().host.as_ref()?.facts.clone();
        Some(Round {
            own: facts.mac.unwrap_or_default(),
            targets: intent::on_segment(&objects, member.node, facts.segment),
            dev: facts.uplink,
            source,
        })
    }
}
