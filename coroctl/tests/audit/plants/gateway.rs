//! Charges that should not be, or should; and the three sides that disagree.

use crate::fixture::{CANCELLED, COMPLETED, DECLINED, STRANGER};
use crate::plants::{NOTHING, Plant, id, line};

pub const GATEWAY: &[Plant] = &[
    Plant {
        what: "a second charge",
        complain: &["G1", "R"],
        plant: |harness| harness.lines.push(line(&COMPLETED, 100, "charge")),
        ..NOTHING
    },
    Plant {
        what: "completed and never charged",
        complain: &["G1", "R"],
        plant: |harness| drop(harness.lines.remove(0)),
        ..NOTHING
    },
    Plant {
        what: "charged by another amount",
        complain: &["G1", "G3", "R"],
        plant: |harness| harness.lines[0] = line(&COMPLETED, 101, "charge"),
        ..NOTHING
    },
    Plant {
        what: "a failed payment that is charged",
        complain: &["G2", "R"],
        plant: |harness| harness.lines.push(line(&DECLINED, 50, "charge")),
        ..NOTHING
    },
    Plant {
        what: "a charge of nobody's",
        complain: &["G3", "R"],
        plant: |harness| harness.lines.push(line(&STRANGER, 50, "charge")),
        ..NOTHING
    },
    Plant {
        what: "a charge with a reference that is no payment id",
        complain: &["G3"],
        plant: |harness| harness.lines.push(line(&"somebody", 50, "charge")),
        ..NOTHING
    },
    Plant {
        what: "a charge, given back, where no call was ever to be made",
        complain: &["G3"],
        plant: |harness| harness.lines.extend([line(&CANCELLED, 60, "charge"), line(&CANCELLED, 60, "void")]),
        ..NOTHING
    },
    Plant {
        what: "failed although the outcome is unknown",
        complain: &["G4", "R"],
        processor: concat!(
            "update charges set status = 'unknown', exposed = true, decided_at = null where payment_id = ",
            id!("0b")
        ),
        ..NOTHING
    },
    Plant {
        what: "failed without a reason",
        complain: &["G4"],
        processor: concat!("update charges set reason = null where payment_id = ", id!("0b")),
        ..NOTHING
    },
    Plant {
        what: "completed although the outcome is unknown",
        complain: &["G4", "R"],
        processor: concat!(
            "update charges set status = 'unknown', exposed = true, decided_at = null where payment_id = ",
            id!("0a")
        ),
        ..NOTHING
    },
    Plant {
        what: "a charge row of a rejected payment",
        complain: &["R"],
        processor: concat!(
            "insert into charges (payment_id, user_id, client_number, service_id, amount, status, lease_until, decided_at)
             values (",
            id!("0e"),
            ", ",
            id!("02"),
            ", '0812', 'electricity', 500, 'cancelled', now(), now())"
        ),
        ..NOTHING
    },
    Plant {
        what: "a rejection of nobody's",
        complain: &["R"],
        balance: concat!(
            "insert into ledger (user_id, payment_id, phase, kind, amount, reason, entry_no) values (",
            id!("01"),
            ", ",
            id!("ff"),
            ", 1, 'rejection', 5, 'unknown_account', null)"
        ),
        ..NOTHING
    },
    Plant {
        what: "a charge row of another amount",
        complain: &["G3", "M6", "R"],
        processor: concat!("update charges set amount = 101 where payment_id = ", id!("0a")),
        ..NOTHING
    },
    Plant {
        what: "charged and given back by another amount than was meant",
        complain: &["G3"],
        plant: |harness| harness.lines.extend([line(&COMPLETED, 101, "charge"), line(&COMPLETED, 101, "void")]),
        ..NOTHING
    },
];
