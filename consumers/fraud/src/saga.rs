//! Pure decisions: which rules a payment breaks.

use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;
use uuid::Uuid;

/// The largest integer that every reader of JSON has exactly, 2^53-1. More than this is observed as this.
const OBSERVED_MAX: i64 = 9_007_199_254_740_991;

/// The rules. All of them are asked about every payment.
#[derive(Args, Clone, Copy, Debug)]
pub struct Rules {
    /// Seconds of the window of a payment: it ends with the payment, in event time, and includes both of its ends.
    #[arg(long, env, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub window_s: u32,
    /// A user with more payments than this in a window raises an alert.
    #[arg(long, env, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..OBSERVED_MAX))]
    pub payment_count_max: i64,
    /// A user whose payments of a window are more than this, in minor units, raises an alert.
    #[arg(long, env, default_value_t = 10_000_000, value_parser = clap::value_parser!(i64).range(1..OBSERVED_MAX))]
    pub payment_sum_max: i64,
    /// A payment of more than this, in minor units, raises an alert by itself.
    #[arg(long, env, default_value_t = 5_000_000, value_parser = clap::value_parser!(i64).range(1..OBSERVED_MAX))]
    pub payment_amount_max: i64,
}

/// A payment, and the window that ends with it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Window {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub amount: i64,
    pub initiated_at: Timestamp,
    /// Number and sum of the user's payments in the window.
    pub payment_count: i64,
    pub payment_sum: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, Serialize)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    PaymentAmount,
    PaymentCount,
    PaymentSum,
}

/// A rule that a payment breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub rule: Rule,
    pub amount: i64,
    /// The figure that is more than `threshold`.
    pub observed: i64,
    pub threshold: i64,
    pub initiated_at: Timestamp,
}

/// The alerts of a payment.
pub fn decide(rules: &Rules, window: &Window) -> Vec<Alert> {
    let Window { user_id, payment_id, amount, initiated_at, payment_count, payment_sum } = *window;
    [
        (Rule::PaymentAmount, amount, rules.payment_amount_max),
        (Rule::PaymentCount, payment_count, rules.payment_count_max),
        (Rule::PaymentSum, payment_sum, rules.payment_sum_max),
    ]
    .into_iter()
    .filter(|(_, observed, threshold)| observed > threshold)
    .map(|(rule, observed, threshold)| Alert {
        user_id,
        payment_id,
        rule,
        amount,
        observed: observed.min(OBSERVED_MAX),
        threshold,
        initiated_at,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_broken_by_more_than_its_threshold() {
        use Rule::{PaymentAmount, PaymentCount, PaymentSum};
        let rules =
            Rules { window_s: 60, payment_count_max: 3, payment_sum_max: 100, payment_amount_max: 50 };
        let table: [(i64, i64, i64, &[Rule]); 8] = [
            (1, 1, 1, &[]),
            (50, 3, 100, &[]),
            (51, 1, 51, &[PaymentAmount]),
            (1, 4, 4, &[PaymentCount]),
            (1, 2, 101, &[PaymentSum]),
            (51, 4, 100, &[PaymentAmount, PaymentCount]),
            (51, 2, 101, &[PaymentAmount, PaymentSum]),
            (i64::MAX, i64::MAX, i64::MAX, &[PaymentAmount, PaymentCount, PaymentSum]),
        ];
        for (amount, payment_count, payment_sum, broken) in table {
            let (user_id, payment_id, initiated_at) = (Uuid::nil(), Uuid::max(), Timestamp::UNIX_EPOCH);
            let window = Window { user_id, payment_id, amount, initiated_at, payment_count, payment_sum };
            let alerts = decide(&rules, &window);
            let rules: Vec<Rule> = alerts.iter().map(|alert| alert.rule).collect();
            assert_eq!(rules, broken, "{window:?}");
            for alert in alerts {
                assert!(alert.observed > alert.threshold && alert.payment_id == payment_id, "{alert:?}");
                assert!(alert.observed <= 9_007_199_254_740_991, "{alert:?}");
            }
        }
    }
}
