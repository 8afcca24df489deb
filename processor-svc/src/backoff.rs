//! How long to wait before the next try. Pure: the spread comes from the payment's id, not from chance.

use std::time::Duration;

use uuid::Uuid;

/// Doubles from `first` to at most `most`, spread by a quarter to both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
}

impl Backoff {
    /// The wait after `tries` tries (0 = after none).
    pub fn after(&self, tries: u32, payment_id: Uuid) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(tries).unwrap_or(u32::MAX)).min(self.most);
        // The last bytes of a UUIDv7 are random.
        let spread = (payment_id.as_u128() as u8).wrapping_add((tries as u8).wrapping_mul(97));
        doubled.mul_f64(0.75 + f64::from(spread) / 512.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_most_and_spreads() {
        let backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) };
        for (tries, middle) in
            [(0, 1.0), (1, 2.0), (3, 8.0), (6, 60.0), (31, 60.0), (32, 60.0), (1_000, 60.0)]
        {
            let waits: Vec<f64> =
                (0..1_000u128).map(|id| backoff.after(tries, Uuid::from_u128(id)).as_secs_f64()).collect();
            let least = waits.iter().copied().fold(f64::MAX, f64::min);
            let most = waits.iter().copied().fold(0.0, f64::max);
            assert!(least >= middle * 0.749 && least < middle * 0.80, "{tries}: {least}");
            assert!(most <= middle * 1.25 && most > middle * 1.20, "{tries}: {most}");
        }
    }
}
