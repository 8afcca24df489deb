//! Tests of the loop without a broker: its client has partitions that were assigned by hand.

use std::sync::{Mutex, MutexGuard};

use rdkafka::consumer::BaseConsumer;
use rdkafka::message::OwnedMessage;
use rdkafka::{ClientConfig, Offset, Timestamp, TopicPartitionList};
use tokio::runtime::Runtime;

use super::*;
use crate::consumer::passed_over::slot;

/// A database that applies so many events of the users `slow …` at once, in time.
#[derive(Default)]
struct Database {
    slow_max: usize,
    applied: Mutex<Vec<i64>>,
    calls: Mutex<usize>,
}

impl Database {
    fn applied(&self) -> MutexGuard<'_, Vec<i64>> {
        self.applied.lock().unwrap()
    }
}

impl Subscriber for Database {
    /// The offset, and whether the user is slow.
    type Event = (i64, bool);
    const WRITES_TO: &'static str = "database";

    fn decode(&self, record: &Record<'_>) -> Decoding<Self::Event> {
        Decoding::Event((record.0.offset(), record.0.key().unwrap().starts_with(b"slow")))
    }

    async fn apply(
        &self,
        events: &[Delivery<'_, Self::Event>],
        _: &[Parked],
    ) -> Result<BatchCounts, ApplyError> {
        *self.calls.lock().unwrap() += 1;
        let slow: Vec<usize> = (0..events.len()).filter(|&index| events[index].event.1).collect();
        if slow.len() > self.slow_max {
            return Err(ApplyError::Late(slow));
        }
        self.applied().extend(events.iter().map(|delivery| delivery.event.0));
        Ok(BatchCounts::default())
    }
}

fn record(partition: i32, offset: i64, key: &str) -> PendingRecord<'static> {
    let key = Some(key.as_bytes().to_vec());
    let time = Timestamp::NotAvailable;
    PendingRecord::new(OwnedMessage::new(None, key, "t".to_owned(), time, partition, offset, None))
}

fn places<'r, 'c: 'r>(records: impl Iterator<Item = &'r PendingRecord<'c>>) -> Vec<(i32, i64)> {
    records.map(|read| (read.message.partition(), read.message.offset())).collect()
}

/// The loop of a client that has the partition `t/0`, and nobody to ask.
fn with_loop(database: &Database, test: impl FnOnce(&Loop<'_, Database>)) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", "127.0.0.1:9").set("group.id", "test").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.set("enable.auto.offset.store", "false").create().unwrap();
    let mut assigned = TopicPartitionList::new();
    assigned.add_partition_offset("t", 0, Offset::Beginning).unwrap();
    consumer.assign(&assigned).unwrap();
    let metrics = ConsumerMetrics::register(&prometheus::Registry::new()).unwrap();
    let (runtime, shutdown) = (Runtime::new().unwrap(), CancellationToken::new());
    test(&Loop {
        consumer: &consumer,
        topic: Some("t"),
        subscriber: database,
        metrics: &metrics,
        limits: Limits::default(),
        shutdown: &shutdown,
        runtime: runtime.handle(),
    });
}

/// If what waits were kept, it would be applied and committed ahead of what was passed over once the partition is back.
#[test]
fn everything_about_a_partition_that_was_revoked_is_dropped_at_once() {
    with_loop(&Database::default(), |of| {
        let mut carried = Carried::from([record(0, 6, "a"), record(1, 181, "a")]);
        let mut waiting = Waiting::new(Instant::now());
        waiting.sift(vec![record(0, 5, "a"), record(1, 150, "a")], |_| true);
        let mut absent = Absent::new(Instant::now());
        let first = record(1, 100, "b");
        let position = record_position(&first.message);
        absent.pass_over(vec![first], &HashSet::from([position]));
        of.read_absent_again(&mut carried, &mut waiting, &mut absent).unwrap();
        assert_eq!((places(carried.iter()), places(waiting.records())), (vec![(0, 6)], vec![(0, 5)]));
        assert!(absent.is_empty());
    });
}

/// Applies a batch with these users, whose first offset is 1; returns the offsets of what is to be tried again.
fn apply(database: &Database, keys: &[String]) -> Vec<i64> {
    let mut to_try = Vec::new();
    with_loop(database, |of| {
        let (mut waiting, mut absent) = (Waiting::new(Instant::now()), Absent::new(Instant::now()));
        // The very first record was passed over before, so no offset is stored: nobody knows the partition.
        let first = (0..).map(|number| format!("first{number}")).find(|first| is_alone(first, keys)).unwrap();
        let position = ("t".to_owned(), 0, 0);
        absent.pass_over(vec![record(0, 0, &first)], &HashSet::from([position]));
        let batch = (1..).zip(keys).map(|(offset, key)| record(0, offset, key)).collect();
        of.apply(batch, &mut Carried::new(), &mut waiting, &mut absent).unwrap();
        assert!(waiting.is_empty());
        to_try = places(absent.of(&("t".to_owned(), 0)).unwrap().to_try());
    });
    to_try.into_iter().map(|(_, offset)| offset).collect()
}

/// Whether none of the others is passed over with this user.
fn is_alone(key: &str, others: &[String]) -> bool {
    others.iter().all(|other| slot(other.as_bytes()) != slot(key.as_bytes()))
}

/// Every other one is slow, each a user of their own.
fn keys(count: usize) -> Vec<String> {
    let quick = || "quick".to_owned();
    let slow = (0..).map(|number| format!("slow{number}")).filter(|slow| is_alone(slow, &[quick()]));
    slow.take(count / 2).flat_map(|slow| [quick(), slow]).collect()
}

/// Otherwise the same batch would come again and be cut again.
#[test]
fn a_batch_that_does_not_end_in_time_is_halved_until_it_does() {
    for slow_max in [1, 7, 49, 50] {
        let database = Database { slow_max, ..Database::default() };
        assert_eq!(apply(&database, &keys(100)), [0_i64], "{slow_max} at once: nothing else is passed over");
        assert_eq!(*database.applied(), (1..=100).collect::<Vec<i64>>(), "{slow_max} at once: in order");
    }
}

/// It holds up the others for a few tries only, whatever the number of its events.
#[test]
fn a_database_that_ends_nothing_in_time_is_passed_over() {
    let database = Database::default();
    let to_try = apply(&database, &keys(128));
    assert_eq!((to_try[0], to_try.len()), (0, 5), "the last ones of its users");
    assert_eq!(*database.applied(), (1..=128).step_by(2).collect::<Vec<i64>>());
    let calls = *database.calls.lock().unwrap();
    assert!(calls < 30, "{calls}");
}

#[test]
fn each_half_of_a_part_has_as_many_of_what_is_late() {
    let part: Vec<PendingRecord<'_>> = (0..8).map(|offset| record(0, offset, "a")).collect();
    for (late, half) in [
        (vec![0, 1], 1),
        (vec![6, 7], 7),
        (vec![1, 6], 6),
        (vec![0, 3, 5, 7], 5),
        (vec![2, 3, 4], 3),
        ((0..8).collect(), 4),
    ] {
        let positions = late.iter().map(|offset| ("t".to_owned(), 0, *offset)).collect();
        assert_eq!(half_of(&part, &positions), half, "{late:?}");
    }
}
