//! Money that does not add up.

use crate::plants::{NOTHING, Plant, id};

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
        complain: &["M4", "R"],
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
            "insert into ledger (user_id, payment_id, phase, kind, amount) values (",
            id!("01"),
            ", ",
            id!("ff"),
            ", 1, 'hold', 5); update accounts set available = available - 5, held = held + 5 where available = 870"
        ),
        ..NOTHING
    },
    Plant {
        what: "a capture of less than was held",
        complain: &["M5", "R"],
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
             insert into ledger select * from ledger where phase = 1 and payment_id = ",
            id!("0a"),
            "; insert into ledger select user_id, payment_id, 2, 'release', amount, service_id, 'x', null, created_at
                 from ledger where phase = 2 and payment_id = ",
            id!("0a")
        ),
        ..NOTHING
    },
];
