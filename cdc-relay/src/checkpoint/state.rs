//! A source's checkpoint, and the decision at start whether streaming is safe.
//!
//! * Postgres does not keep what a slot has sent. A slot that was dropped and created again silently starts later.
//! * So a compacted topic has a checkpoint of each source: the cluster, and how far every sink has acknowledged.
//! * A checkpoint is written before the slot is confirmed, always.
//! * At start checkpoint, cluster and slot are compared. Anything that does not fit is refused, with what to do.

use serde::{Deserialize, Serialize};

use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::refusal::Refusal;
use crate::postgres::lsn::{Lsn, as_text};
use crate::postgres::server_identity::ServerIdentity;

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
    /// The last commit emitted, acknowledged or not. Records name it `told`, as earlier releases did.
    #[serde(rename = "told", with = "as_text")]
    pub sent_lsn: Lsn,
    /// The chain that the slot sends. Positions are compared within one chain alone. A checkpoint of an earlier release has none.
    #[serde(default)]
    pub chain_name: ChainName,
    /// The last acknowledged commit that emitted anything on Kafka: where the chain of positions continues.
    #[serde(with = "as_text")]
    pub chain: Lsn,
    /// The last acknowledged transaction that emitted anything, whatever the routes were. A checkpoint of an earlier release
    /// has none; then everything that the slot has not confirmed is emitted again.
    #[serde(default)]
    pub last: CommitId,
    /// The publication was verified to send everything committed up to here. Never after `acknowledged`, which advances
    /// without that check. A checkpoint of an earlier release has none (0/0).
    #[serde(default, with = "as_text")]
    pub vouched: Lsn,
    /// Synchronous standbys had flushed every transaction of this timeline before it was emitted. A checkpoint of an earlier
    /// release does not say so, and one of a relay that is not to wait for them never does.
    #[serde(default)]
    pub synchronous: bool,
    /// The fingerprint of the routes that emitted the chain. Other routes emit other transactions, so the first one of theirs
    /// names none before it.
    pub routes: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The slot is being created; nothing is emitted yet.
    Creating,
    Streaming,
    /// The existing rows are being emitted again from a new slot's snapshot. If that does not end, it starts over.
    #[serde(rename = "reconciling")]
    Resnapshot,
}

/// Identifies a transaction by its position and its commit time in Postgres' microseconds. A server that was set back may
/// have another transaction at the same position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitId {
    #[serde(with = "as_text")]
    pub commit_lsn: Lsn,
    pub committed_at: i64,
}

/// The cluster, as the replication session sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub system_id: String,
    pub timeline: u32,
    /// The end of its durable WAL.
    pub flush: Lsn,
}

/// The server that a session of this checkpoint reads.
impl From<&Checkpoint> for ServerIdentity {
    fn from(checkpoint: &Checkpoint) -> ServerIdentity {
        ServerIdentity { system_id: checkpoint.system_id.clone(), timeline: checkpoint.timeline }
    }
}

impl From<&Cluster> for ServerIdentity {
    fn from(cluster: &Cluster) -> ServerIdentity {
        ServerIdentity { system_id: cluster.system_id.clone(), timeline: cluster.timeline }
    }
}

/// A replication slot, as the server describes it.
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
    /// Why no relay of this database can have created the slot.
    pub fn foreign(&self, database: &str) -> Option<String> {
        if self.plugin != "pgoutput" {
            return Some(format!("it decodes with {}", self.plugin));
        }
        (self.database != database).then(|| format!("it belongs to database {}", self.database))
    }
}

/// A slot that is being made.
#[derive(Debug, Clone, Copy)]
pub struct NewSlot<'a> {
    pub name: &'a str,
    pub chain_name: &'a ChainName,
    /// The fingerprint of the routes.
    pub routes: &'a str,
}

/// How a source starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Nothing was ever emitted: create the slot.
    Create,
    /// The slot was created and not yet used: begin at it.
    Adopt,
    /// Continue; acknowledged transactions are skipped.
    Resume { acknowledged: Lsn, chain: Lsn },
}

/// The checkpoint after one more record of the topic. It never goes back: a relay that missed the loss of its slot, or a
/// promotion, may have written after its successor. Such a record is true, but older.
pub fn load(before: Option<Checkpoint>, record: Option<Checkpoint>) -> Option<Checkpoint> {
    match (before, record) {
        (Some(before), Some(record)) if record.is_older_than(&before) => Some(before),
        (_, record) => record,
    }
}

impl Checkpoint {
    /// The checkpoint of a slot from which nothing is emitted yet: it begins at `acknowledged`, and so does its chain.
    pub fn of_new_slot(cluster: &Cluster, slot: &NewSlot<'_>, phase: Phase, acknowledged: Lsn) -> Checkpoint {
        Checkpoint {
            system_id: cluster.system_id.clone(),
            timeline: cluster.timeline,
            slot: slot.name.to_owned(),
            phase,
            acknowledged,
            sent_lsn: acknowledged,
            chain_name: slot.chain_name.clone(),
            chain: Lsn::ZERO,
            last: CommitId::default(),
            vouched: acknowledged,
            synchronous: false,
            routes: slot.routes.to_owned(),
        }
    }

    /// The position up to which nothing is missing, if the publication turns out to have sent less since.
    pub fn complete_until(&self) -> Lsn {
        if self.vouched == Lsn::ZERO { self.acknowledged } else { self.vouched }
    }

    /// Whether timeline, phase and chain are the same.
    pub fn is_in_phase_of(&self, other: &Checkpoint) -> bool {
        let of = |checkpoint: &Checkpoint| (checkpoint.timeline, checkpoint.phase);
        of(self) == of(other) && self.chain_name == other.chain_name
    }

    fn is_older_than(&self, other: &Checkpoint) -> bool {
        let same = (&self.system_id, &self.slot) == (&other.system_id, &other.slot);
        let streaming = self.phase == Phase::Streaming && other.phase == Phase::Streaming;
        let at = |checkpoint: &Checkpoint| (checkpoint.timeline, checkpoint.acknowledged);
        same && streaming && at(self) < at(other)
    }
}

/// Decides whether and how to stream. `database` is the session's.
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
