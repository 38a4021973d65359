//! Changes of the objects that ask nothing of this host: they are taken in without a look at the kernel.
//!
//! Most changes in a cluster are of this kind on most hosts. When the last pass left nothing to be done,
//! and the rows that the changed objects concern ([`mesh_core::part`]) are the same before and after,
//! there is nothing to do now either. What the kernel's events tell meanwhile waits for its pass as ever.

use mesh_core::{
    desired::Desired,
    intent::{Facts, desired},
    objects::Objects,
    part::part,
};

use super::Reconciler;
use crate::ledger::View;

/// The rows that changed objects concern, as they are to be and as they were; worked out once for the quick
/// answer and for the pass that follows it where they differ.
pub struct Rows {
    /// Revision of the objects.
    revision: u64,
    facts: Facts,
    pub former: Desired,
    pub desired: Desired,
}

impl Rows {
    /// They are still those of these objects on this host.
    pub fn is_of(&self, revision: u64, facts: &Facts) -> bool {
        self.revision == revision && self.facts == *facts
    }
}

impl Reconciler {
    /// Takes in what the ledger has now, if that asks nothing of this host. If not, a pass is due.
    pub(super) fn takes_in(&mut self) -> bool {
        let (View { head, objects }, more) = self.ledger.look();
        self.memory.touched = std::mem::take(&mut self.memory.touched).then(more);
        let is_known = self.memory.settled && !self.member.has_changed().unwrap_or(true) && self.applied.borrow().gone.is_empty();
        let (true, Some(member), Some(facts)) = (is_known, *self.member.borrow(), &self.memory.facts) else {
            return false;
        };
        if head.cluster != Some(member.cluster) || !objects.nodes.contains_key(&member.node) {
            return false;
        }
        let Some(part) = part(&self.memory.touched, &objects, member.node) else {
            return false;
        };
        let of = |objects: &Objects| desired(objects, head.revision, member.cluster, member.node, facts);
        let (former, desired) = (of(&part.before), of(&part.after));
        if former != desired {
            self.memory.rows = Some(Rows {
                revision: head.revision,
                facts: facts.clone(),
                former,
                desired,
            });
            return false;
        }
        self.memory.touched = Default::default();
        self.applied.send_modify(|a| a.revision = head.revision);
        true
    }
}
