//! Work messages over RabbitMQ: every one has its effect once, whatever it looks like and whoever is killed.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use processor_svc::work::Job;

use crate::harness::{
    Database, Gateway, NOWHERE, Processor, WAIT_TIMEOUT, bound, env, flags, instead, job, jobs, process,
};
use crate::queue::{Queue, body, with_queue};
use crate::restores::{Known, until_redis_answers};

pub const SUCCEEDED: &str = "select count(*) from charges where status = 'succeeded'";
pub const PARKED: &str = "select count(*) from parked";

/// A processor with a database, a gateway and a queue of its own.
struct Harness {
    database: Database,
    gateway: Gateway,
    queue: Queue,
    processor: Processor,
}

impl Harness {
    /// The processor starts after `messages` are in the queue.
    async fn new(redis: &str, messages: impl AsyncFnOnce(&Queue)) -> Harness {
        let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
        messages(&queue).await;
        let processor = Processor::with(with_queue(&database, &gateway, &queue, redis)).await;
        Harness { database, gateway, queue, processor }
    }

    async fn jobs(&self, result: &str) -> f64 {
        self.processor.metric(&format!("processor_jobs_total{{result=\"{result}\"}}")).await
    }

    async fn end(self) {
        self.processor.end().await;
        self.queue.end().await;
        self.gateway.end().await;
        self.database.end().await;
    }
}

fn without_redis() -> String {
    format!("redis://{NOWHERE}")
}

#[tokio::test]
async fn each_message_is_charged_once_and_its_duplicate_not_at_all() {
    let good = jobs(300, "5551234");
    let harness = Harness::new(&without_redis(), async |queue| {
        queue.send(&good).await;
        queue.send(&good[..50]).await;
    })
    .await;
    harness.database.until(SUCCEEDED, 300).await;
    until_metric(&harness.processor, ENDED, ALREADY, 50.0).await;
    assert_eq!(harness.gateway.ledger().await.len(), 300);
    assert_eq!((harness.jobs("calling").await, harness.jobs("parked").await), (300.0, 0.0));
    harness.end().await;
}

#[tokio::test]
async fn a_declined_message_ends_declined_among_others() {
    let harness = Harness::new(&without_redis(), async |queue| {
        queue.send(&jobs(10, "5551234")).await;
        queue.send(&[job("1-decline")]).await;
    })
    .await;
    harness.database.until(SUCCEEDED, 10).await;
    harness.database.until("select count(*) from charges where status = 'declined'", 1).await;
    assert_eq!(harness.gateway.ledger().await.len(), 10);
    assert_eq!((harness.jobs("calling").await, harness.jobs("parked").await), (11.0, 0.0));
    harness.end().await;
}

#[tokio::test]
async fn an_unreadable_message_is_parked_and_those_around_it_are_charged() {
    let good = jobs(20, "5551234");
    let harness = Harness::new(&without_redis(), async |queue| {
        queue.send(&good[..10]).await;
        queue.publish(b"not json", BasicProperties::default().with_message_id("m1".into())).await;
        queue.publish(b"{}", BasicProperties::default()).await;
        queue.send(&good[10..]).await;
    })
    .await;
    harness.database.until(SUCCEEDED, 20).await;
    harness.database.until(PARKED, 2).await;
    assert_eq!(harness.gateway.ledger().await.len(), 20);
    assert_eq!((harness.jobs("calling").await, harness.jobs("parked").await), (20.0, 2.0));
    harness.end().await;
}

/// The same payment as another charge: refused, and kept for an operator.
#[tokio::test]
async fn a_payment_that_comes_again_as_another_charge_is_parked() {
    let good = jobs(10, "5551234");
    let mut conflicting = good[7].clone();
    conflicting.charge.amount += 1;
    let harness = Harness::new(&without_redis(), async |queue| queue.send(&good).await).await;
    harness.database.until(SUCCEEDED, 10).await;
    let again = BasicProperties::default().with_message_id("m2".into());
    harness.queue.publish(&body(&conflicting), again).await;
    harness
        .database
        .until(
            "select count(*) from parked where parked_id like '%/m2' and reason like '%different charge%'",
            1,
        )
        .await;
    assert_eq!(harness.gateway.ledger().await.len(), 10);
    assert_eq!((harness.jobs("calling").await, harness.jobs("parked").await), (10.0, 1.0));
    harness.end().await;
}

/// A message id is the sender's to choose: one that was parked under it hides no other.
#[tokio::test]
async fn each_message_that_cannot_be_taken_is_parked_whatever_its_id_is() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let taken = job("5551234");
    let mut conflicting = taken.clone();
    conflicting.charge.amount += 1;
    queue.send(std::slice::from_ref(&taken)).await;
    let named = || BasicProperties::default().with_message_id("m".into());
    let processor =
        Processor::with(with_queue(&database, &gateway, &queue, &format!("redis://{NOWHERE}"))).await;
    database.until(SUCCEEDED, 1).await;
    for _ in 0..2 {
        for body in [b"not json".to_vec(), b"{}".to_vec(), body(&conflicting)] {
            queue.publish(&body, named()).await;
        }
        queue.publish(b"{}", named().with_type("payment.exploded.v1".into())).await;
    }
    // What is behind them is taken up after them.
    queue.send(&[job("5551234")]).await;
    database.until(SUCCEEDED, 2).await;
    assert_eq!(database.number(PARKED).await, 4);
    assert!(processor.metric("saga_contradictions_total").await >= 1.0);
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn a_queue_that_is_not_there_yet_is_waited_for() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::unborn().await);
    let processor =
        Processor::with(with_queue(&database, &gateway, &queue, &format!("redis://{NOWHERE}"))).await;
    let tries = "processor_failures_total{of=\"broker\"}";
    // It tries again and again.
    processor.until(tries, |failed| failed >= 2.0).await;
    queue.declare(false).await;
    queue.send(&jobs(10, "5551234")).await;
    database.until(SUCCEEDED, 10).await;
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

/// One of four nodes is there: whichever is tried first, its messages are taken, without a failure in between.
#[tokio::test]
async fn nodes_that_are_gone_are_passed_over() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let url = env("AMQP_URL");
    let (login, places) = url.rsplit_once('@').unwrap();
    let flags: Vec<String> = with_queue(&database, &gateway, &queue, &format!("redis://{NOWHERE}"))
        .into_iter()
        .map(|flag| match flag.starts_with("--amqp-url=") {
            true => format!("--amqp-url={login}@{NOWHERE},{NOWHERE},{NOWHERE},{places}"),
            false => flag,
        })
        .collect();
    for number in 1..=5 {
        let processor = Processor::with(flags.clone()).await;
        queue.send(&[job("5551234")]).await;
        database.until(SUCCEEDED, number).await;
        assert_eq!(processor.metric("processor_failures_total{of=\"broker\"}").await, 0.0);
        processor.end().await;
    }
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

/// Three nodes take connections and say nothing, as frozen ones do: a processor that waits for them stops at once all the same.
#[tokio::test]
async fn a_processor_that_waits_for_nodes_stops_at_once() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let silent: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let places: Vec<String> = silent.iter().map(|node| node.local_addr().unwrap().to_string()).collect();
    let mut flags = with_queue(&database, &gateway, &queue, &format!("redis://{NOWHERE}"));
    flags.retain(|flag| !flag.starts_with("--amqp-url="));
    flags.push(format!("--amqp-url=amqp://u:p@{}/%2f", places.join(",")));
    let processor = Processor::with(flags).await;
    // It has connected to the first, and waits for an answer.
    let connected = tokio::task::spawn_blocking(move || {
        silent.iter().for_each(|node| node.set_nonblocking(true).unwrap());
        loop {
            if let Some(connection) = silent.iter().find_map(|node| node.accept().ok()) {
                return (silent, connection);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let _held = tokio::time::timeout(WAIT_TIMEOUT, connected).await.unwrap().unwrap();
    let began = Instant::now();
    processor.end().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

/// The sum of all versions and attempts: every change of a row adds to it. On a busy machine a call may be late, so not all
/// charges have ended by their first.
const ROWS: &str = "select sum(version + attempt)::bigint from charges";

/// Twenty charges that have ended, what Redis holds of them, and their `ROWS`.
async fn ended() -> (Harness, Vec<Job>, Known, i64) {
    let harness = Harness::new(&env("REDIS_URL"), async |_| {}).await;
    until_redis_answers(&harness.processor, &harness.queue).await;
    let all = jobs(20, "5551234");
    harness.queue.send(&all).await;
    harness.database.until(SUCCEEDED, 20).await;
    let known = Known::of(&harness.database, &all).await;
    let rows = harness.database.number(ROWS).await;
    (harness, all, known, rows)
}

/// Nothing was charged again, and no row has changed.
async fn ends_as_it_was(harness: Harness, rows: i64) {
    assert_eq!((harness.gateway.ledger().await.len(), harness.database.number(ROWS).await), (20, rows));
    harness.end().await;
}

const ENDED: &str = "processor_jobs_total{result=\"ended\"}";
const ALREADY: &str = "processor_jobs_total{result=\"already\"}";

#[tokio::test]
async fn a_duplicate_of_an_ended_charge_is_dropped_by_redis() {
    let (harness, all, _known, rows) = ended().await;
    // The processor waits for Redis for a few milliseconds, which are too few at times on a busy machine.
    let mut sent = 0.0;
    while harness.jobs("ended").await == 0.0 {
        assert!(sent < 1_000.0, "Redis answered in time for none of {sent}");
        harness.queue.send(&all).await;
        sent += 20.0;
        until_metric(&harness.processor, ENDED, ALREADY, sent).await;
    }
    ends_as_it_was(harness, rows).await;
}

/// With Redis as without.
#[tokio::test]
async fn another_charge_under_a_payment_that_has_ended_is_no_duplicate() {
    let (harness, all, mut known, rows) = ended().await;
    let mut other = all[0].clone();
    other.charge.amount += 1;
    harness.queue.send(&[other.clone()]).await;
    harness.database.until(PARKED, 1).await;
    known.delete().await;
    other.charge.amount += 1;
    let again = BasicProperties::default().with_message_id("m2".into());
    harness.queue.publish(&body(&other), again).await;
    harness.database.until(PARKED, 2).await;
    ends_as_it_was(harness, rows).await;
}

#[tokio::test]
async fn a_duplicate_of_an_ended_charge_is_dropped_by_its_row_when_redis_is_empty() {
    let (harness, all, mut known, rows) = ended().await;
    known.delete().await;
    harness.queue.send(&all).await;
    until_metric(&harness.processor, ENDED, ALREADY, 20.0).await;
    assert_eq!(harness.jobs("ended").await, 0.0, "only the row says so");
    ends_as_it_was(harness, rows).await;
}

/// The gateway is down, then up: meanwhile messages wait in the queue, and nothing is lost or charged twice.
#[tokio::test]
async fn while_the_gateway_fails_messages_wait_in_the_queue() {
    let (database, queue) = (Database::new().await, Queue::new().await);
    // Nobody listens there yet.
    let socket = bound();
    let address = socket.local_addr().unwrap();
    let redis = format!("redis://{NOWHERE}");
    let mut flags = flags(&database.url, &address.to_string(), &env("AMQP_URL"), &redis);
    flags.push(format!("--queue={}", queue.name));
    // After each pause a few more messages are taken: it is so long that they stay few.
    let breaker = ["--breaker-faults=5", "--breaker-probes=2", "--breaker-pause-ms=1000", "--calls-max=8"];
    let flags = instead(flags, &breaker);
    // An inquiry is due before and after: those go on.
    let unknown = job("5551234");
    let store = database.store(Duration::from_millis(1));
    store.admit(&[&unknown], &[]).await.unwrap();
    let processor = Processor::with(flags).await;
    let all = jobs(200, "5551234");
    queue.send(&all).await;
    let state = "processor_breaker_state";
    processor.until(state, |state| state == 2.0).await;
    let refused = "select least(count(*), 1) from charges where status = 'waiting'";
    database.until(refused, 1).await;
    let inquiries = "processor_inquiries_total{finding=\"unavailable\"}";
    let before = processor.metric(inquiries).await;
    processor.until(inquiries, |inquiries| inquiries >= before + 3.0).await;
    // What was taken: the calls of one or two rounds, and a few probes after each pause.
    let taken = database.number("select count(*) from charges").await;
    assert!(taken < 100, "{taken} messages were taken to a gateway that is down");
    assert_eq!(database.number("select count(*) from charges where exposed").await, 1);

    let gateway = Gateway::listening(socket);
    database.until(SUCCEEDED, 201).await;
    processor.until(state, |state| state == 0.0).await;
    assert_eq!(gateway.ledger().await.len(), 201);
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

/// A gateway that declines everything works.
#[tokio::test]
async fn declines_never_open_the_breaker() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let flags = with_queue(&database, &gateway, &queue, &format!("redis://{NOWHERE}"));
    // Once open it would stay so for longer than anything is waited for; and no call is slow but by a fault.
    let breaker = ["--breaker-faults=1", "--breaker-pause-ms=3600000", "--call-ms=30000"];
    let processor = Processor::with(instead(flags, &breaker)).await;
    queue.send(&jobs(100, "1-decline")).await;
    queue.send(&jobs(100, "1-decline200")).await;
    database.until("select count(*) from charges where status = 'declined'", 200).await;
    assert_eq!(processor.metric("processor_breaker_state").await, 0.0);
    queue.send(&[job("1-http500")]).await;
    processor.until("processor_breaker_state", |state| state == 2.0).await;
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

pub async fn until_metric(processor: &Processor, one: &str, other: &str, sum: f64) {
    let reached = async {
        while processor.metric(one).await + processor.metric(other).await < sum {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, reached).await.unwrap_or_else(|_| panic!("{one} + {other} = {sum}"));
}

#[tokio::test]
async fn killed_again_and_again_it_charges_every_payment_once() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let flags = with_queue(&database, &gateway, &queue, &env("REDIS_URL"));
    // Busy with so many, a machine may not answer a call in the time of the other tests.
    let flags = instead(flags, &["--call-ms=2000"]);
    let numbers = ["1-jitter40", "1-tail10", "1-thenhang", "1-hang", "1-thenreset", "1-http500"];
    let good: Vec<Job> = (0..600).map(|n| job(numbers[n % numbers.len()])).collect();
    let declined: Vec<Job> = (0..60).map(|_| job("1-decline-jitter40")).collect();
    for (killed, part) in (0i64..).zip(good.chunks(100).zip(declined.chunks(10))) {
        let mut child = process(&flags, "");
        queue.send(part.0).await;
        queue.send(part.1).await;
        // Into the middle of it: as soon as some are under way.
        let begun = killed * 110 + 5;
        database.until(&format!("select least(count(*), {begun}) from charges"), begun).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let processor = Processor::with(flags).await;
    database.until(SUCCEEDED, 600).await;
    database.until("select count(*) from charges where status = 'declined'", 60).await;
    let ledger = gateway.ledger().await;
    let mut expected: Vec<_> = good.iter().map(|j| (j.charge.payment_id.to_string(), 15_000)).collect();
    expected.sort();
    assert_eq!(ledger, expected);
    assert_eq!(database.number(PARKED).await, 0);
    let lapsed = "select count(*) from charge_attempts where kind = 'sweep'";
    assert!(database.number(lapsed).await > 0, "no kill met a call under way");
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}
