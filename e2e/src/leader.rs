//! Loses nodes of a highly available stack under load: of Postgres, of its etcd, of Kafka, of RabbitMQ (`cargo stack leader NAME`).
//!
//! * Clients repeat their requests until they are answered. Every payment is compared with its plan, and everything is audited
//!   (`chaos`): nothing that was accepted is lost, nothing is done twice, and no event is without its row.
//! * The rows' own times show how long no payment was accepted; the longest that an accepted one waited for its hold, which takes an event
//!   of the relay; and for its charge, which takes a message of RabbitMQ. So one partition that stands still is seen.
//! * A node is lost with all of its processes.

mod loss;
mod replicas;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::databases;
use coroctl::stack::Stack;
use jiff::Timestamp;
use rustix::process::Signal;
use stack::control::{Client, Request};
use stack::layout::Layout;
use stack::process::{self, ProcessId};
use stack::servers::{Node, patroni};
use tokio::time::sleep;
use uuid::Uuid;

use crate::chaos::plan::{Mix, Plan};
use crate::chaos::view::View;
use crate::chaos::{self, Run};
use loss::{Delays, Loss};

const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long a node may take to be there again.
const BACK_TIMEOUT: Duration = Duration::from_secs(120);
/// Payments accepted before anything is lost.
const BEFORE: usize = 200;

#[derive(clap::Args)]
pub struct Options {
    #[arg(value_enum)]
    loss: Loss,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Enough to last until all is back, unless it says another number.
    #[arg(long)]
    payments: Option<usize>,
    /// Payments per second, while they are accepted.
    #[arg(long, default_value_t = 12.0)]
    rate: f64,
}

/// Runs the load and the loss, prints the report, and fails on any deviation.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    let layout = Layout::from_env()?;
    ensure!(
        layout.is_ha(),
        "this stack has one node of each server: cargo stack clean, then cargo stack up --ha"
    );
    let payments = options.payments.unwrap_or_else(|| options.loss.payments(options.rate));
    let plan = Plan { seed: options.seed, payments, users: 50, mix: Mix::QUICK };
    let run = Run { plan, rate: options.rate, kills: Vec::new(), outages: Vec::new() };
    let (since, view) = (Timestamp::now(), View::of(payments));
    let before = primary(&layout).await?;
    let (report, ()) = tokio::try_join!(
        chaos::play(stack, &run, &view),
        lose(stack, &layout, options.loss, payments, since, &view)
    )?;
    report.print();
    let after = primary(&layout).await?;
    let delays = delays(stack, since).await?;
    saga::say!("\nThe primary was {}, and is {}.", patroni::name(before), patroni::name(after));
    saga::say!(
        "No payment was accepted for {:.1} s; the longest wait for a hold was {:.1} s, for a charge {:.1} s.",
        delays.accepted,
        delays.held,
        delays.charged
    );
    saga::say!("\n{}", report.verdict()?);
    let is_replaced = before != after;
    ensure!(
        is_replaced == options.loss.replaces_primary(),
        "whether another node is the primary is not as expected"
    );
    let max = options.loss.delays_max();
    ensure!(delays.accepted <= max.accepted.as_secs_f64(), "payments were accepted again too late");
    ensure!(delays.held <= max.held.as_secs_f64(), "events came too late");
    ensure!(delays.charged <= max.charged.as_secs_f64(), "work came too late");
    Ok(())
}

/// Loses what is to be lost once the load runs, and brings it back. The load is one of so many payments.
async fn lose(
    stack: &Stack,
    layout: &Layout,
    loss: Loss,
    payments: usize,
    since: Timestamp,
    view: &View,
) -> Result<()> {
    // A stack with a node too few would show less than it seems to.
    until("all nodes to be there", || replicas::are_complete(layout.clone(), loss), |is_full| *is_full)
        .await?;
    until("the load", || accepted(stack, since), |count| *count >= BEFORE).await?;
    for names in loss.groups(primary(layout).await?) {
        view.line(&format!("{loss:?}: {}", names.join(", ")));
        let lost = signal(stack, layout, loss, &names).await?;
        sleep(loss.lost_time()).await;
        // While no node takes writes there is no answer, and the load goes on.
        let so_far = accepted(stack, since).await.unwrap_or_default();
        view.line(&format!("{} come back", names.join(", ")));
        if loss.signal() == Signal::STOP {
            for process in &lost {
                process.signal(Signal::CONT);
            }
        } else {
            for name in &names {
                start(layout, name).await?;
            }
        }
        ensure!(
            so_far < payments,
            "the load was over before {} came back: more --payments",
            names.join(", ")
        );
        let all_ready = || replicas::are_complete(layout.clone(), loss);
        until("all nodes to be there again", all_ready, |is_full| *is_full).await?;
    }
    Ok(())
}

/// Signals the processes of these servers that the loss means; returns them.
async fn signal(stack: &Stack, layout: &Layout, loss: Loss, names: &[&str]) -> Result<Vec<ProcessId>> {
    let mut lost = Vec::new();
    for name in names {
        match loss {
            Loss::Patroni | Loss::Cut => lost.push(process(layout, name)?),
            _ => lost.extend(processes(layout, name)?),
        }
    }
    if loss == Loss::Cut {
        lost.extend(senders(stack).await?);
    }
    // Twice: one of them may have made another.
    for process in lost.iter().chain(&lost) {
        process.signal(loss.signal());
    }
    Ok(lost)
}

async fn start(layout: &Layout, name: &str) -> Result<()> {
    let (socket, name) = (layout.socket(), name.to_owned());
    let start = move || {
        let mut client = Client::connect(&socket).context("the supervisor does not answer")?;
        client.send(&Request::Start { name }).map(drop)
    };
    tokio::task::spawn_blocking(start).await?
}

/// The process of a server that the supervisor runs.
fn process(layout: &Layout, name: &str) -> Result<ProcessId> {
    let mut client = Client::connect(&layout.socket()).context("the supervisor does not answer")?;
    let child = client.status()?.into_iter().find(|child| child.name == name);
    child.and_then(|child| child.id).with_context(|| format!("{name} does not run"))
}

/// All processes of a server: also the PostgreSQL that Patroni runs.
fn processes(layout: &Layout, name: &str) -> Result<Vec<ProcessId>> {
    let leader = process(layout, name)?;
    let all = process::all();
    let mut found = process::family(&all, &[leader]);
    found.push(leader);
    // Those of PostgreSQL have their place in its data, and no mark of the stack.
    found.extend(process::marked(&all, "", &layout.data.join(name)));
    found.sort_unstable_by_key(|process| process.pid);
    found.dedup();
    Ok(found)
}

/// The processes of the primary that send its WAL to the standbys, and not those that the relay reads from.
async fn senders(stack: &Stack) -> Result<Vec<ProcessId>> {
    let payments = databases::reader("payments", &stack.payments_database_url).await?;
    let physical = "select active_pid from pg_replication_slots where slot_type = 'physical' and active";
    let pids: Vec<i32> = payments.query(physical, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(pids.len() == Node::ALL.len() - 1, "{} standbys follow the primary", pids.len());
    Ok(pids.into_iter().filter_map(ProcessId::of).collect())
}

async fn primary(layout: &Layout) -> Result<Node> {
    let layout = layout.clone();
    let found = tokio::task::spawn_blocking(move || patroni::primary(&layout)).await?;
    found.context("no node of Postgres takes writes")
}

async fn accepted(stack: &Stack, since: Timestamp) -> Result<usize> {
    let payments = databases::reader("payments", &stack.payments_database_url).await?;
    let count = "select count(*) from payments where initiated_at >= $1";
    Ok(usize::try_from(payments.query_one(count, &[&since]).await?.get::<_, i64>(0))?)
}

/// Polls until the answer is as `is` says.
async fn until<T, F: Future<Output = Result<T>>>(
    what: &str,
    ask: impl Fn() -> F,
    is: impl Fn(&T) -> bool,
) -> Result<T> {
    let began = std::time::Instant::now();
    loop {
        if let Ok(answer) = ask().await
            && is(&answer)
        {
            return Ok(answer);
        }
        ensure!(began.elapsed() < BACK_TIMEOUT, "timed out waiting for {what}");
        sleep(POLL_INTERVAL).await;
    }
}

/// The delays of the payments since then, in seconds.
async fn delays(stack: &Stack, since: Timestamp) -> Result<Delays<f64>> {
    let payments = times("payments", &stack.payments_database_url, since, INITIATED).await?;
    let held = times("balance", &stack.balance_database_url, since, HELD).await?;
    let charged = times("processor", &stack.processor_database_url, since, CHARGED).await?;
    let longest_wait = |times: &BTreeMap<Uuid, Timestamp>| {
        let waits = times
            .iter()
            .filter_map(|(payment_id, at)| Some(at.duration_since(*payments.get(payment_id)?).as_secs_f64()));
        waits.fold(0.0, f64::max)
    };
    let mut accepted: Vec<&Timestamp> = payments.values().collect();
    accepted.sort();
    let pauses = accepted.windows(2).map(|pair| pair[1].duration_since(*pair[0]).as_secs_f64());
    Ok(Delays {
        accepted: pauses.fold(0.0, f64::max),
        held: longest_wait(&held),
        charged: longest_wait(&charged),
    })
}

const INITIATED: &str = "select payment_id, initiated_at from payments where initiated_at >= $1";
const HELD: &str = "select payment_id, min(created_at) from ledger where kind = 'hold' and created_at >= $1 group by payment_id";
const CHARGED: &str = "select payment_id, created_at from charges where created_at >= $1";

/// When something was done for each payment.
async fn times(
    database: &str,
    url: &str,
    since: Timestamp,
    query: &str,
) -> Result<BTreeMap<Uuid, Timestamp>> {
    let rows = databases::reader(database, url).await?.query(query, &[&since]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
