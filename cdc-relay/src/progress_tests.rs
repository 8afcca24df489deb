use proptest::prelude::*;

use super::*;

/// What a stream does to the bookkeeping.
#[derive(Debug, Clone)]
enum Step {
    /// A transaction with so many messages per sink.
    Transaction { kafka: u8, rabbit: u8 },
    /// The sink acknowledges one message of the n-th unfinished transaction it has (any order).
    Acknowledge { which: usize, rabbit: bool },
    /// A keepalive, so far beyond the last commit.
    Idle { beyond: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..4, 0u8..3).prop_map(|(kafka, rabbit)| Step::Transaction { kafka, rabbit }),
        6 => (0usize..8, any::<bool>()).prop_map(|(which, rabbit)| Step::Acknowledge { which, rabbit }),
        1 => (1u8..9).prop_map(|beyond| Step::Idle { beyond }),
    ]
}

/// The naive model: every transaction ever, and what is left of each.
#[derive(Debug, Clone)]
struct Known {
    ticket: Ticket,
    commit: Lsn,
    end: Lsn,
    left: [u32; SINKS],
    kafka: bool,
}

#[derive(Debug, Default)]
struct Model {
    all: Vec<Known>,
    idle: Lsn,
    end: u64,
}

impl Model {
    fn done(&self) -> impl Iterator<Item = &Known> {
        self.all.iter().take_while(|known| known.left == [0; SINKS])
    }

    fn confirmed(&self) -> Lsn {
        self.done().last().map_or(Lsn::ZERO, |known| known.end).max(self.idle)
    }

    fn chain(&self) -> Lsn {
        self.done().filter(|known| known.kafka).last().map_or(Lsn::ZERO, |known| known.commit)
    }
}

fn run(step: &Step, model: &mut Model, progress: &mut Progress) {
    match step {
        Step::Transaction { kafka, rabbit } => {
            model.end += 10;
            let (commit, end) = (Lsn(model.end), Lsn(model.end + 5));
            let ticket = progress.begin(commit, PgTime(0));
            (0..*kafka).for_each(|_| progress.tell(Sink::Kafka));
            (0..*rabbit).for_each(|_| progress.tell(Sink::Rabbit));
            assert_eq!(progress.commit(end), *kafka > 0);
            let left = [u32::from(*kafka), u32::from(*rabbit)];
            model.all.push(Known { ticket, commit, end, left, kafka: *kafka > 0 });
        }
        Step::Acknowledge { which, rabbit } => {
            let sink = if *rabbit { Sink::Rabbit } else { Sink::Kafka };
            let open: Vec<usize> =
                (0..model.all.len()).filter(|&i| model.all[i].left[sink as usize] > 0).collect();
            if let Some(&index) = open.get(which % open.len().max(1)) {
                let known = &mut model.all[index];
                known.left[sink as usize] -= 1;
                let settled = progress.acknowledge(known.ticket, sink, 1).is_some();
                assert_eq!(settled, known.left[sink as usize] == 0);
            }
        }
        Step::Idle { beyond } => {
            let wal_end = Lsn(model.end + 5 + u64::from(*beyond));
            progress.idle(wal_end);
            if model.all.iter().all(|known| known.left == [0; SINKS]) {
                model.idle = model.idle.max(wal_end);
                model.end += u64::from(*beyond);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The loss it prevents: confirming a transaction that a sink does not have, or one behind it.
    #[test]
    fn only_the_acknowledged_prefix_is_ever_confirmed(steps in prop::collection::vec(step(), 0..120)) {
        let (mut model, mut progress) = (Model::default(), Progress::new(0, Lsn::ZERO, Lsn::ZERO));
        let mut before = Lsn::ZERO;
        for step in &steps {
            run(step, &mut model, &mut progress);
            prop_assert_eq!(progress.confirmed(), model.confirmed());
            prop_assert_eq!(progress.chain(), model.chain());
            prop_assert!(progress.confirmed() >= before);
            before = progress.confirmed();
        }
        let unfinished = model.all.len() - model.done().count();
        prop_assert_eq!(progress.pending(), unfinished);
    }
}

#[test]
fn an_open_transaction_holds_back_everything_even_if_all_its_rows_are_acknowledged() {
    let mut progress = Progress::new(5, Lsn(100), Lsn::ZERO);
    let ticket = progress.begin(Lsn(110), PgTime(0));
    progress.tell(Sink::Kafka);
    progress.acknowledge(ticket, Sink::Kafka, 1);
    progress.idle(Lsn(500));
    assert_eq!(progress.confirmed(), Lsn(100));
    progress.commit(Lsn(120));
    assert_eq!(progress.confirmed(), Lsn(120));
    assert_eq!(progress.pending(), 0);
}

#[test]
fn an_acknowledgement_of_an_earlier_session_counts_for_nothing() {
    let mut progress = Progress::new(5, Lsn(100), Lsn::ZERO);
    let ticket = progress.begin(Lsn(110), PgTime(0));
    progress.tell(Sink::Kafka);
    progress.commit(Lsn(120));
    assert_eq!(progress.acknowledge(ticket - 1, Sink::Kafka, 1), None);
    assert_eq!(progress.acknowledge(ticket + 1, Sink::Kafka, 1), None);
    assert_eq!(progress.confirmed(), Lsn(100));
}

#[test]
fn a_transaction_that_told_nothing_is_confirmed_in_its_turn() {
    let mut progress = Progress::new(0, Lsn::ZERO, Lsn::ZERO);
    let first = progress.begin(Lsn(10), PgTime(0));
    progress.tell(Sink::Rabbit);
    progress.commit(Lsn(15));
    progress.begin(Lsn(20), PgTime(0));
    assert!(!progress.commit(Lsn(25)));
    assert_eq!(progress.confirmed(), Lsn::ZERO);
    progress.acknowledge(first, Sink::Rabbit, 1);
    assert_eq!((progress.confirmed(), progress.chain()), (Lsn(25), Lsn::ZERO));
}
