//! Measures the processor time and the threads of a relay that has nothing to do.
//!
//! It has a Postgres of its own: WAL of other databases on the same server would keep the relay busy, since each slot's
//! walsender reports how far it has read.

use std::time::Duration;

use stack::servers::Server;

use crate::harness::{Harness, Relay, Servers, eventually};
use crate::servers::{PrivateServer, permits};

/// The duration of one measurement.
const MEASUREMENT_INTERVAL: Duration = Duration::from_secs(4);
/// Share of a core during one measurement. Nine threads that spin for a part of each poll used 0.04 to 0.08.
const BUSY_MAX: f64 = 0.02;
/// librdkafka alone has three for each producer.
const THREADS_MAX: usize = 24;

const SOURCES: [&str; 3] = ["one", "two", "three"];

fn routes(name: &str) -> String {
    let head = format!(
        "[relay]\nstate_topic = \"{name}.state\"\ndead_letter_topic = \"{name}.dead\"\n\n\
         [[topics]]\nname = \"{name}.items\"\npartitions = 2\n"
    );
    let source = |source: &str| {
        format!(
            "\n[[sources]]\nname = \"{source}\"\nurl = \"${{IT_URL}}\"\nslot = \"{name}_{source}\"\n\
             publication = \"{source}\"\nevent_source = \"/it\"\n\n\
             [[sources.tables]]\nname = \"{source}\"\n\n\
             [[sources.tables.routes]]\ntopic = \"{name}.items\"\ntype = \"made\"\n"
        )
    };
    SOURCES.iter().fold(head, |text, name| text + &source(name))
}

/// Processor seconds so far.
fn used(relay: &Relay) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", relay.pid())).expect("stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks =
        |n: usize| fields.split_whitespace().nth(n).and_then(|n| n.parse::<f64>().ok()).expect("ticks");
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}

fn threads(relay: &Relay) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", relay.pid())).expect("threads");
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let mut names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sources_at_rest_use_next_to_no_processor_and_few_threads() {
    let _permit = permits(1).await;
    let postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = Harness::bare_on(servers, "idle").await;
    for source in SOURCES {
        let sql = format!(
            "create table {source} (id bigint primary key, note text);
             create publication {source} for table {source} with (publish = 'insert, update')"
        );
        harness.sql.batch_execute(&sql).await.expect("schema");
    }
    harness.routes(&routes(&harness.name));
    let relay = harness.start();
    eventually("all sources to stream", || async {
        relay.get("/ready").filter(|answer| answer.contains("\"status\":\"ready\""))
    })
    .await;
    // The threads that a row wakes have to go idle again.
    for source in SOURCES {
        harness.sql.execute(&format!("insert into {source} values (1, 'x')"), &[]).await.expect("a row");
        let messages = format!("cdc_relay_messages_total{{sink=\"kafka\",source=\"{source}\"}}");
        eventually("the row to be emitted", || async { (relay.metric(&messages) >= 1.0).then_some(()) })
            .await;
    }
    let mut last = (0.0, Vec::new());
    for _ in 0..5 {
        let before = used(&relay);
        tokio::time::sleep(MEASUREMENT_INTERVAL).await;
        last = ((used(&relay) - before) / MEASUREMENT_INTERVAL.as_secs_f64(), threads(&relay));
        if last.0 <= BUSY_MAX && last.1.len() <= THREADS_MAX {
            return;
        }
    }
    panic!("the idle relay used {:.3} of a core, with {} threads: {:?}", last.0, last.1.len(), last.1);
}
