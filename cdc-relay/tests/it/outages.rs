//! Kills, suspends and starves servers under load. Each server belongs to one test.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use stack::servers::{Node, Server};

use crate::harness::{Harness, Servers, eventually};
use crate::load::under_load;
use crate::servers::{PrivateServer, permits};

/// Time for one pause between attempts and one check of the database and its topics, on a busy machine.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_crashes_under_load_costs_nothing() {
    let _permits = permits(2).await;
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "crash").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    for kill in [false, true, false] {
        load.more(100).await;
        if kill {
            postgres.kill();
        } else {
            postgres.crash();
        }
        relay.state("connecting").await;
        postgres.run().await;
        let back = Instant::now();
        relay.streams().await;
        assert!(back.elapsed() < RECOVERY_TIMEOUT, "it took {:?}", back.elapsed());
    }
    load.more(100).await;
    load.stop().await;
    harness.reconnect().await;
    oracle.judge(&harness).await.expect(400);
    drop((relay, harness));
}

/// The pauses between attempts do not grow with the outage.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn after_a_long_outage_of_postgres_the_relay_streams_within_seconds() {
    let _permits = permits(2).await;
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "away").await;
    let (relay, oracle, load) = under_load(&mut harness, false).await;
    for _ in 0..2 {
        postgres.stop();
        tokio::time::sleep(Duration::from_secs(40)).await;
        postgres.run().await;
        let back = Instant::now();
        relay.streams().await;
        assert!(back.elapsed() < RECOVERY_TIMEOUT, "it took {:?}", back.elapsed());
        load.more(50).await;
    }
    load.stop().await;
    harness.reconnect().await;
    oracle.judge(&harness).await.expect(100);
    drop((relay, harness));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_killed_under_load_costs_nothing() {
    let _permits = permits(2).await;
    let mut kafka = PrivateServer::start(Server::Kafka(Node::One)).await;
    let servers = Servers { kafka: kafka.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "kafka").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    for _ in 0..2 {
        load.more(200).await;
        kafka.kill();
        // RabbitMQ acknowledges everything; the slot stays where it is all the same.
        load.more(200).await;
        kafka.run().await;
        harness.confirmed().await;
    }
    load.stop().await;
    oracle.judge(&harness).await.expect(600);
    drop((relay, harness));
}

/// Connections stay open, and the broker does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_hangs_under_load_costs_nothing() {
    let _permits = permits(2).await;
    let kafka = PrivateServer::start(Server::Kafka(Node::One)).await;
    let servers = Servers { kafka: kafka.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "hangs").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    for seconds in [2, 12] {
        load.more(100).await;
        kafka.signal(Signal::STOP);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        kafka.signal(Signal::CONT);
        harness.confirmed().await;
    }
    load.stop().await;
    oracle.judge(&harness).await.expect(400);
    drop((relay, harness));
}

/// The server ends a session that is silent for six seconds, and another relay begins to read while the first one still waits for its
/// sinks.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stops_while_kafka_hangs_keeps_its_slot_until_it_ends() {
    let _permits = permits(2).await;
    let kafka = PrivateServer::start(Server::Kafka(Node::One)).await;
    let servers = Servers { kafka: kafka.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "drains").await;
    let relay = harness.streaming().await;
    kafka.signal(Signal::STOP);
    harness.row("a", 1, 1, "made").await;
    eventually("a row in flight", || async {
        (relay.metric("cdc_relay_in_flight_bytes{sink=\"kafka\"") > 0.0).then_some(())
    })
    .await;
    let asked = Instant::now();
    relay.signal(Signal::TERM);
    harness.slot_is_free().await;
    let took = asked.elapsed();
    kafka.signal(Signal::CONT);
    assert!(took >= Duration::from_secs(9), "the slot was free after {took:?}");
    drop((relay, harness));
}

/// The time it takes librdkafka to give up requests and connections.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn a_kafka_that_hangs_for_longer_than_any_time_out_costs_nothing() {
    let _permits = permits(2).await;
    let kafka = PrivateServer::start(Server::Kafka(Node::One)).await;
    let servers = Servers { kafka: kafka.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "wedged").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    kafka.signal(Signal::STOP);
    tokio::time::sleep(Duration::from_secs(100)).await;
    kafka.signal(Signal::CONT);
    load.more(100).await;
    load.stop().await;
    oracle.judge(&harness).await.expect(200);
    drop((relay, harness));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rabbitmq_that_is_killed_under_load_costs_nothing() {
    let _permits = permits(2).await;
    let mut rabbit = PrivateServer::start(Server::RabbitMq(Node::One)).await;
    let servers = Servers { amqp: rabbit.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "rabbit").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    load.more(200).await;
    // Every confirmed message, be it the first of a new queue, has to survive the kill.
    harness.confirmed().await;
    rabbit.kill();
    load.more(200).await;
    rabbit.run().await;
    harness.confirmed().await;
    load.more(100).await;
    load.stop().await;
    oracle.judge(&harness).await.expect(400);
    drop((relay, harness));
}

/// The broker accepts connections, and reads nothing from those that publish.
#[tokio::test(flavor = "multi_thread")]
async fn a_rabbitmq_that_is_short_of_memory_holds_work_back_and_loses_none() {
    let _permits = permits(2).await;
    let rabbit = PrivateServer::start(Server::RabbitMq(Node::One)).await;
    let servers = Servers { amqp: rabbit.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "alarm").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    let watermark = |value: &str| {
        let output =
            rabbit.tool("rabbitmqctl").args(["set_vm_memory_high_watermark", "absolute", value]).output();
        let output = output.expect("rabbitmqctl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    watermark("1MB");
    load.more(300).await;
    let (end, confirmed) = harness.positions().await;
    assert!(confirmed < Some(end), "nothing was held back");
    watermark("512MB");
    harness.confirmed().await;
    load.stop().await;
    oracle.judge(&harness).await.expect(300);
    drop((relay, harness));
}
