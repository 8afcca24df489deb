//! `coroctl shard verify`: every row of a user is on the shard that owns the user's bucket.
//!
//! * It reads every table that has a `user_id`, once, on each shard. A row that is on two shards is on one that does not own it.
//! * Rows are counted after the map was read, and the map is read again at the end. What has moved meanwhile is no finding; the
//!   report says that it was left out.
//! * Replication that belongs to moves is listed: a slot that nobody reads keeps WAL for ever.

use anyhow::{Context, Result, bail};
use clap::Args;
use postgres_protocol::escape::escape_identifier;
use saga::shards::bucket::Bucket;
use saga::shards::map::{Map, Owner};
use serde::Serialize;
use tokio_postgres::Client;

use super::connections::{self, Connected, Shards};
use super::replication::{PREFIX, TABLES};
use crate::listing;

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    pub shards: Shards,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Rows of one bucket on a shard that does not own it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stray {
    pub shard: String,
    pub table: String,
    pub bucket: i16,
    pub rows: i64,
    /// The shard that owns the bucket; nothing where none does.
    pub owner: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Rows that were counted.
    pub rows: i64,
    pub strays: Vec<Stray>,
    pub contested: Vec<i16>,
    /// Buckets that have changed their owner meanwhile, and were left out.
    pub moved: Vec<i16>,
    /// Slots, publications and subscriptions of moves: shard and name.
    pub replication: Vec<(String, String)>,
}

/// Prints what is not where it should be.
///
/// # Errors
/// When a shard does not answer, or something was found.
pub async fn run(verify: &Verify) -> Result<()> {
    let shards = connections::connect(&verify.shards).await;
    let report = report(&shards).await?;
    match verify.json {
        true => saga::say!("{}", serde_json::to_string_pretty(&report)?),
        false => saga::say!("{}", text(&report)),
    }
    if !report.strays.is_empty() || !report.contested.is_empty() {
        bail!(
            "{} tables have rows of buckets that their shard does not own, or buckets have two owners",
            report.strays.len()
        );
    }
    Ok(())
}

async fn report(shards: &[Connected]) -> Result<Report> {
    let (_, before) = connections::read(shards).await;
    let mut report = Report::default();
    let mut strays = Vec::new();
    for (at, shard) in shards.iter().enumerate() {
        let client = match &shard.client {
            Ok(client) => client,
            Err(error) => bail!("{error:#}"),
        };
        let on_shard = || format!("shard {}", shard.name);
        client.batch_execute("set statement_timeout = 0").await.with_context(on_shard)?;
        for row in client.query(REPLICATION, &[&format!("{PREFIX}%")]).await.with_context(on_shard)? {
            report.replication.push((shard.name.clone(), row.try_get(0)?));
        }
        for (table, bucket, rows) in counts(client).await.with_context(on_shard)? {
            report.rows += rows;
            let owner = before.owner(bucket);
            if !matches!(owner, Owner::Shard(holder) if holder.shard == at) {
                let owner = name_of(owner, shards);
                strays.push((
                    bucket,
                    Stray { shard: shard.name.clone(), table, bucket: bucket.number(), rows, owner },
                ));
            }
        }
    }
    let (_, after) = connections::read(shards).await;
    let (moved, strays) = without_moved(strays, &before, &after);
    (report.moved, report.strays) = (moved, strays);
    report.contested = after.contested().map(Bucket::number).collect();
    Ok(report)
}

/// The buckets whose owner changed meanwhile, and the strays of the others.
fn without_moved(strays: Vec<(Bucket, Stray)>, before: &Map, after: &Map) -> (Vec<i16>, Vec<Stray>) {
    let has_moved = |bucket: Bucket| before.owner(bucket) != after.owner(bucket);
    let moved = Bucket::all().filter(|bucket| has_moved(*bucket)).map(Bucket::number).collect();
    let strays =
        strays.into_iter().filter(|(bucket, _)| !has_moved(*bucket)).map(|(_, stray)| stray).collect();
    (moved, strays)
}

fn name_of(owner: Owner, shards: &[Connected]) -> Option<String> {
    match owner {
        Owner::Shard(holder) => Some(shards[holder.shard].name.clone()),
        Owner::Nobody | Owner::Away | Owner::Contested => None,
    }
}

// Subscriptions may be read by anybody, but for how they connect.
const REPLICATION: &str = "
    select 'slot ' || slot_name from pg_replication_slots where slot_name like $1
    union all
    select 'publication ' || pubname from pg_publication where pubname like $1
    union all
    select 'subscription ' || subname from pg_subscription where subname like $1
    order by 1";

/// The rows of each table and bucket.
async fn counts(client: &Client) -> Result<Vec<(String, Bucket, i64)>> {
    let mut counts = Vec::new();
    for row in client.query(TABLES, &[]).await.context("cannot list the tables")? {
        let table: String = row.try_get(0)?;
        let count = format!("select bucket(user_id), count(*) from {} group by 1", escape_identifier(&table));
        for row in client.query(&count, &[]).await.with_context(|| format!("cannot count {table}"))? {
            let number: i16 = row.try_get(0)?;
            let bucket = Bucket::new(number).with_context(|| format!("there is no bucket {number}"))?;
            counts.push((table.clone(), bucket, row.try_get(1)?));
        }
    }
    Ok(counts)
}

fn text(report: &Report) -> String {
    let mut text = match report.strays.is_empty() {
        true => format!("Each of {} rows is on the shard that owns its bucket.", report.rows),
        false => listing::table(
            ["shard", "table", "bucket", "rows", "owner"],
            report.strays.iter().map(|stray| {
                let owner = listing::optional(stray.owner.as_deref());
                [
                    stray.shard.clone(),
                    stray.table.clone(),
                    stray.bucket.to_string(),
                    stray.rows.to_string(),
                    owner,
                ]
            }),
        ),
    };
    for (buckets, meaning) in [
        (&report.contested, "are owned by two shards at one epoch"),
        (&report.moved, "changed their owner meanwhile and were left out; run this again"),
    ] {
        if !buckets.is_empty() {
            text.push_str(&format!(
                "\n{} buckets {meaning}: {}",
                buckets.len(),
                connections::ranges(buckets)
            ));
        }
    }
    for (shard, name) in &report.replication {
        text.push_str(&format!("\nshard {shard} has the {name}, which a move made"));
    }
    text
}

#[cfg(test)]
mod tests {
    use saga::shards::map::{Answer, BucketRow};

    use super::*;

    fn map(epochs: [i64; 2]) -> Map {
        let rows = |shard: usize| {
            let row = |bucket| BucketRow { bucket, epoch: epochs[shard], owned: true };
            Answer::Rows(Bucket::all().map(row).collect())
        };
        Map::unread().next(&[rows(0), rows(1)])
    }

    #[test]
    fn buckets_that_moved_meanwhile_are_no_finding() {
        let bucket = Bucket::new(3).unwrap();
        let stray = Stray {
            shard: "two".to_owned(),
            table: "payments".to_owned(),
            bucket: 3,
            rows: 1,
            owner: Some("one".to_owned()),
        };
        let found = vec![(bucket, stray.clone())];
        assert_eq!(without_moved(found.clone(), &map([2, 1]), &map([2, 1])), (Vec::new(), vec![stray]));
        let (moved, strays) = without_moved(found, &map([2, 1]), &map([2, 3]));
        assert_eq!((moved.len(), strays.len()), (1024, 0));
    }

    #[test]
    fn the_text_says_what_was_counted() {
        let report = Report { rows: 12, ..Report::default() };
        assert_eq!(text(&report), "Each of 12 rows is on the shard that owns its bucket.");
    }
}
