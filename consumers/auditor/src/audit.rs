//! The audit itself: reads the topics, and makes a pass over what has changed, at an interval.
//!
//! * The group's offsets and the text beside them are its only state. After an error of Kafka it begins again from there, as
//!   after a restart.
//! * A database that is away fails the pass. What it would have examined stays due. So does who is on no shard just now.
//! * While PENDING_MAX payments are in memory it reads no records.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use saga::CancellationToken;
use saga::consumer::{Offsets, Reader};
use saga::shards::bucket::Bucket;
use saga::telemetry::log_text;
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::checkpoints::{Checkpoint, Checkpoints, Known};
use crate::checks::{self, Found, Key, WaitsFor};
use crate::config::Config;
use crate::databases::Positions;
use crate::events;
use crate::metrics::Metrics;
use crate::payment_events::RowsOf;
use crate::pending::Pending;
use crate::progress::{Progress, Watermarks};
use crate::store::{Examined, Look, Store};
use crate::suspicions::{Subject, Suspicions};
use crate::topics::Chains;

/// How long a poll waits, and how late a shutdown is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A pass first reads what is on the topics at its beginning, for at most this long.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(3);
/// Payments of one statement.
const CHUNK: usize = 2_000;
/// The longest time that one look at new rows covers.
const LOOK_MAX: Duration = Duration::from_secs(300);
/// Findings that one pass logs; all are counted.
const LOGGED_MAX: usize = 20;
/// How much the clocks of this machine and of the databases may differ, where nothing was committed yet.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(5);

/// The parts of an audit that outlive a failure of Kafka.
pub struct Setup {
    pub config: Config,
    pub store: Store,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
}

/// One audit, from the group's offsets on.
pub struct Audit<'a> {
    setup: &'a Setup,
    runtime: &'a Handle,
    reader: Reader,
    chains: Chains,
    pending: Pending,
    suspicions: Suspicions,
    progress: Progress,
    marks: Watermarks,
    /// Who owned what at the beginning of the pass, of the services with several databases.
    positions: Vec<Positions>,
    checkpoints: Checkpoints<Offsets>,
    checkpoint_at: Instant,
    /// The last account that had its turn, of each balance database.
    accounts: Vec<Uuid>,
    logged: usize,
}

impl<'a> Audit<'a> {
    /// Begins where the group's offsets are; where there are none, at the present end. It blocks.
    ///
    /// # Errors
    /// When Kafka does not answer, or the offsets are another program's.
    pub fn start(setup: &'a Setup, runtime: &'a Handle) -> Result<Self> {
        let Config { kafka, group_id, topic_prefix, queue, schedule, .. } = &setup.config;
        let (reader, text) = Reader::start(kafka, group_id, events::topics(topic_prefix, queue))?;
        let known = match text {
            Some(text) => Known::parse(&text)?,
            None => {
                // What was committed before the ends were read is not followed. The clocks may differ.
                let until = Timestamp::now() + schedule.settle().min(CLOCKS_DIFFER_MAX);
                let known = Known { until, positions: BTreeMap::new() };
                reader.commit(reader.next(), &known.text()?)?;
                known
            }
        };
        Ok(Self {
            setup,
            runtime,
            reader,
            chains: Chains::after(known.positions, known.until),
            pending: Pending::new(schedule.late()),
            suspicions: Suspicions::default(),
            progress: Progress::begin(known.until),
            marks: Watermarks::default(),
            positions: Vec::new(),
            checkpoints: Checkpoints::default(),
            checkpoint_at: Instant::now(),
            accounts: vec![Uuid::nil(); setup.store.counts().1],
            logged: 0,
        })
    }

    /// Audits until shutdown. It blocks.
    ///
    /// # Errors
    /// When the Kafka client is of no use any more.
    pub fn run(mut self) -> Result<()> {
        let (schedule, shutdown) = (self.setup.config.schedule, &self.setup.shutdown);
        let mut next_pass = Instant::now() + schedule.recheck();
        while !shutdown.is_cancelled() {
            let wait = POLL_INTERVAL.min(next_pass.saturating_duration_since(Instant::now()));
            match self.pending.len() < schedule.pending_max() {
                true => {
                    self.read(wait)?;
                }
                false => std::thread::sleep(wait),
            }
            if Instant::now() >= next_pass {
                let failed = self.pass();
                let soon =
                    failed || !self.suspicions.is_empty() || self.pending.len() >= schedule.pending_max();
                next_pass = Instant::now() + if soon { schedule.recheck() } else { schedule.pass() };
            }
        }
        Ok(())
    }

    /// Takes the next record, if one comes within `wait`.
    fn read(&mut self, wait: Duration) -> Result<bool> {
        let Self { reader, chains, pending, progress, .. } = self;
        let mut found = Vec::new();
        let was_read = reader.poll(wait, |record| {
            found = events::take(record, chains, pending, progress);
        })?;
        if was_read {
            self.setup.metrics.examined.with_label_values(&["record"]).inc();
        }
        for (payment_id, found) in found {
            self.report(payment_id.map(|id| id.to_string()), &found);
        }
        Ok(was_read)
    }

    /// Makes one pass; true when it failed and is to be made again soon.
    fn pass(&mut self) -> bool {
        self.logged = 0;
        let timer = Instant::now();
        let result = self.examine_all();
        let metrics = &self.setup.metrics;
        metrics.pending.set(count(self.pending.len()));
        metrics.suspicions.set(count(self.suspicions.len()));
        for waits_for in [WaitsFor::Gateway, WaitsFor::Saga] {
            metrics.late.with_label_values(&[waits_for.name()]).set(count(self.pending.late(waits_for)));
        }
        metrics.looked_until.set(seconds(self.progress.looked_at_all_until()));
        let name = match &result {
            Ok(0) => "empty",
            Ok(_) => {
                metrics.pass_seconds.observe(timer.elapsed().as_secs_f64());
                metrics.last_examined_at.set(seconds(Timestamp::now()));
                "examined"
            }
            Err(error) => {
                tracing::warn!(error = log_text(error), "a pass of the audit failed; it is made again");
                "failed"
            }
        };
        metrics.passes.with_label_values(&[name]).inc();
        result.is_err()
    }

    /// Returns the number of payments that it examined.
    fn examine_all(&mut self) -> Result<usize> {
        self.read_to_the_end()?;
        let again = self.suspicions.subjects();
        let now = Instant::now();
        for subject in &again {
            match subject {
                Subject::Payment(key) => self.pending.examine_again(*key, now),
                Subject::Events(_) | Subject::Account(_) => {}
            }
        }
        let mut users: HashSet<Uuid> = again.iter().filter_map(account_of).collect();
        if again.is_empty() {
            users.extend(self.next_accounts()?);
        }
        let mut examined = 0;
        let due = self.pending.due(now);
        for keys in due.chunks(CHUNK) {
            users.extend(keys.iter().map(|(user, _)| *user));
            examined += self.examine(keys, &std::mem::take(&mut users))?;
        }
        if !users.is_empty() {
            self.examine(&[], &users)?;
        }
        self.look()?;
        self.compare_with_topics(&again);
        self.commit()?;
        Ok(examined)
    }

    /// Reads what is on the topics now, and finds out up to which time every record was read.
    fn read_to_the_end(&mut self) -> Result<()> {
        let newest = self.chains.newest();
        self.observe_shards()?;
        let ends = self.reader.ends()?;
        let (began, max) = (Instant::now(), self.setup.config.schedule.pending_max());
        while self.reader.next().behind(&ends) > 0
            && self.pending.len() < max
            && began.elapsed() < CATCH_UP_TIMEOUT
        {
            self.read(POLL_INTERVAL)?;
        }
        self.setup.metrics.behind.set(self.reader.next().behind(&ends));
        let limit = self.reader.read_until(&ends).map(Timestamp::from_millisecond).transpose();
        let limit = limit.context("a record's time")?.unwrap_or(Timestamp::MAX);
        let settle = self.setup.config.schedule.settle();
        if limit == Timestamp::MAX {
            self.marks.read(settle)?;
        }
        for &Positions { service, ref ownership, .. } in &self.positions {
            self.progress.follow(service, &self.marks, |bucket| ownership.owner(bucket));
        }
        for (source, newest) in newest {
            // Records of several sources come in no order of time.
            let has_shards = self.positions.iter().any(|of| of.service == source);
            if has_shards && limit != Timestamp::MAX {
                continue;
            }
            let settled = newest.min(limit).saturating_sub(settle).context("a record's time")?;
            let known = self.progress.settled.entry(source).or_insert(settled);
            *known = settled.max(*known);
        }
        Ok(())
    }

    /// Takes where the shards are, before the ends of the topics are asked.
    fn observe_shards(&mut self) -> Result<()> {
        self.positions = self.runtime.block_on(self.setup.store.positions())?;
        for &Positions { service, ref of_shards, ref ownership } in &self.positions {
            self.marks.observe(service, of_shards);
            let undecided = ownership.undecided();
            if !undecided.is_empty() {
                let buckets = undecided.describe(service);
                tracing::warn!(
                    buckets,
                    "users of some buckets are not examined, since no shard, or two, own them"
                );
            }
        }
        Ok(())
    }

    /// The accounts whose turn it is, of each database; after the last one the first.
    fn next_accounts(&mut self) -> Result<Vec<Uuid>> {
        let limit = self.setup.config.schedule.accounts_per_pass;
        let mut next = Vec::new();
        for (database, last) in self.accounts.iter_mut().enumerate() {
            let accounts = self.runtime.block_on(self.setup.store.accounts_after(database, *last, limit))?;
            let is_full = u32::try_from(accounts.len()) == Ok(limit);
            *last = accounts.last().copied().filter(|_| is_full).unwrap_or_default();
            next.extend(accounts);
        }
        Ok(next)
    }

    /// Examines these payments and accounts; returns the number of payments whose rows are there.
    fn examine(&mut self, keys: &[Key], users: &HashSet<Uuid>) -> Result<usize> {
        let users: Vec<Uuid> = users.iter().copied().collect();
        let examined = self.runtime.block_on(self.setup.store.examine(keys, &users))?;
        let Examined { rows, movements, accounts, left_out } = examined;
        let payments = rows.payments.rows.len();
        let counts = [("payment", payments), ("movement", movements.len()), ("account", accounts.len())];
        for (kind, count) in counts {
            self.setup.metrics.examined.with_label_values(&[kind]).inc_by(count as u64);
        }
        let (rows, violations) = rows.violations();
        let mut of_id: HashMap<Uuid, Vec<Found>> = HashMap::new();
        for (id, found) in violations {
            of_id.entry(id).or_default().push(found);
        }
        let mut of_key: HashMap<Key, Vec<Found>> = HashMap::new();
        for movement in &movements {
            if let Some(found) = checks::continues(movement) {
                of_key.entry(movement.key).or_default().push(found);
            }
        }
        let (now, clock) = (Instant::now(), Timestamp::now());
        for key in keys.iter().filter(|(user, _)| !left_out.contains(user)) {
            let entries = rows.ledger.rows.get(&key.1);
            let entries =
                [entries.and_then(|both| both.first.as_ref()), entries.and_then(|both| both.second.as_ref())];
            let rows = RowsOf { payment: rows.payment(*key), entries, charge: rows.charge(*key) };
            let mut found = self.pending.examined(*key, rows, now, clock);
            found.extend(of_id.get(&key.1).into_iter().flatten().cloned());
            found.extend(of_key.remove(key).into_iter().flatten());
            self.suspect(Subject::Payment(*key), found);
        }
        for account in &accounts {
            self.suspect(Subject::Account(account.user_id), checks::account(account));
        }
        // What is suspected stays due, so that it is neither done with nor forgotten.
        for subject in self.suspicions.subjects() {
            if let Subject::Payment(key) = subject {
                self.pending.examine_again(key, now);
            }
        }
        Ok(payments)
    }

    /// Looks for payments that no event has named.
    fn look(&mut self) -> Result<()> {
        let ownership = self.positions.iter().find(|of| of.service == "payments").map(|of| &of.ownership);
        for database in 0..self.setup.store.counts().0 {
            let is_there = |bucket: &Bucket| ownership.is_none_or(|of| of.owner(*bucket) == Some(database));
            let buckets: Vec<Bucket> = Bucket::all().filter(is_there).collect();
            let Some((from, to)) = self.progress.next_look(&buckets, LOOK_MAX)? else { continue };
            if self.pending.len() >= self.setup.config.schedule.pending_max() {
                return Ok(());
            }
            let look = self.setup.store.payments_of_time(database, &buckets, (from, to));
            let Look { payments, buckets } = self.runtime.block_on(look)?;
            for (key, accepted_at) in payments {
                // A bucket that came from another shard may be further than the others.
                let looked_until = self.progress.looked_until(key.0);
                if accepted_at > looked_until && !self.pending.is_tracked(key) {
                    self.pending.touch(key, looked_until, Instant::now());
                }
            }
            self.progress.look(&buckets, to);
        }
        Ok(())
    }

    /// Compares the rows with their events, and the records of each source with each other.
    fn compare_with_topics(&mut self, again: &HashSet<Subject>) {
        let lacking: HashMap<Key, Found> = self.pending.settle(&self.progress).into_iter().collect();
        for subject in again {
            if let Subject::Events(key) = subject
                && !lacking.contains_key(key)
            {
                self.suspicions.examined(*subject, Vec::new());
            }
        }
        for (key, found) in lacking {
            if self.suspect(Subject::Events(key), vec![found]) {
                self.pending.await_nothing(key);
            }
        }
        for found in self.chains.judge(&self.progress.settled) {
            self.report(None, &found);
        }
        if self.pending.len() >= self.setup.config.schedule.pending_max() {
            let (let_go, accepted_at) = self.pending.let_go();
            self.setup.metrics.let_go.inc_by(let_go as u64);
            let all: Vec<Bucket> = Bucket::all().collect();
            self.progress.look(&all, accepted_at.unwrap_or(Timestamp::MIN));
        }
    }

    /// Makes a checkpoint, and commits the newest one before which everything is done with.
    fn commit(&mut self) -> Result<()> {
        let schedule = self.setup.config.schedule;
        if self.checkpoint_at.elapsed() >= schedule.pass() {
            self.checkpoint_at = Instant::now();
            let until = self.chains.newest().into_values().max().unwrap_or(Timestamp::MIN);
            let until = until.max(self.progress.looked_at_any_until());
            let known = Known { until, positions: self.chains.last() };
            let (interval, offsets) = (self.pending.begin_interval(), self.reader.next().clone());
            self.checkpoints.add(Checkpoint { interval, offsets, known });
        }
        let Self { checkpoints, pending, progress, chains, .. } = self;
        let now = Instant::now();
        let done = checkpoints.take(|Checkpoint { interval, known, .. }| {
            known.until <= progress.looked_at_all_until()
                && chains.judged_up_to(&known.positions)
                && !pending.holds_back(*interval, schedule.hold_back(), now)
        });
        match done {
            Some(Checkpoint { offsets, known, .. }) => self.reader.commit(&offsets, &known.text()?),
            None => Ok(()),
        }
    }

    /// Takes the findings of an examination; true when one of them is reported.
    fn suspect(&mut self, subject: Subject, found: Vec<Found>) -> bool {
        let confirmed = self.suspicions.examined(subject, found);
        let about = match subject {
            Subject::Payment((user, id)) | Subject::Events((user, id)) => format!("{id} of user {user}"),
            Subject::Account(user) => format!("account of user {user}"),
        };
        for found in &confirmed {
            self.report(Some(about.clone()), found);
        }
        !confirmed.is_empty()
    }

    fn report(&mut self, about: Option<String>, found: &Found) {
        self.setup.metrics.violations.with_label_values(&[found.check.name()]).inc();
        self.logged += 1;
        if self.logged <= LOGGED_MAX {
            let about = about.unwrap_or_else(|| "a topic".to_owned());
            tracing::error!(
                check = found.check.name(),
                about,
                what = found.what,
                "the audit found a contradiction"
            );
        }
    }
}

fn account_of(subject: &Subject) -> Option<Uuid> {
    match subject {
        Subject::Account(user) => Some(*user),
        Subject::Payment(_) | Subject::Events(_) => None,
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1_000.0
}
