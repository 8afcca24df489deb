//! Decides what a restored database lacks of charges.
//!
//! * Every function is pure: the store reads and writes.
//! * PaymentResultTopic has every outcome that was emitted. The last one of a charge is its row, unless the row is newer.
//! * PaymentTopic says for which payments work was emitted. The gateway may have been called for each of them.

use std::collections::HashMap;

use saga::contract::{ChargeResult, Payment};
use uuid::Uuid;

use crate::events;
use crate::work::Job;

/// What the row of a charge is beside an outcome that was emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// There is no row, or an older one.
    Lacking,
    /// The row is this version, or a later one.
    Present,
    /// The row has this version with other columns: it is of another history.
    Differs,
}

/// Compares a row with an outcome that was emitted.
pub fn compare(row: Option<&ChargeResult>, emitted: &ChargeResult) -> RowState {
    match row {
        None => RowState::Lacking,
        Some(row) if row.version < emitted.version => RowState::Lacking,
        Some(row) if row.version > emitted.version || row == emitted => RowState::Present,
        Some(_) => RowState::Differs,
    }
}

/// The indices of the outcomes with the last version of each charge.
pub fn last_versions<'a>(outcomes: impl Iterator<Item = &'a ChargeResult>) -> Vec<usize> {
    let mut last: HashMap<Uuid, (i32, usize)> = HashMap::new();
    for (index, outcome) in outcomes.enumerate() {
        let found = last.entry(outcome.payment_id).or_insert((outcome.version, index));
        if outcome.version > found.0 {
            *found = (outcome.version, index);
        }
    }
    let mut indices: Vec<usize> = last.into_values().map(|(_, index)| index).collect();
    indices.sort_unstable();
    indices
}

/// The job for which work was emitted, if the event of a payment says so.
///
/// A payment that is not authorized yet has none, and one that has ended has an outcome that was emitted. Where the user asked to
/// cancel before it was authorized, no work was emitted; both times are of the same clock.
pub fn emitted_work(payment: Payment) -> Option<Job> {
    let is_open = payment.status == "authorized";
    let cancel_came_first = payment.cancel_requested_at.is_some_and(|at| Some(at) < payment.authorized_at);
    (is_open && !cancel_came_first).then(|| events::job(payment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden<T: serde::de::DeserializeOwned>(name: &str) -> T {
        let path = format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn outcome(payment: u128, version: i32) -> ChargeResult {
        let payment_id = Uuid::from_u128(payment);
        ChargeResult { payment_id, version, ..golden("payment.result.unknown.v1") }
    }

    #[test]
    fn a_row_is_lacking_if_it_is_older_and_differs_if_it_says_something_else() {
        let emitted = outcome(1, 3);
        assert_eq!(compare(None, &emitted), RowState::Lacking);
        for (version, expected) in [(2, RowState::Lacking), (3, RowState::Present), (4, RowState::Present)] {
            assert_eq!(compare(Some(&outcome(1, version)), &emitted), expected, "{version}");
        }
        let others = [
            ChargeResult { status: "calling".into(), ..emitted.clone() },
            ChargeResult { amount: 1, ..emitted.clone() },
            ChargeResult { reason: None, ..emitted.clone() },
            ChargeResult { attempt: 2, ..emitted.clone() },
        ];
        for other in others {
            assert_eq!(compare(Some(&other), &emitted), RowState::Differs, "{other:?}");
            let older = ChargeResult { version: 2, ..other };
            assert_eq!(compare(Some(&older), &emitted), RowState::Lacking, "a later version may say so");
        }
    }

    #[test]
    fn of_each_charge_the_last_version_counts_wherever_it_stands() {
        let all = [outcome(1, 2), outcome(2, 4), outcome(1, 4), outcome(1, 3), outcome(2, 4)];
        assert_eq!(last_versions(all.iter()), [1, 2]);
        assert_eq!(last_versions([].iter()), [0_usize; 0]);
    }

    #[test]
    fn work_is_what_was_authorized_and_not_cancelled_before() {
        for (name, expected) in [
            ("payment.initiated.v1", false),
            ("payment.cancel_recorded.v1", false),
            ("payment.authorized.v1", true),
            ("payment.outcome_unknown.v1", true),
            ("payment.completed.v1", false),
            ("payment.rejected.v1", false),
            ("payment.failed.v1", false),
            ("payment.cancelled.v1", false),
        ] {
            assert_eq!(emitted_work(golden(name)).is_some(), expected, "{name}");
        }
        let asked: Payment = golden("payment.cancel_requested.v1");
        let authorized_at = asked.authorized_at;
        let at = |micros: i64| authorized_at.map(|at| at + jiff::SignedDuration::from_micros(micros));
        for (micros, expected) in [(-1, false), (0, true), (1, true)] {
            let payment = Payment { cancel_requested_at: at(micros), ..asked.clone() };
            assert_eq!(
                emitted_work(payment).is_some(),
                expected,
                "asked {micros} µs after it was authorized"
            );
        }
    }
}
