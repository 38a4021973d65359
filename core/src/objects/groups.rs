//! Ids of objects by that of something that they have in common, for the indexes of [`super::Endpoints`] and
//! [`super::Services`].

use std::collections::BTreeMap;

use crate::Id;

/// Ids in order. Lists and not sets: a large cluster has very many.
#[derive(Clone, Debug, Default)]
pub struct Groups(BTreeMap<Id, Vec<Id>>);

impl Groups {
    /// The ids of a group.
    pub fn of(&self, group: Id) -> &[Id] {
        self.0.get(&group).map_or(&[], Vec::as_slice)
    }

    /// Adds one; what is there stays.
    pub fn enter(&mut self, group: Id, id: Id) {
        let ids = self.0.entry(group).or_default();
        if let Err(at) = ids.binary_search(&id) {
            ids.insert(at, id);
        }
    }

    /// Removes one, and with the last one the group.
    pub fn leave(&mut self, group: Id, id: Id) {
        let Some(ids) = self.0.get_mut(&group) else { return };
        if let Ok(at) = ids.binary_search(&id) {
            ids.remove(at);
        }
        if ids.is_empty() {
            self.0.remove(&group);
        } else if ids.len() < ids.capacity() / 4 {
            ids.shrink_to(ids.len() * 2);
        }
    }

    /// Gives back memory: a map that was filled in order has room for nearly as much again.
    pub fn compact(&mut self) {
        let all = std::mem::take(&mut self.0).into_iter();
        self.0 = all.map(|(id, ids)| (id, ids.into_boxed_slice().into_vec())).collect();
    }

    /// No group is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many groups there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
