//! Notifications that are missing, or of nothing.

use coroctl::audit::read::notifications::{EMAIL, Notification, Notifications};
use coroctl::audit::read::rows::ParkedMessage;
use uuid::Uuid;

use crate::fixture::{CANCELLED, COMPLETED, DECLINED, EXPIRED, PATHS, REJECTED, STRANGER, UNKNOWN_ONCE};
use crate::plants::{Harness, NOTHING, Plant};

const USER: Uuid = Uuid::from_u128(1);
const ENDPOINT: &str = "billing";

fn notification(payment_id: Uuid, channel: &str) -> Notification {
    let (_, path) = PATHS.iter().find(|(id, _)| *id == payment_id).unwrap();
    let user_id = if payment_id == REJECTED { Uuid::from_u128(2) } else { USER };
    let version = u32::try_from(path.len()).unwrap();
    Notification { channel: channel.to_owned(), user_id, event: path.last().unwrap().to_string(), version }
}

/// One endpoint, and one user with an address: each is notified of what concerns it.
pub fn of_all_ends() -> Notifications {
    let before = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut all = Notifications {
        contacts: [(USER, before)].into(),
        endpoints: [(ENDPOINT.to_owned(), before)].into(),
        ..Notifications::default()
    };
    for payment_id in [COMPLETED, DECLINED, CANCELLED, EXPIRED, REJECTED, UNKNOWN_ONCE] {
        let rows = all.rows.entry(payment_id).or_default();
        rows.push(notification(payment_id, ENDPOINT));
        if payment_id != REJECTED {
            rows.push(notification(payment_id, EMAIL));
        }
    }
    all
}

/// A record of the topic that no other plant is about.
const PARKED: &str = "PaymentTopic/0/999";

fn parked(payment_id: Uuid) -> ParkedMessage {
    let (parked_id, reason) = (PARKED.to_owned(), "it cannot be read".to_owned());
    ParkedMessage {
        shard: None,
        parked_id,
        reason,
        subject: Some(payment_id.to_string()),
        is_dealt_with: false,
    }
}

fn rows(harness: &mut Harness, payment: Uuid) -> &mut Vec<Notification> {
    harness.derived.notifications.rows.get_mut(&payment).unwrap()
}

pub const NOTIFICATIONS: &[Plant] = &[
    Plant {
        what: "an end that an endpoint was not notified of",
        complain: &["D2"],
        plant: |harness| {
            rows(harness, REJECTED).clear();
        },
        ..NOTHING
    },
    Plant {
        what: "an end without an e-mail to its user",
        complain: &["D2"],
        plant: |harness| {
            rows(harness, COMPLETED).retain(|row| row.channel != EMAIL);
        },
        ..NOTHING
    },
    Plant {
        what: "an endpoint that came after all ends",
        complain: &[],
        plant: |harness| {
            let later = "2026-01-03T00:00:00Z".parse().unwrap();
            harness.derived.notifications.endpoints.insert("later".to_owned(), later);
        },
        ..NOTHING
    },
    Plant {
        what: "a notification of a payment that there never was",
        complain: &["D2"],
        plant: |harness| {
            harness.derived.notifications.rows.insert(STRANGER, vec![notification(COMPLETED, EMAIL)]);
        },
        ..NOTHING
    },
    Plant {
        what: "a failed payment that was notified as completed",
        complain: &["D2"],
        plant: |harness| {
            rows(harness, DECLINED)[0].event = "completed".to_owned();
        },
        ..NOTHING
    },
    Plant {
        what: "a notification of another user's",
        complain: &["D2"],
        plant: |harness| {
            rows(harness, EXPIRED)[0].user_id = STRANGER;
        },
        ..NOTHING
    },
    Plant {
        what: "an end that the notifier has parked",
        complain: &["T6 parked"],
        plant: |harness| {
            rows(harness, COMPLETED).clear();
            harness.derived.notifications.parked.push(parked(COMPLETED));
        },
        ..NOTHING
    },
    Plant {
        what: "an end that the notifier has parked, explained",
        complain: &[],
        plant: |harness| {
            rows(harness, COMPLETED).clear();
            harness.derived.notifications.parked.push(parked(COMPLETED));
            harness.explained.push(PARKED);
        },
        ..NOTHING
    },
    Plant {
        what: "a message that the fraud detector has parked",
        complain: &["T6 parked"],
        plant: |harness| {
            harness.derived.fraud_parked.push(parked(COMPLETED));
        },
        ..NOTHING
    },
];
