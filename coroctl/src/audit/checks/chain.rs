//! T1 chain: no commit is missing between two that are on Kafka.

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::read::chain::{ChainPosition, Chains, format_lsn};

/// T1 chain: every record of a chain follows the one before it.
pub fn unbroken(observed: &Observed) -> Tally {
    follow(&observed.events.chains)
}

/// Every commit follows the one it names, and its records have the ordinals 0, 1, 2 … without a gap.
pub fn follow(chains: &Chains) -> Tally {
    let mut tally = Tally::default();
    for (name, positions) in chains.by_name() {
        let mut positions = positions.to_vec();
        positions.sort_unstable();
        positions.dedup();
        let mut before: Option<ChainPosition> = None;
        for position in positions {
            tally.check(follows(before, position), None, || broken(name, before, position));
            before = Some(position);
        }
    }
    tally
}

/// Whether `position` comes next after `before`, the last one before it in the order of commits; `None`: the first of all.
pub fn follows(before: Option<ChainPosition>, position: ChainPosition) -> bool {
    match before {
        Some(last) if last.commit == position.commit => {
            position.ordinal == last.ordinal + 1 && position.previous == last.previous
        }
        last => {
            let follows = last.map_or(0, |last| last.commit);
            position.ordinal == 0 && (position.previous == follows || position.previous == 0)
        }
    }
}

/// For people: what is wrong with `found` after `before`.
pub fn broken(chain: &str, before: Option<ChainPosition>, found: ChainPosition) -> String {
    let ChainPosition { commit, ordinal, previous } = found;
    let commit = format_lsn(commit);
    match before {
        Some(last) if format_lsn(last.commit) == commit => {
            format!("{chain}: commit {commit} has record {ordinal} after {}", last.ordinal)
        }
        _ if ordinal > 0 => format!("{chain}: commit {commit} begins with record {ordinal}"),
        Some(last) => {
            let (last, previous) = (format_lsn(last.commit), format_lsn(previous));
            format!(
                "{chain}: commit {commit} names {previous} before it, but the one before it on Kafka is {last}"
            )
        }
        None => {
            let previous = format_lsn(previous);
            format!("{chain}: commit {commit} is the first on Kafka and names {previous} before it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(positions: &[&str]) -> Tally {
        let mut chains = Chains::default();
        for text in positions {
            chains.add("payments", ChainPosition::parse(text).unwrap());
        }
        follow(&chains)
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
    fn a_chain_may_begin_again_anywhere() {
        assert_eq!(chains(&["0/10;0;0/0", "0/20;0;0/0"]).violations, 0);
    }

    /// The false alarms it prevents: two shards, and a slot that was made anew in a restored database.
    #[test]
    fn two_chains_say_nothing_about_each_other() {
        let mut chains = Chains::default();
        for name in ["payments-0/2026", "payments-1/2026", "payments-0/2027"] {
            WHOLE.iter().for_each(|text| chains.add(name, ChainPosition::parse(text).unwrap()));
        }
        let tally = follow(&chains);
        assert_eq!((tally.examined, tally.violations), (15, 0));
        chains.add("payments-1/2026", ChainPosition::parse("2/0;0;1/10").unwrap());
        let first = follow(&chains).first.unwrap().what;
        assert!(first.starts_with("payments-1/2026: commit 2/0 names 1/10"), "{first}");
        assert!(chains.sources().into_iter().eq(["payments-0", "payments-1"]));
    }

    #[test]
    fn each_record_that_is_missing_is_noticed_unless_it_is_the_last() {
        for missing in 0..WHOLE.len() - 1 {
            let mut rest = WHOLE.to_vec();
            let gone = rest.remove(missing);
            // Not the last record of a commit: T1 finds that by its row.
            assert_eq!(chains(&rest).violations > 0, gone != "0/20;1;0/10", "without {gone}");
        }
    }
}
