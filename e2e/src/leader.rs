//! Loses nodes of a highly available stack under load: of Postgres, of its etcd, of Kafka, of RabbitMQ (`cargo stack leader NAME`).
//!
//! * Clients repeat their requests until they are answered. Every payment is compared with its plan, and everything is audited
//!   (`chaos`): nothing that was accepted is lost, nothing is done twice, and no event is without its row.
//! * The rows' own times show how long no payment was accepted; how long none was held, which takes an event of the relay; and how
//!   long none was charged, which takes a message of RabbitMQ.
//! * A node is lost with all of its processes, Patroni and PostgreSQL.
#![allow(clippy::print_stdout, reason = "the report is the output")]

mod loss;
mod strength;

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

use crate::chaos::plan::{Mix, Plan};
use crate::chaos::view::View;
use crate::chaos::{self, Run};
use loss::{Gaps, Loss};

/// How long a node stays lost: longer than its replacement takes.
const LOST_TIME: Duration = Duration::from_secs(40);
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long a node may take to be there again.
const BACK_TIMEOUT: Duration = Duration::from_secs(120);
/// Payments accepted before anything is lost.
const BEFORE: i64 = 200;

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
    let gaps = gaps(stack, since).await?;
    println!("\nThe primary was {}, and is {}.", patroni::name(before), patroni::name(after));
    println!(
        "No payment was accepted for {:.1} s, none was held for {:.1} s, and none was charged for {:.1} s.",
        gaps.accepted, gaps.held, gaps.charged
    );
    println!("\n{}", report.verdict()?);
    let is_replaced = before != after;
    ensure!(
        is_replaced == options.loss.replaces_primary(),
        "whether another node is the primary is not as expected"
    );
    let max = options.loss.gaps_max();
    ensure!(gaps.accepted <= max.accepted.as_secs_f64(), "payments were accepted again too late");
    ensure!(gaps.held <= max.held.as_secs_f64(), "events came again too late");
    ensure!(gaps.charged <= max.charged.as_secs_f64(), "work came again too late");
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
    until("all nodes to be there", || strength::is_full(layout.clone(), loss), |is_full| *is_full).await?;
    until("the load", || accepted(stack, since), |count| *count >= BEFORE).await?;
    for names in loss.groups(primary(layout).await?) {
        view.line(&format!("{loss:?}: {}", names.join(", ")));
        let lost = signal(stack, layout, loss, &names).await?;
        sleep(loss.lost_time()).await;
        let so_far = usize::try_from(accepted(stack, since).await.unwrap_or_default())?;
        ensure!(
            so_far < payments,
            "the load was over before {} came back: more --payments",
            names.join(", ")
        );
        view.line(&format!("{} come back", names.join(", ")));
        if loss.signal() == Signal::STOP {
            for process in &lost {
                process.signal(Signal::CONT);
            }
        } else {
            for name in names {
                start(layout, name).await?;
            }
        }
        let all_ready = || strength::is_full(layout.clone(), loss);
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

async fn start(layout: &Layout, name: &'static str) -> Result<()> {
    let socket = layout.socket();
    let start = move || {
        let mut client = Client::connect(&socket).context("the supervisor does not answer")?;
        client.send(&Request::Start { name: name.to_owned() }).map(drop)
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

async fn accepted(stack: &Stack, since: Timestamp) -> Result<i64> {
    let payments = databases::reader("payments", &stack.payments_database_url).await?;
    let count = "select count(*) from payments where initiated_at >= $1";
    Ok(payments.query_one(count, &[&since]).await?.get(0))
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

/// The longest times without one, in seconds.
async fn gaps(stack: &Stack, since: Timestamp) -> Result<Gaps<f64>> {
    let payments = databases::reader("payments", &stack.payments_database_url).await?;
    let balance = databases::reader("balance", &stack.balance_database_url).await?;
    let processor = databases::reader("processor", &stack.processor_database_url).await?;
    let longest = |at: &str, rows: &str| {
        format!(
            "select coalesce(max(extract(epoch from next - at)), 0)::float8
               from (select {at} as at, lead({at}) over (order by {at}) as next from {rows} and {at} >= $1) times"
        )
    };
    let accepted = longest("initiated_at", "payments where true");
    let held = longest("created_at", "ledger where kind = 'hold'");
    let charged = longest("created_at", "charges where true");
    Ok(Gaps {
        accepted: payments.query_one(&accepted, &[&since]).await?.get(0),
        held: balance.query_one(&held, &[&since]).await?.get(0),
        charged: processor.query_one(&charged, &[&since]).await?.get(0),
    })
}
