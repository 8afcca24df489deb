//! Members that come, go and are slow: every event has its effect, and who lost a partition commits nothing of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use saga::consumer::Limits;

use crate::harness::{Member, Reader, SubscriberState, Topics, WAIT_TIMEOUT, numbers};

fn away() -> Reader {
    Reader::new(SubscriberState { away: true, ..SubscriberState::default() })
}

/// The shortest that a group's session time-out allows.
const POLL_MAX: Duration = Duration::from_secs(6);

/// It is polled while the database is away, so its group never does without it: what was read once is applied once.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_a_member_may_be_silent_expels_nobody() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away());
    let records = numbers(0..100);
    topics.produce("t", 0, &records[..50]);
    let member = topics.member(&reader, Limits { poll: POLL_MAX, ..Limits::default() });
    reader.until(|state| state.calls >= 2).await;
    // The outage itself, not a wait for anything.
    tokio::time::sleep(POLL_MAX + Duration::from_secs(3)).await;
    topics.produce("t", 0, &records[50..]);
    reader.state().away = false;
    reader.until(|state| state.applied.len() >= 100).await;
    member.stop().await;
    assert_eq!(reader.state().applied, records, "nothing lost, nothing applied twice");
    assert_eq!(topics.committed("t", 0), Some(100));
}

/// Another client takes the member's name, and goes. The member has no use for its own client any more, and reads on by a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_fenced_comes_back_by_itself() {
    let topics = Topics::new(&[("t", 1)]).await;
    let reader = Reader::new(SubscriberState::default());
    let member = topics.member_named(Some("one"), &reader, Limits::default());
    topics.produce("t", 0, &numbers(0..10));
    reader.until(|state| state.applied.len() >= 10).await;
    let usurper = tokio::task::block_in_place(|| topics.usurper("one"));
    let began = Instant::now();
    while counted(&member, "client") < 1.0 {
        assert!(began.elapsed() < WAIT_TIMEOUT, "it was not fenced");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(usurper);
    topics.produce("t", 0, &numbers(10..20));
    reader.until(|state| state.applied.iter().any(|body| body == "19")).await;
    member.stop().await;
    let applied: BTreeSet<String> = reader.state().applied.iter().cloned().collect();
    assert_eq!(applied, numbers(0..20).into_iter().collect());
}

/// How often the member has tried again for this reason.
fn counted(member: &Member, reason: &str) -> f64 {
    let families = member.registry.gather();
    let retries = families.iter().find(|family| family.name() == "consumer_retries_total").unwrap();
    let of_reason = retries.get_metric().iter().find(|one| one.get_label()[0].value() == reason).unwrap();
    of_reason.get_counter().get_value()
}

/// A second member comes while the first one cannot apply its batch. Of the partition it loses, the first stores
/// nothing when it gets through after all: the second reads everything in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_in_the_middle_of_a_batch_loses_nothing() {
    let topics = Topics::new(&[("t", 2)]).await;
    let (first, second) = (away(), away());
    let records = [numbers(0..50), numbers(50..100)];
    for (partition, part) in (0..).zip(&records) {
        topics.produce("t", partition, part);
    }
    let one = topics.member(&first, Limits::default());
    first.until(|state| state.calls >= 2).await;
    let other = topics.member(&second, Limits::default());
    // It has a partition now, and cannot apply it either.
    second.until(|state| state.calls >= 1).await;
    first.state().away = false;
    first.until(|state| state.applied.len() >= 50).await;
    one.stop().await;
    assert!(
        topics.committed("t", 0).is_none() || topics.committed("t", 1).is_none(),
        "one partition was not its own any more"
    );
    second.state().away = false;
    let by_first: BTreeSet<String> = first.state().applied.iter().cloned().collect();
    second
        .until(|state| {
            state.applied.len() >= 50
                && by_first.iter().chain(&state.applied).collect::<BTreeSet<_>>().len() == 100
        })
        .await;
    // Events are committed after they were applied. What the first could not commit is read again.
    let (began, committed) = (Instant::now(), || [0, 1].map(|partition| topics.committed("t", partition)));
    while committed() != [Some(50); 2] {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{:?}", committed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    other.stop().await;
    for (partition, part) in (0..).zip(&records) {
        // The last reader of the partition had all of it, in order.
        let all_of_it = |reader: &Reader| {
            let state = reader.state();
            state.applied.windows(part.len()).any(|window| window == part.as_slice())
        };
        assert!(all_of_it(&first) || all_of_it(&second), "partition {partition}");
    }
}

/// A member pauses its partitions while it cannot apply its batch. One that is taken from it then is paused still when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_lost_during_a_retry_is_read_once_it_is_back() {
    let topics = Topics::new(&[("t", 2)]).await;
    let (first, second) = (away(), Reader::new(SubscriberState::default()));
    topics.produce("t", 0, &numbers(0..10));
    topics.produce("t", 1, &numbers(10..20));
    let one = topics.member(&first, Limits::default());
    first.until(|state| state.calls >= 2).await;
    let other = topics.member(&second, Limits::default());
    // It has one of the partitions now.
    second.until(|state| state.applied.len() >= 10).await;
    first.state().away = false;
    first.until(|state| state.applied.len() >= 10).await;
    other.stop().await;
    let later = [numbers(20..30), numbers(30..40)];
    topics.produce("t", 0, &later[0]);
    topics.produce("t", 1, &later[1]);
    first.until(|state| later.iter().flatten().all(|record| state.applied.contains(record))).await;
    one.stop().await;
}
