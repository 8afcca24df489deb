//! Reads the chunks of a snapshot on a thread and a connection of its own, so that the stream waits for no query.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result};

use super::window::Visible;
use super::{PREFIX, Watermark};
use crate::postgres::connection_url::Database;
use crate::postgres::decode::pgoutput::{self, Scratch};
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::postgres::utf8;
use crate::routes::row::Row;
use crate::sinks::acks::Acks;
use crate::source::backfill::rows::{self, Page, Table};
use crate::source::inspect::text;

/// A chunk is at most this large, unless it is one row.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// A slower query is given up, and tried again later.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Ask {
    pub watermark: Watermark,
    pub table: Table,
    pub publication: String,
    /// The key of the last row of the chunk before; empty at the beginning.
    pub after: Vec<String>,
    pub limit: u32,
    /// The window was opened for this chunk, which needs a new base.
    pub fresh: bool,
}

pub enum Answer {
    Chunk(Box<Chunk>),
    /// A transaction older than the base still runs.
    NotYet {
        visible: Visible,
    },
    Failed {
        watermark: Watermark,
        error: anyhow::Error,
    },
}

/// Rows in the order of their key, as `pgoutput::data_row` reads them.
pub struct Chunk {
    pub watermark: Watermark,
    pub visible: Visible,
    /// The table as the query found it: its columns may have changed since the session began.
    pub table: Table,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    limit: u32,
    /// The chunk holds fewer rows than the query returned.
    cut: bool,
}

impl Chunk {
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let start = |index: usize| index.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        self.ends
            .iter()
            .enumerate()
            .map(move |(index, end)| self.bytes.get(start(index).unwrap_or(0)..*end).unwrap_or_default())
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the table has no further rows.
    pub fn is_last(&self) -> bool {
        !self.cut && self.len() < self.limit as usize
    }

    /// Rows of the next chunk: as many as fitted, and then gradually more.
    pub fn next_limit(&self, rows_max: u32) -> u32 {
        if self.cut { self.len().max(1) as u32 } else { self.limit.saturating_mul(2).min(rows_max) }
    }

    fn keep(&mut self, body: &[u8]) {
        self.cut |= !self.ends.is_empty() && self.bytes.len() + body.len() > CHUNK_BYTES_MAX;
        if !self.cut {
            self.bytes.extend_from_slice(body);
            self.ends.push(self.bytes.len());
        }
    }
}

impl Chunk {
    /// The key of the last row, as text.
    pub fn last(&self, scratch: &mut Scratch) -> Result<Option<Vec<String>>> {
        let Some(body) = self.rows().last() else { return Ok(None) };
        let row = Row::insert(pgoutput::data_row(body, scratch)?);
        let mut values = Vec::new();
        for key in &self.table.key {
            let value = row
                .text(key.index)
                .ok()
                .flatten()
                .context("a row has no value for a key column; its key columns must not be null")?;
            values.push(utf8::owned(value));
        }
        Ok(Some(values))
    }
}

/// The stream's side of the thread.
pub struct Reader {
    asks: Sender<Ask>,
    answers: Receiver<Answer>,
}

impl Reader {
    /// Starts the thread. It ends after its query when this is dropped.
    pub fn start(database: Database, acks: &Arc<Acks>) -> Result<Reader> {
        let ((asks, incoming), (outgoing, answers)) = (channel(), channel());
        let acks = Arc::clone(acks);
        let serve = move || {
            let mut worker = Worker { database, session: None, base: 0 };
            while let Ok(ask) = incoming.recv() {
                let answer_to = |answer| {
                    // This fails only when the session is over.
                    let _ = outgoing.send(answer);
                    acks.wake();
                };
                if let Err(error) = worker.serve(&ask, &answer_to) {
                    worker.session = None;
                    answer_to(Answer::Failed { watermark: ask.watermark, error });
                }
            }
        };
        std::thread::Builder::new()
            .name("snapshot".to_owned())
            .spawn(serve)
            .context("the thread that reads the snapshot could not be started")?;
        Ok(Reader { asks, answers })
    }

    pub fn ask(&self, ask: Ask) -> Result<()> {
        self.asks.send(ask).ok().context("the thread that reads the snapshot ended")
    }

    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

struct Worker {
    database: Database,
    session: Option<Session>,
    /// The first transaction that began after the window was opened.
    base: u64,
}

impl Worker {
    fn serve(&mut self, ask: &Ask, answer_to: &dyn Fn(Answer)) -> Result<()> {
        let session = match &mut self.session {
            Some(session) => session,
            empty => empty.insert(connect(&self.database)?),
        };
        if ask.fresh {
            self.base = visible_now(session)?.next;
        }
        let answer = read(session, ask, self.base)?;
        let is_chunk = matches!(answer, Answer::Chunk(_));
        answer_to(answer);
        if is_chunk {
            // The watermark follows the chunk, since the stream may meet it at once.
            let watermark = ask.watermark;
            session.query(&format!(
                "select pg_catalog.pg_logical_emit_message(true, {}, {})",
                literal(PREFIX),
                literal(&watermark.to_string())
            ))?;
        }
        Ok(())
    }
}

fn connect(database: &Database) -> Result<Session> {
    let mut session = Session::connect_to_read(database)?;
    session.set_silence_timeout(QUERY_TIMEOUT * 2)?;
    session.query(&format!(
        "set lock_timeout = '10s'; set statement_timeout = '{}s'",
        QUERY_TIMEOUT.as_secs()
    ))?;
    Ok(session)
}

fn visible_now(session: &mut Session) -> Result<Visible> {
    let rows = session.query("select pg_catalog.pg_current_snapshot()")?;
    let row = rows.first().context("the server answered no snapshot")?;
    text(row, 0).parse().map_err(anyhow::Error::msg)
}

/// Reads one chunk in one transaction, with the snapshot of that transaction. The lock comes first: a table that is
/// rewritten between snapshot and query would look empty.
fn read(session: &mut Session, ask: &Ask, base: u64) -> Result<Answer> {
    session.query("begin isolation level repeatable read read only")?;
    session.query(&format!("lock table {} in access share mode", ask.table.target()))?;
    let visible = visible_now(session)?;
    if visible.oldest_running < base {
        session.query("rollback")?;
        return Ok(Answer::NotYet { visible });
    }
    let table = rows::again(session, &ask.publication, &ask.table)?;
    let table = table.with_context(|| format!("{} is not published any more", ask.table.name()))?;
    let page = Page { after: &ask.after, limit: ask.limit };
    let sql = table.select(Some(page));
    let (bytes, ends) = (Vec::new(), Vec::new());
    let mut chunk =
        Chunk { watermark: ask.watermark, visible, table, bytes, ends, limit: ask.limit, cut: false };
    session.each(&sql, |body| {
        chunk.keep(body);
        Ok(())
    })?;
    session.query("commit")?;
    Ok(Answer::Chunk(Box::new(chunk)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(limit: u32) -> Chunk {
        Chunk {
            watermark: Watermark { session: 1, chunk: 1 },
            visible: "1:1:".parse().unwrap(),
            table: Table::default(),
            bytes: Vec::new(),
            ends: Vec::new(),
            limit,
            cut: false,
        }
    }

    #[test]
    fn a_chunk_is_bounded_by_bytes_and_then_not_the_last() {
        let mut chunk = chunk(5);
        for row in [&vec![1; CHUNK_BYTES_MAX - 1][..], &[2], &[3], &[]] {
            chunk.keep(row);
        }
        assert_eq!(chunk.len(), 2);
        assert!(!chunk.is_last());
        assert_eq!(chunk.next_limit(2000), 2);
        assert_eq!(chunk.rows().last(), Some(&[2][..]));
    }

    #[test]
    fn a_row_larger_than_a_chunk_is_one() {
        let mut chunk = chunk(5);
        chunk.keep(&vec![1; CHUNK_BYTES_MAX + 1]);
        chunk.keep(&[2]);
        assert_eq!((chunk.len(), chunk.is_last(), chunk.next_limit(2000)), (1, false, 1));
    }

    #[test]
    fn fewer_rows_than_asked_for_are_the_last() {
        let mut chunk = chunk(2);
        assert!(chunk.is_last(), "an empty table");
        chunk.keep(&[1]);
        assert!(chunk.is_last());
        chunk.keep(&[2]);
        assert!(!chunk.is_last(), "whether more follow is not known");
        assert_eq!((chunk.next_limit(2000), chunk.next_limit(3)), (4, 3));
    }
}
