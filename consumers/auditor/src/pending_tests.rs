//! How long a payment stays, and which events it is missed by.

use coroctl::audit::read::rows::{Charge, Entry, Terms};
use coroctl::audit::statuses::{ChargeStatus, EntryKind, PaymentStatus};
use uuid::Uuid;

use super::*;

const KEY: Key = (Uuid::from_u128(1), Uuid::from_u128(2));
const LATE: Duration = Duration::from_secs(60);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn terms() -> Terms {
    Terms { user_id: KEY.0, amount: 1, service: 1, client_number: None }
}

/// Accepted at second 100, ended at second 101.
fn payment(status: PaymentStatus) -> Payment {
    Payment {
        amount: 1,
        terms: terms(),
        status,
        version: 2,
        initiated_at: at(100),
        ended_at: status.has_ended().then(|| at(101)),
        shown: 1,
        fingerprint: 2,
    }
}

fn progress(settled: i64, looked_until: i64) -> Progress {
    let settled = ["payments", "balance", "processor"].map(|source| (source.to_owned(), at(settled)));
    let mut progress = Progress::begin(at(looked_until));
    progress.settled.extend(settled);
    progress
}

/// A payment of which these versions were emitted, examined with a rejection in the ledger.
fn examined(versions: &[u32], status: PaymentStatus, has_entry: bool, looked_until: i64) -> Pending {
    let now = Instant::now();
    let mut pending = Pending::new(LATE);
    let seen = pending.touch(KEY, at(looked_until), now);
    for version in versions {
        let name = if *version == 1 { "initiated" } else { "rejected" };
        assert_eq!(seen.add_payment(*version, name, name, u64::from(*version)), None);
    }
    if has_entry {
        seen.add_entry(1, 5);
    }
    let entry = Entry { kind: EntryKind::Rejection, amount: 1, terms: terms(), fingerprint: 5 };
    let payment = payment(status);
    let rows = RowsOf { payment: Some(&payment), entries: [Some(&entry), None], charge: None };
    assert_eq!(pending.due(now), [KEY]);
    assert_eq!(pending.examined(KEY, rows, now, at(102)), []);
    pending
}

#[test]
fn an_ended_payment_is_done_with_once_every_source_has_gone_on() {
    for (versions, has_entry, (settled, looked_until), lacks, stays) in [
        (&[1, 2][..], true, (200, 150), false, false),
        // Its source stands still, or the look has not come so far.
        (&[1, 2], true, (101, 150), false, true),
        (&[1, 2], true, (200, 99), false, true),
        (&[1], true, (200, 150), true, true),
        (&[2], true, (200, 150), true, true),
        (&[1, 2], false, (200, 150), true, true),
        (&[], false, (200, 150), true, true),
        (&[], false, (100, 99), false, true),
    ] {
        let mut pending = examined(versions, PaymentStatus::Rejected, has_entry, 50);
        let lacking = pending.settle(&progress(settled, looked_until));
        let what = format!("{versions:?} {has_entry} {settled} {looked_until}");
        assert_eq!((!lacking.is_empty(), pending.is_tracked(KEY)), (lacks, stays), "{what}");
        assert!(lacking.iter().all(|(key, found)| (*key, found.check) == (KEY, Check::T1)), "{what}");
    }
}

#[test]
fn a_payment_that_stands_still_without_an_event_is_missed_by_its_first() {
    for (versions, lacks) in [(&[1][..], false), (&[], true)] {
        let mut pending = examined(versions, PaymentStatus::Initiated, false, 50);
        assert_eq!(!pending.settle(&progress(200, 150)).is_empty(), lacks, "{versions:?}");
        assert!(pending.is_tracked(KEY));
    }
}

#[test]
fn no_event_of_an_older_payment_is_missed() {
    let mut pending = examined(&[2], PaymentStatus::Rejected, false, 100);
    assert_eq!(pending.settle(&progress(50, 50)), []);
    assert!(pending.is_empty());
}

#[test]
fn what_was_reported_is_awaited_no_more() {
    let mut pending = examined(&[1], PaymentStatus::Rejected, true, 50);
    assert_eq!(pending.settle(&progress(200, 150)).len(), 1);
    pending.await_nothing(KEY);
    assert_eq!(pending.settle(&progress(200, 150)), []);
    assert!(pending.is_empty());
}

#[test]
fn a_payment_that_has_not_ended_is_examined_again_and_late_after_a_while() {
    let now = Instant::now();
    let mut pending = Pending::new(LATE);
    pending.touch(KEY, at(0), now);
    let payment = payment(PaymentStatus::Authorized);
    let terms = terms();
    let status = ChargeStatus::Unknown;
    let charge = Charge { amount: 1, terms, status, version: 1, has_reason: true, fingerprint: 0 };
    let rows = RowsOf { payment: Some(&payment), entries: [None, None], charge: Some(&charge) };
    pending.examined(KEY, rows, now, at(100));
    assert_eq!((pending.due(now), pending.late(WaitsFor::Gateway)), (vec![], 0));
    let later = now + LATE;
    assert_eq!(pending.due(later), [KEY]);
    pending.examined(KEY, rows, later, at(161));
    assert_eq!((pending.late(WaitsFor::Gateway), pending.late(WaitsFor::Saga)), (1, 0));
    pending.examined(KEY, RowsOf { charge: None, ..rows }, later, at(161));
    assert_eq!((pending.late(WaitsFor::Gateway), pending.late(WaitsFor::Saga)), (0, 1));
    // The pause grows with its age.
    assert_eq!(
        (pending.due(later + LATE - Duration::from_secs(1)), pending.due(later + LATE)),
        (vec![], vec![KEY])
    );
    let (ancient, hour) = (later + 60 * LATE, 60 * LATE);
    pending.examined(KEY, rows, ancient, at(161));
    assert_eq!((pending.due(ancient + LATE), pending.due(ancient + hour)), (vec![], vec![KEY]));
}

#[test]
fn it_holds_back_the_checkpoints_after_its_first_event_for_a_while() {
    let now = Instant::now();
    let mut pending = Pending::new(LATE);
    assert_eq!(pending.begin_interval(), 1);
    pending.touch(KEY, at(0), now);
    let second = pending.begin_interval();
    pending.touch(KEY, at(0), now);
    let longest = Duration::from_secs(10);
    assert_eq!([1, second].map(|interval| pending.holds_back(interval, longest, now)), [false, true]);
    assert!(!pending.holds_back(second, longest, now + longest));
}

#[test]
fn at_the_limit_only_ended_payments_are_let_go() {
    let mut pending = examined(&[1], PaymentStatus::Rejected, true, 50);
    pending.touch((KEY.0, Uuid::from_u128(9)), at(50), Instant::now());
    assert_eq!(pending.let_go(), (1, Some(at(100))));
    assert_eq!((pending.len(), pending.let_go()), (1, (0, None)));
}

#[test]
fn a_deposit_is_done_with_once_it_was_examined() {
    let now = Instant::now();
    let mut pending = Pending::new(LATE);
    pending.touch(KEY, at(0), now).add_entry(1, 5);
    assert_eq!(pending.settle(&progress(200, 150)), []);
    assert!(pending.is_tracked(KEY));
    let entry = Entry { kind: EntryKind::Deposit, amount: 1, terms: terms(), fingerprint: 5 };
    let rows = RowsOf { payment: None, entries: [Some(&entry), None], charge: None };
    assert_eq!(pending.examined(KEY, rows, now, at(1)), []);
    assert_eq!(pending.settle(&progress(200, 150)), []);
    assert!(pending.is_empty());
}

/// Its event may still be on its way through the source that stands still.
#[test]
fn an_event_is_missed_only_once_each_source_has_gone_on() {
    let now = Instant::now();
    let mut pending = Pending::new(LATE);
    let seen = pending.touch(KEY, at(50), now);
    for (version, name) in [(1, "initiated"), (2, "authorized"), (3, "failed")] {
        assert_eq!(seen.add_payment(version, name, name, u64::from(version)), None);
    }
    seen.add_entry(1, 5);
    seen.add_entry(2, 6);
    let payment = Payment { version: 3, fingerprint: 3, ..payment(PaymentStatus::Failed) };
    let entry = |kind, fingerprint| Entry { kind, amount: 1, terms: terms(), fingerprint };
    let (hold, release) = (entry(EntryKind::Hold, 5), entry(EntryKind::Release, 6));
    let (status, terms) = (ChargeStatus::Declined, terms());
    let charge = Charge { amount: 1, terms, status, version: 2, has_reason: true, fingerprint: 0 };
    let entries = [Some(&hold), Some(&release)];
    let rows = RowsOf { payment: Some(&payment), entries, charge: Some(&charge) };
    assert_eq!(pending.examined(KEY, rows, now, at(102)), []);
    for behind in ["payments", "balance", "processor"] {
        let mut progress = progress(200, 150);
        progress.settled.insert(behind.to_owned(), at(101));
        assert_eq!(pending.settle(&progress), [], "{behind}");
    }
    let lacking = pending.settle(&progress(200, 150));
    assert!(lacking.len() == 1 && lacking[0].1.what.contains("PaymentResultTopic"), "{lacking:?}");
}
