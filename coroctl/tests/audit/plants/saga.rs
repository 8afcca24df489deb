//! Payments that go astray.

use serde_json::json;

use crate::fixture::{COMPLETED, DECLINED, EXPIRED, STRANGER};
use crate::plants::{NOTHING, Plant, id};

pub const SAGA: &[Plant] = &[
    Plant {
        what: "a payment that does not end",
        complain: &["S1"],
        payments: concat!(
            "insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, expires_at)
             values (",
            id!("01"),
            ", ",
            id!("ff"),
            ", 'new', '', '0812', 'electricity', 5, now())"
        ),
        ..NOTHING
    },
    Plant {
        what: "a transition that is not legal",
        complain: &["S2"],
        plant: |harness| {
            let event = harness.events.get(&format!("payments/payments/{COMPLETED}/2"));
            event.event_type = "payment.rejected.v1".to_owned();
            (event.body["event"], event.body["status"]) = (json!("rejected"), json!("rejected"));
        },
        ..NOTHING
    },
    Plant {
        what: "a version that was left out",
        complain: &["S2", "T1"],
        plant: |harness| harness.events.remove(&format!("payments/payments/{COMPLETED}/2")),
        ..NOTHING
    },
    Plant {
        what: "a transition that was not counted",
        complain: &["D2", "S2"],
        payments: concat!("update payments set version = 2 where payment_id = ", id!("0b")),
        ..NOTHING
    },
    Plant {
        what: "an outcome after the outcome",
        complain: &["S2"],
        processor: concat!("update charges set version = 3 where payment_id = ", id!("0b")),
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
    Plant {
        what: "two payments under one key",
        complain: &["S3"],
        payments: "alter table payments drop constraint payments_idempotency_key;
                   update payments set idempotency_key = 'same' where amount in (50, 60)",
        ..NOTHING
    },
    Plant {
        what: "a payment that a caller was promised and is gone",
        complain: &["S4"],
        plant: |harness| harness.accepted.push(STRANGER),
        ..NOTHING
    },
    Plant {
        what: "a payment that was emitted and is gone",
        complain: &["S4", "T3"],
        plant: |harness| {
            let id = format!("payments/payments/{EXPIRED}/1");
            let mut body = harness.events.get(&id).body.clone();
            body["payment_id"] = json!(STRANGER);
            harness.events.emit_payment(body);
            harness.events.link();
        },
        ..NOTHING
    },
];
