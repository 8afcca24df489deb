//! Takes a table out of the relay's own publication when the server refuses its updates and deletes because of it.
//!
//! * That happens when a primary key is dropped, a partition comes without one, or a generated column is added.
//! * It uses a connection of its own, so that it acts even while the source is stalled or refused.
//! * It alters only the relay's own publication, never one that the routes name, and only on the server of the checkpoint: a
//!   connection that was opened under another one is left.
//! * A standby leaves it to the relay that streams.
//! * It ends the session, since the contract of the session no longer holds.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::observe::status::State;
use crate::postgres::asked_connection::AskedConnection;
use crate::postgres::connection_url::Database;
use crate::postgres::facts::{Question, ask_prepared, prepare};
use crate::routes::Source;
use crate::source::context::SourceContext;
use crate::source::contract::{Withdrawal, log_withdrawn, withdrawals};

/// How long the server may refuse an application's updates.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The limit of one check, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Runs until `shutdown`. A database that does not answer is asked again; nobody can update it meanwhile either.
pub async fn watch(context: SourceContext, shutdown: CancellationToken) {
    if context.source.own_publication {
        let _stopped = shutdown.run_until_cancelled(check_forever(&context)).await;
    }
}

async fn check_forever(SourceContext { database, source, acks, status, .. }: &SourceContext) {
    let (mut connection, mut failing) = (None, false);
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // The relay that streams does it.
        if status.get() == State::Standby {
            continue;
        }
        let checked = timeout(ANSWER_TIMEOUT, check(database, source, &mut connection)).await;
        match checked.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))) {
            Ok(None) => failing = false,
            Ok(Some(table)) => {
                acks.fail(format!("{table} was taken out of the publication, because the server refused its updates; a new session begins"));
            }
            Err(error) => {
                connection = None;
                if !failing {
                    tracing::warn!(
                        source = source.name.get_ref(),
                        "the publication could not be checked for refused updates; trying again: {error:#}"
                    );
                }
                failing = true;
            }
        }
    }
}

/// Checks once, and connects if there is no connection. Returns a table that was taken out.
async fn check(
    database: &Database,
    source: &Source,
    connection: &mut Option<AskedConnection>,
) -> Result<Option<String>> {
    let question = Question::of_publication(source.publication.get_ref());
    let prepare = async |client: &Client| prepare(client, &question).await;
    let AskedConnection { client, statement, .. } =
        AskedConnection::ready(connection, database, prepare).await?;
    let mut withdrawn = None;
    for Withdrawal { sql, why } in withdrawals(&ask_prepared(client, statement).await?) {
        client.batch_execute(&sql).await.with_context(|| format!("{why}; `{sql}`"))?;
        log_withdrawn(source, &why);
        withdrawn = Some(why.subject);
    }
    Ok(withdrawn)
}
