//! What is derived from the databases agrees with them.

use std::collections::{BTreeSet, HashMap};

use jiff::SignedDuration;
use saga::contract::PAYMENT_TOPIC;
use uuid::Uuid;

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::read::notifications::EMAIL;
use crate::audit::read::rows::ParkedMessage;
use crate::audit::read::search::Document;

/// A channel that was made while a payment ended may have missed it: its row says when its transaction began.
const MARGIN: SignedDuration = SignedDuration::from_secs(5);

/// D1: each row has a document of its version that equals it, and each document a row. Documents of records that somebody has
/// parked, or that are explained, count for nothing; nor does what a parked record says that is explained.
pub fn search(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let parked = Parked::of(observed);
    for (id, row) in &observed.payments.rows {
        let document = observed.derived.search.payments.get(id);
        let difference = parked.difference(&id.to_string(), row.version, row.fingerprint, document);
        tally.check(difference.is_none(), *id, || difference.unwrap_or_default());
    }
    for (id, document) in &observed.derived.search.payments {
        if !observed.payments.rows.contains_key(id) {
            let what = || format!("is in the search index by {}, and has no row", document.record);
            tally.check(observed.is_known(&document.record), *id, what);
        }
    }
    for (id, (version, fingerprint)) in &observed.payments.services {
        let document = observed.derived.search.services.get(id);
        let difference = parked.difference(id, *version, *fingerprint, document);
        let what = || format!("service {id}: {}", difference.clone().unwrap_or_default());
        tally.check(difference.is_none(), None, what);
    }
    for (id, document) in &observed.derived.search.services {
        if !observed.payments.services.contains_key(id) {
            let what =
                || format!("service {id} is in the search index by {}, and has no row", document.record);
            tally.check(observed.is_known(&document.record), None, what);
        }
    }
    tally
}

/// The messages that search-indexer has parked, by the row that they are about.
struct Parked<'a> {
    observed: &'a Observed,
    by_subject: HashMap<&'a str, &'a ParkedMessage>,
}

impl<'a> Parked<'a> {
    fn of(observed: &'a Observed) -> Self {
        let subject = |message: &'a ParkedMessage| Some((message.subject.as_deref()?, message));
        Self { observed, by_subject: observed.derived.search.parked.iter().filter_map(subject).collect() }
    }

    /// How a document differs from its row, if it does and nothing explains that.
    fn difference(
        &self,
        subject: &str,
        version: u32,
        fingerprint: u64,
        document: Option<&Document>,
    ) -> Option<String> {
        let difference = difference(version, fingerprint, document)?;
        if document.is_some_and(|document| self.observed.is_known(&document.record)) {
            return None;
        }
        let Some(message) = self.by_subject.get(subject) else { return Some(difference) };
        let (id, reason) = (&message.parked_id, &message.reason);
        let explained = self.observed.explained.contains(id);
        (!explained).then(|| format!("{difference}: search-indexer parked {id}: {reason}"))
    }
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
    let parked: BTreeSet<Uuid> = notifications.parked.iter().filter_map(ParkedMessage::payment_id).collect();
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
