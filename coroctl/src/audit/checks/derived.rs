//! What is derived from the databases agrees with them.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use saga::contract::PAYMENT_TOPIC;
use uuid::Uuid;

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::read::notifications::EMAIL;
use crate::audit::read::search::Document;

/// A channel that was made while a payment ended may have missed it: its row says when its transaction began.
const MARGIN: SignedDuration = SignedDuration::from_secs(5);

/// D1: each row has a document of its version that equals it, and each document a row. Documents of records that
/// services have parked, or that are explained, count for nothing.
pub fn search(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let known =
        |document: Option<&Document>| document.is_some_and(|document| observed.is_known(&document.record));
    for (id, row) in &observed.payments.rows {
        let document = observed.derived.search.payments.get(id);
        let difference = difference(row.version, row.fingerprint, document);
        let what = || difference.clone().unwrap_or_default();
        tally.check(difference.is_none() || known(document), *id, what);
    }
    for (id, document) in &observed.derived.search.payments {
        if !observed.payments.rows.contains_key(id) {
            let what = || format!("is in the search index by {}, and has no row", document.record);
            tally.check(known(Some(document)), *id, what);
        }
    }
    for (id, (version, fingerprint)) in &observed.payments.services {
        let document = observed.derived.search.services.get(id);
        let difference = difference(*version, *fingerprint, document);
        let what = || format!("service {id}: {}", difference.clone().unwrap_or_default());
        tally.check(difference.is_none() || known(document), None, what);
    }
    for (id, document) in &observed.derived.search.services {
        if !observed.payments.services.contains_key(id) {
            let what =
                || format!("service {id} is in the search index by {}, and has no row", document.record);
            tally.check(known(Some(document)), None, what);
        }
    }
    tally
}

/// How a document differs from its row, if it does.
fn difference(version: u32, fingerprint: u64, document: Option<&Document>) -> Option<String> {
    match document {
        None => Some("is not in the search index".to_owned()),
        Some(document) if document.version != version => {
            Some(format!("is version {version}, and version {} in the search index", document.version))
        }
        Some(document) => (document.fingerprint != fingerprint)
            .then(|| "differs from its document in the search index".to_owned()),
    }
}

/// D2: one notification per terminal payment and channel, and none of anything else. That there is at most one, the
/// primary key says. A payment whose record is parked, or explained, counts for nothing.
pub fn notifications(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let notifications = &observed.derived.notifications;
    let parked: BTreeSet<Uuid> =
        notifications.parked.iter().filter_map(|message| message.payment_id).collect();
    let known = |id: &Uuid| {
        let record = observed.events.payments.get(id).map(|events| events.at);
        let record = record.map(|(partition, offset)| format!("{PAYMENT_TOPIC}/{partition}/{offset}"));
        parked.contains(id) || record.is_some_and(|record| observed.is_known(&record))
    };
    for (id, rows) in &notifications.rows {
        for row in rows {
            let payment = observed.payments.rows.get(id);
            let fits = payment.is_some_and(|payment| {
                payment.status.as_str() == row.event
                    && payment.version == row.version
                    && payment.terms.user_id == row.user_id
            });
            tally.check(fits || known(id), *id, || {
                format!(
                    "{} was notified: {} in version {}, which it is not",
                    row.channel, row.event, row.version
                )
            });
        }
    }
    for (id, payment) in &observed.payments.rows {
        let Some(ended_at) = payment.ended_at else { continue };
        let email = notifications.contacts.get(&payment.terms.user_id).map(|since| (EMAIL, since));
        let endpoints = notifications.endpoints.iter().map(|(channel, since)| (channel.as_str(), since));
        for (channel, _) in endpoints.chain(email).filter(|(_, since)| **since + MARGIN < ended_at) {
            let rows = notifications.rows.get(id).map(Vec::as_slice).unwrap_or_default();
            let there = rows.iter().any(|row| row.channel == channel);
            tally.check(there || known(id), *id, || {
                format!("it has ended, and there is no notification of {channel}")
            });
        }
    }
    tally
}
