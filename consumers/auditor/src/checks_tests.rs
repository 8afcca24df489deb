//! Each rule with a planted fault.

use coroctl::audit::read::rows::{Entries, Entry, Terms};
use coroctl::audit::statuses::{ChargeStatus, PaymentStatus};
use jiff::Timestamp;

use super::*;

const USER: Uuid = Uuid::from_u128(1);
const ID: Uuid = Uuid::from_u128(0xA);
const OTHER: Uuid = Uuid::from_u128(0xB);

type Plant = fn(&mut Rows);

fn terms(amount: i64) -> Terms {
    Terms { user_id: USER, amount, service: 7, client_number: None }
}

fn payment(status: PaymentStatus, amount: i64) -> Payment {
    let ended_at = status.has_ended().then_some(Timestamp::UNIX_EPOCH);
    let (initiated_at, terms) = (Timestamp::UNIX_EPOCH, terms(amount));
    Payment { amount, terms, status, version: 3, initiated_at, ended_at, shown: 3, fingerprint: 0 }
}

fn entry(kind: EntryKind, amount: i64) -> Entry {
    Entry { kind, amount, terms: terms(amount), fingerprint: 0 }
}

fn charge(status: ChargeStatus, amount: i64) -> Charge {
    Charge { amount, terms: terms(amount), status, version: 2, has_reason: true, fingerprint: 0 }
}

/// A completed payment under each of two ids.
fn completed() -> Rows {
    let mut rows = Rows::default();
    for id in [ID, OTHER] {
        rows.payments.rows.insert(id, payment(PaymentStatus::Completed, 100));
        let (first, second) = (Some(entry(EntryKind::Hold, 100)), Some(entry(EntryKind::Capture, 100)));
        rows.ledger.rows.insert(id, Entries { first, second });
        rows.charges.rows.insert(id, charge(ChargeStatus::Succeeded, 100));
    }
    rows
}

fn broken(rows: Rows) -> Vec<(Uuid, Check)> {
    rows.violations().1.into_iter().map(|(id, found)| (id, found.check)).collect()
}

#[test]
fn rows_that_agree_break_nothing() {
    assert_eq!(broken(completed()), []);
    assert_eq!(broken(Rows::default()), []);
    let mut deposit = Rows::default();
    let first = Some(entry(EntryKind::Deposit, 5));
    deposit.ledger.rows.insert(ID, Entries { first, second: None });
    assert_eq!(broken(deposit), []);
}

#[test]
fn each_planted_fault_is_found_at_its_payment_alone() {
    let plants: [(&str, Plant, &[Check]); 10] = [
        (
            "another amount in payments",
            |rows| {
                rows.payments.rows.insert(ID, payment(PaymentStatus::Completed, 101));
            },
            &[Check::M6, Check::R],
        ),
        (
            "another amount in the ledger",
            |rows| {
                rows.ledger.rows.get_mut(&ID).unwrap().second = Some(entry(EntryKind::Capture, 99));
            },
            &[Check::M6, Check::R],
        ),
        (
            "another amount in charges",
            |rows| {
                rows.charges.rows.insert(ID, charge(ChargeStatus::Succeeded, 1));
            },
            &[Check::M6, Check::R],
        ),
        (
            "the hold is still there",
            |rows| rows.ledger.rows.get_mut(&ID).unwrap().second = None,
            &[Check::M4, Check::R],
        ),
        (
            "released, though completed",
            |rows| {
                rows.ledger.rows.get_mut(&ID).unwrap().second = Some(entry(EntryKind::Release, 100));
            },
            &[Check::R],
        ),
        (
            "completed over a charge that is unknown",
            |rows| {
                rows.charges.rows.insert(ID, charge(ChargeStatus::Unknown, 100));
            },
            &[Check::G4, Check::R],
        ),
        (
            "failed over a charge that succeeded",
            |rows| {
                rows.payments.rows.insert(ID, payment(PaymentStatus::Failed, 100));
            },
            &[Check::G4, Check::R],
        ),
        ("no payment", |rows| rows.payments.rows.retain(|id, _| *id != ID), &[Check::R]),
        (
            "fewer versions than its columns show",
            |rows| rows.payments.rows.get_mut(&ID).unwrap().version = 2,
            &[Check::S2],
        ),
        (
            "released while the charge is calling",
            |rows| {
                rows.payments.rows.insert(ID, payment(PaymentStatus::Authorized, 100));
                rows.ledger.rows.get_mut(&ID).unwrap().second = Some(entry(EntryKind::Release, 100));
                rows.charges.rows.insert(ID, charge(ChargeStatus::Calling, 100));
            },
            &[Check::G4],
        ),
    ];
    for (what, plant, expected) in plants {
        let mut rows = completed();
        plant(&mut rows);
        let expected: Vec<(Uuid, Check)> = expected.iter().map(|check| (ID, *check)).collect();
        assert_eq!(broken(rows), expected, "{what}");
    }
}

#[test]
fn a_payment_under_way_breaks_nothing_in_any_step() {
    for (status, first, second, charged) in [
        (PaymentStatus::Initiated, None, None, None),
        (PaymentStatus::Initiated, Some(EntryKind::Hold), None, None),
        (PaymentStatus::Initiated, Some(EntryKind::Rejection), None, None),
        (PaymentStatus::Authorized, Some(EntryKind::Hold), None, None),
        (PaymentStatus::Authorized, Some(EntryKind::Hold), None, Some(ChargeStatus::Calling)),
        (PaymentStatus::Authorized, Some(EntryKind::Hold), None, Some(ChargeStatus::Declined)),
        (
            PaymentStatus::Authorized,
            Some(EntryKind::Hold),
            Some(EntryKind::Release),
            Some(ChargeStatus::Declined),
        ),
        // The payment was read first, and the others have gone on since.
        (
            PaymentStatus::Initiated,
            Some(EntryKind::Hold),
            Some(EntryKind::Capture),
            Some(ChargeStatus::Succeeded),
        ),
    ] {
        let mut rows = Rows::default();
        rows.payments.rows.insert(ID, payment(status, 100));
        let [first, second] = [first, second].map(|kind| kind.map(|kind| entry(kind, 100)));
        rows.ledger.rows.insert(ID, Entries { first, second });
        rows.charges.rows.extend(charged.map(|status| (ID, charge(status, 100))));
        assert_eq!(broken(rows), [], "{status:?} {first:?} {charged:?}");
    }
}

fn movement(
    entry_no: i64,
    kind: EntryKind,
    amount: i64,
    before: Option<(i64, i64)>,
    after: (i64, i64),
) -> Movement {
    let balances = |(available, held)| Balances { available, held };
    Movement { key: (USER, ID), kind, amount, entry_no, after: balances(after), before: before.map(balances) }
}

#[test]
fn a_movement_continues_the_one_before_it() {
    use EntryKind::{Capture, Deposit, Hold, Release};
    for (movement, expected) in [
        (movement(1, Deposit, 100, None, (100, 0)), None),
        (movement(2, Hold, 40, Some((100, 0)), (60, 40)), None),
        (movement(3, Capture, 40, Some((60, 40)), (60, 0)), None),
        (movement(3, Release, 40, Some((60, 40)), (100, 0)), None),
        // One cent too much, on either side.
        (movement(1, Deposit, 100, None, (101, 0)), Some(Check::M7)),
        (movement(2, Hold, 40, Some((100, 0)), (60, 41)), Some(Check::M7)),
        (movement(3, Capture, 40, Some((60, 40)), (100, 0)), Some(Check::M7)),
        // A gap, and a second beginning.
        (movement(3, Capture, 40, None, (60, 0)), Some(Check::M7)),
        (movement(1, Deposit, 100, Some((0, 0)), (100, 0)), Some(Check::M7)),
        // Before migration V5 the order was another one.
        (movement(2, Hold, 40, Some((10, 0)), (-30, 40)), None),
        (movement(2, Deposit, i64::MAX, Some((1, 0)), (1, 0)), Some(Check::M7)),
    ] {
        assert_eq!(continues(&movement).map(|found| found.check), expected, "{movement:?}");
    }
}

#[test]
fn an_account_equals_its_last_movement() {
    let balances = |(available, held)| Balances { available, held };
    let one = |account: Option<((i64, i64), i64)>, last: Option<(i64, i64)>, beyond| Account {
        user_id: USER,
        account: account.map(|(of_account, number)| (balances(of_account), number)),
        last: last.map(balances),
        beyond,
    };
    for (examined, expected) in [
        (one(Some(((100, 5), 3)), Some((100, 5)), None), vec![]),
        (one(Some(((0, 0), 0)), None, None), vec![]),
        (one(None, None, None), vec![]),
        (one(Some(((101, 5), 3)), Some((100, 5)), None), vec![Check::M3]),
        (one(Some(((100, 4), 3)), Some((100, 5)), None), vec![Check::M3]),
        (one(Some(((1, 0), 0)), None, None), vec![Check::M3]),
        (one(Some(((100, 5), 3)), None, None), vec![Check::M7]),
        (one(Some(((100, 5), 3)), Some((100, 5)), Some(4)), vec![Check::M7]),
        (one(None, None, Some(1)), vec![Check::M7]),
        (one(Some(((-1, 5), 3)), Some((-1, 5)), None), vec![Check::M2]),
    ] {
        let found: Vec<Check> = account(&examined).into_iter().map(|found| found.check).collect();
        assert_eq!(found, expected, "{examined:?}");
    }
}

#[test]
fn only_an_undecided_charge_waits_for_the_gateway() {
    assert_eq!(WaitsFor::of(None), WaitsFor::Saga);
    for (status, expected) in [
        (ChargeStatus::Waiting, WaitsFor::Gateway),
        (ChargeStatus::Calling, WaitsFor::Gateway),
        (ChargeStatus::Unknown, WaitsFor::Gateway),
        (ChargeStatus::Succeeded, WaitsFor::Saga),
        (ChargeStatus::Declined, WaitsFor::Saga),
    ] {
        assert_eq!(WaitsFor::of(Some(&charge(status, 1))), expected, "{status:?}");
    }
}
