//! Money that does not add up.

use crate::fixture::COMPLETED;
use crate::plants::{NOTHING, Plant, id, line};

pub const MONEY: &[Plant] = &[
    Plant {
        what: "money out of nothing",
        complain: &["M1", "M3"],
        balance: concat!("update accounts set available = available + 1 where user_id = ", id!("01")),
        ..NOTHING
    },
    Plant {
        what: "money moved between accounts",
        complain: &["M3"],
        balance: "update accounts set available = available + case available when 10 then -1 else 1 end",
        ..NOTHING
    },
    Plant {
        what: "an account below zero",
        complain: &["M2", "M3"],
        balance: concat!(
            "alter table accounts drop constraint accounts_available_not_negative;
             update accounts set available = available - 20, held = held + 20 where user_id = ",
            id!("02")
        ),
        ..NOTHING
    },
    Plant {
        what: "a hold left open behind a failed payment",
        complain: &["M4", "M7", "R"],
        balance: concat!(
            "delete from ledger where phase = 2 and payment_id = ",
            id!("0b"),
            "; update accounts set available = available - 50, held = held + 50 where available = 870"
        ),
        ..NOTHING
    },
    Plant {
        what: "a hold without any payment",
        complain: &["M4", "R"],
        balance: concat!(
            "insert into ledger (user_id, payment_id, phase, kind, amount, entry_no, available_after, held_after)
             values (",
            id!("01"),
            ", ",
            id!("ff"),
            ", 1, 'hold', 5, 12, 865, 5);
             update accounts set available = available - 5, held = held + 5, last_entry_no = 12 where available = 870"
        ),
        ..NOTHING
    },
    Plant {
        what: "a capture of less than was held",
        complain: &["M5", "M6", "M7", "R"],
        balance: concat!(
            "update ledger set amount = 90 where phase = 2 and payment_id = ",
            id!("0a"),
            "; update accounts set held = held + 10 where available = 870"
        ),
        ..NOTHING
    },
    Plant {
        what: "a hold that is captured and released",
        complain: &["M5", "R", "T3", "T5"],
        balance: concat!(
            "alter table ledger drop constraint ledger_pkey;
             insert into ledger select user_id, payment_id, 1, kind, amount, service_id, reason, traceparent, created_at,
                                       12, 770, 100
                 from ledger where phase = 1 and payment_id = ",
            id!("0a"),
            "; insert into ledger select user_id, payment_id, 2, 'release', amount, service_id, 'x', null, created_at,
                                         13, 870, 0
                 from ledger where phase = 2 and payment_id = ",
            id!("0a"),
            "; update accounts set last_entry_no = 13 where available = 870"
        ),
        ..NOTHING
    },
    Plant {
        what: "a statement that leaves out a number",
        complain: &["M7"],
        balance: "update ledger set entry_no = 12 where entry_no = 11; update accounts set last_entry_no = 12 where available = 870",
        ..NOTHING
    },
    Plant {
        what: "a number that two movements have",
        complain: &["M7"],
        balance: "drop index ledger_entry_no; update ledger set entry_no = 10 where entry_no = 11",
        ..NOTHING
    },
    Plant {
        what: "a movement that says another balance than the entries up to it",
        complain: &["M7"],
        balance: "update ledger set available_after = available_after + 1, held_after = held_after - 1 where entry_no = 4",
        ..NOTHING
    },
    Plant {
        what: "an account that would give a number again",
        complain: &["M7"],
        balance: "update accounts set last_entry_no = 10 where available = 870",
        ..NOTHING
    },
    Plant {
        what: "a hold for another service than the payment's",
        complain: &["M6"],
        balance: concat!("update ledger set service_id = 'gas' where phase = 1 and payment_id = ", id!("0a")),
        ..NOTHING
    },
    Plant {
        what: "a rejection of another amount than the payment's",
        complain: &["M6", "R"],
        balance: concat!("update ledger set amount = 501 where payment_id = ", id!("0e")),
        ..NOTHING
    },
    Plant {
        what: "a rejection on another user than the payment's",
        complain: &["M6"],
        balance: concat!("update ledger set user_id = ", id!("01"), " where payment_id = ", id!("0e")),
        ..NOTHING
    },
    Plant {
        what: "a charge of another user than the payment's",
        complain: &["M6"],
        processor: concat!("update charges set user_id = ", id!("02"), " where payment_id = ", id!("0a")),
        ..NOTHING
    },
    Plant {
        what: "a charge for another service than the payment's",
        complain: &["M6"],
        processor: concat!("update charges set service_id = 'gas' where payment_id = ", id!("0b")),
        ..NOTHING
    },
    Plant {
        what: "a charge for another client number than the payment's",
        complain: &["M6"],
        processor: concat!("update charges set client_number = '0813' where payment_id = ", id!("0f")),
        ..NOTHING
    },
    Plant {
        // The forged work message came first; the gateway charged what it asked for, and balance-svc kept the hold.
        what: "a charge of another amount, and the hold still there",
        complain: &["D2", "M6", "M7", "R", "S1"],
        payments: concat!(
            "update payments set status = 'authorized', event = 'authorized', version = 2, completed_at = null
              where payment_id = ",
            id!("0a")
        ),
        balance: concat!(
            "delete from ledger where phase = 2 and payment_id = ",
            id!("0a"),
            "; update accounts set held = 100 where available = 870"
        ),
        processor: concat!("update charges set amount = 1 where payment_id = ", id!("0a")),
        plant: |harness| harness.lines[0] = line(&COMPLETED, 1, "charge"),
    },
];
