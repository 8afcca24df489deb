//! Rows against Kafka in both directions, the relay's slots, and messages that are stuck on the way.

use std::collections::{BTreeMap, BTreeSet};

use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use uuid::Uuid;

use crate::audit::finding::{Offender, Tally};
use crate::audit::observed::Observed;
use crate::audit::read::chain::format_lsn;
use crate::audit::read::events::TopicOffset;
use crate::audit::read::relay::{Checkpoint, Cluster};
use crate::databases;

/// T1: Kafka has each version of a payment, each ledger entry, and the present outcome of each charge.
pub fn emitted(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &observed.payments.rows {
        let events = observed.events.payments.get(id).cloned().unwrap_or_default();
        for version in 1..=payment.version {
            let there = events.versions.has(version) || version < events.re_emitted;
            tally.check(there, *id, || format!("version {version} is not on {PAYMENT_TOPIC}"));
        }
    }
    for (id, entries) in &observed.ledger.rows {
        let events = observed.events.ledger.get(id).map(|events| events.entries).unwrap_or_default();
        for (entry, event) in [entries.first, entries.second].into_iter().zip(events) {
            let Some(entry) = entry else { continue };
            let what = || format!("its {} is not on {BALANCE_TOPIC}", entry.kind.as_str());
            tally.check(event.is_some(), *id, what);
        }
    }
    for (id, charge) in observed.charges.rows.iter().filter(|(_, charge)| charge.status.is_emitted()) {
        let there = observed.events.charges.get(id).is_some_and(|events| events.versions.has(charge.version));
        tally.check(there, *id, || {
            let (status, version) = (charge.status.as_str(), charge.version);
            format!("its charge is {status} (version {version}), which is not on {PAYMENT_RESULT_TOPIC}")
        });
    }
    tally
}

/// T2: first emissions come in the order of their commits, by user and topic, and under the user's key.
pub fn commit_order(observed: &Observed) -> Tally {
    observed.events.order.clone()
}

/// T3: each event is of a committed version, and the last version equals its row. Records that services have parked
/// are known, and explained ones were not read.
pub fn committed(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let mut check = |topic: &str, id: Uuid, at: TopicOffset, problem: Option<&str>| {
        tally.count();
        if let Some(problem) = problem.filter(|_| !observed.is_parked(topic, at)) {
            tally.violate(id, || format!("{topic}/{}/{} {problem}", at.0, at.1));
        }
    };
    for (id, events) in &observed.events.payments {
        let problem = match observed.payments.rows.get(id) {
            None => Some("is of a payment that has no row"),
            Some(row) if events.versions.last > row.version => {
                Some("is of a version that was never committed")
            }
            Some(row) if events.versions.last == row.version && events.fingerprint() != row.fingerprint => {
                Some("differs from its row")
            }
            Some(_) => None,
        };
        check(PAYMENT_TOPIC, *id, events.at, problem);
    }
    for (id, events) in &observed.events.ledger {
        let rows = observed.ledger.rows.get(id).map(|row| [row.first, row.second]).unwrap_or_default();
        for (event, row) in events.entries.iter().zip(rows) {
            let Some((fingerprint, at)) = event else { continue };
            let problem = match row {
                None => Some("is of a ledger entry that has no row"),
                Some(row) => (row.fingerprint != *fingerprint).then_some("differs from its ledger row"),
            };
            check(BALANCE_TOPIC, *id, *at, problem);
        }
    }
    for (id, events) in &observed.events.charges {
        let problem = match observed.charges.rows.get(id) {
            None => Some("is of a charge that has no row"),
            Some(row) if events.versions.last > row.version => {
                Some("is of a charge's version that was never committed")
            }
            Some(row) if events.versions.last == row.version && events.fingerprint() != row.fingerprint => {
                Some("differs from its charge row")
            }
            Some(_) => None,
        };
        check(PAYMENT_RESULT_TOPIC, *id, events.at, problem);
    }
    tally.examined = tally.examined.max(observed.events.records);
    for foreign in observed.events.foreign.iter().filter(|foreign| !observed.parked_ids.contains(&foreign.at))
    {
        tally.violate(None, || {
            format!("{} is no event: {}; nobody has parked or explained it", foreign.at, foreign.why)
        });
    }
    tally
}

/// T5: one row per payment and phase, one charge per payment, and not more versions than the columns account for.
pub fn once(observed: &Observed) -> Tally {
    let duplicate_rows = [
        &observed.payments.duplicate_rows,
        &observed.ledger.duplicate_rows,
        &observed.charges.duplicate_rows,
    ];
    let mut tally = duplicate_rows.into_iter().fold(Tally::default(), Tally::and);
    for (id, payment) in &observed.payments.rows {
        // An outcome that was once unknown leaves no column behind.
        let most = payment.shown + 1;
        if payment.version > most {
            let (version, status) = (payment.version, payment.status.as_str());
            tally.violate(*id, || format!("version {version}, though {status} takes at most {most}"));
        }
    }
    tally
}

/// T6: no parked message and no dead letter is unexplained: an operator has dealt with the message, or the caller explains
/// it. A subscriber's are read where its database is a target.
pub fn all_explained(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let known = |id: &str| observed.explained.contains(id);
    let parked = [
        ("payments", &observed.payments.parked),
        ("balance", &observed.ledger.parked),
        ("processor", &observed.charges.parked),
        ("search-indexer", &observed.derived.search.parked),
        ("notifier", &observed.derived.notifications.parked),
        ("fraud", &observed.derived.fraud_parked),
    ];
    for (who, parked) in parked {
        for message in parked {
            let who = databases::name(who, message.shard.as_deref());
            let what = || format!("{who} parked {}: {}", message.parked_id, message.reason);
            let is_explained = message.is_dealt_with || known(&message.parked_id);
            tally.check(is_explained, message.payment_id(), what);
        }
    }
    for dead_letter in &observed.dead_letters {
        tally.check(known(&dead_letter.at), None, || {
            format!("dead letter {}: {}", dead_letter.at, dead_letter.why)
        });
    }
    tally
}

/// T6: the work queue is empty.
pub fn queue(observed: &Observed) -> Tally {
    let queued = u64::from(observed.queue_depth);
    tally(queued, queued, || format!("{queued} messages wait"))
}

/// T6: each group has applied every record.
pub fn lag(observed: &Observed) -> Tally {
    let records = observed.lags.iter().map(|lag| lag.records.unsigned_abs()).sum();
    let behind = observed.lags.iter().map(|lag| lag.lag.unsigned_abs()).sum();
    let late = observed.lags.iter().filter(|lag| lag.lag > 0);
    let late = late.map(|lag| format!("{} is {} records behind", lag.group, lag.lag));
    tally(records, behind, || late.collect::<Vec<_>>().join(", "))
}

fn tally(examined: u64, violations: u64, what: impl FnOnce() -> String) -> Tally {
    let first = (violations > 0).then(|| Offender { payment_id: None, what: what() });
    Tally { examined, violations, first }
}

/// T4: no slot is confirmed beyond the position that every sink has acknowledged.
pub fn acknowledged(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for checkpoint in &observed.checkpoints {
        let problem = checkpoint_problem(checkpoint, &observed.databases.clusters);
        let what = || format!("slot {}: {}", checkpoint.slot, problem.as_deref().unwrap_or_default());
        tally.check(problem.is_none(), None, what);
    }
    let saved: BTreeSet<&str> =
        observed.checkpoints.iter().map(|checkpoint| checkpoint.source.as_str()).collect();
    for source in observed.events.chains.sources().difference(&saved) {
        tally.check(false, None, || {
            format!("{source} has events on Kafka, but the relay's checkpoint of it is gone")
        });
    }
    tally
}

/// Why a slot does not fit the checkpoint of its source, if it does not. A source that has the name of a service with one database is
/// that database; those of shards have names of their own, and are known by their server.
fn checkpoint_problem(
    checkpoint: &Checkpoint,
    clusters: &BTreeMap<&'static str, Vec<Cluster>>,
) -> Option<String> {
    let of_service = clusters.get(checkpoint.source.as_str()).map(Vec::as_slice).unwrap_or_default();
    if let [cluster] = of_service
        && cluster.shard.is_none()
    {
        return slot_problem(checkpoint, cluster);
    }
    let shards = clusters.values().flatten().filter(|cluster| cluster.shard.is_some());
    let mut on_server = shards.filter(|cluster| cluster.system_id == checkpoint.system_id);
    match (on_server.next(), of_service) {
        (Some(cluster), _) => slot_problem(checkpoint, cluster),
        (None, [cluster, ..]) => slot_problem(checkpoint, cluster),
        (None, []) => None,
    }
}

/// Why a slot does not fit the checkpoint, if it does not.
pub fn slot_problem(checkpoint: &Checkpoint, cluster: &Cluster) -> Option<String> {
    if checkpoint.creating {
        return None;
    }
    if checkpoint.system_id != cluster.system_id {
        let (saved, found) = (&checkpoint.system_id, &cluster.system_id);
        return Some(format!("its checkpoint is of cluster {saved}, this is cluster {found}"));
    }
    let Some(slot) = cluster.slots.iter().find(|slot| slot.name == checkpoint.slot) else {
        return Some("it is gone".to_owned());
    };
    if slot.lost {
        return Some("the server has removed WAL that it still needs".to_owned());
    }
    let (confirmed, acknowledged) = (format_lsn(slot.confirmed), format_lsn(checkpoint.acknowledged));
    (slot.confirmed > checkpoint.acknowledged)
        .then(|| format!("confirmed to {confirmed}, acknowledged only to {acknowledged}"))
}
