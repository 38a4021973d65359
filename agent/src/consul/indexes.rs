//! The index of each question's answer.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Mutex, PoisonError},
};

/// Questions whose answers are remembered, at under 100 bytes each.
const QUESTIONS: usize = 4096;

/// At which revision each question's answer changed last.
#[derive(Default)]
pub struct Indexes {
    /// With keys of this process: nobody can make two questions or two answers look the same.
    hashers: [RandomState; 2],
    known: Mutex<Known>,
}

/// By the digests of the questions: their texts are as long as clients like.
#[derive(Default)]
struct Known {
    answers: HashMap<u128, Answered>,
    /// Counts what was asked.
    asked: u64,
}

struct Answered {
    digest: u128,
    index: u64,
    /// [`Known::asked`] when it was asked last.
    asked: u64,
}

impl Indexes {
    /// The index of an answer that is `body` at `revision`; never 0, which Consul's clients take for none.
    pub fn of(&self, question: &str, body: &[u8], revision: u64) -> u64 {
        let (key, digest) = (self.digest(question.as_bytes()), self.digest(body));
        let revision = revision.max(1);
        let mut guard = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { answers, asked } = &mut *guard;
        *asked += 1;
        if let Some(known) = answers.get_mut(&key) {
            known.asked = *asked;
            // A ledger of another cluster begins anew.
            if known.digest != digest || known.index > revision {
                (known.digest, known.index) = (digest, revision);
            }
            return known.index;
        }
        // Who waits for the answer to one that is forgotten is woken at the next change.
        if answers.len() >= QUESTIONS
            && let Some(oldest) = answers.iter().min_by_key(|(_, a)| a.asked).map(|(key, _)| *key)
        {
            answers.remove(&oldest);
        }
        let answered = Answered {
            digest,
            index: revision,
            asked: *asked,
        };
        answers.insert(key, answered);
        revision
    }

    fn digest(&self, of: &[u8]) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|h| u128::from(h.hash_one(of)));
        high << 64 | low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_the_revision_of_the_last_change_and_never_none() {
        let indexes = Indexes::default();
        assert_eq!(indexes.of("a", b"x", 0), 1);
        assert_eq!(indexes.of("a", b"x", 7), 1, "nothing has changed for this question");
        assert_eq!(indexes.of("a", b"y", 8), 8);
        assert_eq!(indexes.of("b", b"y", 9), 9);
        assert_eq!(indexes.of("a", b"y", 10), 8);
        assert_eq!(
            indexes.of("a", b"y", 3),
            3,
            "another cluster: the index goes back, and who waits is answered"
        );
    }

    #[test]
    fn what_was_not_asked_for_longest_is_forgotten_first() {
        let indexes = Indexes::default();
        indexes.of("old", b"y", 8);
        indexes.of("a", b"y", 8);
        for n in 0..QUESTIONS {
            indexes.of(&n.to_string(), b"", 11);
            assert_eq!(indexes.of("a", b"y", 11), 8, "asked again and again");
        }
        assert_eq!(indexes.known.lock().unwrap().answers.len(), QUESTIONS);
        assert_eq!(indexes.of("old", b"y", 12), 12, "forgotten");
    }
}
