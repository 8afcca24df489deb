//! Lists the halted keys of the dead-letter topic, each with its first pending dead letter.
//!
//! * It reads the topic twice: first for the halted keys, then for their dead letters. So it keeps only what it shows.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::dead_letter::halts::{Extent, Halted, Halts};
use crate::dead_letter::record::{DeadLetter, WalPosition};
use crate::postgres::shell;

/// A key that is halted towards a destination, with its dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HaltedKey {
    pub source: String,
    pub destination: String,
    #[serde(flatten)]
    pub halts: Halts,
    /// Dead letters that wait to be emitted.
    pub dead_letters: u64,
    /// The reason of the first of them.
    pub reason: String,
    pub table: String,
    pub op: String,
    pub id: Option<String>,
    pub position: String,
    pub since: Option<jiff::Timestamp>,
    /// The offset of the first of them in the topic.
    pub offset: i64,
    #[serde(skip)]
    last: Option<WalPosition>,
}

/// The halted keys, in the middle of their two readings.
#[derive(Debug)]
pub struct Listing {
    halted: BTreeMap<String, Halted>,
    halted_keys: BTreeMap<(String, String, Halts), HaltedKey>,
}

impl Listing {
    pub fn new<'s>(sources: impl Iterator<Item = &'s str>) -> Listing {
        let halted = sources.map(|source| (source.to_owned(), Halted::new(source))).collect();
        Listing { halted, halted_keys: BTreeMap::new() }
    }

    /// The first reading.
    pub fn apply(&mut self, offset: i64, value: &[u8]) -> Result<(), serde_json::Error> {
        self.halted.values_mut().try_for_each(|halted| halted.apply(offset, value))
    }

    /// Where the second reading may begin; `None`: nothing is halted.
    pub fn from(&self) -> Option<i64> {
        let first = |extent: &Extent| match extent {
            Extent::All(from) => Some(*from),
            Extent::Keys(keys) => keys.first(),
        };
        self.halted.values().flat_map(Halted::extents).filter_map(|(_, extent)| first(extent)).min()
    }

    /// The second reading. `written`: the record's own time.
    pub fn count(
        &mut self,
        offset: i64,
        value: &[u8],
        written: Option<jiff::Timestamp>,
    ) -> Result<(), serde_json::Error> {
        let Some(dead_letter) = DeadLetter::read(value)? else { return Ok(()) };
        let Some(halted) = self.halted.get(&dead_letter.source) else { return Ok(()) };
        let unit = halted.unit(&dead_letter.destination, &dead_letter.halts());
        let Some((halts, _)) = unit.filter(|(_, from)| offset >= *from) else { return Ok(()) };
        let DeadLetter { source, destination, .. } = &dead_letter;
        let name = (source.clone(), destination.clone(), halts);
        let key = self.halted_keys.entry(name).or_insert_with_key(|(source, destination, halts)| HaltedKey {
            source: source.clone(),
            destination: destination.clone(),
            halts: halts.clone(),
            dead_letters: 0,
            reason: dead_letter.reason.clone(),
            table: dead_letter.table.clone(),
            op: dead_letter.op.clone(),
            id: dead_letter.id.clone(),
            position: dead_letter.position().to_owned(),
            since: dead_letter.committed_at.or(written),
            offset,
            last: None,
        });
        let position = dead_letter.wal_position();
        if let (Some(last), Some(position)) = (&key.last, &position)
            && last.covers(position)
        {
            return Ok(()); // written twice
        }
        key.dead_letters += 1;
        key.last = position.or_else(|| key.last.take());
        Ok(())
    }

    pub fn into_keys(self) -> Vec<HaltedKey> {
        self.halted_keys.into_values().collect()
    }
}

impl HaltedKey {
    /// The arguments of `cdc-relay release` that name just this.
    pub fn release(&self) -> String {
        let key = match &self.halts {
            // A word that begins with a dash would be taken for an option.
            Halts { key: Some(key), .. } => format!("--key={}", shell::quote(key)),
            Halts { keyless: Some(row), .. } => format!("--keyless={}", shell::quote(row)),
            _ => "--all".to_owned(),
        };
        let (source, destination) = (shell::quote(&self.source), shell::quote(&self.destination));
        format!("--source {source} --destination {destination} {key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: [&str; 10] = [
        r#"{"source":"s","destination":"t","key":"a","reason":"too large","table":"public.x","position":"0/1"}"#,
        r#"{"source":"s","destination":"t","key":"it's","reason":"other"}"#,
        r#"{"source":"s","destination":"t","key":"a","release":true}"#,
        r#"{"source":"s","destination":"t","key":"a","reason":"again","committed_at":"2026-01-02T03:04:05Z"}"#,
        r#"{"source":"s","destination":"t","key":"a","reason":"follows an earlier row of its key"}"#,
        r#"{"source":"o","destination":"t","key":"a"}"#,
        r#"{"source":"s","destination":"u","key":null,"reason":"no key"}"#,
        r#"{"source":"s","destination":"u","key":"b","reason":"follows an earlier row of its key"}"#,
        r#"{"source":"s","destination":"w","key":null,"keyless":"t[\"7\"]","reason":"null"}"#,
        r#"{"source":"s","destination":"w","key":null,"keyless":"t[\"7\"]","reason":"null"}"#,
    ];

    #[test]
    fn what_is_pending_is_listed_with_its_first_reason() {
        let mut listing = Listing::new(["s"].into_iter());
        for (offset, value) in TOPIC.iter().enumerate() {
            listing.apply(offset as i64, value.as_bytes()).unwrap();
        }
        assert_eq!(listing.from(), Some(1));
        for (offset, value) in TOPIC.iter().enumerate().skip(1) {
            listing.count(offset as i64, value.as_bytes(), None).unwrap();
        }
        let halted_keys = listing.into_keys();
        let short: Vec<(&str, Option<&str>, u64, &str, i64)> = halted_keys
            .iter()
            .map(|s| {
                (s.destination.as_str(), s.halts.key.as_deref(), s.dead_letters, s.reason.as_str(), s.offset)
            })
            .collect();
        let expected = [
            ("t", Some("a"), 2, "again", 3),
            ("t", Some("it's"), 1, "other", 1),
            ("u", None, 2, "no key", 6),
            ("w", None, 2, "null", 8),
        ];
        assert_eq!(short, expected);
        assert_eq!(
            halted_keys[0].since.map(|time| time.to_string()).as_deref(),
            Some("2026-01-02T03:04:05Z")
        );
        let releases: Vec<String> = halted_keys.iter().map(HaltedKey::release).collect();
        assert_eq!(
            releases,
            [
                "--source s --destination t --key=a",
                r"--source s --destination t --key='it'\''s'",
                "--source s --destination u --all",
                "--source s --destination w --keyless='t[\"7\"]'"
            ]
        );
    }

    #[test]
    fn a_dead_letter_that_was_written_twice_counts_once() {
        let dead_letter = |commit: u32| {
            format!(
                r#"{{"source":"s","destination":"t","key":"a","cluster":"c","position":"0/{commit}","ordinal":1}}"#
            )
        };
        let topic = [1, 2, 1, 2, 3].map(dead_letter);
        let mut listing = Listing::new(["s"].into_iter());
        for (offset, value) in topic.iter().enumerate() {
            listing.apply(offset as i64, value.as_bytes()).unwrap();
        }
        for (offset, value) in topic.iter().enumerate() {
            listing.count(offset as i64, value.as_bytes(), None).unwrap();
        }
        assert_eq!(listing.into_keys()[0].dead_letters, 3);
    }

    #[test]
    fn with_nothing_halted_nothing_is_read_again() {
        assert_eq!(Listing::new(["s"].into_iter()).from(), None);
    }
}
