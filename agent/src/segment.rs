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
use tokio::{sync::watch, time::sleep};

use crate::{
    ledger::Ledger,
    reconcile::{Applied, Member},
};

/// How often a node is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How many are asked in a second: who has more neighbours asks each less often.
const A_SECOND: u32 = 500;
/// A node that has not answered so often is sent to by VXLAN.
const PATIENCE: u32 = 3;
/// And one that has answered so often in turn is not any more: one that answers now and then would have all rows
/// rewritten each time.
const TRUST: u32 = 2;
/// How many are asked at the same time.
const AT_A_TIME: usize = 256;

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

/// What a node has answered.
#[derive(Debug, Default)]
struct Heard {
    /// It is sent to without encapsulation.
    is_taker: bool,
    /// How many answers in turn speak against that.
    against: u32,
}

impl Heard {
    /// A node that is sent to so.
    fn taken() -> Self {
        Self {
            is_taker: true,
            against: 0,
        }
    }

    /// Takes note of an answer, or of none. True: it is not sent to any more.
    fn hear(&mut self, answered: bool) -> bool {
        self.against = if answered == self.is_taker { 0 } else { self.against + 1 };
        let was = self.is_taker;
        if self.against >= if was { PATIENCE } else { TRUST } {
            (self.is_taker, self.against) = (!was, 0);
        }
        was && !self.is_taker
    }
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
        let mut heard: BTreeMap<Mac, Heard> = self.neighbors.borrow().iter().map(|mac| (*mac, Heard::taken())).collect();
        loop {
            let Some(round) = self.round() else {
                sleep(EVERY).await;
                continue;
            };
            let number = u32::try_from(round.targets.len()).unwrap_or(u32::MAX);
            let pause = sleep(EVERY.max(EVERY * number / A_SECOND));
            let asked = futures::stream::iter(round.targets.clone()).map(|(mac, ip)| {
                let (segment, round) = (&segment, &round);
                let send = move |icmp: &[u8]| segment.send(&round.dev, (mac, round.own), (round.source, ip), icmp);
                async move { (mac, answers(round.source, ip, send).await) }
            });
            let answers: Vec<_> = asked.buffer_unordered(AT_A_TIME).collect().await;
            heard.retain(|mac, _| round.targets.contains_key(mac));
            for (mac, answered) in answers {
                if heard.entry(mac).or_default().hear(answered) {
                    tracing::warn!(%mac, "a node of the segment takes no packets without encapsulation: it is sent to by VXLAN");
                }
            }
            let now = heard.iter().filter(|(_, h)| h.is_taker).map(|(mac, _)| *mac).collect();
            self.neighbors.send_if_modified(|known| {
                let news = *known != now;
                *known = now;
                news
            });
            pause.await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_is_no_reason() {
        let mut node = Heard::default();
        let mut after = |answers: &[bool]| {
            let left = answers.iter().map(|a| node.hear(*a)).collect::<Vec<_>>();
            (node.is_taker, left.contains(&true))
        };
        assert_eq!(after(&[true, false, true, false]), (false, false));
        assert_eq!(after(&[true, true]), (true, false));
        assert_eq!(after(&[false, false, true, false, false]), (true, false));
        assert_eq!(after(&[false]), (false, true));
        let mut node = Heard::taken();
        assert_eq!([false, false, false].map(|a| node.hear(a)), [false, false, true]);
    }
}
