//! Rows and events that do not fit each other, and what lies about.

use coroctl::audit::read::events::FlaggedRecord;
use serde_json::json;

use crate::fixture::{COMPLETED, DECLINED, STRANGER, UNKNOWN_ONCE};
use crate::plants::{NOTHING, Plant, id};

pub const TRANSPORT: &[Plant] = &[
    Plant {
        what: "an end that is not emitted",
        complain: &["T1"],
        plant: |harness| harness.events.remove(&format!("payments/payments/{COMPLETED}/3")),
        ..NOTHING
    },
    Plant {
        what: "a capture that is not emitted",
        complain: &["T1"],
        plant: |harness| harness.events.remove(&format!("balance/ledger/{COMPLETED}/2")),
        ..NOTHING
    },
    Plant {
        what: "an outcome that is not emitted",
        complain: &["T1"],
        plant: |harness| harness.events.remove(&format!("processor/charges/{COMPLETED}/2")),
        ..NOTHING
    },
    Plant {
        what: "nothing but the last version, re-emitted from its row",
        complain: &[],
        plant: |harness| {
            harness.events.remove(&format!("payments/payments/{COMPLETED}/1"));
            harness.events.remove(&format!("payments/payments/{COMPLETED}/2"));
            harness.events.get(&format!("payments/payments/{COMPLETED}/3")).position = None;
            let re_emitted =
                harness.events.0.remove(harness.events.index(&format!("payments/payments/{COMPLETED}/3")));
            harness.events.link();
            harness.events.0.push(re_emitted);
        },
        ..NOTHING
    },
    Plant {
        what: "a record that is lost on its way",
        complain: &["S2", "T1", "T1 chain"],
        plant: |harness| {
            let index = harness.events.index(&format!("payments/payments/{COMPLETED}/2"));
            harness.events.0.remove(index);
        },
        ..NOTHING
    },
    Plant {
        what: "everything emitted twice",
        complain: &[],
        plant: |harness| harness.events.0.extend(harness.events.0.clone()),
        ..NOTHING
    },
    Plant {
        what: "two events of a user in the wrong order",
        complain: &["T2"],
        plant: |harness| {
            let one = harness.events.index(&format!("payments/payments/{COMPLETED}/1"));
            let other = harness.events.index(&format!("payments/payments/{DECLINED}/1"));
            harness.events.0.swap(one, other);
            let one = harness.events.index(&format!("payments/payments/{COMPLETED}/2"));
            let other = harness.events.index(&format!("payments/payments/{DECLINED}/2"));
            harness.events.0.swap(one, other);
            let one = harness.events.index(&format!("payments/payments/{COMPLETED}/3"));
            let other = harness.events.index(&format!("payments/payments/{DECLINED}/3"));
            harness.events.0.swap(one, other);
        },
        ..NOTHING
    },
    Plant {
        what: "an event under another key than its user's",
        complain: &["T2"],
        plant: |harness| {
            harness.events.get(&format!("balance/ledger/{COMPLETED}/1")).key = "somebody".to_owned();
        },
        ..NOTHING
    },
    Plant {
        what: "an entry that was rolled back",
        complain: &["T3"],
        plant: |harness| {
            let mut body = harness.events.get(&format!("balance/ledger/{COMPLETED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            harness.events.entry(&body);
            harness.events.link();
        },
        ..NOTHING
    },
    Plant {
        what: "a version that was rolled back",
        complain: &["T3"],
        plant: |harness| {
            let id = format!("processor/charges/{UNKNOWN_ONCE}/3");
            harness.events.get(&id).id = format!("processor/charges/{UNKNOWN_ONCE}/4");
            let event = harness.events.get(&format!("processor/charges/{UNKNOWN_ONCE}/4"));
            event.body["version"] = json!(4);
            let mut unknown = event.clone();
            unknown.id = id;
            unknown.event_type = "payment.result.unknown.v1".to_owned();
            (unknown.body["version"], unknown.body["status"]) = (json!(3), json!("unknown"));
            let index = harness.events.index(&format!("processor/charges/{UNKNOWN_ONCE}/4"));
            harness.events.0.insert(index, unknown);
            harness.events.link();
        },
        ..NOTHING
    },
    Plant {
        what: "an event that says something else than its row",
        complain: &["T3"],
        plant: |harness| {
            harness.events.get(&format!("payments/payments/{COMPLETED}/3")).body["amount"] = json!(1);
        },
        ..NOTHING
    },
    Plant {
        what: "an event re-emitted with another body",
        complain: &["T3"],
        plant: |harness| {
            let mut again = harness.events.get(&format!("balance/ledger/{COMPLETED}/2")).clone();
            again.body["amount"] = json!(1);
            harness.events.0.push(again);
        },
        ..NOTHING
    },
    Plant {
        what: "an older version of a payment re-emitted with another body",
        complain: &["T3"],
        plant: |harness| {
            let mut again = harness.events.get(&format!("payments/payments/{COMPLETED}/1")).clone();
            again.body["amount"] = json!(1);
            harness.events.0.push(again);
        },
        ..NOTHING
    },
    Plant {
        what: "an older version of a charge re-emitted with another body",
        complain: &["T3"],
        processor: concat!("update charges set version = 4 where payment_id = ", id!("0f")),
        plant: |harness| {
            let id = format!("processor/charges/{UNKNOWN_ONCE}/4");
            let mut earlier = harness.events.get(&id).clone();
            earlier.id = format!("processor/charges/{UNKNOWN_ONCE}/2");
            earlier.event_type = "payment.result.unknown.v1".to_owned();
            (earlier.body["version"], earlier.body["status"]) = (json!(2), json!("unknown"));
            let index = harness.events.index(&id);
            harness.events.0.insert(index, earlier.clone());
            harness.events.link();
            earlier.body["amount"] = json!(1);
            harness.events.0.push(earlier);
        },
        ..NOTHING
    },
    Plant {
        what: "older versions re-emitted as they were",
        complain: &[],
        plant: |harness| {
            for version in 1..=3 {
                let id = format!("payments/payments/{UNKNOWN_ONCE}/{version}");
                let again = harness.events.get(&id).clone();
                harness.events.0.push(again);
            }
        },
        ..NOTHING
    },
    Plant {
        what: "an older version re-emitted with another body, explained",
        complain: &[],
        plant: |harness| {
            let mut again = harness.events.get(&format!("payments/payments/{COMPLETED}/1")).clone();
            again.body["amount"] = json!(1);
            harness.events.0.push(again);
            harness.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "an event of a payment that never was, explained",
        complain: &[],
        plant: |harness| {
            let mut body = harness.events.get(&format!("payments/payments/{DECLINED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            harness.events.emit_payment(body);
            harness.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "an event of a payment that never was, and another one explained",
        complain: &["S4", "T3"],
        plant: |harness| {
            let mut body = harness.events.get(&format!("payments/payments/{DECLINED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            harness.events.emit_payment(body);
            harness.explained.push("BalanceTopic/0/20");
        },
        ..NOTHING
    },
    Plant {
        what: "an end that was never committed, explained",
        complain: &[],
        plant: |harness| {
            let mut body = harness.events.get(&format!("payments/payments/{COMPLETED}/3")).body.clone();
            (body["version"], body["event"], body["status"]) = (json!(4), json!("failed"), json!("failed"));
            harness.events.emit_payment(body);
            harness.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "an entry that was never committed, explained",
        complain: &[],
        plant: |harness| {
            let mut body = harness.events.get(&format!("balance/ledger/{COMPLETED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            harness.events.entry(&body);
            harness.explained.push("BalanceTopic/0/13");
        },
        ..NOTHING
    },
    Plant {
        what: "poison that nobody parked, explained",
        complain: &[],
        plant: |harness| {
            harness.events.poison();
            harness.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "poison that nobody parked",
        complain: &["T3"],
        plant: |harness| harness.events.poison(),
        ..NOTHING
    },
    Plant {
        what: "poison that is parked, and explained",
        complain: &[],
        balance: "insert into parked (parked_id, source, headers, body, reason)
                  values ('PaymentTopic/0/19', 'PaymentTopic', '{}', '', 'no ce_type header')",
        plant: |harness| {
            harness.events.poison();
            harness.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "poison that is parked, and not explained",
        complain: &["T6 parked"],
        balance: "insert into parked (parked_id, source, headers, body, reason)
                  values ('PaymentTopic/0/19', 'PaymentTopic', '{}', '', 'no ce_type header')",
        plant: |harness| harness.events.poison(),
        ..NOTHING
    },
    Plant {
        what: "a slot ahead of what is acknowledged",
        complain: &["T4"],
        plant: |harness| harness.checkpoints[1].acknowledged = 999,
        ..NOTHING
    },
    Plant {
        what: "a slot that is gone",
        complain: &["T4"],
        plant: |harness| {
            harness.clusters.values_mut().flatten().take(1).for_each(|cluster| cluster.slots.clear());
        },
        ..NOTHING
    },
    Plant {
        what: "a relay without a checkpoint of a source that it has emitted",
        complain: &["T4"],
        plant: |harness| drop(harness.checkpoints.remove(0)),
        ..NOTHING
    },
    Plant {
        what: "an entry that had its effect twice",
        complain: &["T5"],
        balance: "alter table ledger drop constraint ledger_pkey;
                  insert into ledger select * from ledger where kind = 'rejection'",
        ..NOTHING
    },
    Plant {
        what: "two charge rows of one payment",
        complain: &["T5"],
        processor: concat!(
            "alter table charges drop constraint charges_pkey;
             insert into charges select * from charges where payment_id = ",
            id!("0a")
        ),
        ..NOTHING
    },
    Plant {
        what: "more versions than things that happened",
        complain: &["D2", "S2", "T1", "T5"],
        payments: concat!("update payments set version = 5 where payment_id = ", id!("0a")),
        ..NOTHING
    },
    Plant {
        what: "work that nobody takes",
        complain: &["T6 queue"],
        plant: |harness| harness.queue_depth = 3,
        ..NOTHING
    },
    Plant {
        what: "a group that does not keep up",
        complain: &["T6 lag"],
        plant: |harness| harness.lag = 2,
        ..NOTHING
    },
    Plant {
        what: "a row that could not be emitted",
        complain: &["T6 parked"],
        plant: |harness| {
            let (at, why) = ("cdc-relay.dead-letter/0/0".to_owned(), "too large".to_owned());
            harness.dead_letters.push(FlaggedRecord { at, why });
        },
        ..NOTHING
    },
];
