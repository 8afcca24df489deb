//! Rows and events that do not fit each other, and what lies about.

use coroctl::audit::told::Foreign;
use serde_json::json;

use crate::fixture::{COMPLETED, DECLINED, STRANGER, UNKNOWN_ONCE};
use crate::plants::{NOTHING, Plant, id};

pub const TRANSPORT: &[Plant] = &[
    Plant {
        what: "an end that is not told",
        complain: &["T1"],
        plant: |scene| scene.tellings.forget(&format!("payments/payments/{COMPLETED}/3")),
        ..NOTHING
    },
    Plant {
        what: "a capture that is not told",
        complain: &["T1"],
        plant: |scene| scene.tellings.forget(&format!("balance/ledger/{COMPLETED}/2")),
        ..NOTHING
    },
    Plant {
        what: "an outcome that is not told",
        complain: &["T1"],
        plant: |scene| scene.tellings.forget(&format!("processor/charges/{COMPLETED}/2")),
        ..NOTHING
    },
    Plant {
        what: "nothing but the last version, told again from its row",
        complain: &[],
        plant: |scene| {
            scene.tellings.forget(&format!("payments/payments/{COMPLETED}/1"));
            scene.tellings.forget(&format!("payments/payments/{COMPLETED}/2"));
            scene.tellings.get(&format!("payments/payments/{COMPLETED}/3")).position = None;
            let told_again =
                scene.tellings.0.remove(scene.tellings.index(&format!("payments/payments/{COMPLETED}/3")));
            scene.tellings.link();
            scene.tellings.0.push(told_again);
        },
        ..NOTHING
    },
    Plant {
        what: "a record that is lost on its way",
        complain: &["S2", "T1", "T1 chain"],
        plant: |scene| {
            let index = scene.tellings.index(&format!("payments/payments/{COMPLETED}/2"));
            scene.tellings.0.remove(index);
        },
        ..NOTHING
    },
    Plant {
        what: "everything told twice",
        complain: &[],
        plant: |scene| scene.tellings.0.extend(scene.tellings.0.clone()),
        ..NOTHING
    },
    Plant {
        what: "two events of a user in the wrong order",
        complain: &["T2"],
        plant: |scene| {
            let one = scene.tellings.index(&format!("payments/payments/{COMPLETED}/1"));
            let other = scene.tellings.index(&format!("payments/payments/{DECLINED}/1"));
            scene.tellings.0.swap(one, other);
            let one = scene.tellings.index(&format!("payments/payments/{COMPLETED}/2"));
            let other = scene.tellings.index(&format!("payments/payments/{DECLINED}/2"));
            scene.tellings.0.swap(one, other);
            let one = scene.tellings.index(&format!("payments/payments/{COMPLETED}/3"));
            let other = scene.tellings.index(&format!("payments/payments/{DECLINED}/3"));
            scene.tellings.0.swap(one, other);
        },
        ..NOTHING
    },
    Plant {
        what: "an event under another key than its user's",
        complain: &["T2"],
        plant: |scene| {
            scene.tellings.get(&format!("balance/ledger/{COMPLETED}/1")).key = "somebody".to_owned();
        },
        ..NOTHING
    },
    Plant {
        what: "an entry that was rolled back",
        complain: &["T3"],
        plant: |scene| {
            let mut body = scene.tellings.get(&format!("balance/ledger/{COMPLETED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            scene.tellings.entry(&body);
            scene.tellings.link();
        },
        ..NOTHING
    },
    Plant {
        what: "a version that was rolled back",
        complain: &["T3"],
        plant: |scene| {
            let id = format!("processor/charges/{UNKNOWN_ONCE}/3");
            scene.tellings.get(&id).id = format!("processor/charges/{UNKNOWN_ONCE}/4");
            let telling = scene.tellings.get(&format!("processor/charges/{UNKNOWN_ONCE}/4"));
            telling.body["version"] = json!(4);
            let mut unknown = telling.clone();
            unknown.id = id;
            unknown.event_type = "payment.result.unknown.v1".to_owned();
            (unknown.body["version"], unknown.body["status"]) = (json!(3), json!("unknown"));
            let index = scene.tellings.index(&format!("processor/charges/{UNKNOWN_ONCE}/4"));
            scene.tellings.0.insert(index, unknown);
            scene.tellings.link();
        },
        ..NOTHING
    },
    Plant {
        what: "an event that says something else than its row",
        complain: &["T3"],
        plant: |scene| {
            scene.tellings.get(&format!("payments/payments/{COMPLETED}/3")).body["amount"] = json!(1);
        },
        ..NOTHING
    },
    Plant {
        what: "an event told again with another body",
        complain: &["T3"],
        plant: |scene| {
            let mut again = scene.tellings.get(&format!("balance/ledger/{COMPLETED}/2")).clone();
            again.body["amount"] = json!(1);
            scene.tellings.0.push(again);
        },
        ..NOTHING
    },
    Plant {
        what: "an older version of a payment told again with another body",
        complain: &["T3"],
        plant: |scene| {
            let mut again = scene.tellings.get(&format!("payments/payments/{COMPLETED}/1")).clone();
            again.body["amount"] = json!(1);
            scene.tellings.0.push(again);
        },
        ..NOTHING
    },
    Plant {
        what: "an older version of a charge told again with another body",
        complain: &["T3"],
        processor: concat!("update charges set version = 4 where payment_id = ", id!("0f")),
        plant: |scene| {
            let id = format!("processor/charges/{UNKNOWN_ONCE}/4");
            let mut earlier = scene.tellings.get(&id).clone();
            earlier.id = format!("processor/charges/{UNKNOWN_ONCE}/2");
            earlier.event_type = "payment.result.unknown.v1".to_owned();
            (earlier.body["version"], earlier.body["status"]) = (json!(2), json!("unknown"));
            let index = scene.tellings.index(&id);
            scene.tellings.0.insert(index, earlier.clone());
            scene.tellings.link();
            earlier.body["amount"] = json!(1);
            scene.tellings.0.push(earlier);
        },
        ..NOTHING
    },
    Plant {
        what: "older versions told again as they were",
        complain: &[],
        plant: |scene| {
            for version in 1..=3 {
                let id = format!("payments/payments/{UNKNOWN_ONCE}/{version}");
                let again = scene.tellings.get(&id).clone();
                scene.tellings.0.push(again);
            }
        },
        ..NOTHING
    },
    Plant {
        what: "an older version told again with another body, explained",
        complain: &[],
        plant: |scene| {
            let mut again = scene.tellings.get(&format!("payments/payments/{COMPLETED}/1")).clone();
            again.body["amount"] = json!(1);
            scene.tellings.0.push(again);
            scene.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "an event of a payment that never was, explained",
        complain: &[],
        plant: |scene| {
            let mut body = scene.tellings.get(&format!("payments/payments/{DECLINED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            scene.tellings.tell_payment(body);
            scene.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "an event of a payment that never was, and another one explained",
        complain: &["S4", "T3"],
        plant: |scene| {
            let mut body = scene.tellings.get(&format!("payments/payments/{DECLINED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            scene.tellings.tell_payment(body);
            scene.explained.push("BalanceTopic/0/20");
        },
        ..NOTHING
    },
    Plant {
        what: "an end that was never committed, explained",
        complain: &[],
        plant: |scene| {
            let mut body = scene.tellings.get(&format!("payments/payments/{COMPLETED}/3")).body.clone();
            (body["version"], body["event"], body["status"]) = (json!(4), json!("failed"), json!("failed"));
            scene.tellings.tell_payment(body);
            scene.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "an entry that was never committed, explained",
        complain: &[],
        plant: |scene| {
            let mut body = scene.tellings.get(&format!("balance/ledger/{COMPLETED}/1")).body.clone();
            body["payment_id"] = json!(STRANGER);
            scene.tellings.entry(&body);
            scene.explained.push("BalanceTopic/0/13");
        },
        ..NOTHING
    },
    Plant {
        what: "poison that nobody parked, explained",
        complain: &[],
        plant: |scene| {
            scene.tellings.poison();
            scene.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "poison that nobody parked",
        complain: &["T3"],
        plant: |scene| scene.tellings.poison(),
        ..NOTHING
    },
    Plant {
        what: "poison that is parked, and explained",
        complain: &[],
        balance: "insert into parked (parked_id, source, headers, body, reason)
                  values ('PaymentTopic/0/19', 'PaymentTopic', '{}', '', 'no ce_type header')",
        plant: |scene| {
            scene.tellings.poison();
            scene.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "poison that is parked, and not explained",
        complain: &["T6 parked"],
        balance: "insert into parked (parked_id, source, headers, body, reason)
                  values ('PaymentTopic/0/19', 'PaymentTopic', '{}', '', 'no ce_type header')",
        plant: |scene| scene.tellings.poison(),
        ..NOTHING
    },
    Plant {
        what: "a slot ahead of what is acknowledged",
        complain: &["T4"],
        plant: |scene| scene.memories[1].acknowledged = 999,
        ..NOTHING
    },
    Plant {
        what: "a slot that is gone",
        complain: &["T4"],
        plant: |scene| {
            if let Some(cluster) = scene.clusters.get_mut("payments") {
                cluster.slots.clear();
            }
        },
        ..NOTHING
    },
    Plant {
        what: "a relay that remembers nothing of a source it told",
        complain: &["T4"],
        plant: |scene| drop(scene.memories.remove(0)),
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
        complain: &["S2", "T1", "T5"],
        payments: concat!("update payments set version = 5 where payment_id = ", id!("0a")),
        ..NOTHING
    },
    Plant {
        what: "work that nobody takes",
        complain: &["T6 queue"],
        plant: |scene| scene.waiting = 3,
        ..NOTHING
    },
    Plant {
        what: "a group that does not keep up",
        complain: &["T6 lag"],
        plant: |scene| scene.behind = 2,
        ..NOTHING
    },
    Plant {
        what: "a row that could not be told",
        complain: &["T6 parked"],
        plant: |scene| {
            let (at, why) = ("cdc-relay.dead-letter/0/0".to_owned(), "too large".to_owned());
            scene.letters.push(Foreign { at, why });
        },
        ..NOTHING
    },
];
