//! `bench saga`: whole payments through a running stack.
//!
//! 1. Closed loop and SQL floor by turns, so that both see the same machine: settled payments per second,
//!    their ratio, and where the processor time went.
//! 2. Open loops at fixed rates: how long accepting and settling take.
//! 3. The audit: figures of a system that lost a payment or a coin are not figures.

mod report;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::caller::Address;
use super::closed::{self, ClosedLoop, Load};
use super::cpu::Meter;
use super::endings::Endings;
use super::floor::{Floor, FloorFigures, Setup};
use super::open::{self, OpenLoop};
use super::users::Users;
use coroctl::audit;
use coroctl::client::Client;
use coroctl::stack::Stack;
use report::Report;

#[derive(clap::Args)]
pub struct Options {
    /// Clients of the closed loop; each has one payment under way.
    #[arg(long, default_value_t = 400)]
    pub clients: usize,
    /// Users they pay as.
    #[arg(long, default_value_t = 1000)]
    pub users: usize,
    /// How unequal users are: the n-th pays with weight 1 / n^ZIPF. 0: all alike.
    #[arg(long, default_value_t = 0.0)]
    pub zipf: f64,
    /// Seconds of each round of closed loop, and of each round of floor.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Rounds of closed loop and floor.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Seconds of load before the first round, not measured: until Kafka's code is compiled.
    #[arg(long, default_value_t = 30)]
    pub warm_up: u64,
    /// Payments per second of the open loops, one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 200])]
    pub rates: Vec<u32>,
    /// Seconds of each open loop.
    #[arg(long, default_value_t = 30)]
    pub open_seconds: u64,
    /// Workers of the floor, each with a connection to every database; 0 leaves the floor out.
    #[arg(long, default_value_t = 4)]
    pub floor_workers: usize,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Default)]
struct Figures {
    saga: Vec<ClosedLoop>,
    floor: Vec<FloorFigures>,
    open: Vec<OpenLoop>,
}

/// Measures and prints; fails when an accepted payment did not end or an invariant is broken.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    ensure!(options.clients > 0, "there must be at least one client");
    ensure!(options.floor_workers <= options.users, "each worker of the floor needs a user of its own");
    let meter = Meter::of_stack(Path::new(&stack.dir))?;
    let address = Address::new(&stack.payments_url, &stack.demo_service_id)?;
    tracing::info!(users = options.users, "funding users");
    let users = Users::fund(&Client::new(stack)?, options.users, options.zipf).await?;
    let brokers = stack.kafka_brokers.clone();
    let endings =
        tokio::task::spawn_blocking(move || Endings::follow(&brokers)).await.context("reader")??;
    let load = Load { address, users, endings: Arc::new(endings) };

    let measured = tokio::select! {
        measured = measure(stack, options, &meter, &load) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    Floor::remove(&stack.postgres_admin_url).await?;
    let figures = measured?;
    tracing::info!("audit");
    let findings = audit::run(stack).await?;
    let report = Report::new(options, &figures.saga, &figures.floor, &figures.open, &findings);
    report.print(options.json)?;
    report.audit.verdict()
}

async fn measure(stack: &Stack, options: &Options, meter: &Meter, load: &Load) -> Result<Figures> {
    let window = Duration::from_secs(options.seconds);
    let mut figures = Figures::default();
    let mut floor = prepare_floor(stack, options, &load.users).await?;
    if options.warm_up > 0 && options.rounds > 0 {
        tracing::info!(seconds = options.warm_up, "warming up");
        closed::run(load, meter, options.clients, Duration::from_secs(options.warm_up)).await?;
    }
    for round in 1..=options.rounds {
        checkpoint(stack).await?;
        tracing::info!(round, of = options.rounds, clients = options.clients, "closed loop");
        figures.saga.push(closed::run(load, meter, options.clients, window).await?);
        if let Some(floor) = &mut floor {
            checkpoint(stack).await?;
            tracing::info!(round, of = options.rounds, "floor");
            figures.floor.push(floor.run(meter, window).await?);
        }
    }
    drop(floor);
    for rate in &options.rates {
        tracing::info!(rate, seconds = options.open_seconds, "open loop");
        figures.open.push(open::run(load, meter, *rate, Duration::from_secs(options.open_seconds)).await?);
    }
    Ok(figures)
}

async fn prepare_floor(stack: &Stack, options: &Options, users: &Users) -> Result<Option<Floor>> {
    Floor::remove(&stack.postgres_admin_url).await?;
    if options.floor_workers == 0 || options.rounds == 0 {
        return Ok(None);
    }
    let setup = Setup {
        admin_url: &stack.postgres_admin_url,
        passwords: sql::Passwords::from_env().context("the floor logs in as the services do")?,
        workers: options.floor_workers,
        zipf: options.zipf,
    };
    Floor::make(&setup, users).await.map(Some)
}

/// Each round begins with clean buffers: none pays for the buffers that the one before it dirtied.
async fn checkpoint(stack: &Stack) -> Result<()> {
    let client = sql::connect(&stack.postgres_admin_url).await?;
    client.batch_execute("checkpoint").await.context("checkpoint")
}
