//! How much an endpoint may receive and send, as CNI says it (the `bandwidth` capability of its CONVENTIONS.md).

use serde::{Deserialize, Serialize};

use crate::Refusal;

/// Limits of an endpoint's traffic. Fixed for its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Of what the container receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// Of what it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

/// One direction's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second.
    pub rate: u64,
    /// Bits that may pass at once after a pause.
    pub burst: u64,
}

/// Bits per second of the least rate: the kernel counts whole bytes.
pub const LEAST_RATE: u64 = 8;
/// What passes in this part of a second is the burst of a rate that is given alone: 50 ms.
const BURST_OF: u64 = 20;
/// Its least: a few packets as the kernel hands them on, put together of several (128 KiB).
const LEAST_BURST: u64 = 128 * 1024 * 8;

impl Rate {
    /// The most bits of a burst: the kernel has 32 bits for its bytes.
    pub const MOST_BURST: u64 = 8 * u32::MAX as u64 + 7;

    /// That many bits per second, with the burst that fits them.
    pub fn of(rate: u64) -> Self {
        let burst = (rate / BURST_OF).clamp(LEAST_BURST, Self::MOST_BURST);
        Self { rate, burst }
    }

    /// Refuses what cannot be carried out; `what` is the direction as its user knows it.
    ///
    /// # Errors
    /// Malformed, with the value and what would be right.
    pub fn check(&self, what: &str) -> Result<(), Refusal> {
        let Self { rate, burst } = *self;
        if rate < LEAST_RATE {
            return Err(Refusal::malformed(format!(
                "bandwidth: {what} rate {rate} is too low: give {LEAST_RATE} bits per second at least"
            )));
        }
        if burst == 0 || burst > Self::MOST_BURST {
            return Err(Refusal::malformed(format!(
                "bandwidth: {what} burst {burst} is none: give 1 to {} bits, such as {}",
                Self::MOST_BURST,
                Self::of(rate).burst
            )));
        }
        Ok(())
    }
}

impl Bandwidth {
    /// Refuses what cannot be carried out.
    ///
    /// # Errors
    /// As [`Rate::check`].
    pub fn check(&self) -> Result<(), Refusal> {
        let both = [("ingress", &self.ingress), ("egress", &self.egress)];
        both.into_iter()
            .filter_map(|(what, rate)| Some((what, rate.as_ref()?)))
            .try_for_each(|(what, rate)| rate.check(what))
    }

    /// It limits something.
    pub fn is_limit(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_cannot_carry_out_is_refused() {
        let rate = |rate, burst| Rate { rate, burst };
        for good in [
            rate(8, 1),
            rate(u64::MAX, Rate::MOST_BURST),
            Rate::of(8),
            Rate::of(20_000_000),
            Rate::of(u64::MAX),
        ] {
            assert_eq!(good.check("ingress"), Ok(()), "{good:?}");
        }
        for (bad, value) in [
            (rate(0, 1), "rate 0"),
            (rate(7, 1), "rate 7"),
            (rate(8, 0), "burst 0"),
            (rate(8, Rate::MOST_BURST + 1), "burst 34359738368"),
        ] {
            let both = Bandwidth {
                ingress: Some(Rate::of(8)),
                egress: Some(bad),
            };
            let e = both.check().unwrap_err();
            assert!(e.message.contains(value) && e.message.contains("egress"), "{bad:?}: {e}");
        }
        assert_eq!(Bandwidth::default().check(), Ok(()));
    }

    #[test]
    fn a_rate_alone_has_a_burst_that_fits() {
        assert_eq!(Rate::of(1_000_000_000).burst, 50_000_000);
        assert_eq!(Rate::of(1_000).burst, LEAST_BURST);
    }
}
