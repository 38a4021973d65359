//! How the reconcile loop fares: counted by the loop, read by the metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::text::{Kind, Page};

/// Upper bounds of the buckets, in milliseconds.
const BOUNDS_MS: [u32; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 1000, 5000, 30_000];

/// Counters of the passes since meshd began.
#[derive(Debug, Default)]
pub struct Passes {
    /// By bucket; the last is for those above all bounds.
    durations: [AtomicU64; BOUNDS_MS.len() + 1],
    nanoseconds: AtomicU64,
    steps: AtomicU64,
    failed: AtomicU64,
}

impl Passes {
    /// A pass took so long.
    pub fn took(&self, time: Duration) {
        let bucket = BOUNDS_MS.iter().position(|ms| time <= Duration::from_millis(u64::from(*ms)));
        self.durations[bucket.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(time.as_nanos().try_into().unwrap_or(u64::MAX), Relaxed);
    }

    /// A pass took so many steps, of which so many failed.
    pub fn stepped(&self, steps: usize, failed: usize) {
        self.steps.fetch_add(steps as u64, Relaxed);
        self.failed.fetch_add(failed as u64, Relaxed);
    }

    pub(super) fn write(&self, page: &mut Page) {
        let bounds = BOUNDS_MS.iter().map(|ms| f64::from(*ms) / 1000.0);
        let counts: Vec<u64> = self.durations.iter().map(|c| c.load(Relaxed)).collect();
        page.family(
            "meshd_reconcile_duration_seconds",
            Kind::Histogram,
            "Time of a pass that compares what this host must be with what it is, and mends it.",
        )
        .histogram(
            bounds.zip(counts.iter().copied()),
            counts[BOUNDS_MS.len()],
            self.nanoseconds.load(Relaxed) as f64 / 1e9,
        );
        page.family("meshd_reconcile_steps_total", Kind::Counter, "Steps that passes took.")
            .sample(&[], self.steps.load(Relaxed));
        page.family("meshd_reconcile_failed_steps_total", Kind::Counter, "Of them, those that failed.")
            .sample(&[], self.failed.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_in_the_first_bucket_that_holds_it() {
        let passes = Passes::default();
        for ms in [0, 1, 3, 60_000] {
            passes.took(Duration::from_millis(ms));
        }
        passes.stepped(7, 2);
        let mut page = Page::default();
        passes.write(&mut page);
        let text = page.finish();
        for line in [
            "meshd_reconcile_duration_seconds_bucket{le=\"0.001\"} 2\n",
            "meshd_reconcile_duration_seconds_bucket{le=\"0.002\"} 2\n",
            "meshd_reconcile_duration_seconds_bucket{le=\"0.005\"} 3\n",
            "meshd_reconcile_duration_seconds_bucket{le=\"30\"} 3\n",
            "meshd_reconcile_duration_seconds_bucket{le=\"+Inf\"} 4\n",
            "meshd_reconcile_duration_seconds_sum 60.004\n",
            "meshd_reconcile_steps_total 7\n",
            "meshd_reconcile_failed_steps_total 2\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
