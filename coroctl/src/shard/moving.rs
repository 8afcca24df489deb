//! `coroctl shard add`, `move` and `drain`: the commands that change which shard owns a bucket.
//!
//! * They connect as a role that may change everything on both shards: subscriptions are made by superusers.
//! * `move` is refused before it changes anything, with every reason at once.
//! * Many buckets are moved in parts, one move after the other, with pauses if the operator says so: a part has a copy, WAL to keep and a
//!   fence of its own. What was moved before an error stays moved.
//! * Whoever is interrupted has changed nothing that `resume` does not finish or roll back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use saga::shards::bucket::Bucket;
use saga::shards::list::{self, ListedShard};
use saga::shards::placement;
use tokio::time::sleep;
use uuid::Uuid;

use super::conditions::refusals;
use super::connections::{self, Connected, ranges};
use super::mover::conditions_read::{self, Given};
use super::mover::record::{self, Move};
use super::mover::{Mover, RelayListener, Shard, ShardUrl};
use super::moves::{Attempt, Outcome, Side, Step};
use super::{plan, replication, services};

/// The shards, with a role that may change them.
#[derive(Args, Clone)]
pub struct Owners {
    /// The shards of the service, each as NAME=URL of a superuser, separated by spaces. The target's server connects to the source by
    /// its URL.
    #[arg(long, env = "SHARDS_ADMIN", value_name = "LIST", value_parser = Owned::parse, hide_env_values = true)]
    shards_admin: Owned,
}

/// Its URLs may have passwords.
#[derive(Clone)]
pub struct Owned(Vec<ListedShard>);

impl Owned {
    fn parse(text: &str) -> Result<Self> {
        list::parse(text).map(Self)
    }
}

impl Owners {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.shards_admin.0.iter().map(|shard| &*shard.name)
    }

    pub(super) async fn connect(&self, name: &str) -> Result<Shard> {
        let listed = self.shards_admin.0.iter().find(|shard| shard.name == name);
        let listed = listed.with_context(|| format!("no shard is called {name}"))?;
        Shard::connect(&ShardUrl { name: listed.name.clone(), url: listed.url.clone() }).await
    }
}

#[derive(Args)]
pub struct Add {
    /// The new shard. It is in the list, and no service knows it yet.
    name: String,
    #[command(flatten)]
    owners: Owners,
}

/// What a move needs besides its buckets.
#[derive(Args, Clone)]
pub struct Options {
    /// Your name: lower-case letters, digits and `._@-`. It is kept with the move.
    #[arg(long, env = "CORO_OPERATOR", value_name = "NAME")]
    operator: String,
    #[command(flatten)]
    relay: RelayListener,
    /// Free bytes on the source's disk.
    #[arg(long, value_name = "BYTES")]
    source_bytes_free: Option<u64>,
    /// Free bytes on the target's disk.
    #[arg(long, value_name = "BYTES")]
    target_bytes_free: Option<u64>,
    #[command(flatten)]
    throttle: Throttle,
}

/// How much of the two servers the copying of a large move takes.
#[derive(Args, Clone)]
struct Throttle {
    /// The most buckets in one move. More are moved one move after the other.
    #[arg(long, value_name = "BUCKETS", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    at_a_time: u16,
    /// How much of the time may be spent moving, in percent. After each move of several there is a pause, as long as that takes.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    busy: u8,
}

impl Throttle {
    /// After a move that took this long.
    fn pause(&self, took: Duration) -> Duration {
        took * u32::from(100 - self.busy) / u32::from(self.busy)
    }
}

#[derive(Args)]
pub struct Begin {
    /// The shard that owns the buckets.
    #[arg(long, value_name = "NAME")]
    from: String,
    /// The shard that is to own them.
    #[arg(long, value_name = "NAME")]
    to: String,
    /// The buckets, as `coroctl shard plan` prints them: `0-3, 7`.
    #[arg(long, value_name = "BUCKETS", value_parser = buckets)]
    buckets: Buckets,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    owners: Owners,
}

#[derive(Args)]
pub struct Drain {
    /// The shard that is to give up all of its buckets.
    name: String,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    owners: Owners,
}

const GIVE_UP: &str = "
    select change_ownership(array_agg(bucket), array_agg(epoch), array_agg(epoch + 1), false, null)
      from owned_buckets where owned";
const OWNED: &str = "select count(*) filter (where owned), max(epoch) from owned_buckets";
const INCARNATION: &str = "select incarnation()";
/// Of a shard that has owned nothing since it was added.
const EPOCH_WHEN_GIVEN_UP: i64 = 2;

/// A new database owns every bucket, as the one shard that it could be; it gives them up before anybody asks it. What can be paid it takes
/// from another shard.
///
/// # Errors
/// When it has rows of users, was a shard before, or does not answer; or when the first of the others does not.
pub async fn add(add: &Add) -> Result<()> {
    let shard = add.owners.connect(&add.name).await?;
    for table in conditions_read::tables(&shard.client).await? {
        let select =
            format!("select exists (select from {})", postgres_protocol::escape::escape_identifier(&table));
        let has_rows: bool = shard.client.query_one(&select, &[]).await?.try_get(0)?;
        ensure!(!has_rows, "{} of shard {} has rows. Only an empty database can be added", table, add.name);
    }
    let row = shard.client.query_one(OWNED, &[]).await?;
    let (owned, epoch): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    if owned > 0 {
        ensure!(
            epoch == 1,
            "shard {} owns {owned} buckets, and has epochs up to {epoch}: it was a shard before, and nobody would own them. Move its buckets \
             away (`coroctl shard drain`)",
            add.name
        );
    }
    if epoch <= EPOCH_WHEN_GIVEN_UP {
        services::copy(&add.owners, &shard).await.context("services")?;
    }
    if owned > 0 {
        shard.client.query_one(GIVE_UP, &[]).await.context("cannot give the buckets up")?;
    }
    saga::say!(
        "Shard {} owns no bucket now. List it in the services' configuration, and move buckets to it.",
        add.name
    );
    Ok(())
}

/// # Errors
/// When the move is refused, a shard does not answer, or the move has to be resumed.
pub async fn begin(begin: &Begin) -> Result<()> {
    let planned = ([&*begin.from, &*begin.to], begin.buckets.0.clone());
    in_parts(&begin.owners, &begin.options, &[planned]).await
}

/// Moves every bucket of a shard to where it belongs without it, one move after the other.
///
/// # Errors
/// As [`begin`]; what was moved before stays moved.
pub async fn drain(drain: &Drain) -> Result<()> {
    let mut connected = Vec::new();
    for name in drain.owners.names() {
        let client = drain.owners.connect(name).await?.client;
        connected.push(Connected { name: name.to_owned(), client: Ok(client) });
    }
    let (_, map) = connections::read(&connected).await;
    let names: Vec<&str> = connected.iter().map(|shard| &*shard.name).collect();
    let candidates = plan::candidates(&names, std::slice::from_ref(&drain.name))?;
    let moves = plan::grouped(&placement::plan(&map, &candidates), &names);
    let away = moves.iter().filter(|planned| planned.from == drain.name);
    let away = away.map(|planned| {
        let buckets = planned.buckets.iter().filter_map(|number| Bucket::new(*number));
        ([&*planned.from, &*planned.to], buckets.collect())
    });
    let away: Vec<Planned> = away.collect();
    in_parts(&drain.owners, &drain.options, &away).await?;
    saga::say!(
        "Shard {} has given up what had an owner. `coroctl shard list` shows what it still has.",
        drain.name
    );
    Ok(())
}

/// Buckets, and the shards that they move from and to.
type Planned<'a> = ([&'a str; 2], Vec<Bucket>);

/// Makes moves of what is planned, one after the other, each of as many buckets as the throttle lets move at a time.
async fn in_parts(owners: &Owners, options: &Options, planned: &[Planned<'_>]) -> Result<()> {
    let all: usize = planned.iter().map(|(_, buckets)| buckets.len()).sum();
    let at_a_time = options.throttle.at_a_time.into();
    let parts =
        planned.iter().flat_map(|(names, buckets)| buckets.chunks(at_a_time).map(|part| (*names, part)));
    let mut left = all;
    for (names, part) in parts {
        let began = Instant::now();
        start(owners, options, names, part).await.map_err(|error| match left < all {
            true => error.context(format!("{left} of {all} buckets are left, and the others were moved")),
            false => error,
        })?;
        left -= part.len();
        if left > 0 {
            let pause = options.throttle.pause(began.elapsed());
            let seconds = pause.as_secs_f64();
            saga::say!("{left} of {all} buckets are still to move; the next move begins in {seconds:.0} s");
            sleep(pause).await;
        }
    }
    Ok(())
}

async fn start(owners: &Owners, options: &Options, names: [&str; 2], buckets: &[Bucket]) -> Result<()> {
    let [from, to] = names;
    ensure!(from != to, "a move is from one shard to another");
    let source = owners.connect(from).await?;
    let target = owners.connect(to).await?;
    let numbers: Vec<i16> = buckets.iter().map(|bucket| bucket.number()).collect();
    let given = Given {
        relay: &options.relay,
        source_bytes_free: options.source_bytes_free,
        target_bytes_free: options.target_bytes_free,
    };
    let conditions = conditions_read::read(&source, &target, &numbers, &given).await?;
    let refusals = refusals(&conditions);
    if !refusals.is_empty() {
        let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        bail!("the move is refused, and nothing was changed:\n{}", reasons.join("\n"));
    }
    let source_rows = record::ownership(&source.client, &numbers).await?;
    let target_rows = record::ownership(&target.client, &numbers).await?;
    let attempt = |(source, target): (&super::moves::Ownership, &super::moves::Ownership)| Attempt {
        source_epoch: source.epoch,
        target_epoch: target.epoch,
    };
    let moved = Move {
        move_id: Uuid::now_v7(),
        buckets: buckets.to_vec(),
        attempts: source_rows.iter().zip(&target_rows).map(attempt).collect(),
        incarnations: [
            source.client.query_one(INCARNATION, &[]).await?.try_get(0)?,
            target.client.query_one(INCARNATION, &[]).await?.try_get(0)?,
        ],
        operator: options.operator.clone(),
        relay_slots: conditions.relay_slots,
        tables: conditions_read::tables(&source.client).await?,
        schema_version: conditions.databases.source_version,
    };
    saga::say!("move {} of {} buckets: {}", moved.move_id, numbers.len(), ranges(&numbers));
    Box::pin(finish(source, target, moved, options.relay.clone())).await
}

pub(super) async fn finish(source: Shard, target: Shard, moved: Move, relay: RelayListener) -> Result<()> {
    let move_id = moved.move_id;
    let mut mover = Mover::new(source, target, moved, relay, |line| saga::say!("{line}")).await?;
    let outcome = match mover.run().await {
        Ok(outcome) => outcome,
        Err(error) if mover.last() == Some(Step::Announce(Side::Source)) => {
            return Err(error.context(
                "the move has not begun. Should `coroctl shard moves` show it all the same, abort it",
            ));
        }
        Err(error) => return Err(error.context(unfinished(move_id, mover.is_fenced()))),
    };
    match outcome {
        Outcome::Moved => saga::say!("The target owns the buckets."),
        Outcome::RolledBack => saga::say!("The source owns the buckets, as before."),
    }
    Ok(())
}

/// What the operator reads first of a move that has not ended.
fn unfinished(move_id: Uuid, is_fenced: bool) -> String {
    let urgent = match is_fenced {
        true => "nobody owns the buckets, and requests about them wait: act at once; ",
        false => "",
    };
    format!(
        "{urgent}the move has not ended. `coroctl shard resume {move_id}` goes on, `coroctl shard abort {move_id}` rolls it back; it \
         keeps WAL in the slot {} until then",
        replication::name(move_id)
    )
}

/// Buckets of a command line, in order and once each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets(Vec<Bucket>);

fn buckets(text: &str) -> Result<Buckets> {
    let mut buckets = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| -> Result<i16> {
            text.trim().parse().with_context(|| format!("{text:?} is no bucket: 0 to 1023, as in `0-3, 7`"))
        };
        let (first, last) = (number(first)?, number(last)?);
        ensure!(first <= last, "{part} is no range: the lower bucket comes first");
        for number in first..=last {
            buckets.push(Bucket::new(number).with_context(|| format!("there is no bucket {number}"))?);
        }
    }
    ensure!(!buckets.is_empty(), "a move without buckets");
    buckets.sort_unstable();
    buckets.dedup();
    Ok(Buckets(buckets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_that_leaves_nobody_as_the_owner_says_so_first() {
        assert!(unfinished(Uuid::nil(), true).starts_with("nobody owns the buckets"));
        assert!(unfinished(Uuid::nil(), false).starts_with("the move has not ended"));
    }

    #[test]
    fn a_pause_leaves_the_servers_the_rest_of_the_time() {
        let pause = |busy| Throttle { at_a_time: 1, busy }.pause(Duration::from_secs(10)).as_secs();
        assert_eq!([100, 50, 20, 1].map(pause), [0, 10, 40, 990]);
    }

    #[test]
    fn buckets_are_read_as_they_are_printed() {
        let numbers =
            |text: &str| buckets(text).map(|read| read.0.iter().map(|b| b.number()).collect::<Vec<_>>()).ok();
        assert_eq!(numbers("0-3, 7"), Some(vec![0, 1, 2, 3, 7]));
        assert_eq!(numbers("7,7, 5-6"), Some(vec![5, 6, 7]));
        for wrong in ["", "x", "3-1", "1024", "-1"] {
            assert_eq!(numbers(wrong), None, "{wrong}");
        }
    }
}
