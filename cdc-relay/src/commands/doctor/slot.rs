//! Checks the slot: whether it is the relay's, and how long the server retains the WAL for it.

use super::facts::{Facts, Slot};
use super::finding::Finding;
use super::server::reload;
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::state::{Checkpoint, admit};
use crate::postgres::sql;

/// Less time than this until the slot is invalidated is an emergency, in seconds.
const INVALIDATION_NEAR_SECONDS_MAX: f64 = 3600.0;
const DAY_SECONDS: f64 = 86_400.0;
/// One statement may write more WAL than this.
const RETENTION_BYTES_MIN: i64 = 1 << 30;

/// The checkpoint of a source, as far as the state topic was read.
#[derive(Debug, Clone, Copy)]
pub enum SavedCheckpoint<'a> {
    NotRead,
    Nothing,
    Saved(&'a Checkpoint),
}

/// The slot by itself, and whether it fits the checkpoint.
pub fn slot(facts: &Facts, name: &str, saved: SavedCheckpoint<'_>) -> Vec<Finding> {
    let subject = format!("slot {name}");
    let mut findings = Vec::new();
    match saved {
        SavedCheckpoint::NotRead => {}
        SavedCheckpoint::Nothing => findings.push(checkpoint_fits(facts, name, None, &subject)),
        SavedCheckpoint::Saved(saved) => {
            findings.push(checkpoint_fits(facts, name, Some(saved), &subject));
        }
    }
    let Some(slot) = facts.slot(name) else {
        if matches!(saved, SavedCheckpoint::NotRead) {
            findings.push(Finding::ok("slot.exists", &subject, "does not exist").why(
                "the first start of `cdc-relay run` makes it; the publication has to be there before it",
            ));
        }
        return findings;
    };
    if let Some(foreign) = foreign(facts, slot, &subject) {
        findings.push(foreign);
        return findings;
    }
    findings.push(wal_status(facts, slot, &subject));
    findings.extend(reader(slot, &subject));
    if slot.two_phase {
        findings.push(
            Finding::warning("slot.two_phase", &subject, "made with two_phase")
                .why("the relay emits a prepared transaction when it is committed, and requests it that way")
                .fix("make the slot without two_phase: let `cdc-relay run` make it"),
        );
    }
    findings.extend(spilled(facts, slot, &subject));
    findings
}

/// The decision of `cdc-relay run` at its start.
fn checkpoint_fits(facts: &Facts, name: &str, checkpoint: Option<&Checkpoint>, subject: &str) -> Finding {
    let slot = facts.slot(name).map(Slot::admitted);
    match admit(checkpoint, &facts.cluster(), name, slot.as_ref(), &facts.database) {
        Ok(_) => match checkpoint {
            None => Finding::ok("slot.checkpoint", subject, "was never used: the first start makes it"),
            Some(checkpoint) => Finding::ok(
                "slot.checkpoint",
                subject,
                format!(
                    "fits the checkpoint: acknowledged up to {}, sent up to {}",
                    checkpoint.acknowledged, checkpoint.sent_lsn
                ),
            ),
        },
        // `run` judges more of it than is known here.
        Err(Refusal::OtherTimeline { expected, found })
            if found > expected && checkpoint.is_some_and(|checkpoint| checkpoint.synchronous) =>
        {
            let found =
                format!("is of timeline {expected}, and the server is on {found}: a standby was promoted");
            Finding::warning("slot.checkpoint", subject, found)
                .why(
                    "synchronous standbys had everything before it was emitted, so `cdc-relay run` goes on by itself if branch, slot and \
                     routes fit, and says why if they do not",
                )
                .fix("start `cdc-relay run`")
        }
        Err(refusal) => {
            let lost = !matches!(refusal, Refusal::Contract(_) | Refusal::SlotForeign { .. });
            let found = "does not fit the checkpoint, so the relay refuses to stream";
            let make = if lost { Finding::would_lose_data } else { Finding::would_not_work };
            make("slot.checkpoint", subject, found.to_owned()).why(refusal.to_string())
        }
    }
}

fn foreign(facts: &Facts, slot: &Slot, subject: &str) -> Option<Finding> {
    let finding = |found: String| {
        Finding::would_not_work("slot.kind", subject, found)
            .why("the relay reads a logical slot of this database that decodes with pgoutput")
            .fix("give this source a slot name of its own; the first start makes the slot")
    };
    if slot.slot_type != "logical" {
        return Some(finding(format!("is a {} slot", slot.slot_type)));
    }
    match (slot.plugin.as_deref(), slot.database.as_deref()) {
        (Some("pgoutput"), Some(database)) if database == facts.database => {}
        (Some("pgoutput"), database) => {
            return Some(finding(format!("belongs to database {}", database.unwrap_or("?"))));
        }
        (plugin, _) => return Some(finding(format!("decodes with {}", plugin.unwrap_or("?")))),
    }
    slot.temporary.then(|| {
        Finding::would_lose_data("slot.kind", subject, "is temporary")
            .why("the server drops it when its session ends, and with it the WAL that was not yet emitted")
            .fix("let `cdc-relay run` make the slot")
    })
}

/// Whether the server still has the WAL, and for how long.
fn wal_status(facts: &Facts, slot: &Slot, subject: &str) -> Finding {
    let retained = size(slot.retained(&facts.flush));
    let reason = slot.invalidation_reason.as_deref().unwrap_or("max_slot_wal_keep_size");
    let more = || reload("max_slot_wal_keep_size", "-1");
    match slot.wal_status.as_deref() {
        Some("lost") | None => {
            Finding::would_lose_data("slot.wal_status", subject, format!("lost ({reason})"))
                .why("the server removed WAL that was not yet emitted")
                .fix("cdc-relay resnapshot   -- emits every present row again, from a new slot")
        }
        Some("unreserved") => Finding::would_lose_data("slot.wal_status", subject, "unreserved")
            .why("the server's next checkpoint removes WAL that was not yet emitted; the slot may still be saved")
            .fix(format!("{}   -- and start the relay at once", more())),
        Some(status) => {
            let found = format!("{status}; {retained} of WAL are retained for it");
            match (slot.safe_wal_size, facts.wal_rate) {
                (Some(safe), rate)
                    if rate > 0.0 && safe as f64 / rate < INVALIDATION_NEAR_SECONDS_MAX && !slot.active =>
                {
                    let left = duration(safe as f64 / rate);
                    Finding::would_lose_data("slot.wal_status", subject, format!("{found}; {left} left"))
                        .why(
                            "nobody reads it, and at the present rate of WAL the server invalidates it then",
                        )
                        .fix("start the relay: cdc-relay run")
                        .fix(more())
                }
                _ => Finding::ok("slot.wal_status", subject, found),
            }
        }
    }
}

/// The process that reads the slot; `idle` reports that nobody does.
fn reader(slot: &Slot, subject: &str) -> Option<Finding> {
    let pid = slot.active_pid?;
    Some(Finding::ok("slot.active", subject, format!("is read by process {pid}")))
}

fn spilled(facts: &Facts, slot: &Slot, subject: &str) -> Option<Finding> {
    let spill = facts.spills.get(&slot.slot_name).filter(|spill| spill.transactions > 0)?;
    let work_mem = facts.bytes("logical_decoding_work_mem").unwrap_or(64 << 20);
    let found = format!(
        "{} transactions did not fit logical_decoding_work_mem ({}) and were written to disk ({})",
        spill.transactions,
        size(work_mem),
        size(spill.bytes)
    );
    Some(
        Finding::warning("slot.spill", subject, found)
            .why("decoding waits for that disk; more memory is given to each walsender only when it needs it")
            .fix(reload("logical_decoding_work_mem", &format!("'{}MB'", (work_mem >> 20) * 4))),
    )
}

/// The server's limits for the WAL of a slot that nobody reads; with or without a slot.
pub fn retention(facts: &Facts) -> Vec<Finding> {
    let (limit, rate) = (facts.bytes("max_slot_wal_keep_size").unwrap_or(-1), facts.wal_rate);
    let finding = if limit < 0 {
        Finding::warning("retention.max_slot_wal_keep_size", "max_slot_wal_keep_size", "-1 (without a limit)")
            .why("a slot that nobody reads fills the disk, and then the server stops")
            .fix(format!(
                "{}   -- what the disk can spare; alert on wal_status long before",
                reload("max_slot_wal_keep_size", "'100GB'")
            ))
    } else if rate > 0.0 && limit as f64 / rate < DAY_SECONDS {
        let (found, lasts) =
            (format!("{}, at {}/s of WAL", size(limit), size(rate as i64)), limit as f64 / rate);
        // A warning, since the rate of one second may be that of a rare burst.
        Finding::warning("retention.max_slot_wal_keep_size", "max_slot_wal_keep_size", found)
            .why(format!(
                "a relay that is away for {} has lost its slot, and with it changes",
                duration(lasts)
            ))
            .fix(reload("max_slot_wal_keep_size", &format!("'{}GB'", gigabytes_for(rate))))
    } else if limit < RETENTION_BYTES_MIN {
        let name = "max_slot_wal_keep_size";
        Finding::warning("retention.max_slot_wal_keep_size", name, size(limit))
            .why("one bulk load or vacuum writes more, and a relay that is away or behind just then has lost its slot")
            .fix(reload(name, &format!("'{}GB'", gigabytes_for(rate).max(10))))
    } else {
        let lasts = if rate > 0.0 {
            format!("which lasts for {} at the present rate of WAL", duration(limit as f64 / rate))
        } else {
            "and WAL does not grow now".to_owned()
        };
        let found = format!("{}, {lasts}", size(limit));
        Finding::ok("retention.max_slot_wal_keep_size", "max_slot_wal_keep_size", found)
    };
    let mut findings = vec![finding];
    let idle = facts.milliseconds("idle_replication_slot_timeout").filter(|ms| *ms > 0);
    if let Some(seconds) = idle.map(|ms| ms as f64 / 1000.0) {
        let make = if seconds < DAY_SECONDS { Finding::would_lose_data } else { Finding::warning };
        let name = "idle_replication_slot_timeout";
        findings.push(
            make("retention.idle_replication_slot_timeout", name, duration(seconds))
                .why("a relay that is away for so long has lost its slot, however little happened meanwhile")
                .fix(reload(name, "0")),
        );
    }
    findings
}

/// Two days of WAL, as others advise.
fn gigabytes_for(rate: f64) -> u64 {
    ((rate * 2.0 * DAY_SECONDS / f64::from(1 << 30)).ceil() as u64).max(1)
}

/// Whether the slot outlives its primary. `name`: the slot, if there is one. `waits`: the relay waits for standbys itself.
pub fn failover(facts: &Facts, name: Option<&str>, waits: bool) -> Vec<Finding> {
    if facts.standby {
        let found = "this is a standby";
        return vec![
            Finding::would_not_work("failover.standby", &facts.database, found)
                .why("slot and publication of the relay are made on the primary")
                .fix("connect to the primary"),
        ];
    }
    if facts.standbys.is_empty() {
        return Vec::new();
    }
    let standbys = facts.standbys.join(", ");
    if facts.version < 170_000 {
        return vec![
            Finding::warning(
                "failover.slot",
                &format!("standby {standbys}"),
                "the slot does not go with a promotion",
            )
            .why(
                "before version 17 the server does not copy slots to standbys; after a promotion to one without it the relay \
                     refuses to stream, since transactions that were not emitted yet cannot be sent",
            )
            .fix("let Patroni keep it (its permanent slots), or upgrade to 17 and use failover slots")
            .fix("after a promotion without it: cdc-relay resnapshot"),
        ];
    }
    let mut findings = Vec::new();
    let slot = name.and_then(|name| facts.slot(name));
    if let Some(slot) = slot.filter(|slot| !slot.failover) {
        let name = &slot.slot_name;
        findings.push(
            Finding::warning("failover.slot", &format!("slot {name}"), format!("is not copied to {standbys}"))
                .why("after a promotion it is gone, and the relay refuses to stream until everything is emitted again")
                .fix(format!(
                    "ALTER_REPLICATION_SLOT {} (FAILOVER true)   -- psql \"… replication=database\", with the relay stopped",
                    sql::replication_identifier(name)
                ))
                .fix("on the standby: sync_replication_slots = on, hot_standby_feedback = on, dbname in primary_conninfo"),
        );
    }
    if !waits && facts.text("synchronized_standby_slots").is_empty() {
        findings.push(
            Finding::warning("failover.synchronized_standby_slots", "synchronized_standby_slots", "empty")
                .why(
                    "the relay may be ahead of the standby: after a promotion there are events of transactions that \
                     no longer exist",
                )
                .fix(reload("synchronized_standby_slots", "'<the standby''s physical slot>'"))
                .fix("or let the relay wait for them: synchronous = \"require\" in the routes file"),
        );
    }
    findings
}

pub fn size(bytes: i64) -> String {
    let bytes = bytes.max(0) as f64;
    let units = [(1u64 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
    match units.iter().find(|(unit, _)| bytes >= *unit as f64) {
        Some((unit, name)) => format!("{:.1} {name}", bytes / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

pub fn duration(seconds: f64) -> String {
    let units = [(DAY_SECONDS, "days"), (3600.0, "hours"), (60.0, "minutes")];
    match units.iter().find(|(unit, _)| seconds >= 2.0 * unit) {
        Some((unit, name)) => format!("{:.0} {name}", seconds / unit),
        None => format!("{seconds:.0} seconds"),
    }
}
