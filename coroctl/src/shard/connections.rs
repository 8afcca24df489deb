//! Connects to the shards of one service, and reads which buckets each owns.

use anyhow::{Context, Error, Result};
use clap::Args;
use saga::shards::bucket::Bucket;
use saga::shards::list::{self, ListedShard};
use saga::shards::map::{Answer, BucketRow, Map};
use tokio_postgres::{Client, GenericClient};

use crate::databases;

/// The shards of one service: the list that the service has.
#[derive(Args, Clone)]
pub struct Shards {
    /// The shards of the service, each as NAME=URL of a role that may read, separated by spaces.
    #[arg(long, env = "SHARDS", value_name = "LIST", value_parser = Listed::parse, hide_env_values = true)]
    pub shards: Listed,
}

/// Its URLs may have passwords.
#[derive(Clone)]
pub struct Listed(Vec<ListedShard>);

impl Listed {
    fn parse(text: &str) -> Result<Self> {
        list::parse(text).map(Self)
    }
}

/// A shard that answered, or why it did not.
pub struct Connected {
    pub name: String,
    pub client: Result<Client>,
}

/// A connection that reads only, to each shard; one that is away hides its own buckets only.
pub async fn connect(shards: &Shards) -> Vec<Connected> {
    let mut connected = Vec::with_capacity(shards.shards.0.len());
    for shard in &shards.shards.0 {
        let client = databases::reader(&format!("shard {}", shard.name), &shard.url).await;
        connected.push(Connected { name: shard.name.clone(), client });
    }
    connected
}

const ROWS: &str = "select bucket, epoch, owned from owned_buckets order by bucket";

/// The buckets of each shard, in the order of the shards, and the map that a service makes of them.
pub async fn read(shards: &[Connected]) -> (Vec<Answer>, Map) {
    let mut answers = Vec::with_capacity(shards.len());
    for shard in shards {
        let rows = match &shard.client {
            Ok(client) => owned_buckets(client).await,
            Err(error) => Err(Error::msg(format!("{error:#}"))),
        };
        match rows {
            Ok(rows) => answers.push(Answer::Rows(rows)),
            Err(error) => {
                tracing::warn!("the buckets of shard {} cannot be read: {error:#}", shard.name);
                answers.push(Answer::Away);
            }
        }
    }
    let map = Map::unread().next(&answers);
    (answers, map)
}

/// The buckets of one shard, as it says itself.
///
/// # Errors
/// When it does not answer, or has other buckets than there are.
pub async fn owned_buckets(client: &impl GenericClient) -> Result<Vec<BucketRow>> {
    let rows = client.query(ROWS, &[]).await.context("cannot read owned_buckets")?;
    let row = |row: &tokio_postgres::Row| {
        let number: i16 = row.try_get(0)?;
        let bucket = Bucket::new(number).with_context(|| format!("there is no bucket {number}"))?;
        Ok(BucketRow { bucket, epoch: row.try_get(1)?, owned: row.try_get(2)? })
    };
    rows.iter().map(row).collect()
}

/// Numbers in order, neighbours as a range: `0-3, 7`.
pub fn ranges(numbers: &[i16]) -> String {
    let mut ranges: Vec<(i16, i16)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            Some(_) | None => ranges.push((number, number)),
        }
    }
    let text = |(first, last): &(i16, i16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_a_range() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }
}
