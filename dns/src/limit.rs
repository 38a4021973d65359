//! Bounds on what the DNS does at the same time, in all and for one asker, so that one container
//! cannot use up what the others need. Used for TCP connections and for forwarded queries.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts what is under way.
pub(crate) struct Limiter {
    total: usize,
    per_asker: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_asker: HashMap<IpAddr, usize>,
}

/// One of the things under way; ends when dropped.
pub(crate) struct Permit {
    limiter: Arc<Limiter>,
    asker: IpAddr,
}

impl Limiter {
    pub(crate) fn new(total: usize, per_asker: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            per_asker,
            held: Mutex::default(),
        })
    }

    /// One more for `asker`, or none if that would be too many. Never waits.
    pub(crate) fn acquire(self: &Arc<Self>, asker: IpAddr) -> Option<Permit> {
        let mut held = self.held();
        let own = held.by_asker.get(&asker).copied().unwrap_or(0);
        if held.total >= self.total || own >= self.per_asker {
            return None;
        }
        held.total += 1;
        held.by_asker.insert(asker, own + 1);
        Some(Permit {
            limiter: self.clone(),
            asker,
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // The counts are whole after every statement, so a panic elsewhere leaves them usable.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.limiter.held();
        held.total = held.total.saturating_sub(1);
        match held.by_asker.get_mut(&self.asker) {
            Some(own) if *own > 1 => *own -= 1,
            _ => _ = held.by_asker.remove(&self.asker),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_all_and_each() {
        let limiter = Limiter::new(3, 2);
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|s| s.parse().unwrap());
        let first = limiter.acquire(a).unwrap();
        let _second = limiter.acquire(a).unwrap();
        assert!(limiter.acquire(a).is_none(), "two for one asker");
        let _third = limiter.acquire(b).unwrap();
        assert!(limiter.acquire(b).is_none(), "three in all");
        drop(first);
        assert!(limiter.acquire(b).is_some());
        assert!(limiter.acquire(a).is_some(), "a permit that was dropped at once counts no more");
    }
}
