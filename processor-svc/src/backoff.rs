//! Computes the pause before the next try of a charge.
//!
//! * The pause doubles up to a maximum.
//! * The spread comes from the payment's id, so the function is pure.

use std::time::Duration;

use uuid::Uuid;

/// A pause that doubles from `min` to `max`, spread by a quarter to both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The pause after `tries` tries.
    pub fn after(&self, tries: u32, payment_id: Uuid) -> Duration {
        let doubled = self.min.saturating_mul(1u32.checked_shl(tries).unwrap_or(u32::MAX)).min(self.max);
        // The last bytes of a UUIDv7 are random.
        let spread = (payment_id.as_u128() as u8).wrapping_add((tries as u8).wrapping_mul(97));
        doubled.mul_f64(0.75 + f64::from(spread) / 512.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_maximum_and_spreads() {
        let backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) };
        for (tries, middle) in
            [(0, 1.0), (1, 2.0), (3, 8.0), (6, 60.0), (31, 60.0), (32, 60.0), (1_000, 60.0)]
        {
            let waits: Vec<f64> =
                (0..1_000u128).map(|id| backoff.after(tries, Uuid::from_u128(id)).as_secs_f64()).collect();
            let least = waits.iter().copied().fold(f64::MAX, f64::min);
            let max = waits.iter().copied().fold(0.0, f64::max);
            assert!(least >= middle * 0.749 && least < middle * 0.80, "{tries}: {least}");
            assert!(max <= middle * 1.25 && max > middle * 1.20, "{tries}: {max}");
        }
    }
}
