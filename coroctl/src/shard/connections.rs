//! Connects to the shards of one service, and reads which buckets each owns.

use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use clap::Args;
use saga::shards::bucket::Bucket;
use saga::shards::map::{Answer, BucketRow, Map};
use tokio_postgres::Client;

use crate::databases;

/// The shards of one service, by options or by a variable.
#[derive(Args, Clone)]
pub struct Shards {
    /// A shard of the service, as NAME=URL of a role that may read; once for each. In the variable they are separated by spaces.
    #[arg(
        long = "shard",
        env = "SHARDS",
        value_name = "NAME=URL",
        value_delimiter = ' ',
        required = true,
        hide_env_values = true
    )]
    pub shards: Vec<Shard>,
}

/// A shard by its name, which stays when its URL changes.
#[derive(Clone, PartialEq, Eq)]
pub struct Shard {
    pub name: String,
    pub url: String,
}

/// Its URL may have a password.
impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, url)) = text.split_once('=') else { bail!("a shard is NAME=URL") };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !name.is_empty() && name.chars().all(fits),
            "the name of a shard has lower case letters, digits and `-`, and stands before `=`"
        );
        ensure!(!url.is_empty(), "the shard {name} has no URL");
        Ok(Self { name: name.to_owned(), url: url.to_owned() })
    }
}

/// A shard that answered, or why it did not.
pub struct Connected {
    pub name: String,
    pub client: Result<Client>,
}

/// A connection that reads only, to each shard; one that is away hides its own buckets only.
///
/// # Errors
/// When two shards have one name.
pub async fn connect(shards: &Shards) -> Result<Vec<Connected>> {
    for (at, shard) in shards.shards.iter().enumerate() {
        let twice = shards.shards[..at].iter().any(|other| other.name == shard.name);
        ensure!(!twice, "two shards are called {}", shard.name);
    }
    let mut connected = Vec::with_capacity(shards.shards.len());
    for shard in &shards.shards {
        let client = databases::reader(&format!("shard {}", shard.name), &shard.url).await;
        connected.push(Connected { name: shard.name.clone(), client });
    }
    Ok(connected)
}

const ROWS: &str = "select bucket, epoch, owned from owned_buckets order by bucket";

/// The buckets of each shard, in the order of the shards, and the map that a service makes of them.
pub async fn read(shards: &[Connected]) -> (Vec<Answer>, Map) {
    let mut answers = Vec::with_capacity(shards.len());
    for shard in shards {
        let rows = match &shard.client {
            Ok(client) => rows(client).await,
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

async fn rows(client: &Client) -> Result<Vec<BucketRow>> {
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
    fn a_shard_is_a_name_and_a_url() {
        let shard: Shard = "one=postgresql://a:b=c@host/payments?x=y".parse().unwrap();
        assert_eq!((&*shard.name, &*shard.url), ("one", "postgresql://a:b=c@host/payments?x=y"));
        assert!(!format!("{shard:?}").contains("b=c"));
        for wrong in ["postgresql://host/payments", "one", "=url", "One=url", "one="] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn neighbours_are_a_range() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }
}
