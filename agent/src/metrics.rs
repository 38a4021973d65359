//! What Prometheus reads: one page, made anew for each scrape, on `--metrics`.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>: base units, counters end in `_total`.
//! Started by [`crate::run`]; nothing but this page reads [`Passes`].

mod passes;
mod process;
mod text;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use axum::{Router, extract::State, response::IntoResponse, routing::get};
use mesh_api::rest::BackendTraffic;
use mesh_control::consensus::Leadership;
use mesh_core::objects::{Dataplane, EndpointState, Health, NodeState, Objects};
use mesh_dns::Dns;
use mesh_loader::Usage;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use passes::Passes;
use text::{Kind, Page};

use crate::{
    Exit,
    app::App,
    config::MetricsAt,
    reasons,
    reconcile::Applied,
    tcp,
    traffic::{self, Counted},
};

/// The type of the text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Connections at a time.
const SCRAPERS: usize = 32;

/// Where the page comes from.
pub struct Metrics {
    /// Status, ledger, counters.
    pub app: Arc<App>,
    /// The DNS.
    pub dns: Arc<Dns>,
    /// The reconcile loop.
    pub passes: Arc<Passes>,
    /// When meshd began.
    pub started: SystemTime,
}

/// Listens where the settings say. A port that is taken is fatal only where the operator named it.
pub async fn listen(at: Option<MetricsAt>) -> Result<Option<TcpListener>, Exit> {
    let Some(MetricsAt { addr, asked }) = at else { return Ok(None) };
    match TcpListener::bind(addr).await {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if asked => Err(Exit::new(format!("cannot serve metrics at {addr}: {e} (see --metrics)"))),
        Err(e) => {
            tracing::warn!(%addr, error = %e, "METRICS ARE NOT SERVED: name a free address with --metrics, or turn them off with --metrics off");
            Ok(None)
        }
    }
}

/// Serves until `stop`.
pub async fn serve(metrics: Metrics, listener: TcpListener, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(page))
        .fallback(async || (axum::http::StatusCode::NOT_FOUND, "metrics are at /metrics\n"))
        .with_state(Arc::new(metrics));
    tcp::serve(router, listener, SCRAPERS, stop).await;
}

async fn page(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([("content-type", CONTENT_TYPE)], metrics.page().await)
}

impl Metrics {
    async fn page(&self) -> String {
        let mut page = Page::default();
        page.family("meshd_build_info", Kind::Gauge, "What is running.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], true);
        let counted = traffic::read(&self.app.requests).await;
        page.family(
            "meshd_dataplane_readable",
            Kind::Gauge,
            "Whether the data plane's counters could be read for this page.",
        )
        .sample(&[], counted.is_ok());
        let view = self.app.ledger.view();
        match &counted {
            Ok(counted) => {
                dataplane(&mut page, counted);
                services(&mut page, &counted.view(&view.objects).backends);
            }
            Err(e) => tracing::warn!(error = %e.message, "metrics without the data plane's counters"),
        }
        applied(&mut page, &self.app.applied.borrow(), view.head.revision, self.app.degraded.len());
        self.passes.write(&mut page);
        objects(&mut page, &view.objects);
        dns(&mut page, self.dns.stats());
        if let Some(valid) = self.app.membership.client().await.and_then(|c| c.valid()) {
            page.family(
                "meshd_certificate_expiry_timestamp_seconds",
                Kind::Gauge,
                "Until when this node's certificate is valid, in seconds since 1970.",
            )
            .sample(&[], valid.end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs());
        }
        if let Some((leadership, revision)) = self.app.membership.leadership().await {
            raft(&mut page, &leadership, revision);
        }
        process::write(&mut page, self.started);
        page.finish()
    }
}

fn dataplane(page: &mut Page, counted: &Counted) {
    page.family(
        "meshd_flow_events_lost_total",
        Kind::Counter,
        "Events for meshctl flows that there was no room for; counters have what they would have told.",
    )
    .sample(&[], counted.events_lost);
    for (name, help, value) in [
        (
            "meshd_map_rows",
            "Rows in a table of the kernel.",
            (|u| u.rows) as fn(&Usage) -> u64,
        ),
        ("meshd_map_capacity", "Rows that a table of the kernel has room for.", |u| {
            u.capacity
        }),
    ] {
        let mut family = page.family(name, Kind::Gauge, help);
        for map in &counted.maps {
            family.sample(&[("map", map.map)], value(map));
        }
    }
    let (drops, others): (Vec<_>, Vec<_>) = counted.reasons.iter().partition(|(name, _)| reasons::is_drop(name));
    for (family, help, list) in [
        (
            "meshd_packets_total",
            "Packets that the kernel programs saw and did not drop, by what became of them.",
            others,
        ),
        (
            "meshd_dropped_packets_total",
            "Packets that the kernel programs dropped, by reason.",
            drops,
        ),
    ] {
        let mut family = page.family(family, Kind::Counter, help);
        for &(name, packets) in list {
            family.sample(&[("reason", name)], packets);
        }
    }
}

/// Traffic by backend. Backends that share all names (one host name in two networks) are one series:
/// a series that is there twice would spoil the page.
fn services(page: &mut Page, backends: &[BackendTraffic]) {
    let mut sums: BTreeMap<[&str; 4], [u64; 5]> = BTreeMap::new();
    for b in backends {
        let names = [Some(&b.service), b.network.as_ref(), b.backend.as_ref(), b.node.as_ref()];
        let sum = sums.entry(names.map(|n| n.map_or("", String::as_str))).or_default();
        for (sum, value) in sum.iter_mut().zip([b.flows, b.packets, b.reply_packets, b.bytes, b.reply_bytes]) {
            *sum = sum.saturating_add(value);
        }
    }
    for (name, help, columns) in [
        (
            "meshd_service_flows_total",
            "New flows that this node gave to a backend; without a network: of published ports.",
            &[("", 0)][..],
        ),
        (
            "meshd_service_packets_total",
            "Packets of services' flows that this node balanced, to the backend and from it.",
            &[("to_backend", 1), ("from_backend", 2)],
        ),
        (
            "meshd_service_bytes_total",
            "Bytes of services' flows that this node balanced, to the backend and from it.",
            &[("to_backend", 3), ("from_backend", 4)],
        ),
    ] {
        let mut family = page.family(name, Kind::Counter, help);
        for ([service, network, backend, node], values) in &sums {
            for (direction, column) in columns {
                let labels = [
                    ("service", *service),
                    ("network", *network),
                    ("backend", *backend),
                    ("node", *node),
                    ("direction", *direction),
                ];
                let labels = if direction.is_empty() { &labels[..4] } else { &labels };
                family.sample(labels, values[*column]);
            }
        }
    }
}

fn applied(page: &mut Page, applied: &Applied, ledger: u64, degraded: usize) {
    page.family(
        "meshd_applied_revision",
        Kind::Gauge,
        "Revision of the cluster's state that the kernel was brought to.",
    )
    .sample(&[], applied.revision);
    page.family(
        "meshd_ledger_revision",
        Kind::Gauge,
        "Revision of the cluster's state that this host knows.",
    )
    .sample(&[], ledger);
    page.family(
        "meshd_reconcile_errors",
        Kind::Gauge,
        "What went wrong in the last pass and is tried again.",
    )
    .sample(&[], applied.errors.len());
    page.family("meshd_hooks", Kind::Gauge, "Programs that are to be attached to devices.")
        .sample(&[], applied.hooks.len());
    page.family(
        "meshd_missing_features",
        Kind::Gauge,
        "What this kernel lacks; meshctl doctor names it.",
    )
    .sample(&[], degraded);
}

fn objects(page: &mut Page, all: &Objects) {
    let mut by_state = BTreeMap::from([("ready", 0u64), ("down", 0), ("unknown", 0)]);
    for node in all.nodes.values() {
        let state = match node.state {
            NodeState::Ready => "ready",
            NodeState::Down => "down",
            NodeState::Unknown => "unknown",
        };
        *by_state.entry(state).or_default() += 1;
    }
    let mut family = page.family("meshd_nodes", Kind::Gauge, "Nodes of the cluster, by whether their meshd is heard.");
    for (state, count) in by_state {
        family.sample(&[("state", state)], count);
    }
    let lost = all.nodes.values().filter(|n| n.dataplane == Dataplane::Unreachable).count();
    page.family(
        "meshd_nodes_unreachable",
        Kind::Gauge,
        "Nodes whose data plane does not answer: no flow is sent there.",
    )
    .sample(&[], lost);
    page.family("meshd_networks", Kind::Gauge, "Networks of the cluster.")
        .sample(&[], all.networks.len());
    page.family("meshd_services", Kind::Gauge, "Services of the cluster.")
        .sample(&[], all.services.len());
    let mut by_state = BTreeMap::from([("starting", 0u64), ("ready", 0), ("draining", 0), ("unhealthy", 0)]);
    for endpoint in all.endpoints.values() {
        let state = match endpoint.state {
            EndpointState::Starting => "starting",
            EndpointState::Ready if endpoint.stopping.is_some() => "draining",
            EndpointState::Ready if endpoint.health == Health::Unwell => "unhealthy",
            EndpointState::Ready => "ready",
            EndpointState::Draining => "draining",
        };
        *by_state.entry(state).or_default() += 1;
    }
    let mut family = page.family("meshd_endpoints", Kind::Gauge, "Endpoints of the cluster, by state.");
    for (state, count) in by_state {
        family.sample(&[("state", state)], count);
    }
}

fn dns(page: &mut Page, stats: mesh_dns::Stats) {
    let mut family = page.family(
        "meshd_dns_queries_total",
        Kind::Counter,
        "Queries to the service DNS, by how they ended.",
    );
    for (result, count) in [
        ("answered", stats.answered),
        ("no_data", stats.no_data),
        ("name_error", stats.name_errors),
        ("forwarded", stats.forwarded),
        ("forward_failed", stats.forward_failed),
        ("forward_busy", stats.forward_busy),
    ] {
        family.sample(&[("result", result)], count);
    }
    for (name, help, count) in [
        (
            "meshd_dns_truncated_total",
            "UDP answers that were cut to the asker's size.",
            stats.truncated,
        ),
        (
            "meshd_dns_malformed_total",
            "Messages to the service DNS that were no query.",
            stats.malformed,
        ),
        (
            "meshd_dns_connections_refused_total",
            "TCP connections to the service DNS that were too many.",
            stats.connections_refused,
        ),
    ] {
        page.family(name, Kind::Counter, help).sample(&[], count);
    }
}

fn raft(page: &mut Page, leadership: &Leadership, revision: u64) {
    page.family("meshd_raft_term", Kind::Gauge, "Raft term that this manager is in.")
        .sample(&[], leadership.term);
    page.family("meshd_raft_is_leader", Kind::Gauge, "Whether this manager leads.")
        .sample(&[], leadership.is_leader);
    page.family("meshd_raft_has_leader", Kind::Gauge, "Whether this manager knows a leader.")
        .sample(&[], leadership.leader.is_some());
    page.family("meshd_raft_applied_index", Kind::Gauge, "Last log entry that this manager applied.")
        .sample(&[], revision);
    page.family("meshd_raft_voters", Kind::Gauge, "Managers that vote.")
        .sample(&[], leadership.voters.len());
    page.family("meshd_raft_learners", Kind::Gauge, "Managers that are being brought up to date.")
        .sample(&[], leadership.learners.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_fatal_only_where_it_was_asked_for() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = |asked| MetricsAt {
            addr: taken.local_addr().unwrap(),
            asked,
        };
        assert!(matches!(listen(Some(at(false))).await, Ok(None)));
        assert!(listen(Some(at(true))).await.is_err());
        assert!(matches!(listen(None).await, Ok(None)));
    }

    #[test]
    fn a_series_is_there_once() {
        let one = |backend: Option<&str>, flows| BackendTraffic {
            service: "web".to_owned(),
            service_id: None,
            network: None,
            backend: backend.map(str::to_owned),
            node: Some("h1".to_owned()),
            flows,
            packets: 2 * flows,
            bytes: 3 * flows,
            reply_packets: 4 * flows,
            reply_bytes: 5 * flows,
        };
        let mut page = Page::default();
        services(&mut page, &[one(Some("w1"), 1), one(None, 7), one(Some("w1"), 10)]);
        let text = page.finish();
        for line in [
            "meshd_service_flows_total{service=\"web\",network=\"\",backend=\"w1\",node=\"h1\"} 11\n",
            "meshd_service_flows_total{service=\"web\",network=\"\",backend=\"\",node=\"h1\"} 7\n",
            "meshd_service_packets_total{service=\"web\",network=\"\",backend=\"w1\",node=\"h1\",direction=\"from_backend\"} 44\n",
            "meshd_service_bytes_total{service=\"web\",network=\"\",backend=\"w1\",node=\"h1\",direction=\"to_backend\"} 33\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        let mut series: Vec<_> = text.lines().filter_map(|l| l.rsplit_once(' ')).map(|(s, _)| s).collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all, "{text}");
    }
}
