//! Violations between the rows and the search index.

use coroctl::audit::read::rows::ParkedMessage;

use super::{NOTHING, Plant};
use crate::fixture::{COMPLETED, DECLINED, STRANGER};

pub const SEARCH: &[Plant] = &[
    Plant {
        what: "a payment that is not in the index",
        complain: &["D1"],
        plant: |harness| drop(harness.derived.search.payments.remove(&COMPLETED)),
        ..NOTHING
    },
    Plant {
        what: "a document of an older version",
        complain: &["D1"],
        plant: |harness| document(harness, |document| document.version -= 1),
        ..NOTHING
    },
    Plant {
        what: "a document with other contents",
        complain: &["D1"],
        plant: |harness| document(harness, |document| document.fingerprint ^= 1),
        ..NOTHING
    },
    Plant {
        what: "a document with other contents, of a record that is explained",
        complain: &[],
        plant: |harness| {
            document(harness, |document| document.fingerprint ^= 1);
            harness.explained.push("PaymentTopic/0/19");
        },
        ..NOTHING
    },
    Plant {
        what: "a payment that is not in the index, since its event is parked",
        complain: &["D1", "T6 parked"],
        plant: parked_in_place_of_its_document,
        ..NOTHING
    },
    Plant {
        what: "a payment that is not in the index, since its event is parked, and explained",
        complain: &[],
        plant: |harness| {
            parked_in_place_of_its_document(harness);
            harness.explained.push("PaymentTopic/9/7");
        },
        ..NOTHING
    },
    Plant {
        what: "another record that search-indexer has parked",
        complain: &["T6 parked"],
        plant: |harness| harness.derived.search.parked.push(parked(None)),
        ..NOTHING
    },
    Plant {
        what: "a document of a payment that never was",
        complain: &["D1"],
        plant: |harness| {
            let document = harness.derived.search.payments[&DECLINED].clone();
            harness.derived.search.payments.insert(STRANGER, document);
        },
        ..NOTHING
    },
    Plant {
        what: "a service that has another name in the index",
        complain: &["D1"],
        payments: "insert into services (service_id, name) values ('gas', 'Gas')",
        plant: |harness| {
            if let Some(document) = harness.derived.search.services.get_mut("gas") {
                document.fingerprint ^= 1;
            }
        },
        ..NOTHING
    },
    Plant {
        what: "a service that is not in the index",
        complain: &["D1"],
        payments: "insert into services (service_id, name) values ('gas', 'Gas')",
        plant: |harness| harness.derived.search.services.clear(),
        ..NOTHING
    },
    Plant {
        what: "a document of a service that never was",
        complain: &["D1"],
        plant: |harness| {
            let document = harness.derived.search.payments[&DECLINED].clone();
            harness.derived.search.services.insert("gas".to_owned(), document);
        },
        ..NOTHING
    },
];

fn parked(subject: Option<String>) -> ParkedMessage {
    let (parked_id, reason) = ("PaymentTopic/9/7".to_owned(), "the index refuses its document".to_owned());
    ParkedMessage { shard: None, parked_id, reason, subject, is_dealt_with: false }
}

fn parked_in_place_of_its_document(harness: &mut super::Harness) {
    harness.derived.search.payments.remove(&COMPLETED);
    harness.derived.search.parked.push(parked(Some(COMPLETED.to_string())));
}

fn document(harness: &mut super::Harness, change: impl FnOnce(&mut coroctl::audit::read::search::Document)) {
    if let Some(document) = harness.derived.search.payments.get_mut(&COMPLETED) {
        change(document);
    }
}
