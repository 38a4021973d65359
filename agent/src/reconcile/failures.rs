//! Which steps of a pass are left out because of others that failed before them.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{
    Id,
    action::{Action, NetAction},
};

/// In so many passes in a row a step fails before it is said that a link is missing.
const PASSES: u32 = 3;

/// What has failed in a pass.
#[derive(Debug, Default)]
pub struct Failures {
    /// Endpoints of which a step has failed.
    endpoints: BTreeSet<Id>,
    /// What keeps networks apart could not be written.
    is_open: bool,
}

impl Failures {
    /// A step has failed; `endpoint` is the one that it was for.
    pub fn note(&mut self, step: &Action, endpoint: Option<Id>) {
        self.endpoints.extend(endpoint);
        self.is_open |= matches!(step, Action::Net(NetAction::SetNft(_)));
    }

    /// Whether a step is to be left out.
    pub fn forbid(&self, step: &Action, endpoint: Option<Id>) -> bool {
        // An endpoint's other steps can only fail for want of its interface, and hide the reason.
        let is_vain = endpoint.is_some_and(|id| self.endpoints.contains(&id));
        // Nothing is let through where networks are not kept apart.
        is_vain || self.is_open && matches!(step, Action::Net(NetAction::PassForward))
    }
}

/// Steps that failed for want of a link. In a burst of containers that is seldom worth a word: the container ended
/// between the look at the kernel and the step, and the next pass has no such step.
#[derive(Debug, Default)]
pub struct Missing {
    /// By the step's words, in how many passes in a row.
    before: BTreeMap<String, u32>,
    now: BTreeMap<String, u32>,
}

impl Missing {
    /// A pass begins.
    pub fn begin(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// A step has failed so; true when that is to be said: it has in several passes.
    pub fn note(&mut self, step: &Action) -> bool {
        let words = step.to_string();
        let times = self.before.get(&words).copied().unwrap_or(0).saturating_add(1);
        self.now.insert(words, times);
        times >= PASSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_let_through_where_networks_are_not_kept_apart() {
        let pass = Action::Net(NetAction::PassForward);
        let mut failures = Failures::default();
        assert!(!failures.forbid(&pass, None));
        failures.note(&Action::Net(NetAction::DelLink("mb-x".to_owned())), None);
        assert!(!failures.forbid(&pass, None), "that has nothing to do with it");
        let set = Action::Net(NetAction::SetNft(None));
        failures.note(&set, None);
        assert!(failures.forbid(&pass, None) && !failures.forbid(&set, None));
    }

    #[test]
    fn a_missing_link_is_told_of_when_it_stays_away() {
        let (stays, other) = (
            Action::Net(NetAction::DelLink("mv-x".to_owned())),
            Action::Net(NetAction::DelLink("mv-y".to_owned())),
        );
        let mut missing = Missing::default();
        let mut pass = |steps: &[&Action]| {
            missing.begin();
            steps.iter().map(|s| missing.note(s)).collect::<Vec<_>>()
        };
        assert_eq!(pass(&[&stays]), [false]);
        assert_eq!(pass(&[&stays, &other]), [false, false]);
        assert_eq!(pass(&[&stays]), [true]);
        assert_eq!(pass(&[&stays, &other]), [true, false], "in a row");
    }

    #[test]
    fn one_endpoint_does_not_hold_up_another() {
        let (one, other) = (Some(Id::from_bits(1)), Some(Id::from_bits(2)));
        let step = Action::Net(NetAction::DelLink("mv-x".to_owned()));
        let mut failures = Failures::default();
        failures.note(&step, one);
        assert!(failures.forbid(&step, one) && !failures.forbid(&step, other) && !failures.forbid(&step, None));
    }
}
