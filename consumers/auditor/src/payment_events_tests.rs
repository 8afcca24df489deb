//! Events of one payment: transitions, repetitions, and the rows they come from.

use coroctl::audit::read::rows::{Charge, Entry, Payment, Terms};
use coroctl::audit::statuses::{ChargeStatus, EntryKind};
use jiff::Timestamp;
use uuid::Uuid;

use super::*;

fn seen(events: &[(u32, &str, &str)]) -> (SeenEvents, Vec<Option<Check>>) {
    let mut seen = SeenEvents::default();
    let add = |(version, status, event): &(u32, &str, &str)| {
        seen.add_payment(*version, status, event, u64::from(*version)).map(|found| found.check)
    };
    let found = events.iter().map(add).collect();
    (seen, found)
}

#[test]
fn each_event_is_a_legal_transition_from_the_one_before() {
    let initiated = (1, "initiated", "initiated");
    let authorized = (2, "authorized", "authorized");
    for (events, expected) in [
        (vec![initiated, authorized, (3, "completed", "completed")], None),
        // Repetitions, and one that began before this process did.
        (vec![initiated, authorized, initiated, authorized, (3, "failed", "failed")], None),
        (vec![(3, "completed", "completed")], None),
        // Not the version before: its state is not known.
        (vec![initiated, (3, "completed", "completed")], None),
        (vec![initiated, (2, "completed", "completed")], Some(Check::S2)),
        (vec![(1, "completed", "completed")], Some(Check::S2)),
        (vec![initiated, (2, "rejected", "rejected"), (3, "authorized", "authorized")], Some(Check::S2)),
        (vec![initiated, (2, "nowhere", "authorized")], Some(Check::T3)),
    ] {
        let found = seen(&events).1;
        assert_eq!(*found.last().unwrap(), expected, "{events:?}");
        assert!(found[..found.len() - 1].iter().all(Option::is_none), "{events:?}: {found:?}");
    }
}

#[test]
fn a_repetition_has_the_same_body() {
    let (mut payment, _) = seen(&[(1, "initiated", "initiated")]);
    assert_eq!(payment.add_payment(1, "initiated", "initiated", 1), None);
    let changed = payment.add_payment(1, "initiated", "initiated", 9);
    assert_eq!(changed.map(|found| found.check), Some(Check::T3));
    assert_eq!(payment.add_entry(1, 5), None);
    assert_eq!(payment.add_entry(1, 5), None);
    assert_eq!(payment.add_entry(1, 6).map(|found| found.check), Some(Check::T3));
    assert_eq!(payment.add_result(2, 5), None);
    assert_eq!(payment.add_result(2, 6).map(|found| found.check), Some(Check::T3));
}

#[test]
fn each_row_has_had_its_event() {
    let (mut whole, _) = seen(&[
        (1, "initiated", "initiated"),
        (2, "authorized", "authorized"),
        (3, "completed", "completed"),
    ]);
    assert!(whole.missing(3, [true, true], Some(2)).unwrap().contains("phase 1"));
    whole.add_entry(1, 0);
    assert!(whole.missing(3, [true, true], Some(2)).unwrap().contains("phase 2"));
    whole.add_entry(2, 0);
    assert!(whole.missing(3, [true, true], Some(2)).unwrap().contains("charge"));
    whole.add_result(2, 0);
    assert_eq!(whole.missing(3, [true, true], Some(2)), None);
    assert!(whole.missing(4, [true, true], Some(2)).unwrap().contains("version 4"));
    let (without, _) = seen(&[(1, "initiated", "initiated"), (3, "completed", "completed")]);
    assert!(without.missing(3, [false, false], None).unwrap().contains("version 2"));
}

#[test]
fn an_event_has_its_row_and_is_not_ahead_of_it() {
    let terms = Terms { user_id: Uuid::nil(), amount: 1, service: 1, client_number: None };
    let payment = |version, fingerprint| Payment {
        amount: 1,
        terms,
        status: PaymentStatus::Authorized,
        version,
        initiated_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        shown: 1,
        fingerprint,
    };
    let entry = |fingerprint| Entry { kind: EntryKind::Hold, amount: 1, terms, fingerprint };
    let charge = |version, fingerprint| {
        let status = ChargeStatus::Declined;
        Charge { amount: 1, terms, status, version, has_reason: true, fingerprint }
    };
    let (mut events, _) = seen(&[(1, "initiated", "initiated"), (2, "authorized", "authorized")]);
    events.add_entry(1, 7);
    events.add_result(2, 8);
    let whole = (Some(payment(2, 2)), Some(entry(7)), Some(charge(2, 8)));
    for (what, (payment, entry, charge), expected) in [
        ("whole", whole.clone(), vec![]),
        ("the rows have gone on", (Some(payment(3, 0)), Some(entry(7)), Some(charge(3, 0))), vec![]),
        ("no payment", (None, whole.1, whole.2.clone()), vec![Check::S4]),
        ("no entry", (whole.0.clone(), None, whole.2.clone()), vec![Check::T3]),
        ("no charge", (whole.0.clone(), whole.1, None), vec![Check::T3]),
        ("a payment that went back", (Some(payment(1, 1)), whole.1, whole.2.clone()), vec![Check::T3]),
        ("another payment", (Some(payment(2, 3)), whole.1, whole.2.clone()), vec![Check::T3]),
        ("another entry", (whole.0.clone(), Some(entry(0)), whole.2.clone()), vec![Check::T3]),
        ("another charge", (whole.0.clone(), whole.1, Some(charge(2, 0))), vec![Check::T3]),
        ("a charge that went back", (whole.0.clone(), whole.1, Some(charge(1, 0))), vec![Check::T3]),
    ] {
        let rows =
            RowsOf { payment: payment.as_ref(), entries: [entry.as_ref(), None], charge: charge.as_ref() };
        let found: Vec<Check> = events.contradictions(&rows).into_iter().map(|found| found.check).collect();
        assert_eq!(found, expected, "{what}");
    }
}
