//! `coroctl shard list`: the shards of a service, and the buckets that each owns.

use anyhow::Result;
use clap::Args;
use saga::shards::bucket::Bucket;
use saga::shards::map::{Answer, Map, Owner};
use serde::Serialize;

use super::connections::{self, Connected, Shards, ranges};
use crate::listing;

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    pub shards: Shards,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A shard, by what it says of itself.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub shard: String,
    pub answers: bool,
    /// The buckets that it owns, as every process sees it.
    pub owned: Vec<i16>,
    /// The highest epoch at which it owns one.
    pub epoch_max: Option<i64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub shards: Vec<Listed>,
    /// The buckets that no shard owns: they are being moved.
    pub moving: Vec<i16>,
    /// The buckets whose owner does not answer.
    pub away: Vec<i16>,
    /// The buckets that two shards own at one epoch: their users are not served until an operator has found out.
    pub contested: Vec<i16>,
}

/// Prints the shards.
///
/// # Errors
/// When the report is no JSON.
pub async fn run(list: &List) -> Result<()> {
    let shards = connections::connect(&list.shards).await;
    let (answers, map) = connections::read(&shards).await;
    let report = report(&shards, &answers, &map);
    match list.json {
        true => saga::say!("{}", serde_json::to_string_pretty(&report)?),
        false => saga::say!("{}", text(&report)),
    }
    Ok(())
}

fn report(shards: &[Connected], answers: &[Answer], map: &Map) -> Report {
    let which = |wanted: &dyn Fn(Owner) -> bool| -> Vec<i16> {
        Bucket::all().filter(|bucket| wanted(map.owner(*bucket))).map(Bucket::number).collect()
    };
    let listed = |(at, shard): (usize, &Connected)| {
        let holds = |bucket: Bucket| match map.owner(bucket) {
            Owner::Shard(holder) if holder.shard == at => Some(holder.epoch),
            Owner::Shard(_) | Owner::Nobody | Owner::Away | Owner::Contested => None,
        };
        Listed {
            shard: shard.name.clone(),
            answers: matches!(answers[at], Answer::Rows(_)),
            owned: Bucket::all().filter(|bucket| holds(*bucket).is_some()).map(Bucket::number).collect(),
            epoch_max: Bucket::all().filter_map(holds).max(),
        }
    };
    Report {
        shards: shards.iter().enumerate().map(listed).collect(),
        moving: which(&|owner| owner == Owner::Nobody),
        away: which(&|owner| owner == Owner::Away),
        contested: which(&|owner| owner == Owner::Contested),
    }
}

fn text(report: &Report) -> String {
    let row = |listed: &Listed| {
        let epoch = listed.epoch_max.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
        let state = if listed.answers { "answers" } else { "is away" };
        [listed.shard.clone(), state.to_owned(), listed.owned.len().to_string(), epoch, ranges(&listed.owned)]
    };
    let mut text = listing::table(
        ["shard", "state", "buckets", "highest epoch", "which"],
        report.shards.iter().map(row),
    );
    for (buckets, meaning) in [
        (&report.moving, "are owned by no shard: they are being moved, or a move was not ended"),
        (&report.away, "belong to a shard that is away; their requests are answered 503"),
        (&report.contested, "are owned by two shards at one epoch, and served by neither"),
    ] {
        if !buckets.is_empty() {
            text.push_str(&format!("\n{} buckets {meaning}: {}", buckets.len(), ranges(buckets)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use saga::shards::map::BucketRow;

    use super::*;

    fn shard(name: &str) -> Connected {
        Connected { name: name.to_owned(), client: Err(anyhow!("not asked")) }
    }

    fn rows(owned: impl Fn(i16) -> bool, epoch: i64) -> Answer {
        let row = |bucket: Bucket| BucketRow { bucket, epoch, owned: owned(bucket.number()) };
        Answer::Rows(Bucket::all().map(row).collect())
    }

    #[test]
    fn each_bucket_is_somewhere_in_the_report() {
        let answers = [rows(|b| b < 500, 3), rows(|b| (500..1000).contains(&b), 4)];
        let map = Map::unread().next(&answers);
        let report = report(&[shard("one"), shard("two")], &answers, &map);
        assert_eq!((report.shards[0].owned.len(), report.shards[0].epoch_max), (500, Some(3)));
        assert_eq!((report.shards[1].owned.len(), report.shards[1].epoch_max), (500, Some(4)));
        assert_eq!(report.moving, (1000..1024).collect::<Vec<i16>>());
        let text = text(&report);
        assert!(text.contains("0-499") && text.contains("24 buckets are owned by no shard"), "{text}");
    }

    #[test]
    fn a_shard_that_is_away_and_one_that_claims_too_much_are_named() {
        let answers = [rows(|b| b < 2, 1), rows(|b| b == 0, 1), Answer::Away];
        let map = Map::unread().next(&answers);
        let report = report(&[shard("one"), shard("two"), shard("three")], &answers, &map);
        assert_eq!(report.contested, [0]);
        assert_eq!(report.away.len(), 1022);
        assert!(text(&report).contains("is away"));
    }
}
