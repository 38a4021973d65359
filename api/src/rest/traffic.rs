//! What the data plane of a host counts: packets by what became of them, and services' traffic.

use jiff::Timestamp;
use mesh_core::Id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a host's data plane has counted since its maps were made; counters go on through restarts of
/// meshd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrafficView {
    /// When this was read.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// The same by the host's monotonic clock, in nanoseconds: rates are made from this.
    pub clock_ns: u64,
    /// Packets by what became of them.
    pub reasons: Vec<ReasonCount>,
    /// Events that there was no room for: the stream of flows did not show them.
    #[serde(default)]
    pub events_lost: u64,
    /// Services' traffic that this host balanced, by backend.
    #[serde(default)]
    pub backends: Vec<BackendTraffic>,
    /// The kernel's tables.
    #[serde(default)]
    pub maps: Vec<MapUse>,
}

/// What this host sent to one backend of a service, and what came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendTraffic {
    /// Name of the service; `#NUMBER` when it is gone, `*` for all that there was no room to count
    /// apart.
    pub service: String,
    /// Its id; null when it is gone.
    #[schema(value_type = Option<String>)]
    pub service_id: Option<Id>,
    /// The network whose virtual address was asked; null for published ports.
    pub network: Option<String>,
    /// Name of the backend; `#NUMBER` when it is gone, null for all that there was no room to count
    /// apart.
    pub backend: Option<String>,
    /// Host name of its node.
    pub node: Option<String>,
    /// New flows.
    pub flows: u64,
    /// Packets to it.
    pub packets: u64,
    /// Bytes to it.
    pub bytes: u64,
    /// Packets of its answers.
    pub reply_packets: u64,
    /// Bytes of its answers.
    pub reply_bytes: u64,
}

/// How full a table of the kernel is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MapUse {
    /// Its name.
    pub map: String,
    /// Rows in it.
    pub rows: u64,
    /// Rows that it has room for.
    pub capacity: u64,
}

/// Packets of which the same became.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReasonCount {
    /// What became of them; a stable word.
    pub reason: String,
    /// They were dropped.
    pub dropped: bool,
    /// How many.
    pub packets: u64,
    /// What the reason means, for people.
    pub meaning: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shape_is_kept() {
        let view = json!({"time": "2026-01-31T12:00:00Z", "clock_ns": 5,
            "reasons": [{"reason": "drop_spoofed_ip", "dropped": true, "packets": 3, "meaning": "m"}], "events_lost": 2,
            "backends": [{"service": "web", "service_id": "0000000000a1", "network": null, "backend": "w1", "node": "h1", "flows": 1, "packets": 2,
                "bytes": 3, "reply_packets": 4, "reply_bytes": 5}],
            "maps": [{"map": "FLOWS", "rows": 1, "capacity": 2}]});
        let read: TrafficView = serde_json::from_value(view.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), view);
    }
}
