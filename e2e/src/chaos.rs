//! Puts a seeded load on a running stack while its processes are killed and its servers stopped (`cargo stack chaos`).
//!
//! * Afterwards every payment is compared with its plan, and everything is audited. What was parked before is not its doing.
//! * [`plan`]: each payment and its possible ends, by seed and index.
//! * [`faults`]: the faults and their moments, by seed, in accepted payments. [`operator`] carries them out.
//! * [`load`]: the clients. [`board`]: the present rows of their payments.
//! * [`duplicates`]: events and messages that came more than once.
//! * [`view`]: the display while it runs. [`report`]: the report at the end.

pub mod board;
pub mod duplicates;
pub mod faults;
pub mod load;
pub mod operator;
pub mod plan;
pub mod report;
pub mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use crate::retrying_client::RetryCounters;
use board::{Board, Counts};
use coroctl::audit;
use coroctl::audit::read::search;
use coroctl::audit::targets::Targets;
use coroctl::client::Client;
use coroctl::databases::Databases;
use coroctl::stack::Stack;
use duplicates::DuplicateCounters;
use faults::{Fault, FaultKind, Outage};
use load::Load;
use operator::Operator;
use plan::{Mix, Plan};
use report::Report;
use view::View;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long payments may take to end once everything is back: a lease that lapses, a call that hangs, inquiries
/// with growing pauses, and then some for a busy machine.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(240);

#[derive(clap::Args)]
pub struct Options {
    /// Plan and schedule follow from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[arg(long, default_value_t = 5_000)]
    pub payments: usize,
    /// SIGKILLs over all our processes.
    #[arg(long, default_value_t = 20)]
    pub kills: usize,
    /// Payments per second, while they are accepted.
    #[arg(long, default_value_t = 100.0)]
    pub rate: f64,
    /// Users they pay as.
    #[arg(long, default_value_t = 100)]
    pub users: usize,
    /// A server is stopped for so long, e.g. kafka:30.
    #[arg(long, value_name = "SERVER:SECONDS")]
    pub outage: Vec<Outage>,
    /// A server is killed, and started again after so long.
    #[arg(long, value_name = "SERVER:SECONDS")]
    pub crash: Vec<Outage>,
    /// A process is stopped in its tracks (SIGSTOP) for so long.
    #[arg(long, value_name = "PROCESS:SECONDS")]
    pub pause: Vec<Outage>,
}

/// The payments of a run, and its faults.
pub struct Run {
    pub plan: Plan,
    pub rate: f64,
    pub kills: Vec<Fault>,
    /// One after the other.
    pub outages: Vec<Fault>,
}

/// Runs the load, prints the report, and fails on any deviation.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    let report = report(stack, options, &View::of(options.payments)).await?;
    report.print();
    saga::say!("\n{}", report.verdict()?);
    // A handful of kills may find nothing in anybody's hands; twenty cannot.
    ensure!(
        options.kills < 20 || report.duplicates() > 0,
        "no duplicate was met, so the run proves nothing of them: repeat it with more kills or payments"
    );
    Ok(())
}

/// Runs the options' load and faults over all our processes.
///
/// # Errors
/// As [`play`].
pub async fn report(stack: &Stack, options: &Options, view: &View) -> Result<Report> {
    let Options { seed, payments, kills, rate, users, outage, crash, pause } = options;
    let (seed, payments, users) = (*seed, *payments, *users);
    ensure!(*rate > 0.0 && users > 0 && payments > 0, "there must be a load");
    let processes = Operator::new(view).await?.processes().await?;
    let stops = outage.iter().map(|outage| (outage.target.clone(), FaultKind::Stop(outage.time)));
    let crashes = crash.iter().map(|crash| (crash.target.clone(), FaultKind::Crash(crash.time)));
    let pauses = pause.iter().map(|pause| (pause.target.clone(), FaultKind::Pause(pause.time)));
    let run = Run {
        plan: Plan { seed, payments, users, mix: Mix::WHOLE },
        rate: *rate,
        kills: faults::kills(seed, payments, *kills, &processes),
        outages: faults::outages(payments, stops.chain(crashes).chain(pauses).collect()),
    };
    play(stack, &run, view).await
}

/// Runs to the end of every payment; the report says what deviated.
///
/// # Errors
/// When the run itself could not be carried out.
pub async fn play(stack: &Stack, run: &Run, view: &View) -> Result<Report> {
    let operator = Operator::new(view).await?;
    operator.knows(run.kills.iter().chain(&run.outages)).await?;
    let client = Client::new(stack)?;
    let users = load::fund(&client, run.plan.users).await?;
    let parked_before = parked(stack).await?;
    let since = Timestamp::now();
    let mut watch = Watch {
        board: Board::of(&users, &stack.payments_database_url),
        duplicate_counters: DuplicateCounters::new(stack)?,
        view,
    };
    let load = Arc::new(Load {
        client,
        service_id: stack.demo_service_id.clone(),
        plan: run.plan,
        users,
        retries: RetryCounters::default(),
        accepted: watch::Sender::new(0),
    });
    let began = Instant::now();
    let played = tokio::select! {
        played = disturbed(run, &operator, &load) => played,
        never = watch.for_ever(&load) => match never {},
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    operator.heal().await?;
    let ids = played?;
    watch.until_all_ended(&load).await;
    let seconds = began.elapsed().as_secs_f64();
    let rows = watch.board.payments().await?;
    let re_emitted = duplicates::re_emitted(stack, since).await?;
    let options =
        audit::Options { accepted: ids.clone(), explained: parked_before, ..audit::Options::default() };
    let findings = audit::run_with(stack, &options).await.context("audit")?;
    // Each user has an address, if anybody sends e-mails.
    let notified = if stack.notifier_admin_url.is_some() { run.plan.payments } else { 0 };
    Ok(Report::new(run, &load, &ids, &rows, findings)
        .with_notifications(notified)
        .with_duration(seconds)
        .with_duplicates(re_emitted, watch.duplicate_counters.sums()))
}

/// What an operator has acted on needs no other explanation. It may be an event like any other, and one that is explained
/// counts as forged.
const PARKED: &str =
    "select parked_id from parked where parked_id not in (select parked_id from parked_acts)";

/// The messages that are parked now.
///
/// # Errors
/// When a database, or the search index, does not answer.
pub async fn parked(stack: &Stack) -> Result<BTreeSet<String>> {
    let databases = Databases::connect(stack).await?;
    let mut parked = BTreeSet::new();
    for (name, client) in databases.named() {
        let rows = client.query(PARKED, &[]).await;
        let rows = rows.with_context(|| format!("cannot read what {name} has parked"))?;
        parked.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    let in_search = search::parked(&Targets::from(stack)).await?;
    parked.extend(in_search.into_iter().map(|message| message.parked_id));
    Ok(parked)
}

/// The load and everything that goes wrong meanwhile.
async fn disturbed(run: &Run, operator: &Operator, load: &Arc<Load>) -> Result<Vec<Uuid>> {
    let accepted = load.accepted.subscribe();
    let (ids, (), ()) = tokio::try_join!(
        load.clone().run(run.rate),
        operator.all_at_their_moments(&run.kills, &accepted),
        operator.one_by_one(&run.outages, &accepted),
    )?;
    Ok(ids)
}

/// Polls rows and counters while the run lasts.
struct Watch<'a> {
    board: Board,
    duplicate_counters: DuplicateCounters,
    view: &'a View,
}

impl Watch<'_> {
    async fn poll(&mut self, load: &Load) -> Option<Counts> {
        let counts = self.board.counts().await;
        self.view.show(*load.accepted.borrow(), counts.as_ref());
        self.duplicate_counters.poll().await;
        counts
    }

    async fn for_ever(&mut self, load: &Load) -> std::convert::Infallible {
        loop {
            self.poll(load).await;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Polls until every payment has ended, or the time-out: then the report names the payments that have not.
    async fn until_all_ended(&mut self, load: &Load) {
        let began = Instant::now();
        loop {
            let counts = self.poll(load).await;
            let ended = counts.is_some_and(|counts| counts.ended() >= load.plan.payments as u64);
            if ended || began.elapsed() > SETTLE_TIMEOUT {
                self.view.finish(*load.accepted.borrow(), counts.as_ref());
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
