//! Transactions of this server and of others, in any order.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::checkpoint::progress::Sink;

/// A transaction of the stream.
#[derive(Debug, Clone)]
struct Sent {
    rows: u32,
    /// Before the first row the server names another origin.
    is_copied: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    (0u32..4, any::<bool>()).prop_map(|(rows, is_copied)| Sent { rows, is_copied })
}

/// Emits the rows as the stream does. Returns how many were, by transaction, and what each named before it.
fn emitted(transactions: &[Sent]) -> (Vec<u32>, Vec<Lsn>, Progress) {
    let mut progress = Progress::new(0, Lsn(1), Lsn::ZERO);
    let mut state = TransactionState::new("1/1".to_owned(), Lsn::ZERO, Lsn::ZERO);
    let (mut counts, mut previous) = (Vec::new(), Vec::new());
    for (index, sent) in transactions.iter().enumerate() {
        let commit_lsn = Lsn((index as u64 + 1) * 0x10);
        state.enter().unwrap();
        state.begin(&mut progress, commit_lsn, PgTime(0));
        let mut count = 0;
        if sent.is_copied {
            assert!(state.leave_out());
        }
        for _ in 0..sent.rows {
            if let Some(open) = state.open(&mut progress) {
                count += 1;
                previous.push(open.transaction.previous);
                open.progress.added(Sink::Kafka, true);
            }
        }
        let emitted = state.commit(&mut progress, commit_lsn, Lsn(commit_lsn.0 + 8)).unwrap();
        assert!(emitted && !state.is_left_out());
        counts.push(count);
    }
    (counts, previous, progress)
}

proptest! {
    /// The faults it prevents: a copy that is emitted by its target too, and a gap in the chain where one is left out.
    #[test]
    fn what_another_server_wrote_is_left_out_and_everything_else_is_emitted(transactions in vec(sent(), 0..20)) {
        let (counts, previous, mut progress) = emitted(&transactions);
        let expected: Vec<u32> =
            transactions.iter().map(|sent| if sent.is_copied { 0 } else { sent.rows }).collect();
        prop_assert_eq!(&counts, &expected);
        // Each names the last one that emitted anything.
        let mut last = Lsn::ZERO;
        let mut expected_previous = Vec::new();
        for (index, count) in expected.iter().enumerate() {
            expected_previous.extend((0..*count).map(|_| last));
            if *count > 0 {
                last = Lsn((index as u64 + 1) * 0x10);
            }
        }
        prop_assert_eq!(previous, expected_previous);
        // What is left out holds nothing up: once the others are acknowledged, everything may be confirmed.
        for (index, count) in expected.iter().enumerate().filter(|(_, count)| **count > 0) {
            progress.acknowledge(index as u64, Sink::Kafka, *count);
        }
        prop_assert_eq!((progress.pending(), progress.chain()), (0, last));
        let end = transactions.len() as u64 * 0x10 + 8;
        prop_assert_eq!(progress.confirmed(), if transactions.is_empty() { Lsn(1) } else { Lsn(end) });
    }
}

#[test]
fn a_transaction_that_was_acknowledged_before_is_not_left_out_once_more() {
    let mut state = TransactionState::new("1/1".to_owned(), Lsn::ZERO, Lsn::ZERO);
    state.enter().unwrap();
    assert!(!state.leave_out(), "it is skipped, and so not counted");
    let mut progress = Progress::new(0, Lsn(1), Lsn::ZERO);
    assert!(!state.commit(&mut progress, Lsn(0x10), Lsn(0x18)).unwrap());
    // The next one is emitted.
    state.enter().unwrap();
    state.begin(&mut progress, Lsn(0x20), PgTime(0));
    assert!(state.open(&mut progress).is_some());
}
