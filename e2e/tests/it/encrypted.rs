//! A stack whose every link is encrypted (`cargo stack up --tls`): nothing is answered in plain text, and every client
//! verifies its server.
//!
//! `cargo stack test --all` runs these on a stack of their own, after a payment, faults and the audit there.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use coroctl::audit::targets::Target;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use stack::certificates;
use stack::layout::{Layout, Port};
use stack::servers::Server;
use stack::services::Instance;
use tokio::io::AsyncReadExt;

use crate::harness::{Harness, binary, get};
use crate::notify::{e_mails, eventually, variable};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Ports without TLS: what the nodes of one RabbitMQ say to each other, the pages of Prometheus and Zipkin, which nothing of
/// Coro reads, OpenSearch, which has TLS by a plugin only, and the exporter of Kafka, which takes key stores of Java only.
const PLAIN: [Port; 7] = [
    Port::Epmd,
    Port::RabbitDistribution,
    Port::Prometheus,
    Port::Zipkin,
    Port::Search,
    Port::SearchTransport,
    Port::KafkaMetrics,
];

/// The stack, which has to be an encrypted one.
fn layout() -> Layout {
    let layout = Layout::from_env().unwrap();
    assert!(layout.is_encrypted(), "these tests need a stack of `cargo stack up --tls`");
    layout
}

/// The first bytes of the answer to this question; nothing if there is none.
fn answer(port: u16, question: &[u8]) -> Vec<u8> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT).unwrap();
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
    let mut answer = [0; 256];
    let read = stream.write_all(question).and_then(|()| stream.read(&mut answer)).unwrap_or(0);
    answer[..read].to_vec()
}

/// The refusal of the HTTP servers of Go, which exporters have.
const NO_TLS: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// The end of the connection, an alert of TLS (RFC 8446, section 6), or a refusal for want of TLS.
fn is_refusal(answer: &[u8]) -> bool {
    answer.is_empty() || answer.starts_with(&[21, 3]) || answer == NO_TLS
}

#[test]
#[ignore = "needs an encrypted stack: cargo stack test --all"]
fn nothing_is_answered_in_plain_text() {
    let layout = layout();
    // HTTP, Kafka (its versions), AMQP and Redis.
    let questions: [&[u8]; 4] = [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        &[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 255, 255],
        b"AMQP\x00\x00\x09\x01",
        b"PING\r\n",
    ];
    let servers = Server::of(&layout).into_iter().flat_map(|server| server.ports().to_vec());
    let ports = servers.chain(Instance::of(&layout).into_iter().flat_map(Instance::ports));
    let ports: Vec<Port> = ports.filter(|port| !PLAIN.contains(port) && *port != Port::Postgres).collect();
    assert!(ports.len() > 18, "{ports:?}");
    for port in ports {
        for question in questions {
            let answer = answer(layout.port(port), question);
            assert!(is_refusal(&answer), "{port:?}: {}", String::from_utf8_lossy(&answer));
        }
    }
}

/// As many as `cargo stack` lets one address open at the edge.
const CONNECTIONS_PER_SOURCE: usize = 4_000;

#[tokio::test]
#[ignore = "needs an encrypted stack: cargo stack test --all"]
async fn connections_that_never_shake_hands_count_for_their_address() {
    let edge = SocketAddr::from(([127, 0, 0, 1], layout().port(Port::Edge)));
    let mut connections = Vec::new();
    for _ in 0..=CONNECTIONS_PER_SOURCE {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        // An address of its own: the limit is for all from one.
        socket.bind(SocketAddr::from(([127, 0, 0, 7], 0))).unwrap();
        connections.push(socket.connect(edge).await.unwrap());
    }
    let mut last = connections.pop().unwrap();
    let mut answer = [0; 1];
    let ended = tokio::time::timeout(ANSWER_TIMEOUT, last.read(&mut answer)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let first = tokio::time::timeout(Duration::from_millis(200), connections[0].read(&mut answer)).await;
    assert!(first.is_err(), "the others are open: {first:?}");
}

/// The mail server of an encrypted stack speaks nothing but TLS.
#[tokio::test]
#[ignore = "needs an encrypted stack: cargo stack test --all"]
async fn an_e_mail_goes_out() {
    let _encrypted = layout();
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.client.contact(user).await.unwrap();
    harness.settle(user, "0812", 400).await;
    assert_eq!(e_mails(&format!("{user}@example.org"), 1).await.len(), 1);
}

/// From the request to the end, through every service, as Zipkin shows it.
#[tokio::test]
#[ignore = "needs an encrypted stack: cargo stack test --all"]
async fn a_payment_is_one_trace() {
    let _encrypted = layout();
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment = harness.settle(user, "0812", 400).await;
    let (zipkin, id) = (variable("ZIPKIN_URL"), payment["payment_id"].as_str().unwrap());
    let url = format!("{zipkin}/api/v2/traces?annotationQuery=payment_id%3D{id}");
    let spans = eventually("a trace", async || {
        let traces: Value = get(&url).await.unwrap().json().await.unwrap();
        traces[0].as_array().cloned()
    })
    .await;
    let services = spans.iter().map(|span| span["localEndpoint"]["serviceName"].as_str().unwrap());
    let services: BTreeSet<&str> = services.collect();
    assert_eq!(services, BTreeSet::from(["balance-svc", "cdc-relay", "payments-svc", "processor-svc"]));
    // The whole, six steps, the five ways between them, and the call of the gateway.
    assert_eq!(spans.len(), 13, "{spans:#?}");
}

/// Postgres begins in plain text, and then takes nobody who stays there.
#[tokio::test]
#[ignore = "needs an encrypted stack: cargo stack test --all"]
async fn postgres_lets_nobody_in_without_tls() {
    let _encrypted = layout();
    let harness = Harness::shared().await;
    let url = harness.stack.payments_database_url.replace("sslmode=verify-full", "sslmode=disable");
    let error = coroctl::databases::connect(&url).await.map(drop).unwrap_err();
    let error = error.downcast_ref::<tokio_postgres::Error>().unwrap();
    assert_eq!(error.code().unwrap().code(), "28000", "{error}");
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid)
                     where client_addr is not null and not ssl";
    let client = coroctl::databases::connect(&harness.stack.postgres_admin_url).await.unwrap();
    assert_eq!(client.query_one(encrypted, &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// The authority of another stack.
fn other_authority() -> (Layout, PathBuf) {
    let folder = std::env::temp_dir().join(format!("encrypted-{}", uuid::Uuid::now_v7()));
    let other = Layout::new(Some(folder), 30_000).unwrap();
    certificates::make(&other).unwrap();
    let authority = other.authority();
    (other, authority)
}

#[tokio::test]
#[ignore = "needs an encrypted stack: cargo stack test --all"]
async fn a_client_that_trusts_another_authority_connects_to_nobody() {
    let own = layout().authority().display().to_string();
    let harness = Harness::shared().await;
    let (other, authority) = other_authority();
    let text = authority.display().to_string();

    let url = harness.stack.payments_database_url.replace(&own, &text);
    let error = coroctl::databases::connect(&url).await.map(drop).unwrap_err();
    assert!(format!("{error:?}").contains("invalid peer certificate"), "{error:?}");

    let mut config = harness.stack.kafka().unwrap().config();
    let metadata = |config: &rdkafka::ClientConfig| {
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.fetch_metadata(None, ANSWER_TIMEOUT).map(|metadata| metadata.topics().len())
    };
    assert!(metadata(&config).unwrap() > 0);
    assert!(metadata(config.set("ssl.ca.location", &text)).is_err());

    for addresses in [&["AMQP_URL"][..], &["GATEWAY_URL", "PAYMENTS_DATABASE_URL"]] {
        assert_eq!(audited(addresses, &own), Some(0), "{addresses:?}");
        assert_eq!(audited(addresses, &text), Some(NOT_CHECKED), "{addresses:?}");
    }
    std::fs::remove_dir_all(other.dir).unwrap();
}

/// The exit code of an audit that could not read all that it has an address of.
const NOT_CHECKED: i32 = 2;

/// The exit code of an audit that has these addresses only, and trusts this authority. The database has its own in its URL.
fn audited(addresses: &[&str], authority: &str) -> Option<i32> {
    let mut audit = Command::new(binary("coroctl"));
    audit.args(["audit", "--wait=5"]).env("SSL_CERT_FILE", authority);
    for target in Target::ALL.into_iter().filter(|target| !addresses.contains(&target.variable())) {
        audit.env(target.variable(), "");
    }
    audit.output().unwrap().status.code()
}
