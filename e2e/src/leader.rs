//! Loses nodes of a highly available Postgres, or of its etcd, under load (`cargo stack leader NAME`).
//!
//! * Clients repeat their requests until they are answered. Every payment is compared with its plan, and everything is audited
//!   (`chaos`): nothing that was accepted is lost, nothing is done twice, and no event is without its row.
//! * The rows' own times show how long no payment was accepted, and how long none was held, which takes an event of the relay.
//! * A node is lost with all of its processes, Patroni and PostgreSQL.
#![allow(clippy::print_stdout, reason = "the report is the output")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use coroctl::databases;
use coroctl::stack::Stack;
use jiff::Timestamp;
use rustix::process::Signal;
use stack::control::{Client, Request};
use stack::layout::Layout;
use stack::process::{self, ProcessId};
use stack::servers::{Node, etcd, patroni};
use tokio::time::sleep;

use crate::chaos::plan::{Mix, Plan};
use crate::chaos::view::View;
use crate::chaos::{self, Run};

/// Patroni's own time until a primary that is gone is replaced, and some for the promotion and for clients to find it.
const ACCEPT_GAP_MAX: Duration = Duration::from_secs(25);
const EVENT_GAP_MAX: Duration = Duration::from_secs(30);
/// Where nothing is replaced, only Patroni's own hesitation counts: less than a replacement takes, and some for a busy machine.
const UNDISTURBED_GAP_MAX: Duration = Duration::from_secs(15);
/// How often, at the least, whoever is served by a primary that nobody follows looks at the other nodes.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a node stays lost: longer than its replacement takes.
const LOST_TIME: Duration = Duration::from_secs(40);
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long a node may take to be there again.
const BACK_TIMEOUT: Duration = Duration::from_secs(120);
/// Payments accepted before anything is lost.
const BEFORE: i64 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// SIGKILL to the primary and its Patroni.
    Kill,
    /// SIGSTOP to both, and SIGCONT once another is the primary.
    Freeze,
    /// SIGSTOP to the Patroni of the primary alone, and SIGCONT later: it loses its role and does not know it, while clients and relay
    /// still reach it. Nothing fences it.
    Patroni,
    /// The same, and SIGSTOP to whatever sends the primary's WAL to the standbys: it is cut off from them and from etcd, and not from
    /// clients and relay. Nothing fences it.
    Cut,
    /// SIGSTOP to both standbys, and SIGCONT later: no commit is acknowledged meanwhile, and nothing is emitted.
    Standbys,
    /// SIGKILL to one member of etcd.
    Etcd,
    /// SIGKILL to all members of etcd.
    AllEtcd,
}

impl Loss {
    /// How long no payment may be accepted, and how long none held.
    fn gaps_max(self) -> (Duration, Duration) {
        match self {
            Self::Kill | Self::Freeze | Self::Patroni => (ACCEPT_GAP_MAX, EVENT_GAP_MAX),
            // It answers: services and relay look at the others while something waits for standbys, every few seconds.
            Self::Cut => (ACCEPT_GAP_MAX + LOOK_INTERVAL, EVENT_GAP_MAX + LOOK_INTERVAL),
            // Commits wait until they are back.
            Self::Standbys => (LOST_TIME + UNDISTURBED_GAP_MAX, LOST_TIME + UNDISTURBED_GAP_MAX),
            Self::Etcd | Self::AllEtcd => (UNDISTURBED_GAP_MAX, UNDISTURBED_GAP_MAX),
        }
    }

    /// The servers that are lost.
    fn servers(self, primary: Node) -> Vec<&'static str> {
        match self {
            Self::Kill | Self::Freeze | Self::Patroni | Self::Cut => vec![patroni::name(primary)],
            Self::Standbys => {
                Node::ALL.into_iter().filter(|node| *node != primary).map(patroni::name).collect()
            }
            Self::Etcd => vec![etcd::name(Node::One)],
            Self::AllEtcd => Node::ALL.map(etcd::name).to_vec(),
        }
    }

    fn signal(self) -> Signal {
        match self {
            Self::Freeze | Self::Patroni | Self::Cut | Self::Standbys => Signal::STOP,
            Self::Kill | Self::Etcd | Self::AllEtcd => Signal::KILL,
        }
    }
}

#[derive(clap::Args)]
pub struct Options {
    #[arg(value_enum)]
    loss: Loss,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 2_000)]
    payments: usize,
    /// Payments per second, while they are accepted.
    #[arg(long, default_value_t = 40.0)]
    rate: f64,
}

/// Runs the load and the loss, prints the report, and fails on any deviation.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    let layout = Layout::from_env()?;
    ensure!(layout.is_ha(), "this stack has a single Postgres: cargo stack clean, then cargo stack up --ha");
    let plan = Plan { seed: options.seed, payments: options.payments, users: 50, mix: Mix::QUICK };
    let run = Run { plan, rate: options.rate, kills: Vec::new(), outages: Vec::new() };
    let (since, view) = (Timestamp::now(), View::of(options.payments));
    let before = primary(&layout).await?;
    let (report, ()) =
        tokio::try_join!(chaos::play(stack, &run, &view), lose(stack, &layout, options.loss, since, &view))?;
    report.print();
    let after = primary(&layout).await?;
    let gaps = gaps(stack, since).await?;
    println!("\nThe primary was {}, and is {}.", patroni::name(before), patroni::name(after));
    println!("No payment was accepted for {:.1} s, and none was held for {:.1} s.", gaps.accepted, gaps.held);
    println!("\n{}", report.verdict()?);
    let (accepted_max, held_max) = options.loss.gaps_max();
    let is_replaced = matches!(options.loss, Loss::Kill | Loss::Freeze | Loss::Patroni | Loss::Cut);
    ensure!(is_replaced == (before != after), "whether another node is the primary is not as expected");
    ensure!(gaps.accepted <= accepted_max.as_secs_f64(), "payments were accepted again too late");
    ensure!(gaps.held <= held_max.as_secs_f64(), "events came again too late");
    Ok(())
}

/// Loses what is to be lost once the load runs, and brings it back.
async fn lose(stack: &Stack, layout: &Layout, loss: Loss, since: Timestamp, view: &View) -> Result<()> {
    until("the load", || accepted(stack, since), |count| *count >= BEFORE).await?;
    let primary = primary(layout).await?;
    let (names, signal) = (loss.servers(primary), loss.signal());
    view.line(&format!("{loss:?}: {}", names.join(", ")));
    let mut lost = Vec::new();
    for name in &names {
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
        process.signal(signal);
    }
    sleep(LOST_TIME).await;
    view.line(&format!("{} come back", names.join(", ")));
    if signal == Signal::STOP {
        for process in &lost {
            process.signal(Signal::CONT);
        }
    } else {
        for name in names {
            let socket = layout.socket();
            let start = move || {
                let mut client = Client::connect(&socket).context("the supervisor does not answer")?;
                client.send(&Request::Start { name: name.to_owned() }).map(drop)
            };
            tokio::task::spawn_blocking(start).await??;
        }
    }
    let layout = layout.clone();
    let all_ready = || {
        let layout = layout.clone();
        async move {
            let ready = move || Node::ALL.into_iter().filter(|node| patroni::ready(&layout, *node)).count();
            Ok(tokio::task::spawn_blocking(ready).await?)
        }
    };
    until("all nodes to be there again", all_ready, |count| *count == Node::ALL.len()).await.map(drop)
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
struct Gaps {
    accepted: f64,
    held: f64,
}

async fn gaps(stack: &Stack, since: Timestamp) -> Result<Gaps> {
    let payments = databases::reader("payments", &stack.payments_database_url).await?;
    let balance = databases::reader("balance", &stack.balance_database_url).await?;
    let longest = |at: &str, rows: &str| {
        format!(
            "select coalesce(max(extract(epoch from next - at)), 0)::float8
               from (select {at} as at, lead({at}) over (order by {at}) as next from {rows} and {at} >= $1) times"
        )
    };
    let accepted = longest("initiated_at", "payments where true");
    let held = longest("created_at", "ledger where kind = 'hold'");
    Ok(Gaps {
        accepted: payments.query_one(&accepted, &[&since]).await?.get(0),
        held: balance.query_one(&held, &[&since]).await?.get(0),
    })
}
