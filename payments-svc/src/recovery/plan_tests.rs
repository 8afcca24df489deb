//! Tests what an event does to a restored row, as a table, and that everything that the service can do is recovered.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::*;

fn at(second: i64) -> Option<Timestamp> {
    Some(Timestamp::from_second(1_700_000_000 + second).unwrap())
}

/// A payment by its version, its event, and flags: `c` a cancel is requested, `u` the outcome is unknown.
fn payment(text: &str) -> Payment {
    let mut words = text.split(' ');
    let version = words.next().unwrap().parse().unwrap();
    let event = words.next().unwrap();
    let flags = words.next().unwrap_or_default();
    let status = match event {
        "cancel_recorded" => "initiated",
        "outcome_unknown" | "cancel_requested" => "authorized",
        other => other,
    };
    let ended = |end: &str| at(9).filter(|_| status == end);
    let reason = match status {
        "rejected" => Some("insufficient_funds"),
        "failed" => Some("declined:do_not_honor"),
        "cancelled" => Some("cancelled"),
        _ => flags.contains('u').then_some("timeout"),
    };
    Payment {
        user_id: Uuid::from_u128(1),
        payment_id: Uuid::from_u128(2),
        client_number: "0812".into(),
        service_id: "electricity".into(),
        amount: 15_000,
        status: status.into(),
        event: event.into(),
        reason: reason.map(Into::into),
        version,
        traceparent: None,
        initiated_at: at(0).unwrap(),
        expires_at: at(900).unwrap(),
        authorized_at: at(1).filter(|_| !["initiated", "rejected"].contains(&status)),
        completed_at: ended("completed"),
        rejected_at: ended("rejected"),
        failed_at: ended("failed"),
        cancelled_at: ended("cancelled"),
        cancel_requested_at: at(2).filter(|_| flags.contains('c')),
    }
}

fn emitted(payments: impl IntoIterator<Item = Payment>) -> Vec<Emitted<Payment>> {
    let place = || "PaymentTopic/0/7".to_owned();
    let emitted = |body| Emitted { body, place: place(), is_first_emission: true };
    payments.into_iter().map(emitted).collect()
}

/// What the events, in their order, do to a row: `lacking N`, `outdated N>M`, `present N`, `refused N`, with versions but
/// for the last two, which are counts.
fn outcome(row: &str, events: &str) -> String {
    let payments = |text: &str| {
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(payment).collect::<Vec<_>>()
    };
    let plan = plan(&emitted(payments(events)), payments(row));
    let lacking = plan.lacking.iter().map(|row| format!("lacking {}", row.version));
    let outdated =
        plan.outdated.iter().map(|row| format!("outdated {}>{}", row.from_version, row.payment.version));
    let counts = [("present", plan.present), ("refused", plan.refused.len())];
    let counts = counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}"));
    lacking.chain(outdated).chain(counts).collect::<Vec<_>>().join(", ")
}

#[test]
fn an_event_makes_a_row_brings_it_forward_or_changes_nothing() {
    for (row, events, expected) in [
        // The row is not there.
        ("", "1 initiated", "lacking 1"),
        ("", "1 initiated, 2 authorized, 3 completed", "lacking 3"),
        ("", "3 completed", "lacking 3"),
        ("", "2 rejected", "lacking 2"),
        ("", "2 cancel_recorded c, 3 cancel_requested c, 4 cancelled c", "lacking 4"),
        ("", "4 outcome_unknown cu", "lacking 4"),
        ("", "2 completed", "refused 1"),
        ("", "1 completed", "refused 1"),
        ("", "2 cancelled", "refused 1"),
        ("", "3 authorized", "refused 1"),
        ("", "9 completed", "refused 1"),
        ("", "100 completed", "refused 1"),
        // A flaw refuses the event, and what follows counts on its own.
        ("", "2 completed, 1 initiated", "lacking 1, refused 1"),
        // The row is older.
        ("1 initiated", "2 authorized", "outdated 1>2"),
        ("1 initiated", "1 initiated, 2 authorized, 3 failed", "outdated 1>3, present 1"),
        ("2 authorized", "4 completed u", "outdated 2>4"),
        ("2 authorized", "3 outcome_unknown u, 4 cancel_requested cu, 5 completed cu", "outdated 2>5"),
        ("2 authorized", "3 completed, 2 authorized", "outdated 2>3, present 1"),
        ("2 authorized", "3 rejected", "refused 1"),
        ("2 authorized", "3 cancel_recorded c", "refused 1"),
        ("1 initiated", "2 completed", "refused 1"),
        ("2 cancel_recorded c", "3 authorized", "refused 1"),
        ("2 cancel_recorded c", "3 cancel_requested c", "outdated 2>3"),
        // The row is as new, or newer.
        ("3 completed", "1 initiated, 2 authorized, 3 completed", "present 3"),
        ("3 completed", "4 failed", "refused 1"),
        ("2 rejected", "3 authorized", "refused 1"),
        ("2 authorized", "2 rejected", "refused 1"),
    ] {
        assert_eq!(outcome(row, events), expected, "{row:?} and {events:?}");
    }
}

#[test]
fn a_contradiction_names_its_columns_and_no_value() {
    let row = payment("2 authorized");
    let refusal = |event: Payment| {
        let refused = plan(&emitted([event]), vec![row.clone()]).refused;
        refused.into_iter().map(|refused| refused.why).next()
    };
    for event in ["1 initiated", "2 authorized", "3 completed"] {
        let terms = Payment { amount: 1, client_number: "0999".into(), ..payment(event) };
        let why = "its event differs from the row in amount, client_number";
        assert_eq!(refusal(terms).as_deref(), Some(why), "{event}");
    }
    let later = Payment { authorized_at: at(5), ..row.clone() };
    let why = "its event of version 2 differs from the row in authorized_at";
    assert_eq!(refusal(later).as_deref(), Some(why));
    assert_eq!(refusal(row.clone()), None);
}

#[test]
fn a_row_that_no_database_could_hold_is_refused() {
    let good = payment("3 completed");
    for bad in [
        Payment { amount: 0, ..good.clone() },
        Payment { amount: AMOUNT_MAX + 1, ..good.clone() },
        Payment { version: 0, ..good.clone() },
        Payment { client_number: "08\u{0}12".into(), ..good.clone() },
        Payment { authorized_at: None, ..good.clone() },
        Payment { completed_at: None, ..good.clone() },
        Payment { failed_at: at(1), ..good.clone() },
        Payment { status: "lost".into(), ..good.clone() },
    ] {
        let plan = plan(&emitted([bad.clone()]), Vec::new());
        assert_eq!((plan.refused.len(), plan.lacking.len()), (1, 0), "{bad:?}");
    }
    assert_eq!(plan(&emitted([good]), Vec::new()).lacking.len(), 1);
}

#[test]
fn each_event_that_the_row_did_not_have_is_lacking() {
    let events = ["1 initiated", "2 authorized", "3 completed", "3 failed"].map(payment);
    let plan = plan(&emitted(events), vec![payment("1 initiated")]);
    assert_eq!(plan.is_lacking, [false, true, true, false]);
}

/// Walks every way that a payment can go, and recovers each of its versions from each earlier one.
#[test]
fn every_way_of_a_payment_is_recovered_from_each_of_its_versions() {
    fn walk(way: &mut Vec<(State, Payment)>, ends: &mut BTreeSet<String>) {
        let (state, row) = way.last().unwrap().clone();
        for (from, earlier) in &*way {
            let expected = if earlier.version < row.version { Verdict::Newer } else { Verdict::Present };
            assert_eq!(judge(Some(earlier), &row), Ok(expected), "{from:?} to {row:?}");
        }
        assert_eq!(judge(None, &row), Ok(Verdict::Newer), "{row:?}");
        ends.insert(row.event.clone());
        for (row_event, state) in transitions(&state) {
            let flags = [(state.cancel_requested, "c"), (state.outcome_unknown, "u")];
            let flags: String = flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| *flag).collect();
            let row = payment(&format!("{} {} {flags}", row.version + 1, row_event.as_str()));
            way.push((state, row));
            walk(way, ends);
            way.pop();
        }
        assert_eq!(state.status.is_terminal(), transitions(&state).is_empty());
    }
    let mut events = BTreeSet::new();
    walk(&mut vec![(INITIATED, payment("1 initiated"))], &mut events);
    assert_eq!(events.len(), RowEvent::ALL.len() + 1, "{events:?}");
}
