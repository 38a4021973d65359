//! When the next pass is due. Pure: the loop tells it what happened, and when.
//!
//! Changes of the ledger and requests do not come by here, they are answered at once.

use std::time::Duration;

use tokio::time::Instant;

/// A full look at the kernel at least this often, for what sends no event.
const RESYNC: Duration = Duration::from_secs(10);
/// Or less often, on a host of a cluster so large that it takes long: one part in so many of the time goes
/// into looking.
const SHARE: u32 = 50;
/// But no less often than this.
const RESYNC_LAST: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// What one change makes of events arrives within this.
const BURST: Duration = Duration::from_millis(20);
/// After a pass that failed, events wait this long: its next try may cause the very events that
/// wake it. What others broke is still mended within a second of being seen.
const CALM: Duration = Duration::from_secs(1);

/// The loop's clock.
pub struct Pace {
    due: Instant,
    /// When everything is looked at again, whatever has been looked at meanwhile.
    full: Instant,
    /// No event brings the next pass nearer than this.
    floor: Instant,
    backoff: Duration,
    blind: bool,
}

impl Pace {
    /// A pass is due now.
    pub fn new(now: Instant) -> Self {
        Self {
            due: now,
            full: now,
            floor: now,
            backoff: RETRY_FIRST,
            blind: false,
        }
    }

    /// Everything is to be looked at, not only what is known to have changed.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full <= now
    }

    /// A pass ended, which looked at everything or at a part, and took so long.
    pub fn passed(&mut self, fine: bool, full: bool, took: Duration, now: Instant) {
        self.blind = false;
        if fine {
            let next = if full {
                now + (took * SHARE).clamp(RESYNC, RESYNC_LAST)
            } else {
                self.full
            };
            *self = Self {
                due: next,
                full: next,
                ..Self::new(now)
            };
        } else {
            self.due = now + self.backoff;
            self.floor = now + CALM;
            self.backoff = (self.backoff * 2).min(RETRY_LAST);
        }
    }

    /// The kernel says that something changed.
    pub fn event(&mut self, now: Instant) {
        self.due = self.due.min(self.floor.max(now + BURST));
    }

    /// The kernel's events can not be read: they have to be subscribed to anew.
    pub fn blind(&mut self, now: Instant) {
        self.blind = true;
        self.due = self.due.min(now + CALM);
    }

    /// Nothing is heard until the next pass.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// When the next pass is due.
    pub fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_of_events_is_one_pass() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.due(), now);
        pace.passed(true, true, MS, now);
        assert_eq!(pace.due(), now + RESYNC);
        for n in 0..15 {
            pace.event(now + n * MS);
        }
        assert_eq!(pace.due(), now + BURST);
    }

    /// A step that fails after it has touched the kernel wakes the loop by its own events.
    #[test]
    fn events_do_not_get_around_the_backoff() {
        let begin = Instant::now();
        let (mut now, mut pace) = (begin, Pace::new(begin));
        let mut passes = 0;
        while now < begin + 60 * 1000 * MS {
            pace.passed(false, true, MS, now);
            pace.event(now + MS);
            assert!(pace.due() <= now + CALM, "and what others broke waits no longer than this");
            now = pace.due();
            passes += 1;
        }
        assert!(passes < 70, "{passes} passes in a minute");
        // Without events the waits grow further.
        pace.passed(false, true, MS, now);
        assert_eq!(pace.due(), now + RETRY_LAST);
        // Success ends it.
        pace.passed(true, true, MS, now);
        pace.event(now);
        assert_eq!(pace.due(), now + BURST);
        pace.passed(false, true, MS, now);
        assert_eq!(pace.due(), now + RETRY_FIRST);
    }

    #[test]
    fn long_looks_are_made_less_often() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.passed(true, true, 1000 * MS, now);
        assert_eq!(pace.due(), now + 50 * 1000 * MS);
        pace.passed(true, true, 9000 * MS, now);
        assert_eq!(pace.due(), now + RESYNC_LAST);
        pace.event(now);
        assert_eq!(pace.due(), now + BURST, "whatever happens is looked at as soon as ever");
    }

    #[test]
    fn deaf_for_a_second_at_most() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.passed(true, true, MS, now);
        pace.blind(now);
        assert!(pace.is_blind() && pace.due() == now + CALM);
        pace.passed(true, true, MS, now);
        assert!(!pace.is_blind());
    }

    #[test]
    fn looks_at_parts_do_not_put_off_the_look_at_everything() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        assert!(pace.is_full(begin), "the first one");
        pace.passed(true, true, MS, begin);
        for second in 1..10 {
            let now = begin + second * 1000 * MS;
            assert!(!pace.is_full(now));
            pace.passed(true, false, 100 * MS, now);
            assert_eq!(pace.due(), begin + RESYNC);
        }
        assert!(pace.is_full(pace.due()));
    }
}
