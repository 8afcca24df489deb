//! What is derived from the databases agrees with them.

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::read::search::Document;

/// D1: each row has a document of its version that equals it, and each document a row. Documents of records that services
/// have parked, or that are explained, count for nothing.
pub fn search(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let known =
        |document: Option<&Document>| document.is_some_and(|document| observed.is_known(&document.record));
    for (id, row) in &observed.payments.rows {
        let document = observed.search.payments.get(id);
        let difference = difference(row.version, row.fingerprint, document);
        let what = || difference.clone().unwrap_or_default();
        tally.check(difference.is_none() || known(document), *id, what);
    }
    for (id, document) in &observed.search.payments {
        if !observed.payments.rows.contains_key(id) {
            let what = || format!("is in the search index by {}, and has no row", document.record);
            tally.check(known(Some(document)), *id, what);
        }
    }
    for (id, (version, fingerprint)) in &observed.payments.services {
        let document = observed.search.services.get(id);
        let difference = difference(*version, *fingerprint, document);
        let what = || format!("service {id}: {}", difference.clone().unwrap_or_default());
        tally.check(difference.is_none() || known(document), None, what);
    }
    for (id, document) in &observed.search.services {
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
