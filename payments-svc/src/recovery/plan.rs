//! Decides what a restored database gets from the events of its own payments.
//!
//! * Pure: no clock, no I/O. The store reads the rows and writes the plan.
//! * A payment that is not there is made, and one that is older than an event is brought to its version. No row goes back.
//! * An event counts only if the decisions of [`saga`](crate::saga) lead from the row to it in as many steps as there are
//!   versions between them.
//! * An event that contradicts the row is refused: it has other terms, another content of the same version, or no legal path.

use std::collections::{BTreeSet, HashMap};

use saga::contract::{AMOUNT_MAX, Payment};
use saga::recovery::Emitted;
use serde_json::Value;
use uuid::Uuid;

use crate::saga::{Cancel, Event, RowEvent, State, Status, Step, cancel, decide, next};

/// No payment has more transitions: authorized, outcome unknown, cancel requested, the end.
const STEPS_MAX: i32 = 8;

/// By user and payment.
pub type PaymentKey = (Uuid, Uuid);

pub fn key(payment: &Payment) -> PaymentKey {
    (payment.user_id, payment.payment_id)
}

/// An event that changes nothing, since it contradicts what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub payment_id: Uuid,
    pub place: String,
    /// It quotes no value, since a person typed some.
    pub why: String,
}

/// A row that is older than the events of its payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outdated {
    pub from_version: i32,
    pub payment: Payment,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The payments that are not there.
    pub lacking: Vec<Payment>,
    pub outdated: Vec<Outdated>,
    /// The number of events whose version, or a later one, is there.
    pub present: usize,
    pub refused: Vec<Refused>,
    /// For each event of the batch, whether the database lacks its version.
    pub is_lacking: Vec<bool>,
}

/// A row while the events of a batch are decided on it, one after the other.
struct Draft {
    row: Payment,
    /// The version in the database; `None`: it is not there.
    from_version: Option<i32>,
}

/// Plans a batch, in its order. `rows` are those of its payments that are there.
pub fn plan(batch: &[Emitted<Payment>], rows: Vec<Payment>) -> Plan {
    let draft = |row: Payment| (key(&row), Draft { from_version: Some(row.version), row });
    let mut drafts: HashMap<PaymentKey, Draft> = rows.into_iter().map(draft).collect();
    // The order in which they are written is that of their first events, so that it does not vary.
    let mut changed: Vec<PaymentKey> = Vec::new();
    let mut plan = Plan::default();
    for Emitted { body: payment, place, .. } in batch {
        let key = key(payment);
        let draft = drafts.get_mut(&key);
        let verdict = judge(draft.as_ref().map(|draft| &draft.row), payment);
        plan.is_lacking.push(verdict == Ok(Verdict::Newer));
        match verdict {
            Ok(Verdict::Present) => plan.present += 1,
            Ok(Verdict::Newer) => {
                changed.push(key);
                let row = payment.clone();
                match draft {
                    Some(draft) => draft.row = row,
                    None => drop(drafts.insert(key, Draft { row, from_version: None })),
                }
            }
            Err(why) => {
                plan.refused.push(Refused { payment_id: payment.payment_id, place: place.clone(), why });
            }
        }
    }
    for key in changed {
        // Only the last version of a payment is written.
        match drafts.remove(&key) {
            Some(Draft { row, from_version: None }) => plan.lacking.push(row),
            Some(Draft { row, from_version: Some(from_version) }) => {
                plan.outdated.push(Outdated { from_version, payment: row });
            }
            None => {}
        }
    }
    plan
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The row has this version or a later one.
    Present,
    Newer,
}

/// Compares an event with the row of its payment, if it is there.
///
/// # Errors
/// When the event contradicts the row or itself; the text says how.
fn judge(row: Option<&Payment>, event: &Payment) -> Result<Verdict, String> {
    if let Some(why) = flaw(event) {
        return Err(why.to_owned());
    }
    let Some(row) = row else {
        let steps = event.version - 1;
        return if leads(INITIATED, steps, event) { Ok(Verdict::Newer) } else { Err(no_path(event, 0)) };
    };
    let unlike = differing(row, event);
    let terms: Vec<&str> = unlike.iter().map(String::as_str).filter(|name| is_fixed(name)).collect();
    if !terms.is_empty() {
        return Err(format!("its event differs from the row in {}", terms.join(", ")));
    }
    let steps = event.version - row.version;
    match steps {
        ..0 => Ok(Verdict::Present),
        0 if unlike.is_empty() => Ok(Verdict::Present),
        0 => {
            Err(format!("its event of version {} differs from the row in {}", row.version, unlike.join(", ")))
        }
        1.. if state(row).is_some_and(|state| leads(state, steps, event)) => Ok(Verdict::Newer),
        1.. => Err(no_path(event, row.version)),
    }
}

fn no_path(event: &Payment, version: i32) -> String {
    format!("no transitions lead from version {version} to {:?} in version {}", event.event, event.version)
}

/// The state of a payment that was just accepted.
const INITIATED: State = State { status: Status::Initiated, cancel_requested: false, outcome_unknown: false };

/// The state of a row; `None` if it has a status that is none.
fn state(row: &Payment) -> Option<State> {
    let status = Status::parse(&row.status)?;
    Some(State {
        status,
        cancel_requested: row.cancel_requested_at.is_some(),
        // While authorized, only an unknown outcome sets the reason.
        outcome_unknown: status == Status::Authorized && row.reason.is_some(),
    })
}

/// Whether that many transitions can lead from a state to the row of an event.
fn leads(from: State, steps: i32, event: &Payment) -> bool {
    let Some(end) = state(event) else { return false };
    let is_end = |state: &State| {
        let is_open = state.status == Status::Authorized;
        state.status == end.status
            && state.cancel_requested == end.cancel_requested
            && (!is_open || state.outcome_unknown == end.outcome_unknown)
    };
    if steps == 0 {
        return event.event == "initiated" && is_end(&from);
    }
    let mut states = vec![from];
    for _ in 1..steps.min(STEPS_MAX) {
        states = states.iter().flat_map(transitions).map(|(_, state)| state).collect();
        states.sort_by_key(|state| (state.status.as_str(), state.cancel_requested, state.outcome_unknown));
        states.dedup();
    }
    steps <= STEPS_MAX
        && states
            .iter()
            .flat_map(transitions)
            .any(|(row_event, state)| row_event.as_str() == event.event && is_end(&state))
}

/// Every transition of a payment in this state.
fn transitions(state: &State) -> Vec<(RowEvent, State)> {
    let by_event = Event::ALL.iter().filter_map(|event| {
        let step = decide(state, event);
        match step {
            Step::Move { row_event, .. } => Some((row_event, next(state, &step))),
            Step::Already | Step::Missing | Step::Illegal(_) => None,
        }
    });
    let by_user = match cancel(state) {
        Cancel::Record { row_event } => Some((row_event, State { cancel_requested: true, ..*state })),
        Cancel::Already | Cancel::TooLate(_) => None,
    };
    by_event.chain(by_user).collect()
}

/// Whether no transition changes this column.
fn is_fixed(column: &str) -> bool {
    ["client_number", "service_id", "amount", "traceparent", "initiated_at", "expires_at"].contains(&column)
}

/// The columns in which two payments differ.
fn differing(row: &Payment, event: &Payment) -> Vec<String> {
    let fields = |payment: &Payment| match serde_json::to_value(payment) {
        Ok(Value::Object(fields)) => fields,
        // A payment is an object.
        Ok(_) | Err(_) => serde_json::Map::new(),
    };
    let (row, event) = (fields(row), fields(event));
    let names: BTreeSet<&String> = row.keys().chain(event.keys()).collect();
    names.into_iter().filter(|name| row.get(*name) != event.get(*name)).cloned().collect()
}

/// Why no database of ours could hold this row.
fn flaw(payment: &Payment) -> Option<&'static str> {
    let Payment { client_number, service_id, reason, traceparent, .. } = payment;
    let texts = [Some(client_number), Some(service_id), reason.as_ref(), traceparent.as_ref()];
    let status = Status::parse(&payment.status);
    let ends = [
        (Status::Completed, payment.completed_at),
        (Status::Rejected, payment.rejected_at),
        (Status::Failed, payment.failed_at),
        (Status::Cancelled, payment.cancelled_at),
    ];
    let is_authorized = matches!(status, Some(Status::Authorized | Status::Completed));
    if !(1..=AMOUNT_MAX).contains(&payment.amount) {
        Some("its amount is out of range")
    } else if payment.version < 1 {
        Some("its version is below 1")
    } else if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        Some("a text contains NUL")
    } else if is_authorized && payment.authorized_at.is_none() {
        Some("it lacks the time of its hold")
    } else if ends.iter().any(|(end, at)| (status == Some(*end)) != at.is_some()) {
        Some("the times of its ends do not fit its status")
    } else {
        None
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
