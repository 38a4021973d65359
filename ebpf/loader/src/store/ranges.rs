//! Which words of `MEMBERS` are whose, for [`super::lists`].
//!
//! A range that is given back rests until no program can read it any more, because a program may hold
//! the row of the service that named it; see [`Ranges::wake`].

use std::collections::{BTreeMap, BTreeSet};

/// Ranges of words, as their first one and how many they are.
#[derive(Debug, Default)]
pub struct Ranges {
    /// Free ones by their first word. No two of them touch.
    free: BTreeMap<u32, u32>,
    /// The same by their size.
    by_size: BTreeSet<(u32, u32)>,
    resting: Vec<(u32, u32)>,
}

impl Ranges {
    /// All of `len` words but those that are `taken`.
    pub fn new(len: u32, taken: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut ranges = Self::default();
        let taken: BTreeMap<u32, u32> = taken.into_iter().filter(|(_, size)| *size != 0).collect();
        let mut at = 0;
        for (first, size) in taken {
            ranges.put(at, first.saturating_sub(at));
            at = at.max(first.saturating_add(size));
        }
        ranges.put(at, len.saturating_sub(at));
        ranges
    }

    /// The first of `size` words that nobody has, out of the smallest range that is large enough.
    pub fn take(&mut self, size: u32) -> Option<u32> {
        if size == 0 {
            return Some(0);
        }
        let (found, first) = self.by_size.range((size, 0)..).next().copied()?;
        self.cut(first, found);
        self.put(first + size, found - size);
        Some(first)
    }

    /// Gives a range back.
    pub fn give(&mut self, first: u32, size: u32) {
        if size != 0 {
            self.resting.push((first, size));
        }
    }

    /// Words that are free or will be.
    pub fn free(&self) -> u32 {
        self.free.values().chain(self.resting.iter().map(|(_, size)| size)).sum()
    }

    /// Some rest.
    pub fn rest(&self) -> bool {
        !self.resting.is_empty()
    }

    /// What rests is free: no program reads it any more.
    pub fn wake(&mut self) {
        for (first, size) in std::mem::take(&mut self.resting) {
            let (mut from, mut until) = (first, first + size);
            if let Some((before, len)) = self.free.range(..first).next_back().map(|(f, l)| (*f, *l))
                && before + len == first
            {
                self.cut(before, len);
                from = before;
            }
            if let Some(len) = self.free.get(&until).copied() {
                self.cut(until, len);
                until += len;
            }
            self.put(from, until - from);
        }
    }

    fn put(&mut self, first: u32, size: u32) {
        if size != 0 {
            self.free.insert(first, size);
            self.by_size.insert((size, first));
        }
    }

    fn cut(&mut self, first: u32, size: u32) {
        self.free.remove(&first);
        self.by_size.remove(&(size, first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_rests_and_grows_together() {
        let mut r = Ranges::new(10, [(4, 2), (0, 0)]);
        assert_eq!((r.take(5), r.take(4), r.take(4)), (None, Some(0), Some(6)));
        assert_eq!((r.take(1), r.take(0)), (None, Some(0)));
        for (first, size) in [(0, 4), (6, 4), (4, 2)] {
            r.give(first, size);
        }
        assert_eq!((r.take(1), r.rest()), (None, true));
        r.wake();
        assert_eq!((r.take(10), r.rest(), r.take(1)), (Some(0), false, None));
    }

    #[test]
    fn no_word_is_given_twice() {
        // A fixed sequence that mixes sizes, with a list of who has what beside it.
        let (mut r, mut has, mut x) = (Ranges::new(500, []), Vec::<(u32, u32)>::new(), 1u32);
        for _ in 0..5000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let size = 1 + (x >> 16) % 40;
            match r.take(size) {
                Some(first) => {
                    assert!(first + size <= 500);
                    assert!(
                        has.iter().all(|(f, s)| first + size <= *f || f + s <= first),
                        "{first} {size} {has:?}"
                    );
                    has.push((first, size));
                }
                None => {
                    for (first, size) in has.drain(..has.len() / 2) {
                        r.give(first, size);
                    }
                    r.wake();
                }
            }
        }
    }
}
