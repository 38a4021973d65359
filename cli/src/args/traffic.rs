//! flows, top.

use std::time::Duration;

use clap::Args;

use crate::{times, values};

/// Follow new flows, or dropped packets with the reason for each
#[derive(Args, Debug)]
#[command(after_long_help = "\
Shows what this host's kernel programs see: each new flow to a service with its client and the
backend that it was given, or, with --drops, each packet that they drop. Ends with Ctrl-C, after
--for or after --count, and then says how many there were by the counters, which are exact also when
there were too many to show. Sockets that were given a backend as they connected (containers' TCP to
a virtual address, the host's own) are counted there, not shown. With -o json, a JSON document per
line, the summary last.

Examples:
  meshctl flows
  meshctl flows --service web --count 10
  meshctl flows --drops --for 30s
  meshctl flows --drops --totals          no stream: what was dropped since the maps were made")]
pub struct Flows {
    /// Dropped packets instead of new flows
    #[arg(long)]
    pub drops: bool,
    /// Only what concerns this service
    #[arg(long, value_name = "SERVICE", value_parser = values::reference)]
    pub service: Option<String>,
    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = times::seconds)]
    pub time: Option<u32>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Print the counters once: every reason with its packets and its meaning
    #[arg(long, conflicts_with_all = ["service", "time", "count"])]
    pub totals: bool,
}

/// Show the traffic of services and their backends, as rates
#[derive(Args, Debug)]
#[command(after_long_help = "\
What this host balances: flows from clients that asked it, and from its containers. Sorted by
bytes. On a terminal the table is refreshed until Ctrl-C.

Examples:
  meshctl top
  meshctl top -d 5
  meshctl top --once -o json")]
pub struct Top {
    /// Two samples, one table
    #[arg(long)]
    pub once: bool,
    /// Seconds between samples
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub delay: Duration,
}

/// 0.1 to 3600 seconds, in decimal.
fn seconds(s: &str) -> Result<Duration, String> {
    match s.parse::<f64>() {
        Ok(x) if (0.1..=3600.0).contains(&x) => Ok(Duration::from_secs_f64(x)),
        _ => Err("use seconds from 0.1 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "NaN", "inf", "1e9", "1s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
