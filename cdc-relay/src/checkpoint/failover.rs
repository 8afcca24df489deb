//! Whether a promoted standby has everything that was emitted: pure.
//!
//! A promotion begins a new timeline. Up to where it branches off, its log is the old one's, position by position; of
//! what the old primary committed after that it has nothing. So if everything that was emitted was committed before
//! that place, and the slot came along and is not past what was acknowledged, the promoted server sends whatever was not
//! emitted, and nothing was emitted that it does not have. What was emitted is known from two sides: the checkpoint, which is
//! written a moment later, and the newest record on Kafka, which may be of that moment.

use std::fmt;

use crate::checkpoint::state::{Checkpoint, Cluster, Phase, Slot};
use crate::postgres::lsn::Lsn;

/// Where a timeline ended and the next one in this server's history began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    pub ended: u32,
    pub at: Lsn,
}

/// The branches that a timeline's history file names. Lines that are none are passed over, as the server does.
pub fn branches(history: &str) -> Vec<Branch> {
    let branch = |line: &str| {
        let mut fields = line.split_whitespace();
        Some(Branch { ended: fields.next()?.parse().ok()?, at: fields.next()?.parse().ok()? })
    };
    history.lines().filter_map(branch).collect()
}

/// What there is to judge by.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    pub checkpoint: Option<&'a Checkpoint>,
    pub cluster: &'a Cluster,
    /// The server is in recovery: nobody promoted it yet.
    pub standby: bool,
    /// The database of the session.
    pub database: &'a str,
    /// Of the routes, as the checkpoint has it.
    pub routes: &'a str,
    /// A table whose existing rows are not all emitted. Their records have no position.
    pub unfinished: Option<&'a str>,
    pub history: &'a [Branch],
    pub slot: Option<&'a Slot>,
    /// The last commit that a record on Kafka is of; 0/0 if there is none.
    pub newest: Lsn,
}

/// What has to be saved from now on, and why that is safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    pub checkpoint: Checkpoint,
    pub branch: Branch,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    NothingEmitted,
    ResnapshotUnfinished,
    OtherCluster {
        expected: String,
        found: String,
    },
    Standby,
    OtherRoutes,
    Unfinished(String),
    /// Nothing was promoted.
    SameTimeline(u32),
    /// The timeline that was emitted is none of this server's.
    Stranger {
        expected: u32,
        found: u32,
    },
    /// The relay was further than this server has the old timeline.
    Ahead {
        sent: Lsn,
        branch: Branch,
    },
    SlotMissing,
    SlotLost,
    SlotForeign(String),
    SlotInUse(i32),
    SlotAhead {
        confirmed: Lsn,
        acknowledged: Lsn,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingEmitted => f.write_str("nothing was told of this source yet"),
            Self::ResnapshotUnfinished => f.write_str("a reconcile was begun and did not end; it starts over"),
            Self::OtherCluster { expected, found } => write!(
                f,
                "this is another cluster (system identifier {found}, told so far: {expected}), not a standby of the one \
                 that was told"
            ),
            Self::SameTimeline(timeline) => {
                write!(f, "the server is on timeline {timeline}, which is the one that was told: nothing was promoted")
            }
            Self::Stranger { expected, found } => {
                write!(f, "timeline {found} of this server did not come from timeline {expected}, which was told")
            }
            Self::Ahead { sent, branch } => write!(
                f,
                "the relay was at {sent}, and this server has the old timeline only up to {}: what may have been told of \
                 transactions in between never was, here (synchronized_standby_slots prevents that)",
                branch.at
            ),
            Self::Standby => f.write_str("the server is a standby: promote it first"),
            Self::OtherRoutes => f.write_str(
                "these are not the routes that were told with: take those for this, and change them afterwards",
            ),
            Self::Unfinished(table) => write!(
                f,
                "the existing rows of {table} were being told: which of them, of what the old server had, cannot be known"
            ),
            Self::SlotMissing => f.write_str(
                "the slot did not come along (a failover slot does, from PostgreSQL 17 on): what was committed and not \
                 told before the promotion cannot be sent",
            ),
            Self::SlotLost => f.write_str("the slot is lost: the server removed log that was not yet told"),
            Self::SlotForeign(what) => write!(f, "the slot is not ours: {what}"),
            Self::SlotInUse(pid) => write!(f, "the slot is being read, by the server's process {pid}"),
            Self::SlotAhead { confirmed, acknowledged } => write!(
                f,
                "the slot is at {confirmed}, and only {acknowledged} is acknowledged: it was advanced by somebody else, \
                 or made anew"
            ),
        }
    }
}

/// Whether the relay may go on with this server as if it were the old one.
///
/// # Errors
/// What keeps that from being shown.
pub fn judge(evidence: &Evidence<'_>) -> Result<Continuation, Obstacle> {
    let Evidence { cluster, newest, .. } = *evidence;
    let checkpoint = evidence.checkpoint.ok_or(Obstacle::NothingEmitted)?;
    match checkpoint.phase {
        Phase::Creating => return Err(Obstacle::NothingEmitted),
        Phase::Resnapshot => return Err(Obstacle::ResnapshotUnfinished),
        Phase::Streaming => {}
    }
    if checkpoint.system_id != cluster.system_id {
        let (expected, found) = (checkpoint.system_id.clone(), cluster.system_id.clone());
        return Err(Obstacle::OtherCluster { expected, found });
    }
    let (expected, found) = (checkpoint.timeline, cluster.timeline);
    if expected == found {
        return Err(Obstacle::SameTimeline(expected));
    }
    if evidence.standby {
        return Err(Obstacle::Standby);
    }
    // A standby of a promoted one may be promoted in turn before it was as far as the first branch.
    let since = evidence.history.iter().skip_while(|branch| branch.ended != expected);
    let at = since.map(|branch| branch.at).min().ok_or(Obstacle::Stranger { expected, found })?;
    let branch = Branch { ended: expected, at };
    // The checkpoint has where a commit ends; a record has where its commit record begins, which the branch does not cut.
    let ended = checkpoint.sent_lsn.max(checkpoint.acknowledged);
    if ended > branch.at || (newest >= branch.at && newest > Lsn::ZERO) {
        return Err(Obstacle::Ahead { sent: ended.max(newest), branch });
    }
    if evidence.routes != checkpoint.routes {
        return Err(Obstacle::OtherRoutes);
    }
    if let Some(table) = evidence.unfinished {
        return Err(Obstacle::Unfinished(table.to_owned()));
    }
    fit(evidence, checkpoint)?;
    let checkpoint = Checkpoint { timeline: found, sent_lsn: ended.max(newest), ..checkpoint.clone() };
    Ok(Continuation { checkpoint, branch })
}

/// Whether the slot sends all that was not acknowledged.
fn fit(evidence: &Evidence<'_>, checkpoint: &Checkpoint) -> Result<(), Obstacle> {
    let slot = evidence.slot.ok_or(Obstacle::SlotMissing)?;
    if let Some(what) = slot.foreign(evidence.database) {
        return Err(Obstacle::SlotForeign(what));
    }
    if let Some(pid) = slot.active_pid {
        return Err(Obstacle::SlotInUse(pid));
    }
    if slot.wal_status == "lost" {
        return Err(Obstacle::SlotLost);
    }
    let acknowledged = checkpoint.acknowledged;
    match slot.confirmed {
        Some(confirmed) if confirmed <= acknowledged => Ok(()),
        Some(confirmed) => Err(Obstacle::SlotAhead { confirmed, acknowledged }),
        None => Err(Obstacle::SlotLost),
    }
}

#[cfg(test)]
#[path = "failover_tests.rs"]
mod tests;
