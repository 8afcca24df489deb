//! Takes the records of all topics as they come: what they say about each other, and which payments they name.
//!
//! * On the topics of the saga a record that is no event is a finding (T3), unless it is read as one by nobody.
//! * Records of other topics (parked messages, acts of operators, dead letters) are members of their chain and nothing else.

use std::time::Instant;

use coroctl::audit::read::chain::ChainPosition;
use coroctl::audit::read::relay::DEAD_LETTER_TOPIC;
use coroctl::audit::read::rows::fingerprint;
use jiff::Timestamp;
use saga::consumer::Record;
use saga::contract::{
    BALANCE_TOPIC, ChargeResult, Envelope, EnvelopeError, HEADER_CHAIN, HEADER_POSITION, HEADER_SOURCE,
    LedgerEntry, OPERATOR_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC, Payment,
};
use uuid::Uuid;

use crate::checks::{Check, Found, Key};
use crate::payment_events::SeenEvents;
use crate::pending::Pending;
use crate::progress::Progress;
use crate::topics::{Chains, Emission};

const SAGA_TOPICS: [&str; 3] = [PAYMENT_TOPIC, BALANCE_TOPIC, PAYMENT_RESULT_TOPIC];

/// The topics to read: the three of the saga, and those that its sources emit to besides. The topic of services is compacted,
/// so its records have no place in a chain.
pub fn topics(prefix: &str, queue: &str) -> Vec<String> {
    let saga = SAGA_TOPICS.map(|topic| format!("{prefix}{topic}"));
    let parked = saga.clone().map(|topic| format!("{topic}.parked"));
    let others = [OPERATOR_TOPIC, DEAD_LETTER_TOPIC].map(|topic| format!("{prefix}{topic}"));
    let others = others.into_iter().chain([format!("{queue}.parked")]);
    saga.into_iter().chain(parked).chain(others).collect()
}

/// A finding about a record, and the payment that it is about.
pub type RecordFound = (Option<Uuid>, Found);

/// Takes a record into the state. Findings about records are facts: a record never changes.
pub fn take(
    record: &Record<'_>,
    chains: &mut Chains,
    pending: &mut Pending,
    progress: &Progress,
) -> Vec<RecordFound> {
    let mut found = Vec::new();
    let is_saga = SAGA_TOPICS.iter().any(|topic| record.topic().ends_with(topic));
    let mut of_user = None;
    if is_saga {
        match read(record, pending, progress) {
            Ok((topic, (user_id, id), contradiction)) => {
                of_user = Some((topic, user_id));
                found.extend(contradiction.map(|found| (Some(id), found)));
            }
            Err(why) => found.push((None, Found::new(Check::T3, format!("{}: {why}", record.place())))),
        }
    }
    // Dead letters have no `ce_source`. Before chains had names, a source had one.
    let source = record.header(HEADER_SOURCE).and_then(|source| source.rsplit('/').next());
    let (Some(chain), Some(text)) = (record.header(HEADER_CHAIN).or(source), record.header(HEADER_POSITION))
    else {
        return found;
    };
    match (ChainPosition::parse(text), committed_at(record)) {
        (Ok(position), Some(at)) => {
            let emission = Emission { chain, source, position, at, of_user };
            found.extend(chains.add(&emission).map(|found| (None, found)));
        }
        (Ok(_), None) => {}
        (Err(error), _) => {
            found.push((None, Found::new(Check::T3, format!("{}: {error:#}", record.place()))));
        }
    }
    found
}

/// The commit time, rounded up to the next millisecond: no row of the transaction is younger.
fn committed_at(record: &Record<'_>) -> Option<Timestamp> {
    Timestamp::from_millisecond(record.committed_at_ms()? + 1).ok()
}

/// Reads an event; returns its topic, its payment, and what it contradicts. The text of an error has no value of the body.
fn read(
    record: &Record<'_>,
    pending: &mut Pending,
    progress: &Progress,
) -> Result<(&'static str, Key, Option<Found>), String> {
    // The reason quotes the type, in which whoever forges a record may write anything.
    let envelope = record.envelope().map_err(|_| "its event type is missing, or none of the contract")?;
    let topic = envelope.event_type.topic();
    let (key, contradiction) = match topic {
        PAYMENT_TOPIC => {
            let (body, print) = body::<Payment>(&envelope, record)?;
            let key = (body.user_id, body.payment_id);
            let version = body.version.unsigned_abs();
            (key, touch(pending, key, progress).add_payment(version, &body.status, &body.event, print))
        }
        BALANCE_TOPIC => {
            let (body, print) = body::<LedgerEntry>(&envelope, record)?;
            let key = (body.user_id, body.payment_id);
            (key, touch(pending, key, progress).add_entry(body.phase, print))
        }
        PAYMENT_RESULT_TOPIC => {
            let (body, print) = body::<ChargeResult>(&envelope, record)?;
            let key = (body.user_id, body.payment_id);
            (key, touch(pending, key, progress).add_result(body.version.unsigned_abs(), print))
        }
        other => return Err(format!("an event of {other} on another topic")),
    };
    Ok((topic, key, contradiction))
}

fn touch<'a>(pending: &'a mut Pending, key: Key, progress: &Progress) -> &'a mut SeenEvents {
    pending.touch(key, progress.looked_until(key.0), Instant::now())
}

fn body<T>(envelope: &Envelope<'_>, record: &Record<'_>) -> Result<(T, u64), String>
where
    T: saga::contract::EventBody + serde::Serialize,
{
    let body: T = envelope.read(record.body()).map_err(|error| match error {
        // serde quotes values.
        EnvelopeError::Unreadable(_) => "its body does not have the form of its type".to_owned(),
        EnvelopeError::Contradicts(_) => "its headers, key and body contradict each other".to_owned(),
    })?;
    let print = fingerprint(&body).map_err(|error| error.to_string())?;
    Ok((body, print))
}

#[cfg(test)]
mod tests {
    use saga::contract::PAYMENT_QUEUE;

    use super::*;

    /// A topic that is not read is a gap in the chain of its source.
    #[test]
    fn every_topic_whose_records_are_links_of_a_chain_is_read() {
        let routes = concat!(env!("CARGO_MANIFEST_DIR"), "/../../cdc-relay/relay.toml");
        let routes = std::fs::read_to_string(routes).unwrap();
        let listed = routes.split("\n[[").filter_map(|section| section.strip_prefix("topics]]\n"));
        let links = listed.filter(|section| !section.contains("\"cleanup.policy\" = \"compact\""));
        let name = |section: &str| {
            let name = section.lines().find_map(|line| line.strip_prefix("name = \"")).unwrap();
            let name = name.trim_end_matches('"').replace("${TOPIC_PREFIX:-}", "");
            name.replace("${QUEUE:-PaymentInitiated}", PAYMENT_QUEUE)
        };
        let mut expected: Vec<String> = links.map(name).chain([DEAD_LETTER_TOPIC.to_owned()]).collect();
        let mut read = topics("", PAYMENT_QUEUE);
        expected.sort();
        read.sort();
        assert_eq!(read, expected);
    }
}
