//! Closed databases: a service gets no connection to a database whose history is not known to be whole.
//!
//! * An incarnation is a database with one history (`sql/*/V*__incarnations.sql`). A restore and a promotion begin another one.
//! * A database is open while its incarnation is among those that were opened. A new one is opened by `recover`, after it has
//!   made the lost rows again ([`recovery`](crate::recovery)).
//! * A pool asks after each connect, and before it hands out a connection when it last asked [`CHECK_INTERVAL`] ago. So a
//!   database that is restored, or closed by hand, under open connections is closed to them after that time.
//! * Whoever opens a database, or closes it by hand, leaves a row of `incarnation_acts`, which is an event on OperatorTopic.
//! * To a service a closed database is one that is away: requests are answered 503, and consumers wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use deadpool_postgres::{Hook, HookError, PoolBuilder};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, SimpleQueryMessage};

/// How long a pool takes a database for open before it asks again.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection to a closed database is kept, so that many requests do not connect without pause.
const CLOSED_PAUSE: Duration = Duration::from_millis(100);

/// One round trip, since nothing is prepared.
const READ: &str = "
    select incarnation(), exists (select from incarnations i where i.incarnation = incarnation())";

const OPEN: &str = "
    insert into incarnations (incarnation, operator, reason) values (incarnation(), $1, $2)
    on conflict do nothing";

/// The incarnation of a database, and whether it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    pub name: String,
    pub is_open: bool,
}

/// Reads the incarnation of the database.
///
/// # Errors
/// When the database does not answer, is a standby, or has no incarnations.
pub async fn read(client: &Client) -> Result<Incarnation, tokio_postgres::Error> {
    let rows = client.simple_query(READ).await?;
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0).unwrap_or_default(), row.get(1) == Some("t"))),
        _ => None,
    });
    // The statement has one row.
    let (name, is_open) = row.unwrap_or_default();
    Ok(Incarnation { name: name.to_owned(), is_open })
}

/// Opens the database in its present incarnation; false if it was open before.
///
/// # Errors
/// When the database failed; it may be open or not.
pub async fn open(client: &Client, operator: &str, reason: &str) -> anyhow::Result<bool> {
    let opened = client.execute(OPEN, &[&operator, &reason]).await;
    Ok(opened.context("cannot open the database; it may be open or not, so run this again")? == 1)
}

/// The text of the refusal. `service` is the program whose `recover` opens the database.
fn closed(service: &str) -> String {
    format!(
        "this database was restored, promoted or closed by hand, so rows may be lost, and {service} does not use it: run \
         `{service} recover`"
    )
}

/// Makes the pool hand out no connection to a closed database.
pub(crate) fn guard(pool: PoolBuilder, service: &str) -> PoolBuilder {
    let service: Arc<str> = service.into();
    let found_open = Arc::new(Mutex::new(None::<Instant>));
    let check = move |due: fn(Option<Instant>) -> bool| {
        let (service, found_open) = (service.clone(), found_open.clone());
        Hook::async_fn(move |client, _| {
            let (service, found_open) = (service.clone(), found_open.clone());
            Box::pin(async move {
                let last = *found_open.lock().unwrap_or_else(PoisonError::into_inner);
                if !due(last) {
                    return Ok(());
                }
                let answer = timeout(ANSWER_TIMEOUT, read(client)).await;
                let answer =
                    answer.map_err(|_| HookError::message("the database does not answer in time"))?;
                if !answer.map_err(HookError::Backend)?.is_open {
                    sleep(CLOSED_PAUSE).await;
                    return Err(HookError::message(closed(&service)));
                }
                *found_open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Ok(())
            })
        })
    };
    // A new connection may lead to another server.
    pool.post_create(check(|_| true))
        .post_recycle(check(|last| last.is_none_or(|last| last.elapsed() >= CHECK_INTERVAL)))
}
