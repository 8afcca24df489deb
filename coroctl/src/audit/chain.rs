//! The chain of positions: each record names the commit it tells, its number in it, and the commit before it
//! that told anything. Pure.
//!
//! Whoever has all records of a source can prove by it that no transaction was passed over.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::finding::Tally;

/// `pg_position`: commit, ordinal among its records on Kafka, previous commit that told anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub commit: u64,
    pub ordinal: u32,
    /// 0: a chain begins.
    pub previous: u64,
}

impl Position {
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(';');
        let mut part = || parts.next().with_context(|| format!("{text} is no position"));
        let (commit, ordinal, previous) = (lsn(part()?)?, part()?, lsn(part()?)?);
        Ok(Self { commit, ordinal: ordinal.parse().context("ordinal")?, previous })
    }
}

/// A byte position in the log, from the form that Postgres prints.
pub fn lsn(text: &str) -> Result<u64> {
    let (high, low) = text.split_once('/').with_context(|| format!("{text} is no log position"))?;
    let part = |digits| u32::from_str_radix(digits, 16).with_context(|| format!("{text} is no log position"));
    Ok(u64::from(part(high)?) << 32 | u64::from(part(low)?))
}

/// As Postgres prints it.
pub fn print_lsn(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

/// All positions of each source, in any order.
#[derive(Debug, Default)]
pub struct Chains {
    sources: BTreeMap<String, Vec<Position>>,
}

impl Chains {
    pub fn add(&mut self, source: &str, position: Position) {
        match self.sources.get_mut(source) {
            Some(positions) => positions.push(position),
            None => drop(self.sources.insert(source.to_owned(), vec![position])),
        }
    }

    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// Every commit follows the one it names, and tells its records 0, 1, 2 … without a gap.
    pub fn judge(&self) -> Tally {
        let mut tally = Tally::default();
        for (source, positions) in &self.sources {
            let mut positions = positions.clone();
            positions.sort_unstable();
            positions.dedup();
            let mut before: Option<Position> = None;
            for position in positions {
                let fits = match before {
                    Some(last) if last.commit == position.commit => {
                        position.ordinal == last.ordinal + 1 && position.previous == last.previous
                    }
                    last => {
                        let follows = last.map_or(0, |last| last.commit);
                        position.ordinal == 0 && (position.previous == follows || position.previous == 0)
                    }
                };
                tally.look(fits, None, || broken(source, before, position));
                before = Some(position);
            }
        }
        tally
    }
}

fn broken(source: &str, before: Option<Position>, found: Position) -> String {
    let Position { commit, ordinal, previous } = found;
    let commit = print_lsn(commit);
    match before {
        Some(last) if print_lsn(last.commit) == commit => {
            format!("{source}: commit {commit} tells record {ordinal} after {}", last.ordinal)
        }
        _ if ordinal > 0 => format!("{source}: commit {commit} begins with record {ordinal}"),
        Some(last) => {
            let (last, previous) = (print_lsn(last.commit), print_lsn(previous));
            format!(
                "{source}: commit {commit} names {previous} before it, but the one before it on Kafka is {last}"
            )
        }
        None => {
            let previous = print_lsn(previous);
            format!("{source}: commit {commit} is the first on Kafka and names {previous} before it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(positions: &[&str]) -> Tally {
        let mut chains = Chains::default();
        for text in positions {
            chains.add("payments", Position::parse(text).unwrap());
        }
        chains.judge()
    }

    const WHOLE: [&str; 5] = ["0/10;0;0/0", "0/20;0;0/10", "0/20;1;0/10", "1/0;0;0/20", "1/8;0;1/0"];

    #[test]
    fn a_whole_chain_in_any_order_and_with_repetitions_holds() {
        let mut positions = WHOLE.to_vec();
        positions.extend(WHOLE);
        positions.reverse();
        let tally = chains(&positions);
        assert_eq!((tally.examined, tally.violations), (5, 0));
    }

    #[test]
    fn a_new_chain_may_begin_anywhere() {
        assert_eq!(chains(&["0/10;0;0/0", "0/20;0;0/0"]).violations, 0);
    }

    #[test]
    fn each_record_that_is_missing_is_noticed_unless_it_is_the_last() {
        for missing in 0..WHOLE.len() - 1 {
            let mut rest = WHOLE.to_vec();
            let gone = rest.remove(missing);
            // The last record of a commit is not: the rows tell.
            assert_eq!(chains(&rest).violations > 0, gone != "0/20;1;0/10", "without {gone}");
        }
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for bad in ["", "0/10", "0/10;0", "0/10;x;0/0", "10;0;0/0", "0/G;0;0/0"] {
            assert!(Position::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(print_lsn(lsn("1A/2B").unwrap()), "1A/2B");
    }
}
