//! flows: events as they come, and at the end what the counters say.

use std::{pin::pin, time::Duration};

use mesh_api::rest::{FlowEvent, FlowLine, TrafficView, paths};
use mesh_core::Refusal;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use crate::{
    args::{Output, traffic::Flows},
    failure::Failure,
    render::{self, Table},
    session::{Session, reader_gone},
};

/// Reasons that are new flows: shown one by one, and those that are only counted, for which a socket was
/// given its backend.
const FLOWS: [&str; 3] = ["new_flow", "socket_connected", "socket_sent"];

/// What the counters say of the time in which events were shown.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename = "summary")]
struct Summary {
    /// By meshd's clock.
    seconds: f64,
    /// Events that were printed.
    shown: u64,
    /// Events that there was no room for on the way here.
    lost: u64,
    /// Exact numbers: packets by reason (with `--service`, only the service's new flows).
    counted: Vec<Counted>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Counted {
    reason: String,
    packets: u64,
    meaning: String,
}

/// Follows flows or drops.
pub async fn run(session: &Session, args: &Flows) -> Result<(), Failure> {
    if args.totals {
        return totals(session, args.drops).await;
    }
    let mut query = vec![];
    if args.drops {
        query.push("drops=true".to_owned());
    }
    if let Some(service) = &args.service {
        query.push(format!("service={}", paths::escape(service)));
    }
    let path = format!("{}?{}", paths::FLOWS, query.join("&"));
    // Read before the programs tell, so that whatever is shown is counted too.
    let before = TrafficView::deserialize(session.get(paths::TRAFFIC).await?)?;
    let mut lines = session.lines(path.trim_end_matches('?')).await?;
    let end = args.time.map(|s| Instant::now() + Duration::from_secs(s.into()));
    let mut head = Some(head(args.drops));
    let (mut shown, mut missed) = (0, 0);
    let mut gone = pin!(reader_gone());
    while args.count.is_none_or(|n| shown < n) {
        let line = tokio::select! {
            line = lines.next() => line?,
            () = &mut gone => return Err(Failure::ReaderGone),
            _ = tokio::signal::ctrl_c() => break,
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
        };
        let Some(line) = line else {
            return Err(Refusal::other("meshd ended the stream of flows: is it stopping? (systemctl status meshd)").into());
        };
        let read: FlowLine = serde_json::from_str(&line)?;
        match (&read, session.output) {
            (FlowLine::Lost { events }, _) => missed += events,
            (_, Output::Json) => {}
            (FlowLine::Flow(e) | FlowLine::Drop(e), Output::Table) => {
                let head = head.take().map(|h| format!("{}\n", session.paint.bold(&h))).unwrap_or_default();
                session.print(&format!("{head}{}\n", row(e, args.drops)))?;
                shown += 1;
                continue;
            }
        }
        if session.output == Output::Json {
            session.print(&format!("{line}\n"))?;
            shown += u64::from(!matches!(read, FlowLine::Lost { .. }));
        }
    }
    let after = TrafficView::deserialize(session.get(paths::TRAFFIC).await?)?;
    let summary = summary(args, &before, &after, shown, missed);
    match session.output {
        Output::Json => session.print(&format!("{}\n", serde_json::to_string(&summary)?)),
        Output::Table => session.print(&summary.text(session)),
    }
}

/// The counters, once.
async fn totals(session: &Session, drops: bool) -> Result<(), Failure> {
    let value = session.get(paths::TRAFFIC).await?;
    let traffic = TrafficView::deserialize(&value)?;
    let reasons = || traffic.reasons.iter().filter(|r| r.dropped || !drops);
    if session.output == Output::Json {
        let list: Vec<_> = reasons().collect();
        return session.print(&render::json(&serde_json::to_value(list)?)?);
    }
    let mut table = Table::new(&["REASON", "PACKETS", "MEANING"]);
    for r in reasons() {
        table.row(vec![r.reason.clone(), r.packets.to_string(), r.meaning.clone()]);
    }
    session.print(&table.render(session.paint))
}

const FLOW_HEAD: [&str; 7] = ["TIME", "PROTO", "CLIENT", "TO", "SERVICE", "BACKEND", "NODE"];
const FLOW_WIDTHS: [usize; 7] = [12, 6, 24, 24, 16, 16, 0];
const DROP_HEAD: [&str; 7] = ["TIME", "REASON", "PROTO", "FROM", "TO", "DEVICE", "BYTES"];
const DROP_WIDTHS: [usize; 7] = [12, 22, 6, 24, 24, 15, 0];

fn head(drops: bool) -> String {
    let (names, widths) = if drops {
        (DROP_HEAD, DROP_WIDTHS)
    } else {
        (FLOW_HEAD, FLOW_WIDTHS)
    };
    columns(names.map(str::to_owned), widths)
}

/// A line of the stream. Columns are as wide as they commonly need: what comes later is not known.
fn row(e: &FlowEvent, drops: bool) -> String {
    let text = |o: &Option<String>| o.clone().unwrap_or_else(|| "-".to_owned());
    let time = e.time.strftime("%H:%M:%S%.3f").to_string();
    let (from, to) = (text(&e.source), text(&e.destination));
    if drops {
        let cells = [
            time,
            e.reason.clone(),
            e.protocol.clone(),
            from,
            to,
            text(&e.device),
            e.bytes.to_string(),
        ];
        return columns(cells, DROP_WIDTHS);
    }
    let (backend, node) = match &e.backend {
        Some(b) => (b.name.clone(), b.node.clone()),
        None => ("-".to_owned(), "-".to_owned()),
    };
    columns([time, e.protocol.clone(), from, to, text(&e.service), backend, node], FLOW_WIDTHS)
}

fn columns(cells: [String; 7], widths: [usize; 7]) -> String {
    let cells = cells.iter().zip(widths).map(|(c, w)| format!("{:w$}", render::printable(c)));
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn summary(args: &Flows, before: &TrafficView, after: &TrafficView, shown: u64, missed: u64) -> Summary {
    let old = |reason: &str| before.reasons.iter().find(|r| r.reason == reason).map_or(0, |r| r.packets);
    let mut counted = Vec::new();
    for r in &after.reasons {
        let wanted = if args.drops {
            r.dropped
        } else {
            FLOWS.contains(&r.reason.as_str())
        };
        let packets = match &args.service {
            // Counters of reasons are the host's; only new flows are counted by service too.
            Some(service) if r.reason == FLOWS[0] && !args.drops => flows_of(service, after).saturating_sub(flows_of(service, before)),
            Some(_) => continue,
            None => r.packets.saturating_sub(old(&r.reason)),
        };
        if wanted && (packets > 0 || r.reason == FLOWS[0]) {
            counted.push(Counted {
                reason: r.reason.clone(),
                packets,
                meaning: r.meaning.clone(),
            });
        }
    }
    Summary {
        seconds: after.clock_ns.saturating_sub(before.clock_ns) as f64 / 1e9,
        shown,
        lost: missed + after.events_lost.saturating_sub(before.events_lost),
        counted,
    }
}

fn flows_of(service: &str, traffic: &TrafficView) -> u64 {
    let is = |id: Option<mesh_core::Id>, name: &str| name.eq_ignore_ascii_case(service) || id.is_some_and(|id| id.to_string() == service);
    let rows = traffic.backends.iter().filter(|b| is(b.service_id, &b.service));
    rows.map(|b| b.flows).sum()
}

impl Summary {
    fn text(&self, session: &Session) -> String {
        let mut text = format!(
            "\n{:.1} s: {} shown, {} lost on the way here; the counters say:\n",
            self.seconds, self.shown, self.lost
        );
        if self.counted.is_empty() {
            text.push_str("nothing\n");
            return text;
        }
        let mut table = Table::new(&["REASON", "PACKETS", "MEANING"]);
        for c in &self.counted {
            table.row(vec![c.reason.clone(), c.packets.to_string(), c.meaning.clone()]);
        }
        text.push_str(&table.render(session.paint));
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn traffic(seconds: u64, new: u64, spoofed: u64, web: u64) -> TrafficView {
        serde_json::from_value(json!({"time": "2026-01-31T12:00:00Z", "clock_ns": seconds * 1_000_000_000, "events_lost": spoofed / 10,
            "reasons": [{"reason": "pass", "dropped": false, "packets": 5, "meaning": "p"},
                {"reason": "new_flow", "dropped": false, "packets": new, "meaning": "n"},
                {"reason": "drop_spoofed_ip", "dropped": true, "packets": spoofed, "meaning": "s"},
                {"reason": "drop_failed", "dropped": true, "packets": 3, "meaning": "f"}],
            "backends": [{"service": "web", "service_id": null, "network": null, "backend": "w1", "node": "h1", "flows": web, "packets": 0, "bytes": 0,
                "reply_packets": 0, "reply_bytes": 0}]}))
        .unwrap()
    }

    fn args(drops: bool, service: Option<&str>) -> Flows {
        Flows {
            drops,
            service: service.map(str::to_owned),
            time: None,
            count: None,
            totals: false,
        }
    }

    #[test]
    fn the_summary_is_what_was_counted_meanwhile() {
        let (before, after) = (traffic(10, 100, 50, 7), traffic(12, 105, 90, 9));
        let drops = summary(&args(true, None), &before, &after, 30, 2);
        assert_eq!((drops.seconds, drops.shown, drops.lost), (2.0, 30, 2 + 4));
        assert_eq!(drops.counted.len(), 1, "only reasons that occurred");
        assert_eq!(
            (drops.counted[0].reason.as_str(), drops.counted[0].packets),
            ("drop_spoofed_ip", 40)
        );
        let flows = summary(&args(false, None), &before, &after, 5, 0);
        assert_eq!((flows.counted.len(), flows.counted[0].packets), (1, 5));
        let web = summary(&args(false, Some("web")), &before, &after, 2, 0);
        assert_eq!((web.counted.len(), web.counted[0].packets), (1, 2));
    }

    #[test]
    fn lines_stand_under_their_heads() {
        let event: FlowEvent = serde_json::from_value(
            json!({"time": "2026-01-31T12:00:00.25Z", "reason": "new_flow", "meaning": "m", "protocol": "tcp",
            "source": "192.168.77.200:4000", "destination": "192.168.77.11:8888", "service": "web",
            "backend": {"id": "0000000000a1", "name": "w1", "node": "h2", "ip": "172.30.0.3"}, "bytes": 60, "device": "eth0"}),
        )
        .unwrap();
        let (head, line) = (head(false), row(&event, false));
        for (title, cell) in [
            ("CLIENT", "192.168.77.200:4000"),
            ("SERVICE", "web"),
            ("BACKEND", "w1"),
            ("NODE", "h2"),
        ] {
            assert_eq!(head.find(title), line.find(cell), "{head}\n{line}");
        }
        assert!(line.starts_with("12:00:00.250  tcp "), "{line}");
        let drop = row(&event, true);
        assert_eq!(super::head(true).find("DEVICE"), drop.find("eth0"), "{drop}");
    }
}
