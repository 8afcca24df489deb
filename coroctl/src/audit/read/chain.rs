//! Collects the positions of each chain.
//!
//! * Each record names its chain, its commit, its number in the commit, and the previous commit that emitted anything.
//! * So all records of a chain prove that no transaction was skipped. Positions of two chains say nothing about each other.
//! * A source has a chain for each slot in its life; sources that share a `ce_source` have chains of their own.

use std::collections::{BTreeMap, BTreeSet};

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

/// The source of a chain: the name before the time at which it began.
pub fn source_of(chain: &str) -> &str {
    chain.rsplit_once('/').map_or(chain, |(source, _)| source)
}

/// The number of a chain, in the order in which the chains were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChainNumber(usize);

/// All positions of each chain, in any order.
#[derive(Debug, Default)]
pub struct Chains {
    numbers: BTreeMap<String, usize>,
    positions: Vec<Vec<ChainPosition>>,
}

impl Chains {
    pub fn number(&mut self, chain: &str) -> ChainNumber {
        let number = self.numbers.get(chain).copied().unwrap_or_else(|| {
            self.numbers.insert(chain.to_owned(), self.positions.len());
            self.positions.push(Vec::new());
            self.positions.len() - 1
        });
        ChainNumber(number)
    }

    pub fn add(&mut self, chain: &str, position: ChainPosition) {
        let ChainNumber(number) = self.number(chain);
        if let Some(positions) = self.positions.get_mut(number) {
            positions.push(position);
        }
    }

    /// The positions of each chain.
    pub fn by_name(&self) -> impl Iterator<Item = (&str, &[ChainPosition])> {
        let positions = |number: &usize| self.positions.get(*number).map_or(&[][..], Vec::as_slice);
        self.numbers.iter().map(move |(name, number)| (name.as_str(), positions(number)))
    }

    /// The sources that have a chain.
    pub fn sources(&self) -> BTreeSet<&str> {
        self.numbers.keys().map(|name| source_of(name)).collect()
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
