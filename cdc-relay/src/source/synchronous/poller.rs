//! Asks the server on a connection of its own which standbys have flushed what.
//!
//! * It asks once for each question of the gate, and is idle in between.
//! * An answer counts only if it comes from the server that the stream reads: the same cluster on the same timeline, as a
//!   primary. A connection of several hosts may lead to another one after a promotion.
//! * While a transaction waits for long, the other hosts are tried now and then: a primary that lost its standbys to another one
//!   answers, and may not know it yet.
//! * Logical walsenders do not count. The server may mark one as synchronous (`*` matches every name, the relay's own too),
//!   but no logical subscriber can be promoted. Neither can a backup or an archive of the WAL. An archive may have any name; it
//!   flushes what it receives and never applies it, and a standby always says how far it has applied.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, Statement};

use super::gate::{Observation, Question};
use crate::postgres::lsn::Lsn;
use crate::postgres::quorum::{Quorum, Standby, Standing, is_synchronous, standing};
use crate::postgres::server_identity::ServerIdentity;
use crate::sinks::acks::Acks;
use crate::source::context::SourceContext;

/// The limit of one answer, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Where the role may not see the standbys, their rows are there and have no state.
const STANDBYS: &str = "select pg_catalog.current_setting('synchronous_standby_names'), \
     (pg_catalog.pg_current_wal_flush_lsn() - '0/0')::int8, \
     coalesce(array_agg(w.sync_state) filter (where w.pid is not null), '{}'), \
     coalesce(array_agg((w.flush_lsn - '0/0')::int8) filter (where w.pid is not null), '{}') \
     from (values (1)) one \
     left join pg_catalog.pg_stat_get_wal_senders() w on not exists ( \
         select from pg_catalog.pg_replication_slots s where s.active_pid = w.pid and s.slot_type = 'logical') \
     and not exists ( \
         select from pg_catalog.pg_stat_get_activity(w.pid) a where a.application_name in ('pg_basebackup', 'pg_receivewal')) \
     and not (w.flush_lsn is not null and w.replay_lsn is null)";

/// What came of a question.
#[derive(Debug)]
pub enum Answer {
    Observed(Observation),
    /// The role may not see which standbys have flushed what.
    Hidden,
    /// Another server is the primary now.
    OtherServer(ServerIdentity),
    /// The server did not answer, with the reason.
    Failed(Question, String),
}

#[derive(Debug)]
struct Shared {
    asked: AtomicU64,
    /// The next question goes to another host, if another one takes writes.
    tries_others: AtomicBool,
    wake: Notify,
    answer: Mutex<Option<Answer>>,
    acks: Arc<Acks>,
}

impl Shared {
    fn answer(&self, answer: Option<Answer>) -> Option<Answer> {
        // The guarded value is valid after any panic.
        std::mem::replace(&mut *self.answer.lock().unwrap_or_else(PoisonError::into_inner), answer)
    }
}

/// The task that asks. It ends when this is dropped.
pub struct Poller {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Poller {
    pub fn begin(context: &Arc<SourceContext>, identity: ServerIdentity) -> Poller {
        let shared = Arc::new(Shared {
            asked: AtomicU64::new(0),
            tries_others: AtomicBool::new(false),
            wake: Notify::new(),
            answer: Mutex::default(),
            acks: Arc::clone(&context.acks),
        });
        let asking = ask_repeatedly(Arc::clone(context), identity, Arc::clone(&shared));
        let task = context.runtime.spawn(asking).abort_handle();
        Poller { shared, task }
    }

    /// Asks. The answer wakes the source's thread.
    pub fn ask(&self, question: Question) {
        self.shared.asked.store(question, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Has the next question try the other hosts of the connection string first.
    pub fn try_others(&self) {
        self.shared.tries_others.store(true, Ordering::Release);
    }

    /// Takes the answer, once it is there.
    pub fn answer(&self) -> Option<Answer> {
        self.shared.answer(None)
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask_repeatedly(context: Arc<SourceContext>, identity: ServerIdentity, shared: Arc<Shared>) {
    let mut connection = None;
    loop {
        shared.wake.notified().await;
        let question = shared.asked.load(Ordering::Acquire);
        if shared.tries_others.swap(false, Ordering::AcqRel) && context.database.host_count() > 1 {
            connection = None;
            context.database.try_others();
        }
        let answered = timeout(ANSWER_TIMEOUT, ask(&context, &identity, &mut connection, question)).await;
        let answered =
            answered.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs())));
        let answer = answered.unwrap_or_else(|error| {
            connection = None;
            Answer::Failed(question, format!("{error:#}"))
        });
        shared.answer(Some(answer));
        shared.acks.wake();
    }
}

/// Asks once, and connects if there is no connection.
async fn ask(
    context: &SourceContext,
    identity: &ServerIdentity,
    connection: &mut Option<Standbys>,
    question: Question,
) -> Result<Answer> {
    let standbys = match connection {
        Some(ready) => ready,
        None => {
            let standbys = Standbys::connect(context).await?;
            let found = ServerIdentity::of(&standbys.client).await?;
            if found != *identity {
                return Ok(Answer::OtherServer(found));
            }
            connection.insert(standbys)
        }
    };
    let Some((wal_end, standing)) = standbys.look_up().await? else { return Ok(Answer::Hidden) };
    Ok(Answer::Observed(Observation { question, wal_end, standing }))
}

/// A connection that is asked again and again.
pub(super) struct Standbys {
    client: Client,
    statement: Statement,
}

impl Standbys {
    pub async fn connect(context: &SourceContext) -> Result<Standbys> {
        let client = context.database.connect().await?;
        let statement = client.prepare(STANDBYS).await?;
        Ok(Standbys { client, statement })
    }

    /// The end of the WAL, and how far the standbys are; `None` if the role may not see it.
    pub async fn look_up(&self) -> Result<Option<(Lsn, Standing)>> {
        let row = self.client.query_one(&self.statement, &[]);
        let row = row.await.context("the standbys cannot be looked up")?;
        let names: &str = row.try_get(0)?;
        let lsn = |bytes: i64| Lsn(bytes.cast_unsigned());
        let (states, flushed): (Vec<Option<&str>>, Vec<Option<i64>>) = (row.try_get(2)?, row.try_get(3)?);
        if states.iter().any(Option::is_none) {
            return Ok(None);
        }
        let standbys = states.iter().zip(flushed).map(|(state, flushed)| Standby {
            is_synchronous: state.is_some_and(is_synchronous),
            flushed: flushed.map(lsn),
        });
        let standing = standing(Quorum::parse(names), &standbys.collect::<Vec<_>>());
        Ok(Some((lsn(row.try_get(1)?), standing)))
    }
}
