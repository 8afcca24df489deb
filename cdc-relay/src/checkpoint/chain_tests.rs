//! Chains that are whole in any distribution, and each way in which one is not.

use proptest::prelude::*;

use super::*;

fn position(text: &str) -> ChainPosition {
    ChainPosition::parse(text.as_bytes()).expect("a position")
}

/// The findings for these partitions.
fn judge(partitions: &[&[&str]]) -> Findings {
    let mut chain = Chain::new(partitions.iter().map(|_| false));
    for (lane, records) in partitions.iter().enumerate() {
        records.iter().for_each(|text| chain.take(lane, position(text)));
        chain.end(lane);
    }
    let newest = chain.newest();
    chain.finish(newest)
}

#[test]
fn a_malformed_position_is_refused() {
    assert_eq!(
        ChainPosition::parse(b"1A/2B;3;0/10"),
        Some(ChainPosition { commit: Lsn(0x1A_0000_002B), ordinal: 3, previous: Lsn(0x10) })
    );
    for bad in ["", "0/10", "0/10;0", "0/10;x;0/0", "10;0;0/0", "0/G;0;0/0", "0/10;0;0/0;", "0/10;-1;0/0"] {
        assert_eq!(ChainPosition::parse(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn a_whole_chain_over_partitions_and_with_repetitions_holds() {
    // The second partition's relay crashed and emitted everything from 0/20 again.
    let found = judge(&[
        &["0/10;0;0/0", "0/20;1;0/10", "1/0;0;0/20", "2/8;0;1/0"],
        &["0/20;0;0/10", "0/20;2;0/10", "0/20;0;0/10", "0/20;2;0/10", "1/0;1;0/20"],
    ]);
    assert!(found.is_whole(), "{found:?}");
    assert_eq!((found.events, found.transactions, found.beginnings, found.repeated), (7, 4, 1, 2));
    assert_eq!((found.first.as_deref(), found.last.as_deref()), (Some("0/10"), Some("2/8")));
}

#[test]
fn after_a_change_of_routes_the_chain_begins_again_even_over_the_transactions_emitted_last() {
    assert_eq!(judge(&[&["0/10;0;0/0", "0/20;0;0/0"]]).beginnings, 2);
    // 0/20 was emitted and not acknowledged; the new routes emit two records of it.
    let found =
        judge(&[&["0/10;0;0/0", "0/20;0;0/10", "0/30;0;0/20", "0/20;0;0/0", "0/20;1;0/0", "0/30;0;0/20"]]);
    assert!(found.is_whole(), "{found:?}");
}

#[test]
fn each_way_of_missing_something_is_found_and_explained() {
    type Row<'a> = (&'a [&'a [&'a str]], (u64, u64, u64), &'a str);
    let table: &[Row<'_>] = &[
        (&[&["0/10;0;0/0", "0/30;0;0/20"]], (1, 0, 0), "names 0/20 before it, which is nowhere"),
        (&[&["0/30;0;0/20"]], (1, 0, 0), "is the first here"),
        (&[&["0/10;0;0/0", "0/20;0;0/10", "0/30;0;0/10"]], (1, 0, 0), "0/20 is between them"),
        (&[&["0/10;0;0/0", "0/10;2;0/0"]], (0, 1, 0), "its record 1 is nowhere"),
        (&[&["0/10;1;0/0"]], (0, 1, 0), "its record 0 is nowhere"),
        // First emitted after a later one of its partition, hence perhaps of its key.
        (&[&["0/10;0;0/0", "0/30;0;0/20", "0/20;0;0/10"]], (1, 0, 1), "came after commit 0/30"),
    ];
    for (partitions, counts, said) in table {
        let found = judge(partitions);
        assert_eq!((found.gaps, found.missing_records, found.out_of_order), *counts, "{partitions:?}");
        assert!(found.problem.as_ref().is_some_and(|problem| problem.contains(said)), "{found:?}");
    }
}

#[test]
fn where_the_oldest_records_are_gone_the_proof_begins_where_every_partition_has_them() {
    let mut chain = Chain::new([true, false]);
    chain.take(0, position("0/30;0;0/20"));
    chain.take(0, position("0/40;0;0/30"));
    chain.take(1, position("0/10;0;0/0"));
    chain.take(1, position("0/50;0;0/40"));
    let found = chain.finish(Lsn(0x50));
    assert!(found.is_whole(), "{found:?}");
    assert_eq!((found.before_start, found.events), (2, 2));
}

#[test]
fn a_record_newer_than_the_least_read_partition_is_not_judged() {
    let mut chain = Chain::new([false, false]);
    chain.take(0, position("0/10;0;0/0"));
    // 0/20 is on its way to the other partition.
    chain.take(0, position("0/30;0;0/20"));
    let found = chain.finish(Lsn(0x10));
    assert!(found.is_whole(), "{found:?}");
    assert_eq!((found.events, found.not_judged), (1, 1));
}

/// Transactions of so many records each, as positions.
fn whole(sizes: &[u32]) -> Vec<ChainPosition> {
    let mut positions = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let (commit, previous) = (Lsn((index as u64 + 1) << 30), Lsn((index as u64) << 30));
        positions.extend((0..*size).map(|ordinal| ChainPosition { commit, ordinal, previous }));
    }
    positions
}

proptest! {
    #[test]
    fn any_record_that_is_missing_is_noticed_unless_nothing_follows_it(
        sizes in prop::collection::vec(1u32..4, 2..20),
        lanes in prop::collection::vec(0usize..3, 80),
        missing in any::<prop::sample::Index>(),
        judge_every in 1usize..10,
    ) {
        let positions = whole(&sizes);
        let missing = missing.index(positions.len() + 1);
        let mut chain = Chain::new([false; 3]);
        for (index, position) in positions.iter().enumerate().filter(|(index, _)| *index != missing) {
            chain.take(lanes[index], *position);
            if index.is_multiple_of(judge_every) {
                let horizon = chain.horizon();
                chain.judge(horizon);
            }
        }
        let newest = chain.newest();
        let found = chain.finish(newest);
        let gone = positions.get(missing);
        // Only a transaction's next record, or the next transaction's link, proves how many records it has.
        let provable = gone.is_some_and(|gone| {
            let size = sizes[(gone.commit.0 >> 30) as usize - 1];
            let last_of_many = size > 1 && gone.ordinal == size - 1;
            !(last_of_many || (size == 1 && missing == positions.len() - 1))
        });
        prop_assert_eq!(!found.is_whole(), provable, "{:?} without {:?}", found, gone);
    }
}
