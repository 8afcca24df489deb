//! `recover`: makes the rows again that a restored database lacks, and opens the database.
//!
//! * The rows are found on the topics, where the relay emitted them before they were lost. A row that was committed and not yet
//!   emitted is gone, unless the events of others make it again.
//! * A service makes its own rows again from its own events. Then it applies the events of others, by the code that consumes
//!   them ([`Recovery::apply`]): the transitions that they cause may have been lost too.
//! * It may be ended at any point and run again: a row that is there stays, and an event that was applied is a duplicate. The
//!   offsets of the service's group stay as they are. Only one runs on a database at a time.
//! * An event that contradicts a row, or whose row is missing, is a finding: it is printed, and it changes nothing. A database
//!   with findings is not opened, unless the operator says so.
//! * Where a service has several databases, one is recovered at a time. Events of users whom it does not own are passed over. Whom it owns
//!   its backup does not know once buckets were moved: so such a database has to be adopted before (`coroctl shard adopt`).
//! * A dry run prints what is lacking, and changes nothing.

mod apply;
mod emitted;
mod overlap;
mod parked;
mod program;

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use brokers::Brokers;
use clap::Args;
use jiff::Timestamp;
use listener::operators::is_operator_name;
use uuid::Uuid;

pub use self::emitted::Emitted;
pub use self::overlap::Overlap;
pub use self::program::Program;
use crate::consumer::TopicRange;
use crate::fields::text_error;
use crate::incarnation;
use crate::parked::routes::REASON_CHARS_MAX;
use crate::postgres::{self, Client, Pool};
use crate::shards::{Ownership, Router};
use crate::telemetry::LogFormat;

const CONNECTIONS_MAX: usize = 4;
/// How often the progress is printed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Held by the session of a recovery: one at a time on a database.
const LOCK: &str = "select pg_try_advisory_lock(hashtext('coro recovery'))";

/// Whether buckets were moved from or to the database, table by table: an older backup has not both.
const MOVED: [(&str, &str); 2] = [
    ("owned_buckets", "select exists (select from owned_buckets where epoch > 1)"),
    ("moves", "select exists (select from moves)"),
];
const IS_THERE: &str = "select to_regclass($1) is not null";

/// What `recover` is given. Options that a service has too are called as there, and read from the same variables.
// No Debug: it would print passwords.
#[derive(Args, Clone)]
pub struct Settings {
    /// Read the topics since this time, such as 2026-01-02T03:04:05Z: one before the backup was begun. Without it they are
    /// read from their first record on.
    #[arg(long)]
    pub since: Option<Timestamp>,
    /// The name of the person who recovers: lower-case letters, digits and ._@-
    #[arg(long, value_parser = operator)]
    pub operator: String,
    /// Why the database is recovered; it is kept with the name.
    #[arg(long, value_parser = reason)]
    pub reason: String,
    /// Print what is lacking, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Open the database although events contradict its rows, or have no row. Look at each finding first.
    #[arg(long)]
    pub open_despite_findings: bool,
    /// The database was adopted: it gave up the users who were moved to other databases after the backup (`coroctl shard adopt`).
    #[arg(long)]
    pub adopted: bool,
    /// The database of the service, as the role of the service.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
    #[command(flatten)]
    pub kafka: Brokers,
    /// The consumer group of the service, whose offsets stay as they are; by default the name of the service.
    #[arg(long, env = "GROUP_ID")]
    pub group_id: Option<String>,
    /// Prefix of every topic name, so that several systems can share one Kafka.
    #[arg(long, env = "TOPIC_PREFIX", default_value = "")]
    pub topic_prefix: String,
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

fn operator(text: &str) -> Result<String, &'static str> {
    let error = "must be lower-case letters, digits and ._@-, and begin with a letter or digit";
    is_operator_name(text).then(|| text.to_owned()).ok_or(error)
}

fn reason(text: &str) -> Result<String, String> {
    text_error(text, REASON_CHARS_MAX).map_or_else(|| Ok(text.to_owned()), Err)
}

/// A recovery under way.
pub struct Recovery {
    settings: Settings,
    service: &'static str,
    /// Connections to the database, which need not be open.
    pool: Pool,
    /// Holds the lock.
    session: Client,
    findings: u64,
    /// Events of users whom other databases own.
    of_others: u64,
}

impl Recovery {
    /// Connects, whether the database is open or closed.
    ///
    /// # Errors
    /// When the database does not answer, has no incarnations, is being recovered, or has to be adopted before.
    pub async fn begin(settings: Settings, service: &'static str) -> anyhow::Result<Self> {
        let pool = postgres::pool(&settings.database_url, CONNECTIONS_MAX, &format!("{service} recover"))?;
        let session = pool.get().await.context("no connection to the database")?;
        let incarnation = incarnation::read(&session).await.context("cannot read the incarnation")?;
        let is_first: bool = session.query_one(LOCK, &[]).await.context("cannot lock the recovery")?.get(0);
        ensure!(is_first, "another recovery of this database is under way; wait for its end");
        if !settings.adopted && buckets_were_moved(&session).await? {
            let reason = "buckets were moved from or to this database, so its backup may own users whom another one has by now. Run \
                          `coroctl shard adopt` (docs/MOVES.md), and then this with --adopted";
            ensure!(settings.dry_run, reason);
            crate::say!("{reason}");
        }
        let state = if incarnation.is_open { "open already" } else { "closed" };
        crate::say!("incarnation {} is {state}", incarnation.name);
        Ok(Self { settings, service, pool, session, findings: 0, of_others: 0 })
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The records of a batch whose users the database owns, with their buckets. `user`: of a record.
    ///
    /// # Errors
    /// When the database does not say whom it owns.
    pub async fn own<T>(
        &mut self,
        router: &Router,
        batch: Vec<T>,
        user: impl Fn(&T) -> Uuid,
    ) -> anyhow::Result<(Ownership, Vec<T>)> {
        let users: Vec<Uuid> = batch.iter().map(user).collect();
        let others: HashSet<usize> = router.split(&users).await.moving.into_iter().collect();
        self.of_others += others.len() as u64;
        let is_own = |(nth, _): &(usize, (T, Uuid))| !others.contains(nth);
        let own = batch.into_iter().zip(users).enumerate().filter(is_own).map(|(_, record)| record);
        let (own, users): (Vec<T>, Vec<Uuid>) = own.unzip();
        Ok((router.ownership(&users).await?, own))
    }

    /// A connection whose transactions may wait for Kafka.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let client = self.pool.get().await.context("no connection to the database")?;
        client.batch_execute("set idle_in_transaction_session_timeout = 0").await?;
        Ok(client)
    }

    pub fn is_dry_run(&self) -> bool {
        self.settings.dry_run
    }

    /// The records of a topic of the contract since the time that the operator named.
    pub fn topic(&self, name: &str) -> TopicRange {
        TopicRange {
            brokers: self.settings.kafka.clone(),
            group_id: self.settings.group_id.clone().unwrap_or_else(|| self.service.to_owned()),
            topic: format!("{}{name}", self.settings.topic_prefix),
            since: self.settings.since,
        }
    }

    /// Prints a finding. It quotes no value that a person typed.
    pub fn report(&mut self, finding: impl fmt::Display) {
        self.findings += 1;
        crate::say!("finding: {finding}");
    }

    /// Reports a finding that the next run would no longer see if this one went on to write.
    ///
    /// # Errors
    /// Always, unless it is a dry run or the operator accepts findings. Nothing of the batch may be written then.
    pub fn report_before_writing(&mut self, finding: impl fmt::Display) -> anyhow::Result<()> {
        self.report(finding);
        let goes_on = self.settings.dry_run || self.settings.open_despite_findings;
        ensure!(
            goes_on,
            "the recovery ends at the finding above. Mend its cause and run this again; to go on all the same, add \
             --open-despite-findings"
        );
        Ok(())
    }

    /// Whether there are findings that the operator did not accept. The database will not be opened then.
    pub fn is_held_up(&self) -> bool {
        self.findings > 0 && !self.settings.open_despite_findings
    }

    /// Opens the database, unless it is a dry run.
    ///
    /// # Errors
    /// When there are findings that the operator did not accept, or the database failed.
    pub async fn finish(self) -> anyhow::Result<()> {
        let Settings { operator, reason, dry_run, .. } = &self.settings;
        if self.of_others > 0 {
            crate::say!("{} events are of users whom other databases own", self.of_others);
        }
        if *dry_run {
            crate::say!("{} findings; dry run: nothing was changed", self.findings);
            return Ok(());
        }
        if self.is_held_up() {
            bail!(
                "{} findings: each event above contradicts a row, or has none. The rows that could be made again are made; the \
                 database stays as closed or open as it was. Look at each; to open it all the same, add --open-despite-findings",
                self.findings
            );
        }
        let opened = incarnation::open(&self.session, operator, reason).await?;
        crate::say!("{}", if opened { "the database is open" } else { "the database was open before" });
        Ok(())
    }
}

async fn buckets_were_moved(session: &Client) -> anyhow::Result<bool> {
    for (table, question) in MOVED {
        let is_there: bool =
            session.query_one(IS_THERE, &[&table]).await.context("cannot read the catalog")?.get(0);
        if is_there
            && session.query_one(question, &[]).await.with_context(|| format!("cannot read {table}"))?.get(0)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Prints a line of progress now and then.
pub struct Progress {
    printed_at: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { printed_at: Instant::now() }
    }
}

impl Progress {
    /// Prints the counts, if the last line is old enough.
    pub fn print(&mut self, counts: &impl fmt::Display) {
        if self.printed_at.elapsed() >= PROGRESS_INTERVAL {
            crate::say!("… {counts}");
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn who_recovers_and_why_are_named() {
        let parsed = |operator: &str, reason: &str, since: &str| {
            let (operator, reason) = (format!("--operator={operator}"), format!("--reason={reason}"));
            let flags = ["recover", "--database-url=postgres://h/d", "--kafka-brokers=h:1"];
            let since = format!("--since={since}");
            Command::try_parse_from(flags.into_iter().chain([operator.as_str(), &reason, &since])).is_ok()
        };
        assert!(parsed("ada", "disk lost", "2026-01-02T03:04:05Z"));
        assert!(!parsed("Ada", "disk lost", "2026-01-02T03:04:05Z"));
        assert!(!parsed("ada", "", "2026-01-02T03:04:05Z"));
        assert!(!parsed("ada", "disk lost", "yesterday"));
    }
}
