//! Time by what it was for.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Times, and how many of each there were.
#[derive(Default)]
pub struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    /// Runs `f` and adds its time to those of `what`.
    pub fn of<T>(&mut self, what: &'static str, f: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let out = f();
        self.add(what, begun.elapsed());
        out
    }

    /// Adds one.
    pub fn add(&mut self, what: &'static str, time: Duration) {
        self.0.entry(what).or_default().push(time);
    }

    /// Sum of those of `what`.
    pub fn sum(&self, what: &str) -> Duration {
        self.0.get(what).into_iter().flatten().sum()
    }

    /// Sum of those of all of these.
    pub fn total(&self, whats: &[&str]) -> Duration {
        whats.iter().map(|what| self.sum(what)).sum()
    }

    /// Of each: how many, and their sum in milliseconds.
    pub fn sums(&self) -> Value {
        self.each(|all| json!({ "count": all.len(), "ms": ms(all.iter().sum()) }))
    }

    /// Of each: median and most, in milliseconds.
    pub fn medians(&self) -> Value {
        self.each(|all| {
            let mut all = all.to_vec();
            all.sort_unstable();
            let last = all.len() - 1;
            json!({ "median_ms": ms(all[last / 2]), "most_ms": ms(all[last]) })
        })
    }

    fn each(&self, f: impl Fn(&[Duration]) -> Value) -> Value {
        self.0.iter().map(|(what, all)| ((*what).to_owned(), f(all))).collect()
    }
}

/// In milliseconds, to the microsecond.
pub fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
