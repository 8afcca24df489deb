//! Pure: which offsets may be committed, and the text that is committed with them.
//!
//! * A checkpoint is a moment: the next offset of every partition, the newest commit that was read, and the last position of
//!   every chain. It is committed once all that was read before it is done with: payments, the look at new rows, the chain.
//! * So a restart reads again what was not done with, and knows of every older row and position that it is older.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result};
use coroctl::audit::read::chain::{ChainPosition, format_lsn, source_of};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Checkpoints that are kept until they can be committed.
const KEPT_MAX: usize = 1_000;

/// Kafka keeps 4 kB beside an offset. A chain takes some 80 bytes of it.
const TEXT_BYTES_MAX: usize = 3_500;

/// The state of an auditor but for offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Events of commits up to this time were read.
    pub until: Timestamp,
    /// The last position of each chain.
    pub positions: BTreeMap<String, ChainPosition>,
}

#[derive(Serialize, Deserialize)]
struct Text {
    until: Timestamp,
    positions: BTreeMap<String, String>,
}

impl Known {
    pub fn text(&self) -> Result<String> {
        let text = |position: &ChainPosition| {
            let (commit, previous) = (format_lsn(position.commit), format_lsn(position.previous));
            format!("{commit};{};{previous}", position.ordinal)
        };
        let mut bytes = 0;
        let positions = self.last_chains().map(|(name, position)| (name.clone(), text(position)));
        // A chain without a position is followed from `until` on: a gap just there is not seen.
        let positions = positions.take_while(|(name, text)| {
            bytes += name.len() + text.len() + r#""":"","#.len();
            bytes <= TEXT_BYTES_MAX
        });
        let positions = positions.collect();
        Ok(serde_json::to_string(&Text { until: self.until, positions })?)
    }

    /// The last chain of each source, since Kafka keeps little text. An earlier chain adds nothing but repetitions, which are
    /// older than `until`.
    fn last_chains(&self) -> impl Iterator<Item = (&String, &ChainPosition)> {
        // The chains of a source sort by time.
        let mut chains = self.positions.iter().peekable();
        std::iter::from_fn(move || {
            let mut chain = chains.next()?;
            while let Some(later) = chains.next_if(|(name, _)| source_of(name) == source_of(chain.0)) {
                chain = later;
            }
            Some(chain)
        })
    }

    /// # Errors
    /// When another program has committed offsets for this group.
    pub fn parse(text: &str) -> Result<Self> {
        let text: Text = serde_json::from_str(text)
            .context("the group's offsets were not committed by an auditor: give it another --group-id")?;
        let positions = text.positions.into_iter();
        let positions = positions.map(|(name, text)| Ok((name, ChainPosition::parse(&text)?)));
        Ok(Self { until: text.until, positions: positions.collect::<Result<_>>()? })
    }
}

/// A moment that may be committed.
#[derive(Clone, Debug)]
pub struct Checkpoint<O> {
    /// The interval of payments that begins with it.
    pub interval: u64,
    pub offsets: O,
    pub known: Known,
}

/// The checkpoints that are not committed, oldest first.
#[derive(Debug)]
pub struct Checkpoints<O>(VecDeque<Checkpoint<O>>);

impl<O> Default for Checkpoints<O> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<O> Checkpoints<O> {
    pub fn add(&mut self, checkpoint: Checkpoint<O>) {
        // The older half of the moments is enough to go on from.
        if self.0.len() >= KEPT_MAX {
            let mut index = 0;
            self.0.retain(|_| {
                index += 1;
                index % 2 == 0
            });
        }
        self.0.push_back(checkpoint);
    }

    /// Takes the newest checkpoint before which everything is done with, and forgets those before it.
    pub fn take(&mut self, mut is_done: impl FnMut(&Checkpoint<O>) -> bool) -> Option<Checkpoint<O>> {
        let mut newest = None;
        while self.0.front().is_some_and(&mut is_done) {
            newest = self.0.pop_front();
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_survives_as_a_text_of_at_most_a_kilobyte() {
        let position = |text| ChainPosition::parse(text).unwrap();
        let positions = ["payments", "balance", "processor"].map(|name| {
            let name = format!("{name}/2026-11-29T12:15:02.123456Z");
            (name, position("FFFFFFFF/FFFFFFF0;4294967295;FFFFFFFF/FFFFFF00"))
        });
        let known = Known {
            until: Timestamp::from_millisecond(1_790_000_000_001).unwrap(),
            positions: positions.into(),
        };
        let mut with_an_earlier_chain = known.clone();
        let earlier = "payments/2025-11-29T12:15:02.123456Z".to_owned();
        with_an_earlier_chain.positions.insert(earlier, position("0/10;0;0/0"));
        let text = with_an_earlier_chain.text().unwrap();
        assert!(text.len() < 1_000, "Kafka keeps 4 kB beside an offset: {text}");
        assert_eq!(Known::parse(&text).unwrap(), known);
        for foreign in ["", "{}", "x"] {
            assert!(Known::parse(foreign).is_err(), "{foreign:?}");
        }
    }

    #[test]
    fn of_many_shards_as_many_chains_are_kept_as_kafka_takes() {
        let position = ChainPosition::parse("FFFFFFFF/FFFFFFF0;0;FFFFFFFF/FFFFFF00").unwrap();
        let chain = |shard: u32| (format!("payments-{shard:03}/2026-11-29T12:15:02.123456Z"), position);
        let known = Known { until: Timestamp::UNIX_EPOCH, positions: (0..300).map(chain).collect() };
        let text = known.text().unwrap();
        assert!((3_000..3_600).contains(&text.len()), "{}", text.len());
        let read = Known::parse(&text).unwrap();
        assert!(
            read.positions.len() > 30
                && read.positions.iter().all(|(name, _)| known.positions.contains_key(name))
        );
    }

    #[test]
    fn the_newest_that_is_done_with_is_taken_and_none_behind_one_that_is_not() {
        let known = Known { until: Timestamp::UNIX_EPOCH, positions: BTreeMap::new() };
        let mut checkpoints = Checkpoints::default();
        for interval in 1..=5 {
            checkpoints.add(Checkpoint { interval, offsets: (), known: known.clone() });
        }
        assert!(checkpoints.take(|_| false).is_none());
        assert_eq!(checkpoints.take(|one| one.interval != 4).map(|one| one.interval), Some(3));
        assert!(checkpoints.take(|one| one.interval == 5).is_none());
        assert_eq!(checkpoints.take(|_| true).map(|one| one.interval), Some(5));
        for interval in 0..2_500 {
            checkpoints.add(Checkpoint { interval, offsets: (), known: known.clone() });
        }
        assert!(checkpoints.0.len() <= KEPT_MAX);
        assert_eq!(checkpoints.take(|_| true).map(|one| one.interval), Some(2_499));
    }
}
