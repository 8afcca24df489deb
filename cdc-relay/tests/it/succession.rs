//! Tests several relays of the same sources: who reads, how long a change takes, and what it repeats.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Harness, Relay, eventually};
use crate::kafka::{self, chain, distinct};

/// How long the successor of a relay that died may take, on a busy machine.
const DEAD_MAX: Duration = Duration::from_secs(15);
/// The same of one that is suspended: less than the server's own limit of a minute for a session that is silent.
const SUSPENDED_MAX: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_is_succeeded_within_seconds() {
    let mut harness = Harness::new("dies").await;
    let mut reader = harness.streaming().await;
    for id in 0..3 {
        let standby = harness.start();
        standby.state("standby").await;
        let killed = Instant::now();
        reader.kill();
        standby.streams().await;
        let took = killed.elapsed();
        assert!(took < DEAD_MAX, "took {took:?}");
        harness.row("a", id, 1, "made").await;
        distinct(&harness.topic(), id as usize + 1).await;
        reader = standby;
    }
    assert_eq!(chain(&kafka::read(&harness.topic())), 3);
}

/// A suspended process still acknowledges what TCP brings, so only its silence shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_suspended_is_succeeded_and_only_repeats_when_it_wakes() {
    let mut harness = Harness::new("suspended").await;
    let reader = harness.streaming().await;
    let standby = harness.start();
    standby.state("standby").await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    reader.signal(Signal::STOP);
    harness.row("a", 2, 1, "made").await;
    let suspended = Instant::now();
    standby.streams().await;
    let took = suspended.elapsed();
    assert!(took < SUSPENDED_MAX, "took {took:?}");
    distinct(&harness.topic(), 2).await;
    reader.signal(Signal::CONT);
    reader.state("standby").await;
    harness.row("a", 3, 1, "made").await;
    let events = distinct(&harness.topic(), 3).await;
    harness.confirmed().await;
    assert_eq!(chain(&events), 3);
    let ids: Vec<&str> = events.iter().map(|event| event.header("ce_id")).collect();
    let first: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(first.len(), 3, "{ids:?}");
    // The slot was never put back, and the checkpoint fits: the one that woke can succeed again.
    standby.kill();
    reader.streams().await;
}

/// Several slots of one database, so that there are several sources.
fn routes(harness: &Harness, sources: usize) -> String {
    let Harness { name, url, .. } = harness;
    let mut text = format!(
        r#"
[relay]
state_topic = "{name}.state"
dead_letter_topic = "{name}.dead"

[[topics]]
name = "{name}.items"
partitions = 2

[[kinds]]
name = "it"
publication = "events"
event_source = "/it"

[[kinds.tables]]
name = "items"
key = "{{owner}}"
id = "it/items/{{owner}}/{{id}}/{{version}}"
topic = "{name}.items"
"#
    );
    for source in 0..sources {
        write!(
            text,
            "\n[[sources]]\nname = \"it-{source}\"\nkind = \"it\"\nurl = \"{url}\"\nslot = \"{name}_{source}\"\n"
        )
        .expect("a String");
    }
    text
}

/// The relay that streams each source; `None` while one has none, or two.
fn readers(relays: &[Relay], sources: usize) -> Option<Vec<usize>> {
    let reports: Vec<_> = relays.iter().map(Relay::health).collect();
    let reader = |source: usize| {
        let name = format!("it-{source}");
        let mut streaming =
            reports.iter().enumerate().filter(|(_, report)| report["sources"][&name]["state"] == "streaming");
        let (reader, _) = streaming.next()?;
        streaming.next().is_none().then_some(reader)
    };
    (0..sources).map(reader).collect()
}

/// Prevents a relay that idles beside one that has all of the work, and a repetition for every source that moves.
#[tokio::test(flavor = "multi_thread")]
async fn relays_share_the_sources_and_a_handover_repeats_nothing() {
    const SOURCES: usize = 4;
    let mut harness = Harness::new("shared").await;
    harness.routes(&routes(&harness, SOURCES));
    let mut relays = vec![harness.start_with(&["--share-sources"], &[])];
    eventually("the first relay to read everything", || async {
        readers(&relays, SOURCES).filter(|readers| readers.iter().all(|reader| *reader == 0))
    })
    .await;
    let mut rows = 0;
    // Which share another relay has depends on its address: at some relay the first one gives something up.
    let shared = loop {
        assert!(relays.len() < 6, "the first of six relays still reads everything");
        relays.push(harness.start_with(&["--share-sources"], &[]));
        let since = Instant::now();
        let found = loop {
            rows += 1;
            harness.row("a", rows, 1, "made").await;
            distinct(&harness.topic(), rows as usize).await;
            match readers(&relays, SOURCES) {
                Some(readers) if readers.iter().any(|reader| *reader != 0) => break Some(readers),
                // It asks after five seconds.
                _ if since.elapsed() > Duration::from_secs(15) => break None,
                _ => {}
            }
        };
        if let Some(readers) = found {
            break readers;
        }
    };
    // Once: other tests write to the same server all the time, and no slot is ever confirmed up to its newest position.
    let (end, _) = harness.positions().await;
    eventually("the slots to be confirmed", || async {
        let behind = "select 1 from pg_replication_slots where slot_name like $1 || '%'
                      and confirmed_flush_lsn - '0/0' < $2::int8::numeric";
        let behind = harness.sql.query(behind, &[&harness.name, &(end as i64)]).await.expect("slots");
        behind.is_empty().then_some(())
    })
    .await;
    let mut counts = BTreeMap::<(String, String), u32>::new();
    for event in kafka::read(&harness.topic()) {
        let of = |name| event.header(name).to_owned();
        *counts.entry((of("pg_chain"), of("ce_id"))).or_default() += 1;
    }
    assert_eq!(counts.len(), SOURCES * rows as usize);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");

    // One that has a share dies: the others take it over.
    let owner = shared.into_iter().find(|reader| *reader != 0).expect("another one reads");
    let killed = Instant::now();
    relays.remove(owner).kill();
    eventually("the others to read everything", || async { readers(&relays, SOURCES) }).await;
    assert!(killed.elapsed() < DEAD_MAX, "took {:?}", killed.elapsed());
}
