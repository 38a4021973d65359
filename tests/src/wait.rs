//! Waits with a bound, for scenarios and for what drives the lab.
//!
//! A second of a bound is one that the machine had: what a hypervisor gave to others meanwhile does not
//! count. `within` of `scripts/lib.sh` does the same.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::Result;

/// Ticks of `/proc/stat` in a second: USER_HZ, 100 on every architecture of Linux's that there is a Rust for.
const TICKS: f64 = 100.0;

/// Asks every 50 ms until the answer is yes; an error when `seconds` are up.
pub fn until(seconds: u64, what: &str, mut yes: impl FnMut() -> Result<bool>) -> Result<()> {
    within(seconds, what, || Ok(yes()?.then_some(())))
}

/// Asks every 50 ms until there is an answer; an error when `seconds` are up.
pub fn within<T>(seconds: u64, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let bound = Duration::from_secs(seconds * patience()?);
    let (began, stolen_before) = (Instant::now(), stolen()?);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        let stolen = stolen()?.saturating_sub(stolen_before);
        if began.elapsed().saturating_sub(stolen) >= bound {
            let stolen = match stolen.as_secs() {
                0 => String::new(),
                more => format!(" (and {more} s that the machine did not run)"),
            };
            return Err(format!("waited {seconds} s{stolen} in vain for {what}").into());
        }
        pause();
    }
}

/// How often longer everything that waits may take: MESH_PATIENCE, on an emulated machine.
pub fn patience() -> Result<u64> {
    match std::env::var("MESH_PATIENCE") {
        Ok(text) => Ok(text.parse().map_err(|_| format!("MESH_PATIENCE {text:?} is not a number"))?),
        Err(_) => Ok(1),
    }
}

/// For how long, since it started, a processor of this machine was given to others, on average (proc(5), `steal`).
fn stolen() -> Result<Duration> {
    read(&fs::read_to_string("/proc/stat")?).ok_or_else(|| "/proc/stat does not tell what was stolen".into())
}

fn read(stat: &str) -> Option<Duration> {
    let processors = stat.lines().filter(|l| l.starts_with("cpu")).count().checked_sub(1)?;
    let ticks: f64 = stat.lines().next()?.split_ascii_whitespace().nth(8)?.parse().ok()?;
    Some(Duration::from_secs_f64(ticks / TICKS / processors.max(1) as f64))
}

#[expect(
    clippy::disallowed_methods,
    reason = "between the looks of a bounded wait; scenarios run on threads of their own, without a runtime"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stolen_is_shared_by_the_processors() {
        let stat = "cpu  9 1 2 3 4 5 6 500 0 0\ncpu0 9 1 2 3 4 5 6 300 0 0\ncpu1 0 0 0 0 0 0 0 200 0 0\nintr 5\n";
        assert_eq!(read(stat), Some(Duration::from_millis(2500)));
        assert_eq!(read("cpu  1 2\n"), None);
        assert_eq!(read(""), None);
    }
}
