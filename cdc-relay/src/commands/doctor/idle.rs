//! Finds slots that nobody reads: the server retains WAL for each, until the disk is full or the slot is lost.

use super::facts::{Facts, Slot};
use super::finding::Finding;
use super::slot::{duration, size};
use crate::postgres::shell;
use crate::postgres::sql;

/// The slot of a source, if nobody reads it.
pub fn own(facts: &Facts, name: &str, source: Option<&str>) -> Option<Finding> {
    let slot = facts.slot(name).filter(|slot| slot.active_pid.is_none())?;
    let finding = Finding::warning("slot.active", &format!("slot {name}"), found(facts, slot))
        .why("the server retains WAL for it until somebody reads it")
        .fix("cdc-relay run   -- a relay that reads it");
    Some(match source {
        Some(source) => finding.fix(format!(
            "cdc-relay remove --source {}   -- removes the source, with its slot and publication",
            shell::quote(source)
        )),
        None => finding.fix(drop(name)),
    })
}

/// Other logical slots of the database that nobody reads. Their owners are unknown here.
pub fn others(facts: &Facts, named: Option<&str>) -> Vec<Finding> {
    let idle = |slot: &&Slot| {
        let here = slot.database.as_deref() == Some(&facts.database) && slot.slot_type == "logical";
        here && !slot.active && slot.wal_status.as_deref() != Some("lost")
    };
    let others = facts.slots.iter().filter(|slot| Some(slot.slot_name.as_str()) != named);
    let findings = others.filter(idle).map(|slot| {
        Finding::warning("slot.idle", &format!("slot {}", slot.slot_name), found(facts, slot))
            .why("the server retains WAL for it until somebody reads it, and its disk may fill")
            .fix(format!("{}   -- if its owner does not come back", drop(&slot.slot_name)))
    });
    findings.collect()
}

fn drop(name: &str) -> String {
    format!("select pg_drop_replication_slot({});", sql::literal(name))
}

fn found(facts: &Facts, slot: &Slot) -> String {
    let retained = size(slot.retained(&facts.flush));
    // Servers from 17 on report it.
    let since = slot.inactive_since.as_deref().and_then(|since| since.parse::<jiff::Timestamp>().ok());
    let idle = since.map_or_else(String::new, |since| {
        let seconds = jiff::Timestamp::now().duration_since(since).as_secs_f64();
        format!(" for {}", duration(seconds.max(0.0)))
    });
    format!("nobody reads it{idle}; {retained} of WAL are retained")
}
