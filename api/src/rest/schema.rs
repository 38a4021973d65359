//! What OpenAPI says of request bodies whose types live in mesh-core, which knows no OpenAPI.
//!
//! Never constructed outside of tests, which hold them to the types that they describe.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Describes [`mesh_core::spec::NetworkSpec`].
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "kafka", "subnets": ["172.30.0.0/16"], "attachable": true}))]
pub struct NetworkSpec {
    /// Its name: a DNS label.
    pub name: String,
    /// overlay, or empty for that.
    #[schema(default = "overlay")]
    pub driver: String,
    /// Ranges; without one, the cluster's pools give it.
    pub subnets: Vec<String>,
    /// Gateways; a subnet without one gets its first address.
    pub gateways: Vec<String>,
    /// Parts of subnets that addresses are handed out from.
    pub ip_ranges: Vec<String>,
    /// Addresses never handed out, by name.
    pub aux_addresses: BTreeMap<String, String>,
    /// IPv6 too: a range of the cluster's own, unless `subnets` has one.
    pub ipv6: bool,
    /// No way out.
    pub internal: bool,
    /// Containers outside a service may attach.
    pub attachable: bool,
    /// Driver options: `mtu`.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Describes [`mesh_core::spec::ServiceSpec`].
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "web", "networks": ["shop"], "ports": [{"published": 8888, "target": 80, "protocol": "tcp", "mode": "ingress"}]}))]
pub struct ServiceSpec {
    /// Its name: a DNS label.
    pub name: String,
    /// Names or ids of its networks.
    pub networks: Vec<String>,
    /// Its published ports; published 0 asks for one of 30000-32767.
    pub ports: Vec<super::PortView>,
    /// vip or dnsrr.
    #[schema(default = "vip")]
    pub endpoint_mode: String,
    /// rr, random, maglev or source-hash.
    #[schema(default = "rr")]
    pub algorithm: String,
    /// Seconds that a draining endpoint's flows may last.
    #[schema(default = 10)]
    pub drain_secs: u32,
    /// Seconds for which a client comes back to its endpoint; 0: it does not; at most a day.
    #[schema(default = 0)]
    pub affinity_secs: u32,
    /// Clients that its published ports let in, or do not, by the longest prefix; empty: everybody.
    pub source_ranges: Vec<super::SourceRangeView>,
    /// The way of replies: tunnel, by the node that was asked, or direct, straight to the client.
    #[schema(default = "tunnel")]
    pub lb_return: String,
    /// Endpoints on its networks that have all these labels serve it too.
    pub selector: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Describes [`mesh_core::Refusal`], the body of every answer that is an error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"kind": "not_found", "message": "no network named \"kafka\": see meshctl network ls"}))]
pub struct Refusal {
    /// malformed (400), forbidden (403), not_found (404), conflict (409), other (422) or unavailable (503).
    pub kind: String,
    /// What was wrong, with which value, and what would be right. One line.
    pub message: String,
}
