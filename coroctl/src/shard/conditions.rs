//! Decides whether a move may begin: everything that would make it fail half-way is refused before.
//!
//! * All refusals are given at once, each with what to do.
//! * A fact that is not known is refused as if it were bad.
//! * Pure: the facts are read by whoever asks.

use std::fmt;
use std::time::Duration;

/// Deadlines and leases are compared with the database's clock, so a row must not meet a clock that is far behind the last.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_millis(50);
/// The first release whose publications have row filters, and whose subscriptions copy by them (`server_version_num`).
pub const SERVER_MIN: i32 = 150_000;
/// One slot for the subscription, and one for each of the two workers that copy tables at a time.
pub const SLOTS_MIN: i64 = 3;
/// One worker that applies, and two that copy.
pub const WORKERS_MIN: i64 = 3;
/// Free space, in multiples of the rows to copy: the copy with its indexes and its WAL; at the source the WAL that is kept
/// meanwhile.
pub const SPACE_FACTOR: u64 = 2;

/// The facts of one move, as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    pub databases: Databases,
    pub resources: Resources,
    /// Tables of the move whose replica identity has no `user_id`: each UPDATE of the service would fail.
    pub without_identity: Vec<String>,
    /// Tables without `user_id` that refer to a table of the move.
    pub referring: Vec<String>,
    /// Logical slots of the source that are no move's.
    pub relay_slots: Vec<String>,
    /// Whether the target has such a slot too: what is written there before its relay has one is never emitted.
    pub target_has_relay: bool,
    /// Keys of the source's relay that have dead letters.
    pub halted_keys: Option<u64>,
    /// By how much the clocks of the two servers differ, with the time that the question took.
    pub clock_skew: Option<Duration>,
    /// Buckets of the move that another move is about, on either shard.
    pub busy_buckets: usize,
    /// Buckets of the move that the source does not own.
    pub foreign_buckets: usize,
}

/// The states of the two databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Databases {
    /// A migration is being applied to one of them.
    pub is_migrating: bool,
    /// The latest migration of each.
    pub source_version: i32,
    pub target_version: i32,
    /// The databases whose incarnation is not open.
    pub closed: Vec<String>,
    /// `server_version_num` of each.
    pub source_server: i32,
    pub target_server: i32,
    /// `wal_level` of the source is `logical`.
    pub is_logical: bool,
}

/// Whatever is in limited supply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    pub source_slots_free: i64,
    pub source_walsenders_free: i64,
    pub target_workers_free: i64,
    /// Each subscription and each copying worker has a replication origin.
    pub target_origins_free: i64,
    /// The rows of the move, with their indexes, in bytes.
    pub bytes: u64,
    pub source_bytes_free: Option<u64>,
    pub target_bytes_free: Option<u64>,
}

/// Why a move may not begin. Displayed: what is the matter, why it matters, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Migrating,
    VersionsDiffer { source: i32, target: i32 },
    Closed(String),
    TooOld { shard: &'static str, server: i32 },
    NotLogical,
    NoIdentity(String),
    Referring(String),
    NoRelay,
    NoRelayAtTarget,
    HaltedKeys(Option<u64>),
    Clocks(Option<Duration>),
    Busy(usize),
    NotOwned(usize),
    Slots(i64),
    Walsenders(i64),
    Workers(i64),
    Origins(i64),
    Space { shard: &'static str, needed: u64, free: Option<u64> },
}

/// Every reason against the move; it may begin if there is none.
pub fn refusals(conditions: &Conditions) -> Vec<Refusal> {
    let Conditions { databases, resources, .. } = conditions;
    let mut refusals = Vec::new();
    let mut refuse = |is_refused: bool, refusal: Refusal| {
        if is_refused {
            refusals.push(refusal);
        }
    };
    let (source, target) = (databases.source_version, databases.target_version);
    refuse(databases.is_migrating, Refusal::Migrating);
    refuse(source != target, Refusal::VersionsDiffer { source, target });
    for name in &databases.closed {
        refuse(true, Refusal::Closed(name.clone()));
    }
    for (shard, server) in [("source", databases.source_server), ("target", databases.target_server)] {
        refuse(server < SERVER_MIN, Refusal::TooOld { shard, server });
    }
    refuse(!databases.is_logical, Refusal::NotLogical);
    for table in &conditions.without_identity {
        refuse(true, Refusal::NoIdentity(table.clone()));
    }
    for table in &conditions.referring {
        refuse(true, Refusal::Referring(table.clone()));
    }
    refuse(conditions.relay_slots.is_empty(), Refusal::NoRelay);
    refuse(!conditions.target_has_relay, Refusal::NoRelayAtTarget);
    refuse(conditions.halted_keys != Some(0), Refusal::HaltedKeys(conditions.halted_keys));
    let skewed = conditions.clock_skew.is_none_or(|skew| skew > CLOCK_SKEW_MAX);
    refuse(skewed, Refusal::Clocks(conditions.clock_skew));
    refuse(conditions.busy_buckets > 0, Refusal::Busy(conditions.busy_buckets));
    refuse(conditions.foreign_buckets > 0, Refusal::NotOwned(conditions.foreign_buckets));
    let few = |free: i64, least: i64| free < least;
    refuse(few(resources.source_slots_free, SLOTS_MIN), Refusal::Slots(resources.source_slots_free));
    let walsenders = resources.source_walsenders_free;
    refuse(few(walsenders, SLOTS_MIN), Refusal::Walsenders(walsenders));
    refuse(few(resources.target_workers_free, WORKERS_MIN), Refusal::Workers(resources.target_workers_free));
    refuse(few(resources.target_origins_free, WORKERS_MIN), Refusal::Origins(resources.target_origins_free));
    let needed = resources.bytes.saturating_mul(SPACE_FACTOR);
    for (shard, free) in [("source", resources.source_bytes_free), ("target", resources.target_bytes_free)] {
        refuse(free.is_none_or(|free| free < needed), Refusal::Space { shard, needed, free });
    }
    refusals
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Migrating => f.write_str(
                "A migration is being applied. It would change tables under their copy. Wait until it has ended.",
            ),
            Self::VersionsDiffer { source, target } => write!(
                f,
                "The source has migration {source}, the target {target}. The tables differ. Apply the same migrations to both."
            ),
            Self::Closed(name) => write!(
                f,
                "The database {name} is closed, since its history is not known to be whole. Run `recover` first (docs/runbooks/restore.md)."
            ),
            Self::TooOld { shard, server } => write!(
                f,
                "The {shard} is PostgreSQL {}, which knows no row filters of publications. Upgrade it to {} first.",
                server / 10_000,
                SERVER_MIN / 10_000
            ),
            Self::NotLogical => f.write_str(
                "The source has not wal_level = logical, so nothing can be copied from it. Set it, and restart the server.",
            ),
            Self::NoIdentity(table) => write!(
                f,
                "The replica identity of {table} has no user_id. With the move's publication each UPDATE of the service would fail. \
                 Create a unique index with user_id, and `alter table {table} replica identity using index`."
            ),
            Self::Referring(table) => write!(
                f,
                "The table {table} refers to rows of the move and has no user_id, so its rows would stay behind. Give it a user_id."
            ),
            Self::NoRelay => f.write_str(
                "The source has no logical slot, so nobody says whether its events are emitted before those of the target. Start its relay, and \
                 wait until /health says that it streams.",
            ),
            Self::NoRelayAtTarget => f.write_str(
                "The target has no logical slot. What is written there before its relay has one is never emitted. Add it to the relay's \
                 sources, and wait until /health says that it streams.",
            ),
            Self::HaltedKeys(Some(count)) => write!(
                f,
                "{count} keys are halted at the source's relay. Their later rows would be emitted at the target before them. Release \
                 them (docs/runbooks/cdc-relay.md)."
            ),
            Self::HaltedKeys(None) => f.write_str(
                "The source's relay does not say whether keys are halted. Start it; or give the address of the process that reads the source \
                 (--relay-admin-url), and the source's name where that one does not read all of its sources (--relay-source).",
            ),
            Self::Clocks(Some(skew)) => write!(
                f,
                "The clocks of the two servers may differ by {} ms; {} ms are the most. A lease or a deadline would end at another \
                 time on the target. Synchronise them.",
                skew.as_millis(),
                CLOCK_SKEW_MAX.as_millis()
            ),
            Self::Clocks(None) => f.write_str("The clocks of the two servers could not be compared."),
            Self::Busy(count) => write!(
                f,
                "{count} of the buckets belong to a move that has not ended. Resume it or abort it first."
            ),
            Self::NotOwned(count) => {
                write!(f, "The source does not own {count} of the buckets. `coroctl shard list` shows who does.")
            }
            Self::Slots(_) | Self::Walsenders(_) | Self::Workers(_) | Self::Origins(_) | Self::Space { .. } => {
                supply(self, f)
            }
        }
    }
}

/// What a refusal for want of something says.
fn supply(refusal: &Refusal, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match refusal {
        Refusal::Slots(free) => short(f, "source", "max_replication_slots", *free, SLOTS_MIN),
        Refusal::Walsenders(free) => short(f, "source", "max_wal_senders", *free, SLOTS_MIN),
        Refusal::Workers(free) => short(
            f,
            "target",
            "max_logical_replication_workers, or max_worker_processes,",
            *free,
            WORKERS_MIN,
        ),
        Refusal::Origins(free) => short(
            f,
            "target",
            "max_active_replication_origins (max_replication_slots before PostgreSQL 18)",
            *free,
            WORKERS_MIN,
        ),
        Refusal::Space { shard, needed, free: Some(free) } => write!(
            f,
            "The {shard} has {free} bytes of disk free, and a move of this size may take {needed}. Add space, or move fewer \
             buckets at a time."
        ),
        Refusal::Space { shard, needed, free: None } => write!(
            f,
            "It is not known how much disk the {shard} has free; a move of this size may take {needed} bytes. Give \
             --{shard}-bytes-free."
        ),
        _ => Ok(()),
    }
}

fn short(f: &mut fmt::Formatter<'_>, shard: &str, setting: &str, free: i64, least: i64) -> fmt::Result {
    write!(
        f,
        "The {shard} has {free} free of {setting}, and a move takes {least}. Raise the setting, and restart the server."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Conditions {
        Conditions {
            databases: Databases {
                is_migrating: false,
                source_version: 7,
                target_version: 7,
                closed: Vec::new(),
                source_server: SERVER_MIN,
                target_server: SERVER_MIN,
                is_logical: true,
            },
            resources: Resources {
                source_slots_free: SLOTS_MIN,
                source_walsenders_free: SLOTS_MIN,
                target_workers_free: WORKERS_MIN,
                target_origins_free: WORKERS_MIN,
                bytes: 500,
                source_bytes_free: Some(1000),
                target_bytes_free: Some(1000),
            },
            without_identity: Vec::new(),
            referring: Vec::new(),
            relay_slots: vec!["relay".to_owned()],
            target_has_relay: true,
            halted_keys: Some(0),
            clock_skew: Some(CLOCK_SKEW_MAX),
            busy_buckets: 0,
            foreign_buckets: 0,
        }
    }

    type Spoil = fn(&mut Conditions);

    #[test]
    fn each_condition_alone_refuses() {
        assert_eq!(refusals(&good()), []);
        let above = CLOCK_SKEW_MAX + Duration::from_millis(1);
        let table = || "charges".to_owned();
        let rows: Vec<(Spoil, Refusal)> = vec![
            (|c| c.databases.is_migrating = true, Refusal::Migrating),
            (|c| c.databases.target_version = 6, Refusal::VersionsDiffer { source: 7, target: 6 }),
            (|c| c.databases.closed.push("two".to_owned()), Refusal::Closed("two".to_owned())),
            (|c| c.databases.source_server = 140_012, Refusal::TooOld { shard: "source", server: 140_012 }),
            (|c| c.databases.target_server = 140_012, Refusal::TooOld { shard: "target", server: 140_012 }),
            (|c| c.databases.is_logical = false, Refusal::NotLogical),
            (|c| c.without_identity.push("charges".to_owned()), Refusal::NoIdentity(table())),
            (|c| c.referring.push("charges".to_owned()), Refusal::Referring(table())),
            (|c| c.relay_slots.clear(), Refusal::NoRelay),
            (|c| c.target_has_relay = false, Refusal::NoRelayAtTarget),
            (|c| c.halted_keys = Some(1), Refusal::HaltedKeys(Some(1))),
            (|c| c.halted_keys = None, Refusal::HaltedKeys(None)),
            (
                |c| c.clock_skew = c.clock_skew.map(|s| s + Duration::from_millis(1)),
                Refusal::Clocks(Some(above)),
            ),
            (|c| c.clock_skew = None, Refusal::Clocks(None)),
            (|c| c.busy_buckets = 1, Refusal::Busy(1)),
            (|c| c.foreign_buckets = 1, Refusal::NotOwned(1)),
            (|c| c.resources.source_slots_free -= 1, Refusal::Slots(2)),
            (|c| c.resources.source_walsenders_free -= 1, Refusal::Walsenders(2)),
            (|c| c.resources.target_workers_free -= 1, Refusal::Workers(2)),
            (|c| c.resources.target_origins_free -= 1, Refusal::Origins(2)),
            (
                |c| c.resources.source_bytes_free = Some(999),
                Refusal::Space { shard: "source", needed: 1000, free: Some(999) },
            ),
            (
                |c| c.resources.target_bytes_free = None,
                Refusal::Space { shard: "target", needed: 1000, free: None },
            ),
        ];
        for (spoil, expected) in rows {
            let mut conditions = good();
            spoil(&mut conditions);
            assert_eq!(refusals(&conditions), std::slice::from_ref(&expected), "{expected}");
        }
    }

    #[test]
    fn all_refusals_are_given_at_once() {
        let mut conditions = good();
        conditions.databases.is_migrating = true;
        conditions.halted_keys = Some(3);
        conditions.clock_skew = None;
        assert_eq!(
            refusals(&conditions),
            [Refusal::Migrating, Refusal::HaltedKeys(Some(3)), Refusal::Clocks(None)]
        );
    }
}
