use proptest::prelude::*;

use super::*;

/// A step of a stream, as the bookkeeping sees it.
#[derive(Debug, Clone)]
enum Step {
    /// The stream goes on by one event: a transaction begins, emits a message, or is committed.
    Next,
    /// A sink acknowledges some messages of the n-th transaction it has any of: in any order.
    Acknowledge { which: usize, rabbit: bool, count: u32 },
    /// A keepalive, so far beyond the last commit.
    Idle { beyond: u64 },
    /// The session breaks; the next one starts where this one was confirmed, and emits again what comes after.
    Break,
    /// A sink acknowledges something of a session that is over.
    Late { which: usize, rabbit: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let which = || (0usize..8, any::<bool>());
    prop_oneof![
        24 => Just(Step::Next),
        16 => (which(), 1u32..4).prop_map(|((which, rabbit), count)| Step::Acknowledge { which, rabbit, count }),
        4 => (0u64..5).prop_map(|beyond| Step::Idle { beyond }),
        1 => Just(Step::Break),
        2 => which().prop_map(|(which, rabbit)| Step::Late { which, rabbit }),
    ]
}

/// The messages of each transaction: none, or some for either sink in any mixture.
fn script() -> impl Strategy<Value = Vec<Vec<Sink>>> {
    let sink = prop_oneof![Just(Sink::Kafka), Just(Sink::Rabbit)];
    prop::collection::vec(prop::collection::vec(sink, 0..4), 1..20)
}

/// Positions of the n-th transaction of the WAL.
fn commit(index: usize) -> Lsn {
    Lsn(index as u64 * 10 + 10)
}

fn end(index: usize) -> Lsn {
    Lsn(index as u64 * 10 + 15)
}

/// A transaction as this session emitted it.
#[derive(Debug)]
struct Emitted {
    index: usize,
    transaction_seq: TransactionSeq,
    left: [u32; SINKS],
    messages: usize,
    committed: bool,
}

impl Emitted {
    fn is_acknowledged(&self) -> bool {
        self.committed && self.left == [0; SINKS]
    }
}

/// The naive model: everything emitted in this session, in a list that is gone through from its start each time.
struct Harness {
    script: Vec<Vec<Sink>>,
    progress: Progress,
    emitted: Vec<Emitted>,
    next: usize,
    /// The position at which the session started, or of the last keepalive that counted.
    floor: Lsn,
    chain: Lsn,
    gone: Vec<TransactionSeq>,
}

impl Harness {
    fn new(script: Vec<Vec<Sink>>) -> Harness {
        let progress = Progress::new(0, Lsn::ZERO, Lsn::ZERO);
        let (emitted, gone) = (Vec::new(), Vec::new());
        Harness { script, progress, emitted, next: 0, floor: Lsn::ZERO, chain: Lsn::ZERO, gone }
    }

    fn prefix(&self) -> impl Iterator<Item = &Emitted> {
        self.emitted.iter().take_while(|emitted| emitted.is_acknowledged())
    }

    fn confirmed(&self) -> Lsn {
        self.prefix().last().map_or(Lsn::ZERO, |emitted| end(emitted.index)).max(self.floor)
    }

    fn chain(&self) -> Lsn {
        let kafka = |emitted: &&Emitted| self.script[emitted.index].contains(&Sink::Kafka);
        self.prefix().filter(kafka).last().map_or(self.chain, |emitted| commit(emitted.index))
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Next => self.next(),
            Step::Acknowledge { which, rabbit, count } => self.acknowledge(*which, sink(*rabbit), *count),
            Step::Idle { beyond } => self.idle(*beyond),
            Step::Break => self.restart(),
            Step::Late { which, rabbit } => {
                if let Some(transaction_seq) = self.gone.get(which % self.gone.len().max(1)) {
                    assert_eq!(self.progress.acknowledge(*transaction_seq, sink(*rabbit), 1), None);
                }
            }
        }
    }

    fn next(&mut self) {
        let open = self.emitted.last_mut().filter(|emitted| !emitted.committed);
        let Some(emitted) = open else {
            if self.next < self.script.len() {
                let (index, transaction_seq) = (self.next, self.progress.begin(commit(self.next), PgTime(0)));
                self.emitted.push(Emitted {
                    index,
                    transaction_seq,
                    left: [0; SINKS],
                    messages: 0,
                    committed: false,
                });
                self.next += 1;
            }
            return;
        };
        let messages = &self.script[emitted.index];
        if let Some(sink) = messages.get(emitted.messages) {
            self.progress.added(*sink, *sink == Sink::Kafka);
            emitted.left[*sink as usize] += 1;
            emitted.messages += 1;
        } else {
            assert_eq!(self.progress.commit(end(emitted.index)), messages.contains(&Sink::Kafka));
            emitted.committed = true;
        }
    }

    fn acknowledge(&mut self, which: usize, sink: Sink, count: u32) {
        let waiting: Vec<usize> =
            (0..self.emitted.len()).filter(|&index| self.emitted[index].left[sink as usize] > 0).collect();
        let Some(&index) = waiting.get(which % waiting.len().max(1)) else { return };
        let emitted = &mut self.emitted[index];
        let left = &mut emitted.left[sink as usize];
        let count = count.min(*left);
        *left -= count;
        let acknowledged = *left == 0 && emitted.committed;
        assert_eq!(self.progress.acknowledge(emitted.transaction_seq, sink, count).is_some(), acknowledged);
    }

    fn idle(&mut self, beyond: u64) {
        let committed = self.emitted.iter().rfind(|emitted| emitted.committed);
        let wal_end = Lsn(committed.map_or(self.floor, |emitted| end(emitted.index)).0 + beyond);
        // Between the last commit and the next one.
        let wal_end = wal_end.min(commit(self.next));
        self.progress.idle(wal_end);
        if self.emitted.iter().all(Emitted::is_acknowledged) {
            self.floor = self.floor.max(wal_end);
        }
    }

    fn restart(&mut self) {
        self.gone.extend(self.emitted.iter().map(|emitted| emitted.transaction_seq));
        (self.floor, self.chain) = (self.confirmed(), self.chain());
        self.progress = Progress::new(self.progress.next_transaction_seq(), self.floor, self.chain);
        self.emitted.clear();
        // The server sends what was committed from there on.
        self.next =
            (0..self.script.len()).find(|&index| commit(index) >= self.floor).unwrap_or(self.script.len());
    }

    /// The stream goes to its end, and every sink acknowledges all it has, the last first.
    fn finish(&mut self) {
        while self.next < self.script.len() || self.emitted.last().is_some_and(|emitted| !emitted.committed) {
            self.next();
        }
        for which in (0..self.emitted.len()).rev() {
            for sink in [Sink::Rabbit, Sink::Kafka] {
                let left = std::mem::take(&mut self.emitted[which].left[sink as usize]);
                self.progress.acknowledge(self.emitted[which].transaction_seq, sink, left);
            }
        }
    }
}

fn sink(rabbit: bool) -> Sink {
    if rabbit { Sink::Rabbit } else { Sink::Kafka }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Prevents a loss: confirming a transaction that a sink does not have, that is open, or that is behind such a one. And
    /// prevents a halt: confirming less than the last commit.
    #[test]
    fn only_the_acknowledged_prefix_is_ever_confirmed_and_in_the_end_all_of_it(
        script in script(),
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut harness = Harness::new(script);
        let mut before = Lsn::ZERO;
        for step in &steps {
            harness.run(step);
            let confirmed = harness.progress.confirmed();
            prop_assert_eq!(confirmed, harness.confirmed());
            prop_assert_eq!(harness.progress.chain(), harness.chain());
            prop_assert!(confirmed >= before, "it went back");
            // The same without the model: a new session would get every transaction that is not acknowledged.
            let unacknowledged = harness.emitted.iter().find(|emitted| !emitted.is_acknowledged());
            prop_assert!(unacknowledged.is_none_or(|emitted| confirmed <= commit(emitted.index)), "confirmed too much");
            prop_assert!(harness.next == harness.script.len() || confirmed <= commit(harness.next));
            let acknowledged = harness.prefix().count();
            prop_assert_eq!(harness.progress.pending(), harness.emitted.len() - acknowledged);
            before = confirmed;
        }
        harness.finish();
        prop_assert_eq!(harness.progress.pending(), 0);
        prop_assert!(harness.progress.confirmed() >= end(harness.script.len() - 1));
        let kafka = harness.script.iter().rposition(|messages| messages.contains(&Sink::Kafka));
        prop_assert_eq!(harness.progress.chain(), kafka.map_or(Lsn::ZERO, commit));
    }
}

#[test]
fn an_open_transaction_holds_back_everything_even_if_all_its_rows_are_acknowledged() {
    let mut progress = Progress::new(5, Lsn(100), Lsn::ZERO);
    let transaction_seq = progress.begin(Lsn(110), PgTime(0));
    progress.added(Sink::Kafka, true);
    progress.acknowledge(transaction_seq, Sink::Kafka, 1);
    progress.idle(Lsn(500));
    assert_eq!(progress.confirmed(), Lsn(100));
    progress.commit(Lsn(120));
    assert_eq!(progress.confirmed(), Lsn(120));
    assert_eq!(progress.pending(), 0);
}

#[test]
fn an_acknowledgement_of_an_earlier_session_counts_for_nothing() {
    let mut progress = Progress::new(5, Lsn(100), Lsn::ZERO);
    let transaction_seq = progress.begin(Lsn(110), PgTime(0));
    progress.added(Sink::Kafka, true);
    progress.commit(Lsn(120));
    assert_eq!(progress.acknowledge(transaction_seq - 1, Sink::Kafka, 1), None);
    assert_eq!(progress.acknowledge(transaction_seq + 1, Sink::Kafka, 1), None);
    assert_eq!(progress.confirmed(), Lsn(100));
}

#[test]
fn a_transaction_that_emitted_nothing_is_confirmed_in_its_turn() {
    let mut progress = Progress::new(0, Lsn::ZERO, Lsn::ZERO);
    let first = progress.begin(Lsn(10), PgTime(0));
    progress.added(Sink::Rabbit, false);
    progress.commit(Lsn(15));
    progress.begin(Lsn(20), PgTime(0));
    assert!(!progress.commit(Lsn(25)));
    assert_eq!(progress.confirmed(), Lsn::ZERO);
    progress.acknowledge(first, Sink::Rabbit, 1);
    assert_eq!((progress.confirmed(), progress.chain()), (Lsn(25), Lsn::ZERO));
}

#[test]
fn a_record_that_is_no_link_is_emitted_all_the_same() {
    let mut progress = Progress::new(0, Lsn::ZERO, Lsn(7));
    let transaction_seq = progress.begin(commit(0), PgTime(3));
    progress.added(Sink::Kafka, false);
    assert!(!progress.commit(end(0)), "nothing that a chain could name");
    assert_eq!((progress.confirmed(), progress.last()), (Lsn::ZERO, None));
    progress.acknowledge(transaction_seq, Sink::Kafka, 1);
    assert_eq!((progress.confirmed(), progress.chain()), (end(0), Lsn(7)));
    let last = Some(CommitId { commit_lsn: commit(0), committed_at: 3 });
    assert_eq!(progress.last(), last, "a volume that was set back behind it is found");
}

#[test]
fn a_row_emitted_again_holds_back_what_is_confirmed_and_is_no_link_of_the_chain() {
    let mut progress = Progress::new(0, Lsn::ZERO, Lsn(7));
    let transaction_seq = progress.begin(commit(0), PgTime(0));
    progress.re_emit(Sink::Kafka);
    assert!(!progress.commit(end(0)), "nothing that a chain could name");
    assert_eq!((progress.confirmed(), progress.chain()), (Lsn::ZERO, Lsn(7)));
    progress.acknowledge(transaction_seq, Sink::Kafka, 1);
    assert_eq!((progress.confirmed(), progress.chain()), (end(0), Lsn(7)));
}
