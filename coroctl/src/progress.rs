//! The step that a payment waits for, by the last committed rows of its saga.
//!
//! * Pure: `explain` reads the rows of one payment and its events, `stuck` the rows of many without events.
//! * Each committed row causes the next one, so the last one says what is missing.

use serde::Serialize;

/// The facts about one payment that decide what it waits for.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The status of the payment.
    pub status: &'a str,
    /// The kind of its last ledger entry.
    pub last_entry: Option<&'a str>,
    /// The status of its charge.
    pub charge: Option<&'a str>,
    /// Whether user, amount and service of the charge are the payment's.
    pub charge_agrees: bool,
    /// The database of a parked message about it that nobody has dealt with.
    pub parked_in: Option<&'a str>,
}

/// What a payment waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// The process that has to take the step, or `operator`.
    pub service: &'static str,
    /// The step, as the end of a sentence that begins with "It waits for".
    pub step: String,
}

/// Whether an event was emitted; `None` where that was not looked up.
pub type Emitted<'a> = &'a dyn Fn(&str) -> Option<bool>;

/// The wait of a payment; `None` if it has ended.
pub fn wait(facts: &Facts<'_>, emitted: Emitted<'_>) -> Option<Wait> {
    if matches!(facts.status, "completed" | "rejected" | "failed" | "cancelled") {
        return None;
    }
    if let Some(database) = facts.parked_in {
        return Some(operator(format!(
            "an operator: a message about it is parked in the {database} database"
        )));
    }
    if !facts.charge_agrees {
        return Some(operator("an operator: its charge has other terms than the payment".to_owned()));
    }
    Some(match (facts.status, facts.last_entry, facts.charge) {
        ("initiated", None, _) => {
            let row = "version 1 of its `payments` row";
            apply("balance-svc", "payment.initiated", emitted("payment.initiated.v1"), row)
        }
        ("initiated", Some(kind), _) => {
            let (event, row) = (emitted_as(kind), format!("the {kind} of `ledger`"));
            apply("payments-svc", &format!("the {kind}"), emitted(event), &row)
        }
        (_, Some("hold"), None) => Wait {
            service: "processor-svc",
            step: "processor-svc to take the work message from the queue (or for cdc-relay to emit it)"
                .to_owned(),
        },
        (_, Some("hold"), Some(status @ ("waiting" | "calling" | "unknown"))) => {
            Wait { service: "gateway", step: format!("the gateway: the charge is {status}") }
        }
        (_, Some("hold"), Some(status)) => {
            let row = format!("its `charges` row ({status})");
            let event = format!("payment.result.{status}.v1");
            apply("balance-svc", &format!("the result ({status})"), emitted(&event), &row)
        }
        (_, Some(kind), _) => {
            let row = format!("the {kind} of `ledger`");
            apply("payments-svc", &format!("the {kind}"), emitted(emitted_as(kind)), &row)
        }
        (_, None, _) => operator(
            "an operator: it is authorized without a hold, which must not be. Run `coroctl audit`".to_owned(),
        ),
    })
}

/// The row whose event causes the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastRow {
    Payment,
    /// The ledger entry of this phase.
    Entry(i16),
    Charge,
}

/// The last committed row of a saga that is emitted; `None` while the gateway is waited for.
pub fn last_row(facts: &Facts<'_>) -> Option<LastRow> {
    match (facts.status, facts.last_entry, facts.charge) {
        ("completed" | "rejected" | "failed" | "cancelled", _, _) => Some(LastRow::Payment),
        (_, Some("capture" | "release"), _) => Some(LastRow::Entry(2)),
        ("initiated", Some(_), _) => Some(LastRow::Entry(1)),
        // The work message goes with the payment's event.
        (_, _, None) => Some(LastRow::Payment),
        (_, _, Some("waiting" | "calling")) => None,
        (_, _, Some(_)) => Some(LastRow::Charge),
    }
}

/// The type of the event of a ledger entry.
fn emitted_as(kind: &str) -> &'static str {
    match kind {
        "hold" => "balance.held.v1",
        "rejection" => "balance.rejected.v1",
        "capture" => "balance.captured.v1",
        "release" => "balance.released.v1",
        _ => "balance.deposited.v1",
    }
}

fn apply(service: &'static str, what: &str, emitted: Option<bool>, row: &str) -> Wait {
    match emitted {
        Some(false) => Wait { service: "cdc-relay", step: format!("cdc-relay to emit {row}") },
        Some(true) => Wait { service, step: format!("{service} to apply {what}") },
        None => Wait { service, step: format!("{service} to apply {what} (or for cdc-relay to emit it)") },
    }
}

fn operator(step: String) -> Wait {
    Wait { service: "operator", step }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'_> = Facts {
        status: "authorized",
        last_entry: Some("hold"),
        charge: None,
        charge_agrees: true,
        parked_in: None,
    };

    #[test]
    fn each_state_waits_for_one_step_of_one_process() {
        let facts = |status, last_entry, charge| Facts { status, last_entry, charge, ..FACTS };
        for (facts, sent, expected) in [
            (facts("initiated", None, None), Some(false), "cdc-relay"),
            (facts("initiated", None, None), Some(true), "balance-svc"),
            (facts("initiated", None, None), None, "balance-svc"),
            (facts("initiated", Some("hold"), None), Some(true), "payments-svc"),
            (facts("initiated", Some("rejection"), None), Some(false), "cdc-relay"),
            (facts("authorized", Some("hold"), None), None, "processor-svc"),
            (facts("authorized", Some("hold"), Some("unknown")), None, "gateway"),
            (facts("authorized", Some("hold"), Some("calling")), None, "gateway"),
            (facts("authorized", Some("hold"), Some("succeeded")), Some(true), "balance-svc"),
            (facts("authorized", Some("hold"), Some("declined")), Some(false), "cdc-relay"),
            (facts("authorized", Some("capture"), Some("succeeded")), Some(true), "payments-svc"),
            (facts("authorized", None, None), None, "operator"),
            (Facts { parked_in: Some("balance"), ..FACTS }, None, "operator"),
            (Facts { charge: Some("succeeded"), charge_agrees: false, ..FACTS }, None, "operator"),
        ] {
            let wait = wait(&facts, &|_| sent).unwrap();
            assert_eq!(wait.service, expected, "{facts:?}");
            assert!(wait.step.contains(expected), "{wait:?}");
        }
        for status in ["completed", "rejected", "failed", "cancelled"] {
            assert_eq!(wait(&facts(status, Some("hold"), None), &|_| None), None);
        }
    }

    #[test]
    fn the_last_row_is_the_one_that_causes_the_next_step() {
        for (status, last_entry, charge, expected) in [
            ("initiated", None, None, Some(LastRow::Payment)),
            ("initiated", Some("hold"), None, Some(LastRow::Entry(1))),
            ("initiated", Some("rejection"), None, Some(LastRow::Entry(1))),
            ("authorized", Some("hold"), None, Some(LastRow::Payment)),
            ("authorized", Some("hold"), Some("waiting"), None),
            ("authorized", Some("hold"), Some("calling"), None),
            ("authorized", Some("hold"), Some("unknown"), Some(LastRow::Charge)),
            ("authorized", Some("hold"), Some("declined"), Some(LastRow::Charge)),
            ("authorized", Some("release"), Some("declined"), Some(LastRow::Entry(2))),
            ("failed", Some("release"), Some("declined"), Some(LastRow::Payment)),
        ] {
            assert_eq!(
                last_row(&Facts { status, last_entry, charge, ..FACTS }),
                expected,
                "{status} {charge:?}"
            );
        }
    }

    #[test]
    fn the_event_that_is_looked_up_is_that_of_the_last_row() {
        let asked = |last_entry, charge| {
            let name = std::cell::RefCell::new(String::new());
            let emitted = |event: &str| {
                event.clone_into(&mut name.borrow_mut());
                Some(true)
            };
            wait(&Facts { last_entry, charge, ..FACTS }, &emitted);
            name.into_inner()
        };
        assert_eq!(asked(Some("hold"), Some("expired")), "payment.result.expired.v1");
        assert_eq!(asked(Some("release"), Some("expired")), "balance.released.v1");
        assert_eq!(asked(Some("capture"), Some("succeeded")), "balance.captured.v1");
    }
}
