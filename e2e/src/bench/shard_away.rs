//! `bench shard-away`: what users of the other shards see while one shard is away.
//!
//! 1. Open loops of users of the other shards at one rate, by turns: alone; with as many requests of the users of the shard; and with
//!    these while the shard is stopped during the turn, so that a turn has the moment in which its absence is noticed.
//! 2. A payment of the others that is refused, or that does not end, fails the benchmark. The figures are their latencies.
//! 3. The audit: figures of a system that lost a payment or a coin are not figures.

mod report;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::client::Client;
use coroctl::shard::connections::owned_buckets;
use coroctl::stack::Stack;
use coroctl::{audit, databases};
use saga::shards::bucket::Bucket;
use saga::shards::list::{self, ListedShard};
use serde::Serialize;
use stack::control::{self, Request};
use stack::layout::Layout;
use uuid::Uuid;

use super::caller::{Address, Caller};
use super::closed::Load;
use super::cpu::Meter;
use super::endings::Endings;
use super::open::{self, OpenLoop};
use super::users::Users;
use crate::steady_load::SteadyLoad;
use report::Report;

/// Users of all shards.
const USERS: usize = 1000;
/// The lists of `.stack/env`, whose logins may read.
const LISTS: [&str; 2] = ["PAYMENTS_SHARDS", "BALANCE_SHARDS"];
/// In a turn, the shard is stopped after this.
const STOP_AFTER: Duration = Duration::from_secs(2);
/// Until its users are served again, from the start of the server on.
const BACK_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct Options {
    /// The shard that is stopped; the last of the list if none is named. Not the first: its server has the processor's database too.
    #[arg(long)]
    pub shard: Option<String>,
    /// Payments per second of the users of the other shards, and as many of the users of that shard.
    #[arg(long, default_value_t = 50)]
    pub rate: u32,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Turns of each kind.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The state of the shard, and the load of its users, beside that of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// It serves, and its users ask for nothing.
    Alone,
    /// It serves its users.
    All,
    /// It is away, and its users go on asking.
    Away,
}

const KINDS: [Kind; 3] = [Kind::Alone, Kind::All, Kind::Away];

/// One turn.
struct Turn {
    kind: Kind,
    /// The users of the other shards.
    others: OpenLoop,
    /// Visits of the users of the shard, a payment and a look at it each, that failed.
    failed: usize,
}

/// Measures and prints; fails when a payment of a user of another shard was refused or did not end, or an invariant is broken.
pub async fn run(stack: &Stack, options: &Options) -> Result<()> {
    ensure!(options.rate > 0, "a rate is payments per second, at least 1");
    ensure!(
        Duration::from_secs(options.seconds) > 2 * STOP_AFTER,
        "a turn is longer than {:?}",
        2 * STOP_AFTER
    );
    let lists = LISTS.map(shards).into_iter().collect::<Result<Vec<_>>>()?;
    let name = named(&lists, options.shard.as_deref())?;
    let client = Client::new(stack)?;
    tracing::info!(users = USERS, "funding users");
    let users = Users::fund(&client, USERS, 0.0).await?;
    let (theirs, others) = divided(&lists, &name, users.ids()).await?;
    let brokers = stack.kafka_brokers.clone();
    let endings =
        tokio::task::spawn_blocking(move || Endings::follow(&brokers)).await.context("reader")??;
    let load = Load {
        address: Address::new(&stack.edge_url, &stack.demo_service_id)?,
        users: Users::new(others, 0.0)?,
        endings: Arc::new(endings),
    };
    let bench = Bench { stack, options, meter: Meter::of_stack(Path::new(&stack.dir))?, load, theirs, name };
    let turns = tokio::select! {
        turns = bench.turns() => turns,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    // Whatever came of it, the shard is back.
    let started = bench.server(|name| Request::Start { name }).await;
    let turns = turns?;
    started?;
    tracing::info!("audit");
    let report = Report::new(&bench.name, options, &turns, &audit::run(stack).await?);
    report.print(options.json)?;
    report.audit.verdict()
}

/// The parts of the benchmark.
struct Bench<'a> {
    stack: &'a Stack,
    options: &'a Options,
    meter: Meter,
    /// The load of the users of the other shards.
    load: Load,
    /// The users of the shard.
    theirs: Vec<Uuid>,
    /// The name of the shard.
    name: String,
}

impl Bench<'_> {
    /// Turns of each kind, each round begins with another one. The first turn, in which code is compiled and caches fill, does not count.
    async fn turns(&self) -> Result<Vec<Turn>> {
        let mut turns = Vec::new();
        tracing::info!("warming up");
        self.turn(Kind::All).await?;
        for round in 0..self.options.rounds {
            for nth in 0..KINDS.len() {
                let kind = KINDS[(round + nth) % KINDS.len()];
                tracing::info!(round = round + 1, of = self.options.rounds, ?kind, "open loop");
                turns.push(self.turn(kind).await?);
            }
        }
        Ok(turns)
    }

    async fn turn(&self, kind: Kind) -> Result<Turn> {
        let Options { rate, seconds, .. } = *self.options;
        let client = Client::new(&self.stack.through_edge())?;
        let interval = Duration::from_secs(1) / rate;
        let theirs = SteadyLoad::new(client, self.theirs.clone(), &self.stack.demo_service_id, interval);
        if kind == Kind::Alone {
            theirs.stop();
        }
        let others = async {
            let ended = open::run(&self.load, &self.meter, rate, Duration::from_secs(seconds)).await;
            theirs.stop();
            ended.context("a payment of a user of another shard")
        };
        let stop = async {
            if kind == Kind::Away {
                tokio::time::sleep(STOP_AFTER).await;
                self.server(|name| Request::Stop { name }).await?;
            }
            anyhow::Ok(())
        };
        let theirs_pay = async {
            theirs.run().await;
            anyhow::Ok(())
        };
        let ((), others, ()) = tokio::try_join!(theirs_pay, others, stop)?;
        if kind == Kind::Away {
            self.server(|name| Request::Start { name }).await?;
            self.serves().await?;
        }
        Ok(Turn { kind, others, failed: theirs.failed_count() })
    }

    /// Waits until a payment of a user of the shard has ended.
    async fn serves(&self) -> Result<()> {
        let (load, user) = (&self.load, self.theirs.first().context("the shard has no user")?);
        let served = async {
            loop {
                let mut caller = Caller::connect(&load.address).await?;
                if let Ok(payment_id) = caller.pay(*user).await {
                    return load.endings.of(payment_id).await.map(drop);
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(BACK_TIMEOUT, served).await.context("the shard does not serve again")?
    }

    /// Asks the supervisor of the stack for something about the server of the shard.
    async fn server(&self, request: impl FnOnce(String) -> Request) -> Result<()> {
        let (layout, request) = (Layout::from_env()?, request(format!("postgres-{}", self.name)));
        let ask = move || control::Client::of_running(&layout)?.send(&request).map(drop);
        tokio::task::spawn_blocking(ask).await.context("supervisor")?
    }
}

fn shards(variable: &str) -> Result<Vec<ListedShard>> {
    let text = std::env::var(variable).with_context(|| format!("{variable} is not set: . .stack/env"))?;
    let shards = list::parse(&text)?;
    ensure!(shards.len() > 1, "a stack with several shards is needed: cargo stack up --shards 2");
    Ok(shards)
}

/// The name of the shard that is stopped.
fn named(lists: &[Vec<ListedShard>], name: Option<&str>) -> Result<String> {
    let shards = lists.first().context("no shards are listed")?;
    let last = shards.last().map(|shard| shard.name.as_str());
    let name = name.or(last).context("no shard is listed")?;
    ensure!(
        shards.first().is_none_or(|first| first.name != name),
        "the server of {name} has the processor's database too: without it nobody's payment ends"
    );
    for shards in lists {
        ensure!(shards.iter().any(|shard| shard.name == name), "there is no shard {name}");
    }
    Ok(name.to_owned())
}

/// The users whose payments and balance are both on the shard of this name, and those who have neither there.
async fn divided(lists: &[Vec<ListedShard>], name: &str, users: &[Uuid]) -> Result<(Vec<Uuid>, Vec<Uuid>)> {
    let mut owned: Vec<BTreeSet<i16>> = Vec::new();
    for shard in lists.iter().flatten().filter(|shard| shard.name == name) {
        let client = databases::connect(&shard.url).await?;
        let rows = owned_buckets(&client).await?;
        owned.push(rows.iter().filter(|row| row.owned).map(|row| row.bucket.number()).collect());
    }
    let is_there = |user: &Uuid, buckets: &BTreeSet<i16>| buckets.contains(&Bucket::of(*user).number());
    let all = |wanted: bool| {
        let chosen =
            users.iter().filter(|user| owned.iter().all(|buckets| is_there(user, buckets) == wanted));
        chosen.copied().collect::<Vec<Uuid>>()
    };
    let (theirs, others) = (all(true), all(false));
    ensure!(!theirs.is_empty() && !others.is_empty(), "shard {name} has all users or none");
    Ok((theirs, others))
}
