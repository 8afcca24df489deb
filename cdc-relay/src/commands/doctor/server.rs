//! Checks the server and the role: settings that streaming needs, and those that lose commits.

use super::facts::{Facts, Slot};
use super::finding::Finding;
use crate::postgres::sql;

/// Transactions that are open for longer are reported, in seconds.
const LONG_TRANSACTION_SECONDS_MIN: i64 = 300;

pub fn reload(name: &str, value: &str) -> String {
    format!("alter system set {name} = {value}; select pg_reload_conf();")
}

pub fn restart(name: &str, value: &str) -> String {
    format!("alter system set {name} = {value};   -- then restart Postgres")
}

/// `slot`: where it exists no further one is needed, and where it is read no further walsender.
pub fn server(facts: &Facts, slot: Option<&Slot>) -> Vec<Finding> {
    let mut findings = vec![version(facts), wal_level(facts), encoding(facts), role(facts)];
    findings.extend(durability(facts));
    findings.push(commit_latency(facts));
    findings.push(sender_timeout(facts));
    findings.extend(room(facts, slot));
    findings.extend(open_transactions(facts));
    findings
}

fn version(facts: &Facts) -> Finding {
    let found = format!("Postgres {}", facts.version_text);
    if facts.version < 140_000 {
        return Finding::warning("server.version", "server", found)
            .why("it gets no more fixes")
            .fix("upgrade to a supported major version");
    }
    Finding::ok("server.version", "server", found)
}

fn wal_level(facts: &Facts) -> Finding {
    match facts.text("wal_level") {
        "logical" => Finding::ok("server.wal_level", "wal_level", "logical"),
        other => Finding::would_not_work("server.wal_level", "wal_level", other)
            .why("the WAL does not contain the changed rows, so no slot can be created")
            .fix(restart("wal_level", "logical"))
            .fix("Amazon RDS, Aurora: rds.logical_replication = 1; Cloud SQL: logical_decoding = on"),
    }
}

fn encoding(facts: &Facts) -> Finding {
    if facts.encoding == "SQL_ASCII" {
        return Finding::would_not_work("server.encoding", "server_encoding", "SQL_ASCII")
            .why("its text need not be valid UTF-8, and JSON has to be")
            .fix("dump the database and restore it into one with encoding UTF8");
    }
    Finding::ok("server.encoding", "server_encoding", &*facts.encoding)
}

fn role(facts: &Facts) -> Finding {
    let name = &facts.role.name;
    if facts.role.replication {
        let how = if facts.role.superuser { "superuser" } else { "may replicate" };
        return Finding::ok("role.replication", &format!("role {name}"), how);
    }
    Finding::would_not_work("role.replication", &format!("role {name}"), "may not replicate")
        .why("only a role with REPLICATION may read the WAL")
        .fix(format!("alter role {} replication;", sql::identifier(name)))
        .fix(format!("Amazon RDS, Aurora: grant rds_replication to {};", sql::identifier(name)))
}

fn durability(facts: &Facts) -> Vec<Finding> {
    let off = |name| facts.text(name) == "off";
    let mut findings = Vec::new();
    if off("fsync") {
        findings.push(
            Finding::would_lose_data("server.fsync", "fsync", "off")
                .why("after a power cut the server may lack commits that were already emitted, or be damaged")
                .fix(reload("fsync", "on")),
        );
    } else {
        findings.push(Finding::ok("server.fsync", "fsync", "on"));
    }
    if off("full_page_writes") {
        findings.push(
            Finding::would_lose_data("server.full_page_writes", "full_page_writes", "off")
                .why("a page that a power cut leaves half written cannot be restored, unless the file system does it")
                .fix(reload("full_page_writes", "on")),
        );
    }
    findings
}

fn commit_latency(facts: &Facts) -> Finding {
    let found = facts.text("synchronous_commit");
    if found == "off" {
        let delay = facts.milliseconds("wal_writer_delay").unwrap_or(200);
        return Finding::warning("server.synchronous_commit", "synchronous_commit", "off")
            .why(format!(
                "the relay emits only changes on disk, so each waits for the WAL writer (up to {delay} ms, and twice \
                 that at worst); and a crash loses commits that clients saw as successful"
            ))
            .fix(reload("synchronous_commit", "on"));
    }
    Finding::ok("server.synchronous_commit", "synchronous_commit", found)
}

fn sender_timeout(facts: &Facts) -> Finding {
    let finding = |found: String| Finding::warning("server.wal_sender_timeout", "wal_sender_timeout", found);
    match facts.milliseconds("wal_sender_timeout").unwrap_or(60_000) {
        0 => finding("0 (off)".to_owned())
            .why("a dead connection blocks the slot until the kernel notices")
            .fix(reload("wal_sender_timeout", "'60s'")),
        ms if ms < 10_000 => finding(format!("{ms} ms"))
            .why("a short pause of the network ends the stream; it begins again, and emits some events again")
            .fix(reload("wal_sender_timeout", "'60s'")),
        ms => Finding::ok("server.wal_sender_timeout", "wal_sender_timeout", format!("{} s", ms / 1000)),
    }
}

fn room(facts: &Facts, slot: Option<&Slot>) -> Vec<Finding> {
    let room = |check, name: &str, used: i64, needed: i64| {
        let most: i64 = facts.text(name).parse().unwrap_or_default();
        let found = format!("{used} of {most} in use");
        if most - used < needed {
            Finding::would_not_work(check, name, found)
                .why("none is left for the relay")
                .fix(restart(name, &(most + 10).to_string()))
        } else {
            Finding::ok(check, name, found)
        }
    };
    let (slots, senders) = (i64::from(slot.is_none()), i64::from(!slot.is_some_and(|slot| slot.active)));
    vec![
        room("server.max_replication_slots", "max_replication_slots", facts.slots.len() as i64, slots),
        room("server.max_wal_senders", "max_wal_senders", facts.senders, senders),
    ]
}

fn open_transactions(facts: &Facts) -> Vec<Finding> {
    let why = "the server retains WAL from the beginning of the oldest transaction that wrote something, and creates a \
               slot only after that transaction";
    let old =
        facts.transactions.iter().filter(|open| open.seconds >= LONG_TRANSACTION_SECONDS_MIN).map(|open| {
            let (pid, minutes) = (open.pid, open.seconds / 60);
            let (user, state) = (open.user.as_deref().unwrap_or("?"), open.state.as_deref().unwrap_or("?"));
            let found = format!("{user}'s transaction is open for {minutes} minutes ({state})");
            Finding::warning("server.open_transaction", &format!("process {pid}"), found)
                .why(why)
                .fix(format!("select pg_terminate_backend({pid});   -- or commit it"))
        });
    let prepared = facts
        .prepared
        .iter()
        .filter(|prepared| prepared.seconds >= LONG_TRANSACTION_SECONDS_MIN)
        .map(|prepared| {
            let gid = sql::literal(&prepared.gid);
            let found = format!("prepared {} minutes ago in {}", prepared.seconds / 60, prepared.database);
            Finding::warning(
                "server.prepared_transaction",
                &format!("prepared transaction {}", prepared.gid),
                found,
            )
            .why(why)
            .fix(format!("commit prepared {gid};   -- or: rollback prepared {gid};"))
        });
    old.chain(prepared).collect()
}
