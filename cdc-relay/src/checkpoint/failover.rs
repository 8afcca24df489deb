//! Decides whether a promoted standby has everything that was emitted: pure.
//!
//! * A promotion begins a new timeline. Up to the branch its WAL equals the old one's, position by position. It has nothing
//!   that the old primary committed after the branch.
//! * So the relay may continue if every emitted transaction was committed before the branch, and the slot was synchronized
//!   and is not past the acknowledged position. Then the server sends whatever was not emitted.
//! * Two sources say what was emitted: the checkpoint, which is written a moment later, and the newest record of its
//!   chain on Kafka. Positions of other chains are those of other slots.

use std::fmt;

use crate::checkpoint::state::{Checkpoint, Cluster, Phase, Slot};
use crate::postgres::lsn::Lsn;

/// The end of a timeline, at which the next one of this server began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    pub ended: u32,
    pub at: Lsn,
}

/// Parses a timeline's history file. Other lines are skipped, as the server does.
pub fn branches(history_file: &str) -> Vec<Branch> {
    let branch = |line: &str| {
        let mut fields = line.split_whitespace();
        Some(Branch { ended: fields.next()?.parse().ok()?, at: fields.next()?.parse().ok()? })
    };
    history_file.lines().filter_map(branch).collect()
}

/// The facts to judge by.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    pub checkpoint: Option<&'a Checkpoint>,
    pub cluster: &'a Cluster,
    /// The server is in recovery: it is not promoted yet.
    pub standby: bool,
    /// The database of the session.
    pub database: &'a str,
    /// The fingerprint of the routes.
    pub routes: &'a str,
    /// A table whose snapshot is unfinished. Its records have no position.
    pub unfinished: Option<&'a str>,
    pub branches: &'a [Branch],
    pub slot: Option<&'a Slot>,
    /// The newest commit of the checkpoint's chain on Kafka; 0/0 if there is none.
    pub newest: Lsn,
}

/// The checkpoint to save, and the branch that makes it safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    pub checkpoint: Checkpoint,
    pub branch: Branch,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    NothingEmitted,
    ResnapshotUnfinished,
    /// An earlier release wrote the checkpoint.
    UnnamedChain,
    OtherCluster {
        expected: String,
        found: String,
    },
    Standby,
    OtherRoutes,
    Unfinished(String),
    /// Nothing was promoted.
    SameTimeline(u32),
    /// The emitted timeline is none of this server's.
    Stranger {
        expected: u32,
        found: u32,
    },
    /// The relay emitted beyond this server's branch.
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
            Self::NothingEmitted => f.write_str("nothing of this source is emitted yet, so there is nothing to continue: run `cdc-relay run`"),
            Self::ResnapshotUnfinished => f.write_str("a resnapshot is unfinished: run `cdc-relay resnapshot` again, it starts over"),
            Self::UnnamedChain => f.write_str(
                "the checkpoint is of an earlier release, which named no chain: what was emitted cannot be found on Kafka",
            ),
            Self::OtherCluster { expected, found } => write!(
                f,
                "this is another cluster (system identifier {found}, the checkpoint has {expected}), not a standby of the one \
                 that was read"
            ),
            Self::SameTimeline(timeline) => {
                write!(f, "the server is on timeline {timeline}, the checkpoint's: nothing was promoted")
            }
            Self::Stranger { expected, found } => {
                write!(f, "timeline {found} of this server did not come from the checkpoint's timeline {expected}")
            }
            Self::Ahead { sent, branch } => write!(
                f,
                "the relay was at {sent}, and this server has the old timeline only up to {0}. Transactions between {0} and \
                 {sent} may be on Kafka but do not exist on this server (synchronized_standby_slots prevents that)",
                branch.at
            ),
            Self::Standby => f.write_str("the server is a standby: promote it first"),
            Self::OtherRoutes => f.write_str(
                "the routes have changed since they were last emitted: use the old ones for the failover, and change them \
                 afterwards",
            ),
            Self::Unfinished(table) => write!(
                f,
                "the snapshot of {table} is unfinished: which rows of the old server it has emitted cannot be known"
            ),
            Self::SlotMissing => f.write_str(
                "the slot does not exist on this server (from PostgreSQL 17 on a failover slot would): transactions that were \
                 committed and not emitted before the promotion cannot be sent",
            ),
            Self::SlotLost => f.write_str("the slot is lost: the server removed WAL that was not yet emitted"),
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

/// Decides whether the relay may continue with this server as with the old one.
///
/// # Errors
/// The obstacle to proving that.
pub fn judge(evidence: &Evidence<'_>) -> Result<Continuation, Obstacle> {
    let Evidence { cluster, newest, .. } = *evidence;
    let checkpoint = evidence.checkpoint.ok_or(Obstacle::NothingEmitted)?;
    match checkpoint.phase {
        Phase::Creating => return Err(Obstacle::NothingEmitted),
        Phase::Resnapshot => return Err(Obstacle::ResnapshotUnfinished),
        Phase::Streaming => {}
    }
    if checkpoint.chain_name.is_empty() {
        return Err(Obstacle::UnnamedChain);
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
    // A cascaded standby may have been promoted before it reached the first branch.
    let since = evidence.branches.iter().skip_while(|branch| branch.ended != expected);
    let at = since.map(|branch| branch.at).min().ok_or(Obstacle::Stranger { expected, found })?;
    let branch = Branch { ended: expected, at };
    // The checkpoint has the end of a commit; a record has the begin of its commit record, which the branch does not cut.
    // Where standbys were waited for, WAL behind the last commit was acknowledged without their having it.
    let ended = match checkpoint.synchronous {
        true => checkpoint.sent_lsn,
        false => checkpoint.sent_lsn.max(checkpoint.acknowledged),
    };
    if ended > branch.at || (newest >= branch.at && newest > Lsn::ZERO) {
        return Err(Obstacle::Ahead { sent: ended.max(newest), branch });
    }
    if evidence.routes != checkpoint.routes {
        return Err(Obstacle::OtherRoutes);
    }
    if let Some(table) = evidence.unfinished {
        return Err(Obstacle::Unfinished(table.to_owned()));
    }
    // The old primary may have had WAL without commits behind the branch. The new one has its own there.
    let acknowledged = checkpoint.acknowledged.min(branch.at);
    fit(evidence, acknowledged)?;
    let checkpoint = Checkpoint {
        timeline: found,
        acknowledged,
        sent_lsn: ended.max(newest),
        vouched: checkpoint.vouched.min(acknowledged),
        // Of the new timeline nothing is known yet.
        synchronous: false,
        ..checkpoint.clone()
    };
    Ok(Continuation { checkpoint, branch })
}

/// Checks that the slot sends every transaction that is not acknowledged.
fn fit(evidence: &Evidence<'_>, acknowledged: Lsn) -> Result<(), Obstacle> {
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
    match slot.confirmed {
        Some(confirmed) if confirmed <= acknowledged => Ok(()),
        Some(confirmed) => Err(Obstacle::SlotAhead { confirmed, acknowledged }),
        None => Err(Obstacle::SlotLost),
    }
}

#[cfg(test)]
#[path = "failover_tests.rs"]
mod tests;
