//! What is derived from the databases agrees with them.

use std::collections::HashMap;

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::read::rows::ParkedMessage;
use crate::audit::read::search::Document;

/// D1: each row has a document of its version that equals it, and each document a row. Documents of records that somebody has
/// parked, or that are explained, count for nothing; nor does what a parked record says that is explained.
pub fn search(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let parked = Parked::of(observed);
    for (id, row) in &observed.payments.rows {
        let document = observed.search.payments.get(id);
        let difference = parked.difference(&id.to_string(), row.version, row.fingerprint, document);
        tally.check(difference.is_none(), *id, || difference.unwrap_or_default());
    }
    for (id, document) in &observed.search.payments {
        if !observed.payments.rows.contains_key(id) {
            let what = || format!("is in the search index by {}, and has no row", document.record);
            tally.check(observed.is_known(&document.record), *id, what);
        }
    }
    for (id, (version, fingerprint)) in &observed.payments.services {
        let difference = parked.difference(id, *version, *fingerprint, observed.search.services.get(id));
        let what = || format!("service {id}: {}", difference.clone().unwrap_or_default());
        tally.check(difference.is_none(), None, what);
    }
    for (id, document) in &observed.search.services {
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
        Self { observed, by_subject: observed.search.parked.iter().filter_map(subject).collect() }
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
