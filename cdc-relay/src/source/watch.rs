//! Checks every few seconds, beside the stream, whether the publication still has the coverage of the session.
//!
//! * It has a connection of its own, and compares a small digest. It queries the whole coverage only if the digest changed.
//! * Each check is a transaction that stays open until the next one: its snapshot still sees the rows that were replaced
//!   since, and so the transactions that replaced them. The first one is opened before the coverage of the session is queried, and one
//!   follows the other within one message: what is altered once is not taken for altered twice.
//! * A check that takes long goes on if the server answers another connection, for its snapshot would be lost with it.
//! * A check that reaches another server, since a standby was promoted, ends the session: the stream's server may be frozen and
//!   never say so. Of several hosts a former primary is never reached: the connection leaves it.
//! * A failed check is made up for: the next one compares with the last that succeeded.
//! * Whether the routes still fit is checked beside this (`fit`), without delaying it.

mod fit;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use self::fit::Fit;
use crate::checkpoint::refusal::Break;
use crate::checkpoint::refusal::Refusal;
use crate::postgres::lsn::Lsn;
use crate::postgres::server_identity::ServerIdentity;
use crate::source::context::SourceContext;
use crate::source::contract::Keys;
use crate::source::coverage::{Command, Coverage, Replaced, losses, query};

const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The limit of one check, and the one of a server that answers others.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
const SLOW_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A finding for the stream.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Routed tables send more rows, or other columns. The stream goes on, and saves this coverage.
    Changed(Coverage),
    /// A key changed, as the text says. A new session must begin.
    Rekeyed(String),
    Refused(Refusal),
}

#[derive(Debug, Default)]
struct Shared {
    notices: Mutex<VecDeque<Notice>>,
    /// Whether there are notices.
    noticed: AtomicBool,
    /// Transactions up to this position were sent under the known coverage.
    vouched: AtomicU64,
}

/// What a session begins with.
pub struct WatchStart {
    /// The server that it reads.
    pub identity: ServerIdentity,
    pub coverage: Coverage,
    pub keys: Keys,
    /// Opened before the coverage was queried. Without one, a change between the two queries cannot be distinguished from several.
    pub snapshot: Option<OpenSnapshot>,
}

/// The task that checks. It ends when this is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Watch {
    /// `start`: what the session begins with. `vouched`: its coverage was in force up to here.
    pub fn begin(context: &Arc<SourceContext>, start: WatchStart, vouched: Lsn) -> Watch {
        let WatchStart { identity, coverage, keys, snapshot } = start;
        let shared = Arc::new(Shared::default());
        shared.vouched.store(vouched.0, Ordering::Release);
        let checker = Checker {
            context: Arc::clone(context),
            shared: Arc::clone(&shared),
            identity,
            coverage,
            open: snapshot,
            checked_at: vouched,
        };
        let task = context.runtime.spawn(checker.run(Fit::new(context, keys))).abort_handle();
        Watch { shared, task }
    }

    /// The oldest notice. It stays until `pop_notice`.
    pub fn notice(&self) -> Option<Notice> {
        if !self.shared.noticed.load(Ordering::Acquire) {
            return None;
        }
        self.shared.notices().front().cloned()
    }

    /// Transactions up to this position were sent under the known coverage.
    pub fn vouched(&self) -> Lsn {
        Lsn(self.shared.vouched.load(Ordering::Acquire))
    }

    pub fn pop_notice(&self) {
        let mut notices = self.shared.notices();
        notices.pop_front();
        self.shared.noticed.store(!notices.is_empty(), Ordering::Release);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn notices(&self) -> MutexGuard<'_, VecDeque<Notice>> {
        // The guarded value is valid after any panic.
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection with the transaction of the last check.
pub struct OpenSnapshot {
    client: Client,
    version: u32,
    /// Empty before the first check.
    digest: String,
}

impl OpenSnapshot {
    /// Opens the snapshot of a session that begins. `None`: the server did not let us; the first check tries again. Call it off the
    /// runtime.
    pub fn open(context: &SourceContext, identity: &ServerIdentity) -> Option<OpenSnapshot> {
        let opened = async { timeout(ANSWER_TIMEOUT, connect(context, identity)).await };
        let opened = context.runtime.block_on(opened).unwrap_or_else(|_| Err(no_answer()));
        opened
            .inspect_err(|error| {
                let source = context.source.name.get_ref();
                tracing::warn!(source, "the publication cannot be watched yet: {error:#}");
            })
            .ok()
    }
}

/// What one message finds out: by the snapshot of the last check, and by the next one.
struct Look {
    /// The end of the WAL before.
    here: Lsn,
    replaced: Replaced,
    digest: String,
}

struct Checker {
    context: Arc<SourceContext>,
    shared: Arc<Shared>,
    identity: ServerIdentity,
    coverage: Coverage,
    open: Option<OpenSnapshot>,
    /// The end of the WAL before the last check.
    checked_at: Lsn,
}

impl Checker {
    async fn run(mut self, mut fit: Fit) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outage = Outage::new(&self.context, "the publication cannot be checked for losses");
        loop {
            tokio::select! {
                notice = fit.answer() => {
                    if let Some(notice) = notice {
                        return self.notify(notice);
                    }
                }
                _ = ticks.tick() => {
                    match self.check_patiently(&mut fit).await {
                        Ok(None) => outage.is_over(),
                        Ok(Some(refusal)) => return self.notify(Notice::Refused(refusal)),
                        Err(error) => {
                            self.open = None;
                            outage.goes_on(&error);
                        }
                    }
                    fit.ask();
                }
            }
        }
    }

    /// Checks once. A check that takes long goes on as long as the server answers another connection.
    async fn check_patiently(&mut self, fit: &mut Fit) -> Result<Option<Refusal>> {
        let (context, identity) = (Arc::clone(&self.context), self.identity.clone());
        let mut checking = std::pin::pin!(self.check(fit));
        if let Ok(checked) = timeout(ANSWER_TIMEOUT, &mut checking).await {
            return checked;
        }
        let probed = timeout(ANSWER_TIMEOUT, connect(&context, &identity)).await;
        drop(probed.unwrap_or_else(|_| Err(no_answer()))?);
        timeout(SLOW_ANSWER_TIMEOUT, checking).await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Checks once. Returns the refusal if the stream must not go on.
    async fn check(&mut self, fit: &mut Fit) -> Result<Option<Refusal>> {
        let publication = self.context.source.publication.get_ref().clone();
        let (open, has_seen) = match self.open.take() {
            Some(open) => (open, true),
            None => (connect(&self.context, &self.identity).await?, false),
        };
        let Look { here, replaced, digest } = self.look(&open).await?;
        if digest == open.digest {
            self.vouch(here);
            self.open = Some(open);
            return Ok(None);
        }
        // A new connection has not seen what was replaced since the last check.
        let replaced = if has_seen { replaced } else { Replaced::default() };
        let found = answer(&open.client, &query::coverage_sql(open.version, &publication)).await?;
        let refusal = self.judge(query::read(&found, &self.context.source)?, &replaced, fit);
        if refusal.is_none() {
            self.vouch(here);
        }
        // The digest covers the tables of the new coverage.
        let digest = answer(&open.client, &self.digest_sql(open.version)).await?;
        self.open = Some(OpenSnapshot { digest, ..open });
        Ok(refusal)
    }

    /// Reads by the snapshot of the last check what was replaced since, and begins the next one. It is one message, since a change
    /// that comes between the two is found by neither.
    async fn look(&self, open: &OpenSnapshot) -> Result<Look> {
        let replaced = query::replaced_sql(self.context.source.publication.get_ref());
        let digest = self.digest_sql(open.version);
        let messages =
            open.client.simple_query(&format!("{WAL_END}; {replaced}; commit; {BEGIN}; {digest}")).await?;
        let answers = by_statement(messages);
        let [here, replaced, _commit, _begin, digest, ..] = answers.as_slice() else {
            bail!("the server did not answer every statement");
        };
        let first = |rows: &[SimpleQueryRow]| {
            let row = rows.first().context("the server returned no row")?;
            Ok::<_, Error>(row.get(0).unwrap_or_default().to_owned())
        };
        let entry = |row: &SimpleQueryRow| {
            let command = Command { transaction: row.get(1)?.to_owned(), number: row.get(2)?.parse().ok()? };
            Some((row.get(0)?.to_owned(), command))
        };
        Ok(Look {
            here: first(here)?.parse().map_err(Error::msg)?,
            replaced: Replaced(replaced.iter().filter_map(entry).collect()),
            digest: first(digest)?,
        })
    }

    fn digest_sql(&self, version: u32) -> String {
        let source = &self.context.source;
        query::digest_sql(version, source.publication.get_ref(), &self.coverage.watched(source))
    }

    /// Records that nothing was lost up to the last check. Changes of transactions that were open then are visible by now.
    fn vouch(&mut self, here: Lsn) {
        self.shared.vouched.store(self.checked_at.0, Ordering::Release);
        self.checked_at = here;
    }

    fn judge(&mut self, found: Coverage, replaced: &Replaced, fit: &mut Fit) -> Option<Refusal> {
        let source = &self.context.source;
        let losses = losses(&self.coverage, &found, source, replaced);
        if !losses.is_empty() {
            let since = Lsn(self.shared.vouched.load(Ordering::Acquire));
            return Some(Refusal::Broken(Break { what: losses.join("; "), since }));
        }
        for part in found.detached_since(&self.coverage) {
            let source = source.name.get_ref();
            tracing::warn!(
                source,
                "partition {part} left its table (detached or dropped); rows written to it from now on are not emitted"
            );
        }
        if self.coverage.reshaped(&found, source) {
            fit.doubt();
        }
        let found = found.after(&self.coverage);
        if found != self.coverage {
            self.coverage.clone_from(&found);
            self.notify(Notice::Changed(found));
        }
        None
    }

    fn notify(&self, notice: Notice) {
        let mut notices = self.shared.notices();
        notices.push_back(notice);
        self.shared.noticed.store(true, Ordering::Release);
        drop(notices);
        self.context.acks.wake();
    }
}

const BEGIN: &str = "begin isolation level repeatable read read only";
const WAL_END: &str = "select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn() \
                       else pg_catalog.pg_current_wal_lsn() end";

/// Connects, and opens a snapshot.
async fn connect(context: &SourceContext, identity: &ServerIdentity) -> Result<OpenSnapshot> {
    let client = context.database.connect().await?;
    let found = ServerIdentity::of(&client).await?;
    if found != *identity {
        let why = format!(
            "another server is the primary now, on timeline {}; a new session begins there",
            found.timeline
        );
        context.acks.fail(why.clone());
        bail!("{why}");
    }
    let version = answer(&client, "select pg_catalog.current_setting('server_version_num')").await?;
    let version: u32 = version.parse().context("the server's version is not readable")?;
    // The first query of the transaction takes the snapshot.
    answer(&client, &format!("{BEGIN}; {WAL_END}")).await?;
    Ok(OpenSnapshot { client, version: version / 10_000, digest: String::new() })
}

/// Returns the first column of the first row.
async fn answer(client: &Client, sql: &str) -> Result<String> {
    let messages = client.simple_query(sql).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.context("the server returned no row")?.to_owned())
}

/// The rows of each statement of a message.
fn by_statement(messages: Vec<SimpleQueryMessage>) -> Vec<Vec<SimpleQueryRow>> {
    let (mut statements, mut rows) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => rows.push(row),
            SimpleQueryMessage::CommandComplete(_) => statements.push(std::mem::take(&mut rows)),
            _ => {}
        }
    }
    statements
}

fn no_answer() -> Error {
    anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs())
}

/// Logs the beginning and the end of an outage, and not each failure.
struct Outage {
    source: String,
    what: &'static str,
    lasts: bool,
}

impl Outage {
    fn new(context: &SourceContext, what: &'static str) -> Outage {
        Outage { source: context.source.name.get_ref().clone(), what, lasts: false }
    }

    fn goes_on(&mut self, error: &Error) {
        if !self.lasts {
            tracing::warn!(source = self.source, "{}; trying again: {error:#}", self.what);
        }
        self.lasts = true;
    }

    fn is_over(&mut self) {
        if self.lasts {
            tracing::info!(source = self.source, "works again after a failure ({})", self.what);
        }
        self.lasts = false;
    }
}
