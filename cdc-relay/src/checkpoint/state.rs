//! The relay's memory, and what it permits at start: fail closed.
//!
//! Postgres forgets what a slot has sent, and a slot that was dropped and made again starts later without a word.
//! So the relay keeps, per source, which cluster it reads and how far every sink has acknowledged, in a compacted
//! topic, always written before the slot is confirmed. At start the two are compared; whatever does not fit is
//! refused, with what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::postgres::lsn::Lsn;
use crate::postgres::sql::{identifier, literal};

/// The value of a state record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub system_id: String,
    pub timeline: u32,
    pub slot: String,
    pub phase: Phase,
    /// Every sink has acknowledged everything up to here.
    #[serde(with = "as_text")]
    pub acknowledged: Lsn,
    /// The last commit emitted, acknowledged or not.
    #[serde(rename = "told", with = "as_text")]
    pub sent_lsn: Lsn,
    /// The last acknowledged commit that emitted anything on Kafka: where the chain of positions continues.
    #[serde(with = "as_text")]
    pub chain: Lsn,
    /// The last acknowledged transaction that emitted anything, whatever the routes were. A checkpoint of an earlier release
    /// has none, and then what the slot has not confirmed is emitted again.
    #[serde(default)]
    pub last: CommitId,
    /// The publication was seen to send everything that was committed up to here. Never after `acknowledged`, which
    /// advances without a look. A checkpoint of an earlier release has none (0/0).
    #[serde(default, with = "as_text")]
    pub vouched: Lsn,
    /// Of the routes the chain was emitted with; others start a new chain.
    pub routes: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The slot is being made; nothing has been emitted.
    Creating,
    Streaming,
    /// The present rows are being emitted again from a new slot's snapshot; until that ends, start it over.
    #[serde(rename = "reconciling")]
    Resnapshot,
}

/// A transaction: where it stands, and when it was committed, in Postgres' microseconds. Another history of the same
/// cluster may have another one at the same place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitId {
    #[serde(with = "as_text")]
    pub commit_lsn: Lsn,
    pub committed_at: i64,
}

pub(crate) mod as_text {
    use super::Lsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(lsn: &Lsn, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Lsn, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// The cluster, as the replication session sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub system_id: String,
    pub timeline: u32,
    /// The end of its durable log.
    pub flush: Lsn,
}

/// The slot, if there is one of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub plugin: String,
    pub database: String,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    pub confirmed: Option<Lsn>,
    /// The process that reads it now.
    pub active_pid: Option<i32>,
}

impl Slot {
    /// Why it cannot be one that a relay of this database made.
    pub fn foreign(&self, database: &str) -> Option<String> {
        if self.plugin != "pgoutput" {
            return Some(format!("it decodes with {}", self.plugin));
        }
        (self.database != database).then(|| format!("it belongs to database {}", self.database))
    }
}

/// How to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Nothing was ever emitted: make the slot.
    Create,
    /// The slot was made and not yet used: begin at it.
    Adopt,
    /// Continue; what is acknowledged already is passed over.
    Resume { acknowledged: Lsn, chain: Lsn },
}

/// Since when tables with routes may have sent nothing, and by what change of the publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    pub what: String,
    /// Up to here everything was sent.
    #[serde(with = "as_text")]
    pub since: Lsn,
}

/// Why streaming would lose or invent something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    CheckpointMissing {
        slot: String,
    },
    SlotMissing {
        slot: String,
        acknowledged: Lsn,
    },
    SlotLost {
        slot: String,
    },
    SlotForeign {
        slot: String,
        what: String,
    },
    SlotAhead {
        slot: String,
        confirmed: Lsn,
        acknowledged: Lsn,
    },
    OtherCluster {
        expected: String,
        found: String,
    },
    OtherTimeline {
        expected: u32,
        found: u32,
    },
    ServerBehind {
        flush: Lsn,
        sent_lsn: Lsn,
    },
    ContinuityLost {
        sent_lsn: Lsn,
    },
    ResnapshotUnfinished {
        slot: String,
    },
    /// The publication or the routes do not fit each other.
    Contract(String),
    /// The publication sent less than it did, or may have.
    Broken(Break),
    /// The role lacks a permission that reading the slot needs.
    NotPermitted {
        role: String,
        problem: String,
    },
    /// The server cannot decode a change.
    Undecodable {
        position: Lsn,
        code: String,
        problem: String,
    },
}

impl std::error::Error for Refusal {}

const AGAIN: &str = "Rows committed in between are not on Kafka. To go on: tell every row again with `cdc-relay \
     resnapshot`, or, if a gap is acceptable or known to be empty, drop the slot if it exists and write a tombstone for \
     this source to the state topic; the next start then begins at the present.";

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CheckpointMissing { slot } => write!(
                f,
                "slot {slot} exists, but the state topic knows nothing of it: whether it was read, and how far that \
                 was acknowledged, cannot be known. If nothing was ever told from it: \
                 `select pg_drop_replication_slot({})` and start again. Otherwise restore the state topic, or: {AGAIN}",
                literal(slot)
            ),
            Self::SlotMissing { slot, acknowledged } => write!(
                f,
                "slot {slot} is gone, though everything up to {acknowledged} was told from it. A new slot would begin \
                 at the present. {AGAIN}"
            ),
            Self::SlotLost { slot } => write!(
                f,
                "slot {slot} is lost: the server removed log that was not yet told (max_slot_wal_keep_size). {AGAIN}"
            ),
            Self::SlotForeign { slot, what } => {
                write!(
                    f,
                    "slot {slot} is not ours: {what}. Give this source a slot of its own in the routes file."
                )
            }
            Self::SlotAhead { slot, confirmed, acknowledged } => write!(
                f,
                "slot {slot} was advanced to {confirmed} by somebody else; only {acknowledged} is acknowledged. {AGAIN}"
            ),
            Self::OtherCluster { expected, found } => write!(
                f,
                "this is another cluster (system identifier {found}, told so far: {expected}). If the address is \
                 wrong, correct it. If the database was moved or restored: {AGAIN}"
            ),
            Self::OtherTimeline { expected, found } => write!(
                f,
                "the cluster is on timeline {found}, told so far: {expected}: a standby was promoted or a backup \
                 restored, and what was told may not exist here, or the other way round. `cdc-relay failover` goes on with \
                 it if it can show that neither is so. Otherwise: {AGAIN}"
            ),
            Self::ServerBehind { flush, sent_lsn } => write!(
                f,
                "the server's log ends at {flush}, before {sent_lsn}, which was already told: it lost committed \
                 transactions (restored backup, fsync off). Find out which before you go on. {AGAIN}"
            ),
            Self::ContinuityLost { sent_lsn } => write!(
                f,
                "the server does not have the transaction of {sent_lsn}, which was told last: it was set back to an earlier \
                 state (a restored volume, fsync off) and has committed others since. {AGAIN}"
            ),
            Self::ResnapshotUnfinished { slot } => write!(
                f,
                "a reconcile of slot {slot} was begun and did not end. Unless it is under way, run `cdc-relay resnapshot` \
                 again: it starts over."
            ),
            Self::Contract(problem) => f.write_str(problem),
            Self::Undecodable { position, code, problem } => {
                f.write_str(&undecodable(*position, code, problem))
            }
            Self::NotPermitted { role, problem } => write!(
                f,
                "role {role} is not permitted to read the slot: {problem} (SQLSTATE 42501). If it may not replicate: `alter \
                 role {0} replication` (Amazon RDS, Aurora: `grant rds_replication to {0}`); otherwise grant what the server \
                 names. Nothing is lost meanwhile, and the relay goes on by itself.",
                identifier(role)
            ),
            Self::Broken(Break { what, since }) => f.write_str(&broken(what, *since)),
        }
    }
}

fn undecodable(position: Lsn, code: &str, problem: &str) -> String {
    let way = match code {
        "22P05" | "22021" => {
            "The database's encoding has values that are no text in UTF-8: write the value anew in its row"
        }
        _ => "If the row is still there and wrong, correct it",
    };
    format!(
        "the server cannot decode the change at {position}: {problem} (SQLSTATE {code}). Every session ends there, and \
         nothing behind it is sent. {way}, then emit every row again, from a slot behind it, with `cdc-relay resnapshot`. \
         It is tried again every minute."
    )
}

fn broken(what: &str, since: Lsn) -> String {
    format!(
        "{what}. Rows of tables with routes that were committed after {since} may not have been sent. Put the publication \
         right, then emit every row again with `cdc-relay resnapshot`, or, where the slot is intact, only those of the table that \
         was left out with `cdc-relay resnapshot --table`. If it is known that nothing was written to these \
         tables in between: write a tombstone for this source's key that ends in `/publication` to the state topic."
    )
}

/// What is saved once one more record was read. It never goes back: a relay that slept through the loss of its
/// slot, or through a promotion, may have written after its successor, and what it wrote is true, only older.
pub fn load(before: Option<Checkpoint>, record: Option<Checkpoint>) -> Option<Checkpoint> {
    match (before, record) {
        (Some(before), Some(record)) if record.is_older_than(&before) => Some(before),
        (_, record) => record,
    }
}

impl Checkpoint {
    /// Up to where nothing is missing, if the publication is found to have sent less since.
    pub fn complete_until(&self) -> Lsn {
        if self.vouched == Lsn::ZERO { self.acknowledged } else { self.vouched }
    }

    fn is_older_than(&self, other: &Checkpoint) -> bool {
        let same = (&self.system_id, &self.slot) == (&other.system_id, &other.slot);
        let streaming = self.phase == Phase::Streaming && other.phase == Phase::Streaming;
        let at = |checkpoint: &Checkpoint| (checkpoint.timeline, checkpoint.acknowledged);
        same && streaming && at(self) < at(other)
    }
}

/// Decides whether and how to stream. `database` is the one of the session.
pub fn admit(
    checkpoint: Option<&Checkpoint>,
    cluster: &Cluster,
    slot_name: &str,
    slot: Option<&Slot>,
    database: &str,
) -> Result<Start, Refusal> {
    let name = || slot_name.to_owned();
    if let Some(what) = slot.and_then(|slot| slot.foreign(database)) {
        return Err(Refusal::SlotForeign { slot: name(), what });
    }
    let Some(checkpoint) = checkpoint else {
        return if slot.is_some() {
            Err(Refusal::CheckpointMissing { slot: name() })
        } else {
            Ok(Start::Create)
        };
    };
    if checkpoint.system_id != cluster.system_id {
        let (expected, found) = (checkpoint.system_id.clone(), cluster.system_id.clone());
        return Err(Refusal::OtherCluster { expected, found });
    }
    if checkpoint.timeline != cluster.timeline {
        return Err(Refusal::OtherTimeline { expected: checkpoint.timeline, found: cluster.timeline });
    }
    match checkpoint.phase {
        Phase::Resnapshot => return Err(Refusal::ResnapshotUnfinished { slot: name() }),
        Phase::Creating => return Ok(if slot.is_some() { Start::Adopt } else { Start::Create }),
        Phase::Streaming => {}
    }
    let sent_lsn = checkpoint.sent_lsn.max(checkpoint.acknowledged);
    if cluster.flush < sent_lsn {
        return Err(Refusal::ServerBehind { flush: cluster.flush, sent_lsn });
    }
    let acknowledged = checkpoint.acknowledged;
    let Some(slot) = slot else { return Err(Refusal::SlotMissing { slot: name(), acknowledged }) };
    if slot.wal_status == "lost" {
        return Err(Refusal::SlotLost { slot: name() });
    }
    match slot.confirmed {
        Some(confirmed) if confirmed > acknowledged => {
            Err(Refusal::SlotAhead { slot: name(), confirmed, acknowledged })
        }
        _ => Ok(Start::Resume { acknowledged, chain: checkpoint.chain }),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
