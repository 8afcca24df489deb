//! Collects the chain positions of each source.
//!
//! * Each record names its commit, its number in the commit, and the previous commit that emitted anything.
//! * So all records of a source prove that no transaction was skipped.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// `pg_position`: commit, ordinal among its records on Kafka, previous commit that emitted anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainPosition {
    pub commit: u64,
    pub ordinal: u32,
    /// 0: a chain begins.
    pub previous: u64,
}

impl ChainPosition {
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(';');
        let mut part = || parts.next().with_context(|| format!("{text:?} is not COMMIT;ORDINAL;PREVIOUS"));
        let (commit, ordinal, previous) = (lsn(part()?)?, part()?, lsn(part()?)?);
        Ok(Self { commit, ordinal: ordinal.parse().context("ordinal")?, previous })
    }
}

/// Parses a WAL position as Postgres prints it.
pub fn lsn(text: &str) -> Result<u64> {
    let (high, low) =
        text.split_once('/').with_context(|| format!("{text:?} is not a WAL position (like 1A/2B)"))?;
    let part = |digits| {
        u32::from_str_radix(digits, 16)
            .with_context(|| format!("{text:?} is not a WAL position (like 1A/2B)"))
    };
    Ok(u64::from(part(high)?) << 32 | u64::from(part(low)?))
}

/// Formats a WAL position as Postgres prints it.
pub fn format_lsn(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

/// All positions of each source, in any order.
#[derive(Debug, Default)]
pub struct Chains {
    sources: BTreeMap<String, Vec<ChainPosition>>,
}

impl Chains {
    pub fn add(&mut self, source: &str, position: ChainPosition) {
        match self.sources.get_mut(source) {
            Some(positions) => positions.push(position),
            None => drop(self.sources.insert(source.to_owned(), vec![position])),
        }
    }

    /// The positions of each source.
    pub fn by_source(&self) -> impl Iterator<Item = (&str, &[ChainPosition])> {
        self.sources.iter().map(|(source, positions)| (source.as_str(), positions.as_slice()))
    }

    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_else_than_a_position_is_refused() {
        for bad in ["", "0/10", "0/10;0", "0/10;x;0/0", "10;0;0/0", "0/G;0;0/0"] {
            assert!(ChainPosition::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(format_lsn(lsn("1A/2B").unwrap()), "1A/2B");
    }
}
