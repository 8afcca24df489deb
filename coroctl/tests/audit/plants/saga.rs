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
        what: "a step that is not legal",
        complain: &["S2"],
        plant: |scene| {
            let telling = scene.tellings.get(&format!("payments/payments/{COMPLETED}/2"));
            telling.event_type = "payment.rejected.v1".to_owned();
            (telling.body["event"], telling.body["status"]) = (json!("rejected"), json!("rejected"));
        },
        ..NOTHING
    },
    Plant {
        what: "a version that was left out",
        complain: &["S2", "T1"],
        plant: |scene| scene.tellings.forget(&format!("payments/payments/{COMPLETED}/2")),
        ..NOTHING
    },
    Plant {
        what: "a transition that was not counted",
        complain: &["S2"],
        payments: concat!("update payments set version = 2 where payment_id = ", id!("0b")),
        ..NOTHING
    },
    Plant {
        what: "an outcome after the outcome",
        complain: &["S2"],
        processor: concat!("update charges set version = 3 where payment_id = ", id!("0b")),
        plant: |scene| {
            let id = format!("processor/charges/{DECLINED}/3");
            let mut earlier = scene.tellings.get(&id).clone();
            earlier.id = format!("processor/charges/{DECLINED}/2");
            earlier.body["version"] = json!(2);
            let index = scene.tellings.index(&id);
            scene.tellings.0.insert(index, earlier);
            scene.tellings.link();
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
        plant: |scene| scene.accepted.push(STRANGER),
        ..NOTHING
    },
    Plant {
        what: "a payment that was told and is gone",
        complain: &["S4", "T3"],
        plant: |scene| {
            let id = format!("payments/payments/{EXPIRED}/1");
            let mut body = scene.tellings.get(&id).body.clone();
            body["payment_id"] = json!(STRANGER);
            scene.tellings.tell_payment(body);
            scene.tellings.link();
        },
        ..NOTHING
    },
];
