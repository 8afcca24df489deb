//! Two shards with their standbys, relays and the rows on their way, the mover, and the transactions of services.

use std::cmp::Ordering;

use coroctl::shard::moves::{Attempt, Outcome, Ownership, Record, Step};

/// Identity of a committed write: two writes of one version differ.
pub type Write = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub shards: [Shard; 2],
    /// Transactions of services that have not ended. Sorted: which is which does not matter.
    pub running: Vec<Transaction>,
    /// The rows that the slot of the present move still has for the target; `None` without a slot.
    pub stream: Option<Vec<StreamedRow>>,
    pub mover: Mover,
    /// A statement of a mover that was killed, still on its way to its server.
    pub orphan: Option<Statement>,
    pub plan: Plan,
    /// The event of each version, in the order of first emissions.
    pub topic: Vec<Write>,
    /// What was accepted: flushed by the standby of the shard that owned the bucket.
    pub accepted: Vec<Write>,
    /// The shard that was granted the bucket last.
    pub authority: usize,
    /// The highest epoch at which a shard owned the bucket.
    pub owned_epoch: i64,
    pub writes: u8,
    pub faults: Faults,
    pub wrong: Option<Wrong>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    /// What the synchronous standby has. This is what everybody sees: a commit is visible once its standby has it.
    pub flushed: Database,
    /// What each later commit of the primary made of it. A promotion loses them.
    pub ahead: Vec<Database>,
    /// Versions that the relay has not emitted yet, with their writes.
    pub unemitted: Vec<(usize, Write)>,
    pub promotions: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    /// The one payment of the bucket: the write of each version. Empty: there is no row.
    pub row: Vec<Write>,
    pub bucket: Ownership,
    /// The number of the move that the record is about.
    pub record_of: u8,
    pub record: Record,
    /// In the record at the source.
    pub attempt: Attempt,
    /// In the record at the source: the grant.
    pub granted: bool,
    /// In the record at the target: the subscription exists.
    pub subscribed: bool,
}

/// A transaction of a service: its snapshot is taken, its effect comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Transaction {
    pub shard: usize,
    /// The version in its snapshot.
    pub observed: usize,
    /// Its commit waits for the standby.
    pub commits: bool,
    /// The mover waits for it.
    pub awaited: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamedRow {
    pub row: Vec<Write>,
    pub insert: bool,
}

/// The memory of the mover that lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mover {
    /// Decided, and sent to the server.
    pub sent: Option<Statement>,
    pub has_listed: bool,
    /// The LSN: how many rows the target, and how many events the relay, had to go then.
    pub lsn: Option<(usize, usize)>,
    /// The fence has been up for too long.
    pub is_late: bool,
    /// Transactions have run for too long.
    pub is_impatient: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Statement {
    pub step: Step,
    pub attempt: Attempt,
    pub number: u8,
    pub shard: usize,
}

/// The present move. The first goes from shard 0 to shard 1, each from the shard that has the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    pub number: u8,
    pub source: usize,
    /// Promotions of source and target before the move.
    pub promotions: [u8; 2],
    pub abort_requested: bool,
    /// The fence was lifted at some time.
    pub lifted: bool,
}

/// Faults and wishes so far, where they are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    pub promotions: u8,
    pub kills: u8,
    pub lifts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// An event came after one of a later version, or two events of one version differ.
    EventOrder,
    /// The decision met a state that no attempt makes.
    Contradiction,
    /// The copy met a row that was there.
    CopyConflict,
    /// A shard owns the bucket at an epoch that is not above all before: a router would not believe it.
    EpochFell,
}

impl State {
    /// One payment, accepted and emitted, on shard 0.
    pub fn new() -> State {
        let empty = Database {
            row: Vec::new(),
            bucket: Ownership { epoch: 1, owned: true },
            record_of: 0,
            record: Record::Absent,
            attempt: Attempt::default(),
            granted: false,
            subscribed: false,
        };
        let owner = Database { row: vec![0], ..empty.clone() };
        // Left behind by somebody.
        let other = Database { row: vec![0], bucket: Ownership { epoch: 2, owned: false }, ..empty };
        let shard = |flushed| Shard { flushed, ahead: Vec::new(), unemitted: Vec::new(), promotions: 0 };
        State {
            shards: [shard(owner), shard(other)],
            running: Vec::new(),
            stream: None,
            mover: Mover::default(),
            orphan: None,
            plan: Plan { number: 1, source: 0, promotions: [0, 0], abort_requested: false, lifted: false },
            topic: vec![0],
            accepted: vec![0],
            authority: 0,
            owned_epoch: 1,
            writes: 1,
            faults: Faults::default(),
            wrong: None,
        }
    }

    pub fn went_wrong(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }
}

impl Shard {
    /// After the last commit, which need not be visible.
    pub fn latest(&self) -> &Database {
        self.ahead.last().unwrap_or(&self.flushed)
    }

    /// A commit of the primary.
    pub fn commit(&mut self, database: Database) {
        self.ahead.push(database);
    }

    /// A statement of a mover has committed and waits for the standby.
    pub fn commits_a_step(&self) -> bool {
        let rest = |database: &Database| Database { row: Vec::new(), ..database.clone() };
        !self.ahead.is_empty() && rest(self.latest()) != rest(&self.flushed)
    }
}

impl Plan {
    pub fn source(&self) -> usize {
        self.source
    }

    pub fn target(&self) -> usize {
        1 - self.source
    }
}

impl Database {
    /// The record of this move. A later one begins once an earlier one is closed.
    pub fn record_of(&self, number: u8) -> Record {
        match self.record_of.cmp(&number) {
            Ordering::Equal => self.record,
            Ordering::Less => Record::Absent,
            Ordering::Greater => Record::Closed(Outcome::RolledBack),
        }
    }
}
