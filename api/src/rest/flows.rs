//! The stream of flows: new flows as the balancer places them, and packets as they are dropped.

use jiff::Timestamp;
use mesh_core::Id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Query of [`super::paths::FLOWS`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowsQuery {
    /// Dropped packets instead of new flows.
    pub drops: bool,
    /// Only what concerns this service, by name or id.
    pub service: Option<String>,
}

/// One line of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FlowLine {
    /// A backend was chosen for a new flow.
    Flow(FlowEvent),
    /// A packet was dropped.
    Drop(FlowEvent),
    /// The reader was too slow for this many events, which are not shown; counters have them.
    Lost {
        /// How many.
        events: u64,
    },
}

/// What a program saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FlowEvent {
    /// When.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// What became of the packet; a stable word.
    pub reason: String,
    /// What the reason means, for people.
    pub meaning: String,
    /// tcp, udp, icmp, icmpv6, a number, or `-` for what is not IP and what was dropped for its source
    /// before its protocol was looked at.
    pub protocol: String,
    /// Source of the packet: `ADDRESS:PORT`, or the address where there are no ports; null when it
    /// is not IP.
    pub source: Option<String>,
    /// Destination, likewise: of a new flow the published port or the virtual address.
    pub destination: Option<String>,
    /// Name of the service.
    pub service: Option<String>,
    /// The chosen backend.
    pub backend: Option<FlowBackend>,
    /// Bytes of the packet.
    pub bytes: u32,
    /// The device at which it was seen.
    pub device: Option<String>,
}

/// A backend by its names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FlowBackend {
    /// Id of the endpoint.
    #[schema(value_type = String)]
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Host name of its node.
    pub node: String,
    /// Its address.
    pub ip: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_told_by_their_kind() {
        let line = json!({"kind": "drop", "time": "2026-01-31T12:00:00Z", "reason": "drop_spoofed_ip", "meaning": "m", "protocol": "udp",
            "source": "10.0.0.1:1", "destination": "10.0.0.2:2", "service": null, "backend": null, "bytes": 60, "device": "mv-x"});
        let read: FlowLine = serde_json::from_value(line.clone()).unwrap();
        assert!(matches!(&read, FlowLine::Drop(e) if e.bytes == 60));
        assert_eq!(serde_json::to_value(read).unwrap(), line);
        assert_eq!(
            serde_json::to_value(FlowLine::Lost { events: 3 }).unwrap(),
            json!({"kind": "lost", "events": 3})
        );
    }
}
