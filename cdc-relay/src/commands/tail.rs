//! `cdc-relay tail` shows the changes of a database on the terminal, with nothing but a connection string.

mod output;
mod reader;
mod show;
mod text;
mod trial;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_postgres::{Client, Statement};

use self::output::Output;
use self::reader::{Reading, Slot, Stop, Totals};
use self::show::{Format, Show};
use crate::commands::arguments::JsonArgs;
use crate::commands::outcome::{Ending, Failure, Outcome};
use crate::commands::runtime::block_on;
use crate::commands::terminal::{self, notify};
use crate::postgres::connection_url::Database;
use crate::postgres::facts::{Question, prepare};
use crate::postgres::sql;
use crate::routes::TableName;
use crate::source::contract::Mismatch;

/// After this time a notice explains why reading does not begin.
const BEGIN_NOTICE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stop waits for the reader, and then for the printer.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Shows the committed changes of a database as they happen. Needs nothing but a connection string.
///
/// Tail reads through a temporary replication slot, which the server drops when the session ends, even after kill -9.
/// Without --publication it creates one or two publications (cdc_relay_tail_…) and drops them at the end; the next tail
/// drops those of a tail that was killed. It does not show updates and deletes of a table without a primary key or replica
/// identity, since publishing them would make them fail. It takes out a table that loses its identity within a second.
///
/// The server retains no WAL for it: when nobody takes the output for 2 seconds, tail skips changes and counts them.
#[derive(Clone, Args)]
#[command(after_help = "\
Examples:
  cdc-relay tail postgres://user@host/db
  cdc-relay tail postgres://user@host/db --table orders --table audit.log
  cdc-relay tail \"host=/var/run/postgresql dbname=shop\" --json | jq .after

Needs wal_level = logical and a role with REPLICATION; without a publication also CREATE on the database and tables
of its own, or a superuser. `cdc-relay doctor URL` says what is missing.

A line of --json: time, commit (WAL position), xid, ordinal in its transaction, table, operation (insert, update,
delete, truncate), key, before (the old row, as far as the WAL has it), after, unchanged (columns whose large value is not
in the WAL). {\"skipped\": n} replaces n skipped changes.")]
pub struct Options {
    /// The database, as a URL or as key=value words.
    #[arg(env = "DATABASE_URL", hide_env_values = true)]
    url: String,
    /// Only this table (schema.table; public if there is no schema). May be given several times.
    #[arg(long = "table", short, value_name = "TABLE", value_parser = str::parse::<TableName>)]
    tables: Vec<TableName>,
    /// Reads this publication, and creates none.
    #[arg(long, value_name = "NAME")]
    publication: Option<String>,
    /// Reads from the position of this slot, without moving it. Meanwhile nobody else can read the slot.
    #[arg(long, value_name = "SLOT", requires = "publication")]
    from_slot: Option<String>,
    /// Ends after the transaction that reaches so many changes.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    json: JsonArgs,
}

impl fmt::Debug for Options {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").finish_non_exhaustive()
    }
}

pub fn execute(options: &Options) -> Outcome {
    let database = options.url.parse().map_err(Failure::Usage)?;
    block_on(tail(options, database))?;
    Ok(Ending::Fine)
}

async fn tail(options: &Options, database: Database) -> Result<()> {
    // Registered first, so that an interrupt leaves nothing behind.
    let interrupted = interrupted()?;
    let client = database.connect().await?;
    client.batch_execute("set lock_timeout = '3s'; set statement_timeout = 0").await.context("settings")?;
    let facts = trial::facts(&client).await?;
    if let Some(obstacle) = trial::obstacle(&facts, options.publication.is_none()) {
        anyhow::bail!("{obstacle}");
    }
    let name = trial::name();
    trial::hold(&client, &name).await?;
    let (publications, made) = match &options.publication {
        Some(publication) => (vec![publication.clone()], false),
        None => (publish(&client, &facts, options, &name).await?, true),
    };
    let changes = if made { watched(&client, &publications, &facts, options).await? } else { None };
    let keeping = async {
        match changes {
            Some(changes) => changes.keep().await,
            None => std::future::pending().await,
        }
    };
    let format = if options.json.json { Format::Json } else { Format::Text { colour: terminal::colour() } };
    let show = Show::new(format, options.tables.clone());
    let slot = options.from_slot.clone().map_or(Slot::Temporary(name), Slot::Existing);
    let reading = Reading { database, slot, publications: publications.clone(), limit: options.limit };
    let read = read(reading, show, interrupted, keeping).await;
    if made {
        withdraw(&client, &publications).await;
    }
    let Totals { transactions, changes } = read?;
    notify(&format!("{changes} changes in {transactions} transactions"));
    Ok(())
}

/// Creates the publications.
async fn publish(
    client: &Client,
    facts: &trial::Facts,
    options: &Options,
    name: &str,
) -> Result<Vec<String>> {
    for left in trial::clear(client, &facts.leftovers).await? {
        notify(&format!("Dropped publication {left}: a tail that was killed had left it behind."));
    }
    let plan = trial::plan(facts, &options.tables, name)?;
    // One transaction creates all of them or none, and checks that the plan still fits.
    client
        .batch_execute(&format!("begin; {}", plan.statements.join("; ")))
        .await
        .context("cannot make a publication")?;
    for changes in plan.names.iter().filter(|name| name.ends_with(trial::CHANGES)) {
        let question = prepare(client, &Question::of_publication(changes)).await?;
        trial::withdraw_harmful(client, &question).await?;
    }
    client.batch_execute("commit").await.context("cannot make a publication")?;
    notify(&format!("Made publication {} for as long as this runs.", plan.names.join(" and ")));
    plan.notes.iter().for_each(|note| notify(&format!("Shows {note}.")));
    Ok(plan.names)
}

/// The publication of updates and deletes, if there is one.
async fn watched<'a>(
    client: &'a Client,
    publications: &'a [String],
    facts: &trial::Facts,
    options: &Options,
) -> Result<Option<Changes<'a>>> {
    let Some(name) = publications.iter().find(|name| name.ends_with(trial::CHANGES)) else { return Ok(None) };
    let published = prepare(client, &Question::of_publication(name)).await?;
    let follows = options.tables.is_empty() && facts.superuser;
    let everything = if follows { Some(prepare(client, &Question::of_everything()).await?) } else { None };
    let known = facts.tables.iter().map(|table| (table.oid, table.identity)).collect();
    Ok(Some(Changes { client, name, published, everything, known }))
}

/// The publication of updates and deletes, kept harmless for as long as it is there.
struct Changes<'a> {
    client: &'a Client,
    name: &'a str,
    published: Statement,
    /// Asked if tables that are made meanwhile join it.
    everything: Option<Statement>,
    /// By table, whether its updates are published.
    known: BTreeMap<u32, bool>,
}

impl Changes<'_> {
    /// Never ends. A failed check is repeated; meanwhile the inserts are still shown.
    async fn keep(mut self) {
        const CHECK_INTERVAL: Duration = Duration::from_millis(500);
        let mut failing = false;
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let checked = self.check().await;
            if let Err(error) = &checked
                && !failing
            {
                notify(&format!(
                    "Publication {} cannot be watched, and is tried again: {error:#}",
                    self.name
                ));
            }
            failing = checked.is_err();
        }
    }

    /// Takes out the tables whose updates and deletes the server began to refuse; takes in those that are new and have
    /// a replica identity.
    async fn check(&mut self) -> Result<()> {
        for withdrawal in trial::withdraw_harmful(self.client, &self.published).await? {
            let Mismatch { subject, found, .. } = withdrawal.why;
            notify(&format!("Shows only inserts and truncates of {subject} from now on: it {found}."));
        }
        let Some(everything) = &self.everything else { return Ok(()) };
        for table in trial::tables(self.client, everything).await? {
            let shown = table.shown();
            match (self.known.insert(table.oid, table.identity), table.identity) {
                (Some(true), _) | (Some(false), false) => {}
                (None, false) => {
                    notify(&format!(
                        "Shows only inserts and truncates of {shown}: it has no replica identity."
                    ));
                }
                (None | Some(false), true) => {
                    let add =
                        format!("alter publication {} add table {}", sql::identifier(self.name), table.sql());
                    if let Err(error) = self.client.batch_execute(&add).await {
                        notify(&format!("Shows only inserts and truncates of {shown}: {error}"));
                    }
                }
            }
        }
        Ok(())
    }
}

async fn withdraw(client: &Client, publications: &[String]) {
    let quoted: Vec<String> = publications.iter().map(|name| sql::identifier(name)).collect();
    let drop = format!("drop publication if exists {}", quoted.join(", "));
    if let Err(error) = client.batch_execute(&drop).await {
        let names = publications.join(", ");
        notify(&format!("Publication {names} could not be dropped ({error}); the next tail drops it."));
    }
}

/// Reads on a thread, prints on another, and waits for either, or for Ctrl-C.
async fn read(
    reading: Reading,
    show: Show,
    interrupted: impl Future<Output = ()>,
    meanwhile: impl Future<Output = ()>,
) -> Result<Totals> {
    let (output, stop) = (Arc::new(Output::default()), Arc::new(Stop::new()?));
    let (done, read) = oneshot::channel();
    let (begin, begun) = oneshot::channel::<()>();
    let (to, asked) = (Arc::clone(&output), Arc::clone(&stop));
    std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
        // The receivers are gone only when the command ends anyway.
        let ready = || {
            let _ = begin.send(());
        };
        let totals = reader::read(&reading, show, &to, &asked, ready);
        to.end();
        let _ = done.send(totals);
    })?;
    let (from, asked) = (Arc::clone(&output), Arc::clone(&stop));
    let printer = std::thread::Builder::new()
        .name("printer".to_owned())
        .spawn(move || from.print(std::io::stdout(), || asked.ask()))?;
    tokio::pin!(read, interrupted, meanwhile);
    let announce = announce(begun);
    tokio::pin!(announce);
    let (mut announced, mut aside) = (false, false);
    let totals = loop {
        tokio::select! {
            totals = &mut read => break Some(totals.context("the reader ended")?),
            () = &mut announce, if !announced => announced = true,
            () = &mut meanwhile, if !aside => aside = true,
            () = &mut interrupted => {
                stop.ask();
                // The reader may wait for a server that does not answer; then nothing is lost.
                break match tokio::time::timeout(STOP_TIMEOUT, read).await {
                    Ok(totals) => Some(totals.context("the reader ended")?),
                    Err(_) => None,
                };
            }
        }
    };
    let Some(totals) = totals else { return Ok(Totals::default()) };
    // The changes so far are printed, unless the output is stuck.
    let until = Instant::now() + STOP_TIMEOUT;
    while !printer.is_finished() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    totals
}

/// Notifies the user when reading begins, and why it does not begin yet.
async fn announce(begun: oneshot::Receiver<()>) {
    tokio::pin!(begun);
    let begun = match tokio::time::timeout(BEGIN_NOTICE_TIMEOUT, &mut begun).await {
        Ok(begun) => begun,
        Err(_) => {
            notify("Waiting for the transactions that are open now to end: a slot begins after them.");
            begun.await
        }
    };
    if begun.is_ok() {
        notify("Reading. Ctrl-C ends.");
    }
}

/// Resolves when the user or the system ends the program.
fn interrupted() -> Result<impl Future<Output = ()>> {
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
    })
}
