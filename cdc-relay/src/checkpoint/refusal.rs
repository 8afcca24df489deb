//! Why a source refuses to stream, and what to do about it.
//!
//! * A refusal prevents a loss or a false event; the relay never goes on in spite of it.
//! * Its text says what happened, why, and which command or change helps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::postgres::lsn::{Lsn, as_text};
use crate::postgres::sql::{identifier, literal};

/// A change of the publication since which tables with routes may have sent nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    pub what: String,
    /// Everything up to this position was sent.
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
    /// Of several hosts, none takes writes but one that was the primary before the checkpoint's timeline.
    OnlyFormer {
        expected: u32,
        found: u32,
    },
    /// A standby was promoted, and the relay cannot show that it may go on there.
    NotContinued {
        expected: u32,
        found: u32,
        why: String,
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
    /// The role may not see which standbys have flushed what.
    StandbysHidden {
        role: String,
    },
    /// The server cannot decode a change.
    Undecodable {
        position: Lsn,
        code: String,
        problem: String,
    },
}

impl std::error::Error for Refusal {}

const AGAIN: &str = "Rows committed in between are not on Kafka. To go on: emit every row again with `cdc-relay \
     resnapshot`, or, if a gap is acceptable or known to be empty, drop the slot if it exists and write a tombstone for \
     this source to the state topic; the next start then begins at the present.";

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CheckpointMissing { slot } => write!(
                f,
                "slot {slot} exists, but the state topic knows nothing of it: whether it was read, and how far that \
                 was acknowledged, cannot be known. If nothing was ever emitted from it: \
                 `select pg_drop_replication_slot({})` and start again. Otherwise restore the state topic, or: {AGAIN}",
                literal(slot)
            ),
            Self::SlotMissing { slot, acknowledged } => write!(
                f,
                "slot {slot} is gone, though everything up to {acknowledged} was emitted from it. A new slot would begin \
                 at the present. {AGAIN}"
            ),
            Self::SlotLost { slot } => write!(
                f,
                "slot {slot} is lost: the server removed WAL that was not yet emitted (max_slot_wal_keep_size). {AGAIN}"
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
                "this is another cluster (system identifier {found}, the checkpoint has {expected}). If the address is \
                 wrong, correct it. If the database was moved or restored: {AGAIN}"
            ),
            Self::OtherTimeline { expected, found } => write!(
                f,
                "the cluster is on timeline {found}, the checkpoint has {expected}: a standby was promoted or a backup \
                 restored. Emitted transactions may not exist on this server, and transactions of this server may not be \
                 emitted. `cdc-relay failover` continues if it can prove that neither is so. Otherwise: {AGAIN}"
            ),
            Self::NotContinued { expected, found, why } => {
                f.write_str(&not_continued(*expected, *found, why))
            }
            Self::OnlyFormer { expected, found } => f.write_str(&only_former(*expected, *found)),
            Self::StandbysHidden { role } => f.write_str(&standbys_hidden(role)),
            Self::ServerBehind { flush, sent_lsn } => write!(
                f,
                "the server's WAL ends at {flush}, before {sent_lsn}, which is already emitted: it lost committed \
                 transactions (restored backup, fsync off). Find out which before you go on. {AGAIN}"
            ),
            Self::ContinuityLost { sent_lsn } => write!(
                f,
                "the server does not have the transaction of {sent_lsn}, the last one emitted: it was set back to an earlier \
                 state (a restored volume, fsync off) and has committed others since. {AGAIN}"
            ),
            Self::ResnapshotUnfinished { slot } => write!(
                f,
                "a resnapshot of slot {slot} is unfinished. Unless one is running now, run `cdc-relay resnapshot` \
                 again: it starts over."
            ),
            Self::Contract(problem) => f.write_str(problem),
            Self::Undecodable { position, code, problem } => {
                f.write_str(&undecodable(*position, code, problem))
            }
            Self::NotPermitted { role, problem } => f.write_str(&not_permitted(role, problem)),
            Self::Broken(Break { what, since }) => f.write_str(&broken(what, *since)),
        }
    }
}

fn not_continued(expected: u32, found: u32, why: &str) -> String {
    format!(
        "the cluster is on timeline {found}, the checkpoint has {expected}: a standby was promoted. As many synchronous standbys as \
         commits waited for had everything before it was emitted, but the relay cannot go on by itself: {why}. `cdc-relay failover` checks again. If the \
         obstacle cannot be removed: {AGAIN}"
    )
}

fn only_former(expected: u32, found: u32) -> String {
    format!(
        "for a minute only a former primary has answered: a host of the connection string takes writes on timeline {found}, and was \
         the primary before timeline {expected}, the checkpoint's. If the primary of timeline {expected} is away: start it, and stop \
         the other one; the relay goes on by itself. If the cluster was restored, and timeline {expected} is gone for good: name this \
         host alone in the connection string. {AGAIN}"
    )
}

fn not_permitted(role: &str, problem: &str) -> String {
    format!(
        "role {role} is not permitted to read the slot: {problem} (SQLSTATE 42501). If it may not replicate: `alter role {0} \
         replication` (Amazon RDS, Aurora: `grant rds_replication to {0}`); otherwise grant what the server names. Nothing is lost \
         meanwhile, and the relay goes on by itself.",
        identifier(role)
    )
}

fn standbys_hidden(role: &str) -> String {
    format!(
        "the routes file says synchronous = \"require\", and role {role} may not see which standbys have flushed what. As a \
         superuser: `grant pg_read_all_stats to {}`. Nothing is lost meanwhile, and the relay goes on by itself.",
        identifier(role)
    )
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
         The relay tries again every minute."
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
