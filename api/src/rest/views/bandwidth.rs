//! How much an endpoint may receive and send, as users say it and see it.

use mesh_core::objects::{Bandwidth, Rate};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Limits of an endpoint's traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BandwidthView {
    /// Of what the container receives; left out: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RateView>,
    /// Of what it sends; left out: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<RateView>,
}

/// One direction's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateView {
    /// Bits per second, 8 at least.
    #[schema(example = 20_000_000)]
    pub rate: u64,
    /// Bits that may pass at once after a pause; left out: what passes in 50 ms, 1048576 at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1_048_576)]
    pub burst: Option<u64>,
}

impl BandwidthView {
    /// Limits with these rates in bits per second, and the bursts that fit them; `None` when neither is given.
    pub fn of_rates(ingress: Option<u64>, egress: Option<u64>) -> Option<Self> {
        let rate = |rate| RateView { rate, burst: None };
        let all = Self {
            ingress: ingress.map(rate),
            egress: egress.map(rate),
        };
        (all != Self::default()).then_some(all)
    }
}

impl From<Bandwidth> for BandwidthView {
    fn from(b: Bandwidth) -> Self {
        let view = |r: Rate| RateView {
            rate: r.rate,
            burst: Some(r.burst),
        };
        Self {
            ingress: b.ingress.map(view),
            egress: b.egress.map(view),
        }
    }
}

impl From<BandwidthView> for Bandwidth {
    fn from(view: BandwidthView) -> Self {
        let rate = |r: RateView| r.burst.map_or(Rate::of(r.rate), |burst| Rate { rate: r.rate, burst });
        Self {
            ingress: view.ingress.map(rate),
            egress: view.egress.map(rate),
        }
    }
}
