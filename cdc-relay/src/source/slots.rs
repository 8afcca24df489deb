//! Makes replication slots.
//!
//! * The server makes none before the transactions that are open end. Whoever makes one waits as long as it takes, and
//!   can say for whom.
//! * Stopped while it waits it leaves nothing behind: the server is asked to give up, and notices by itself when nobody is
//!   there any more.

use std::time::{Duration, Instant};

use crate::postgres::connection_url::Database;
use crate::postgres::error::{PostgresError, Result};
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::source::inspect::text;

const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A wait that is worth a word, and how often it is asked whom it is for.
const BLOCKER_INTERVAL: Duration = Duration::from_secs(2);

/// Has the server notice while it waits that nobody is there any more, from 14 on and where its system can.
const CHECK_CLIENT: &str = "select pg_catalog.set_config('client_connection_check_interval', '2s', false) \
                      from pg_catalog.pg_settings where name = 'client_connection_check_interval'";

/// To be called before `make`, and before the transaction that it may be called in.
pub fn prepare(session: &mut Session) -> Result<()> {
    // The server begins to look with the next statement, and goes on while it waits.
    match session.query(CHECK_CLIENT).and_then(|_| session.query("select 1")) {
        // Where its system cannot, an orphan stays until the transactions end.
        Ok(_) | Err(PostgresError::Server { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a slot by this command and answers where it begins. `waits` is called now and then, with whom it waits for; by
/// `false` it ends the wait, and then the answer is `None`.
pub fn make(
    session: &mut Session,
    database: &Database,
    command: &str,
    waits: &mut dyn FnMut(Option<&str>) -> bool,
) -> Result<Option<Lsn>> {
    let (process, mut asked_at) = (session.process(), Instant::now());
    let keep_waiting = || {
        let mut blocker = None;
        if asked_at.elapsed() >= BLOCKER_INTERVAL {
            asked_at = Instant::now();
            // Who cannot be asked now is asked again.
            blocker =
                Session::connect_to_read(database).and_then(|mut other| blocker_of(&mut other, process)).ok();
        }
        waits(blocker.as_deref())
    };
    let Some(rows) = session.query_while(command, POLL_INTERVAL, keep_waiting)? else {
        session.cancel(database)?;
        return Ok(None);
    };
    let begin = rows.first().and_then(|row| text(row, 1).parse().ok());
    let begin = begin
        .ok_or_else(|| PostgresError::Protocol("CREATE_REPLICATION_SLOT answered no position".to_owned()))?;
    Ok(Some(begin))
}

/// Whose transaction the server's process waits for.
fn blocker_of(session: &mut Session, process: i32) -> Result<String> {
    let rows = session.query(&format!(
        "select case when h.pid is null then concat('prepared transaction ', x.gid) \
                else concat('process ', h.pid, ' (', concat_ws(', ', a.usename, 'database ' || a.datname, \
                     'since ' || date_trunc('second', a.xact_start)::text), ')') end \
         from pg_catalog.pg_locks w \
         join pg_catalog.pg_locks h on h.locktype = 'transactionid' and h.transactionid = w.transactionid and h.granted \
         left join pg_catalog.pg_stat_activity a on a.pid = h.pid \
         left join pg_catalog.pg_prepared_xacts x on x.transaction = w.transactionid \
         where w.pid = {process} and w.locktype = 'transactionid' and not w.granted"
    ))?;
    Ok(rows.first().map_or("the server does not say whose", |row| text(row, 0)).to_owned())
}
