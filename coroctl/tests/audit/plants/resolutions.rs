//! What operators have done by hand, and what looks like it and was done by nobody.

use serde_json::json;

use crate::fixture::{DECLINED, STRANGER};
use crate::plants::{NOTHING, Plant, id, line};

const PARKED: &str = "
    insert into parked (parked_id, source, headers, body, reason)
    values ('BalanceTopic/0/99', 'BalanceTopic', '{}', '', 'no ce_type header');";

/// A hold of 5 that was released, and has no payment.
const HOLD: &str = concat!(
    "insert into ledger (user_id, payment_id, phase, kind, amount, service_id, reason, entry_no, available_after, held_after)
     values (",
    id!("01"),
    ", ",
    id!("ff"),
    ", 1, 'hold', 5, 'electricity', null, 12, 865, 5), (",
    id!("01"),
    ", ",
    id!("ff"),
    ", 2, 'release', 5, 'electricity', 'expired:never_made', 13, 870, 0);
     update accounts set last_entry_no = 13 where available = 870"
);

/// The charge of that hold: nobody was charged, and it ended.
macro_rules! expired {
    () => {
        concat!(
            "insert into charges (payment_id, user_id, client_number, service_id, amount, status, reason, lease_until, decided_at)
             values (",
            id!("ff"),
            ", ",
            id!("01"),
            ", 'unknown', 'electricity', 5, 'expired', 'never_made', now(), now());"
        )
    };
}

/// Two operators have resolved this charge, whose amount was another one before.
macro_rules! resolved {
    ($end:literal, $before:literal) => {
        concat!(
            "insert into resolutions (resolution_id, payment_id, user_id, client_number, service_id, amount, evidence,
                                      operator, reason)
             values (",
            id!("aa"),
            ", ",
            id!($end),
            ", ",
            id!("01"),
            ", '0812', 'electricity', 50, 'never_made', 'alice', 'seen');
             insert into resolution_confirmations (resolution_id, proposed_by, operator, reason, outcome, before, after)
             values (",
            id!("aa"),
            ", 'alice', 'bob', 'seen too', 'applied', ",
            $before,
            ", '{}');"
        )
    };
}

pub const RESOLUTIONS: &[Plant] = &[
    Plant { what: "a parked message of nobody's", complain: &["T6 parked"], payments: PARKED, ..NOTHING },
    Plant {
        what: "a parked message that an operator has dismissed",
        complain: &[],
        payments: "insert into parked (parked_id, source, headers, body, reason)
                   values ('BalanceTopic/0/99', 'BalanceTopic', '{}', '', 'no ce_type header');
                   insert into parked_acts (parked_id, act, operator, reason, outcome)
                   values ('BalanceTopic/0/99', 'dismissed', 'alice', 'a test', 'no ce_type header')",
        ..NOTHING
    },
    Plant {
        what: "a charge of another amount that was given back",
        complain: &["G3"],
        plant: |harness| harness.lines.extend([line(&DECLINED, 51, "charge"), line(&DECLINED, 51, "void")]),
        ..NOTHING
    },
    Plant {
        what: "a charge of another amount that was given back, resolved",
        complain: &[],
        processor: resolved!("0b", "'{\"amount\": 51}'"),
        plant: |harness| harness.lines.extend([line(&DECLINED, 51, "charge"), line(&DECLINED, 51, "void")]),
        ..NOTHING
    },
    Plant {
        what: "a charge of another amount than the one that was resolved",
        complain: &["G3"],
        processor: resolved!("0b", "'{\"amount\": 51}'"),
        plant: |harness| harness.lines.extend([line(&DECLINED, 52, "charge"), line(&DECLINED, 52, "void")]),
        ..NOTHING
    },
    Plant {
        what: "a hold without a payment that ended by nobody's word",
        complain: &["R"],
        balance: HOLD,
        processor: expired!(),
        ..NOTHING
    },
    Plant {
        what: "a hold without a payment that operators have ended",
        complain: &[],
        balance: HOLD,
        processor: concat!(expired!(), resolved!("ff", "null")),
        ..NOTHING
    },
    Plant {
        what: "a hold without a payment that operators have ended, and that is charged",
        complain: &["G3", "R"],
        balance: HOLD,
        processor: concat!(expired!(), resolved!("ff", "null")),
        plant: |harness| harness.lines.push(line(&STRANGER, 5, "charge")),
        ..NOTHING
    },
    Plant {
        what: "an outcome after the outcome, by a resolution",
        complain: &[],
        processor: concat!(
            "update charges set version = 3 where payment_id = ",
            id!("0b"),
            ";",
            resolved!("0b", "'{\"amount\": 50}'")
        ),
        plant: |harness| {
            let id = format!("processor/charges/{DECLINED}/3");
            let mut earlier = harness.events.get(&id).clone();
            earlier.id = format!("processor/charges/{DECLINED}/2");
            earlier.body["version"] = json!(2);
            let index = harness.events.index(&id);
            harness.events.0.insert(index, earlier);
            harness.events.link();
        },
        ..NOTHING
    },
];
