//! Rows of `STATS` that were taken away from their pairs and are nobody else's yet, for [`super::stats`]:
//! flows may go on counting in them, and a pair may come back.

use std::collections::{BTreeMap, BTreeSet};

use mesh_ebpf_common::rows::Pair;

/// The rows, in the order in which they were taken away.
#[derive(Debug, Default)]
pub struct Held {
    rows: BTreeMap<u64, (u32, Option<Pair>)>,
    /// Of each pair the last one.
    pairs: BTreeMap<Pair, u64>,
    next: u64,
}

impl Held {
    /// Holds a row; `pair` gets it back if it returns.
    pub fn hold(&mut self, row: u32, pair: Option<Pair>) {
        self.rows.insert(self.next, (row, pair));
        if let Some(pair) = pair {
            self.pairs.insert(pair, self.next);
        }
        self.next += 1;
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Which rows are held, and the mark behind them for [`Self::unnamed`].
    pub fn all(&self) -> (BTreeSet<u32>, u64) {
        (self.rows.values().map(|(row, _)| *row).collect(), self.next)
    }

    /// Backends of a set that have rows here.
    pub fn backends(&self, service: u32) -> impl Iterator<Item = u32> {
        let of = |backend| Pair { service, backend };
        self.pairs.range(of(0)..=of(u32::MAX)).map(|(pair, _)| pair.backend)
    }

    /// The row of a pair.
    pub fn of(&self, pair: Pair) -> Option<u32> {
        Some(self.rows.get(self.pairs.get(&pair)?)?.0)
    }

    /// Gives up the row of a pair, which has it again.
    pub fn returned(&mut self, pair: Pair) {
        if let Some(at) = self.pairs.remove(&pair) {
            self.rows.remove(&at);
        }
    }

    /// Gives up up to `n` rows, the oldest first.
    pub fn oldest(&mut self, n: usize) -> Vec<u32> {
        let of: Vec<u64> = self.rows.keys().copied().take(n).collect();
        of.into_iter().filter_map(|at| self.give_up(at)).collect()
    }

    /// Gives up those of `rows` that are held since before `mark`.
    pub fn unnamed(&mut self, rows: &BTreeSet<u32>, mark: u64) -> Vec<u32> {
        let before = self.rows.range(..mark).filter(|(_, (row, _))| rows.contains(row));
        let of: Vec<u64> = before.map(|(at, _)| *at).collect();
        of.into_iter().filter_map(|at| self.give_up(at)).collect()
    }

    fn give_up(&mut self, at: u64) -> Option<u32> {
        let (row, pair) = self.rows.remove(&at)?;
        if let Some(pair) = pair
            && self.pairs.get(&pair) == Some(&at)
        {
            self.pairs.remove(&pair);
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pair(backend: u32) -> Pair {
        Pair { service: 1, backend }
    }

    fn held() -> Held {
        let mut held = Held::default();
        for row in 1..=4 {
            held.hold(row, Some(pair(row)));
        }
        held
    }

    #[test]
    fn the_oldest_go_first() {
        let mut held = held();
        assert_eq!(held.oldest(2), [1, 2]);
        assert_eq!((held.of(pair(1)), held.of(pair(3))), (None, Some(3)));
        assert_eq!(held.oldest(9), [3, 4]);
        assert_eq!(held.len(), 0);
        assert_eq!(held.backends(1).count(), 0);
    }

    #[test]
    fn what_returned_and_went_again_meanwhile_stays() {
        let mut held = held();
        let (rows, mark) = held.all();
        held.returned(pair(2));
        held.hold(2, Some(pair(2)));
        assert_eq!(held.unnamed(&rows, mark), [1, 3, 4]);
        assert_eq!(held.of(pair(2)), Some(2));
    }

    #[test]
    fn of_two_rows_of_a_pair_it_gets_the_last() {
        let mut held = held();
        held.hold(7, Some(pair(1)));
        held.hold(8, None);
        assert_eq!(held.of(pair(1)), Some(7));
        assert_eq!(held.oldest(1), [1]);
        assert_eq!(held.of(pair(1)), Some(7));
        held.returned(pair(1));
        assert_eq!(held.all().0, [2, 3, 4, 8].into());
    }
}
