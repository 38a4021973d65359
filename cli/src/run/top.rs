//! top: rates of services and backends out of two samples of their counters.

use std::{collections::BTreeMap, io::IsTerminal};

use mesh_api::rest::{BackendTraffic, TrafficView, paths};
use serde::{Deserialize, Serialize};

use crate::{
    args::{Output, traffic::Top},
    failure::Failure,
    render::{self, Paint, Table},
    session::Session,
};

/// Clears the screen and goes to its corner (ECMA-48 ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Rates of what happened between two samples.
#[derive(Debug, PartialEq, Serialize)]
struct Rates {
    /// Between the samples, by meshd's clock.
    seconds: f64,
    /// Those with most bytes first.
    services: Vec<ServiceRates>,
}

#[derive(Debug, PartialEq, Serialize)]
struct ServiceRates {
    service: String,
    #[serde(flatten)]
    rates: PerSecond,
    backends: Vec<BackendRates>,
}

#[derive(Debug, PartialEq, Serialize)]
struct BackendRates {
    /// Null: those that there was no room to count apart.
    backend: Option<String>,
    node: Option<String>,
    /// The network whose virtual address was asked; null for published ports.
    network: Option<String>,
    #[serde(flatten)]
    rates: PerSecond,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct PerSecond {
    flows: f64,
    packets: f64,
    bytes: f64,
    reply_packets: f64,
    reply_bytes: f64,
}

impl PerSecond {
    fn between(old: Option<&BackendTraffic>, new: &BackendTraffic, seconds: f64) -> Self {
        let rate = |field: fn(&BackendTraffic) -> u64| {
            let (old, new) = (old.map_or(0, field), field(new));
            // A counter that went back began anew in between.
            new.checked_sub(old).unwrap_or(new) as f64 / seconds
        };
        Self {
            flows: rate(|b| b.flows),
            packets: rate(|b| b.packets),
            bytes: rate(|b| b.bytes),
            reply_packets: rate(|b| b.reply_packets),
            reply_bytes: rate(|b| b.reply_bytes),
        }
    }

    fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.reply_packets += other.reply_packets;
        self.reply_bytes += other.reply_bytes;
    }

    fn all_bytes(&self) -> f64 {
        self.bytes + self.reply_bytes
    }

    fn cells(&self) -> Vec<String> {
        [self.flows, self.packets, self.bytes, self.reply_packets, self.reply_bytes]
            .map(human)
            .to_vec()
    }
}

/// Shows rates, once or again and again.
pub async fn run(session: &Session, args: &Top) -> Result<(), Failure> {
    let sample = async || -> Result<TrafficView, Failure> { Ok(TrafficView::deserialize(session.get(paths::TRAFFIC).await?)?) };
    let screen = session.output == Output::Table && !args.once && std::io::stdout().is_terminal();
    let mut before = sample().await?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(args.delay) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let after = sample().await?;
        let rates = Rates::between(&before, &after);
        match session.output {
            Output::Json if args.once => session.print(&render::json(&serde_json::to_value(&rates)?)?)?,
            Output::Json => session.print(&format!("{}\n", serde_json::to_string(&rates)?))?,
            Output::Table => session.print(&format!("{}{}", if screen { CLEAR } else { "" }, rates.text(session.paint)))?,
        }
        if args.once {
            return Ok(());
        }
        before = after;
    }
}

impl Rates {
    fn between(before: &TrafficView, after: &TrafficView) -> Self {
        // Two samples are never at one moment; a meshd that says so is not divided by.
        let seconds = (after.clock_ns.saturating_sub(before.clock_ns) as f64 / 1e9).max(1e-3);
        let key = |b: &BackendTraffic| (b.service.clone(), b.network.clone(), b.backend.clone(), b.node.clone());
        let old: BTreeMap<_, _> = before.backends.iter().map(|b| (key(b), b)).collect();
        let mut services: BTreeMap<&str, ServiceRates> = BTreeMap::new();
        for b in &after.backends {
            let rates = PerSecond::between(old.get(&key(b)).copied(), b, seconds);
            let service = services.entry(&b.service).or_insert_with(|| ServiceRates {
                service: b.service.clone(),
                rates: PerSecond::default(),
                backends: Vec::new(),
            });
            service.rates.add(&rates);
            service.backends.push(BackendRates {
                backend: b.backend.clone(),
                node: b.node.clone(),
                network: b.network.clone(),
                rates,
            });
        }
        let mut services: Vec<_> = services.into_values().collect();
        let most = |a: &PerSecond, b: &PerSecond| b.all_bytes().total_cmp(&a.all_bytes());
        // Stable: those alike stay in the order of their names.
        services.sort_by(|a, b| most(&a.rates, &b.rates));
        for service in &mut services {
            service.backends.sort_by(|a, b| most(&a.rates, &b.rates));
        }
        Self { seconds, services }
    }

    fn text(&self, paint: Paint) -> String {
        if self.services.is_empty() {
            return "no service's flow has come by this host yet\n".to_owned();
        }
        let mut table = Table::new(&[
            "SERVICE",
            "BACKEND",
            "NODE",
            "NETWORK",
            "FLOWS/S",
            "PKTS/S",
            "BYTES/S",
            "REPLY PKTS/S",
            "REPLY BYTES/S",
        ]);
        for service in &self.services {
            let row = [service.service.as_str(), "", "", ""].map(str::to_owned).to_vec();
            table.row([row, service.rates.cells()].concat());
            for b in &service.backends {
                let backend = b.backend.clone().unwrap_or_else(|| "(others)".to_owned());
                let text = |o: &Option<String>, none: &str| o.clone().unwrap_or_else(|| none.to_owned());
                let row = vec![String::new(), backend, text(&b.node, "-"), text(&b.network, "(published)")];
                table.row([row, b.rates.cells()].concat());
            }
        }
        table.render(paint)
    }
}

/// A number with three digits or so: 0, 7.5, 123, 1.5k, 12.0M.
fn human(x: f64) -> String {
    let (mut x, mut unit) = (x, 0);
    while x >= 999.95 && unit < 4 {
        x /= 1000.0;
        unit += 1;
    }
    let unit_name = ["", "k", "M", "G", "T"][unit];
    if unit == 0 && (x >= 99.95 || x == 0.0) {
        format!("{x:.0}")
    } else {
        format!("{x:.1}{unit_name}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(clock: f64, rows: &[(&str, Option<&str>, u64)]) -> TrafficView {
        let backends: Vec<_> = rows
            .iter()
            .map(|(service, backend, n)| {
                json!({"service": service, "service_id": null, "network": null, "backend": backend, "node": "h1", "flows": n, "packets": 10 * n,
                    "bytes": 1000 * n, "reply_packets": 20 * n, "reply_bytes": 2000 * n})
            })
            .collect();
        serde_json::from_value(
            json!({"time": "2026-01-31T12:00:00Z", "clock_ns": (clock * 1e9) as u64, "reasons": [], "backends": backends}),
        )
        .unwrap()
    }

    #[test]
    fn rates_are_differences_over_time() {
        let before = sample(10.0, &[("quiet", Some("q"), 5), ("web", Some("w1"), 100), ("web", Some("w2"), 100)]);
        let after = sample(
            12.0,
            &[
                ("quiet", Some("q"), 5),
                ("web", Some("w1"), 110),
                ("web", Some("w2"), 140),
                ("web", None, 2),
            ],
        );
        let rates = Rates::between(&before, &after);
        assert_eq!(rates.seconds, 2.0);
        let names: Vec<_> = rates.services.iter().map(|s| s.service.as_str()).collect();
        assert_eq!(names, ["web", "quiet"], "most bytes first");
        let web = &rates.services[0];
        assert_eq!((web.rates.flows, web.rates.reply_bytes), (26.0, 52_000.0));
        let backends: Vec<_> = web.backends.iter().map(|b| (b.backend.as_deref(), b.rates.flows)).collect();
        assert_eq!(backends, [(Some("w2"), 20.0), (Some("w1"), 5.0), (None, 1.0)]);
        assert_eq!(rates.services[1].rates, PerSecond::default());
    }

    #[test]
    fn a_counter_that_went_back_began_anew() {
        let rates = Rates::between(&sample(1.0, &[("web", Some("w1"), 100)]), &sample(2.0, &[("web", Some("w1"), 3)]));
        assert_eq!(rates.services[0].rates.flows, 3.0);
        let same = Rates::between(&sample(1.0, &[]), &sample(1.0, &[("web", Some("w1"), 0)]));
        assert!(same.services[0].rates.flows.is_finite());
    }

    #[test]
    fn numbers_for_people() {
        for (x, text) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (7.46, "7.5"),
            (99.94, "99.9"),
            (123.4, "123"),
            (999.96, "1.0k"),
            (1500.0, "1.5k"),
            (12e6, "12.0M"),
            (3.2e16, "32000.0T"),
        ] {
            assert_eq!(human(x), text);
        }
    }

    #[test]
    fn as_json() {
        let rates = Rates::between(&sample(0.0, &[]), &sample(1.0, &[("web", Some("w1"), 1)]));
        let value = serde_json::to_value(rates).unwrap();
        assert_eq!(value["services"][0]["bytes"], json!(1000.0));
        assert_eq!(value["services"][0]["backends"][0]["backend"], json!("w1"));
    }
}
