//! Makes replication slots.
//!
//! * The server makes a slot only after the open transactions have ended. The wait has no limit, and reports the
//!   transaction that it is for.
//! * A wait that is stopped leaves nothing behind: the command is cancelled, and the server itself notices when the client is
//!   gone.

use std::time::{Duration, Instant};

use crate::postgres::connection_url::Database;
use crate::postgres::error::{PostgresError, Result};
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::source::inspect::text;

const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often the blocking transaction is looked up.
const BLOCKER_INTERVAL: Duration = Duration::from_secs(2);

/// Has the server check during the wait that the client is still connected: from 14 on, and if its system supports it.
const CHECK_CLIENT: &str = "select pg_catalog.set_config('client_connection_check_interval', '2s', false) \
                      from pg_catalog.pg_settings where name = 'client_connection_check_interval'";

/// Prepares the session for `make`. It must come before the transaction in which `make` is called.
pub fn prepare(session: &mut Session) -> Result<()> {
    // The setting takes effect with the next statement.
    match session.query(CHECK_CLIENT).and_then(|_| session.query("select 1")) {
        // Without the setting, an abandoned command runs until the transactions end.
        Ok(_) | Err(PostgresError::Server { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a slot by this command, and returns the position at which it begins. `waits` is called regularly with the blocking
/// transaction, if it is known; when it returns false, the wait ends and the result is `None`.
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
            // A failed lookup is repeated later.
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
        .ok_or_else(|| PostgresError::Protocol("CREATE_REPLICATION_SLOT returned no position".to_owned()))?;
    Ok(Some(begin))
}

/// Returns the transaction that the server's process waits for.
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
    Ok(rows.first().map_or("a transaction that the server does not name", |row| text(row, 0)).to_owned())
}
