//! Durations and points in time on the command line. Called by clap, like [`crate::values`].

use jiff::{SignedDuration, Timestamp};
use mesh_api::rest::Since;

/// Whole seconds: `10s`, `2m`, `1h30m`, `1d`.
pub fn seconds(s: &str) -> Result<u32, String> {
    let hint = "use whole seconds, minutes, hours or days, like 10s, 2m or 1h30m";
    let mut total = 0u64;
    let mut rest = s;
    if rest.is_empty() {
        return Err(format!("it is empty: {hint}"));
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let count: u64 = rest[..digits].parse().map_err(|_| format!("not a duration: {hint}"))?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        let unit = match &rest[digits..unit_end] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86400,
            "" => return Err(format!("it has no unit: {hint}")),
            _ => return Err(format!("not a duration: {hint}")),
        };
        total = count
            .checked_mul(unit)
            .and_then(|n| total.checked_add(n))
            .ok_or("too long: use at most 49710d")?;
        rest = &rest[unit_end..];
    }
    total.try_into().map_err(|_| "too long: use at most 49710d".to_owned())
}

/// A revision, a time, or a duration before now.
pub fn since(s: &str) -> Result<Since, String> {
    if let Ok(since) = s.parse() {
        return Ok(since);
    }
    let ago = seconds(s).map_err(|_| "use a duration (10m), a time (2026-01-31T12:00:00Z) or a revision (1042)".to_owned())?;
    let then = Timestamp::now().checked_sub(SignedDuration::from_secs(i64::from(ago)));
    then.map(Since::Time).map_err(|_| "too long ago: use at most 49710d".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, secs) in [
            ("0s", 0),
            ("10s", 10),
            ("2m", 120),
            ("1h30m", 5400),
            ("1d", 86400),
            ("4294967295s", u32::MAX),
        ] {
            assert_eq!(seconds(text), Ok(secs), "{text}");
        }
        for bad in [
            "",
            "10",
            "s",
            "10ms",
            "1.5s",
            "-1s",
            "10 s",
            "5é",
            "4294967296s",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn points_in_time() {
        assert_eq!(since("1042"), Ok(Since::Revision(1042)));
        assert!(matches!(since("2026-01-31T12:00:00Z"), Ok(Since::Time(_))));
        assert!(matches!(since("10m"), Ok(Since::Time(t)) if t < Timestamp::now()));
        assert!(since("yesterday").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(s in "\\PC*|[0-9smhd.-]{0,12}") {
            let _ = (seconds(&s), since(&s));
        }

        #[test]
        fn whole_units_add_up(h in 0u32..1000, m in 0u32..1000, s in 0u32..1000) {
            prop_assert_eq!(seconds(&format!("{h}h{m}m{s}s")), Ok(h * 3600 + m * 60 + s));
        }
    }
}
