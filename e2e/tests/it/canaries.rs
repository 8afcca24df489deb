//! No log shows personal data or secrets: what people typed, tokens, and passwords.
//!
//! * Canaries stand wherever a client, an operator or a forged message can put text. They go the way of success and of each
//!   kind of failure.
//! * Then no log has one: neither those of services nor those of servers. Ids may be logged.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coroctl::audit::read::search;
use coroctl::audit::targets::Targets;
use coroctl::client::order;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use saga::contract::{BALANCE_TOPIC, HEADER_TYPE, PAYMENT_QUEUE, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde_json::{Value, json};
use stack::layout::Layout;
use uuid::Uuid;

use crate::harness::{EXPLAINED, Harness, WAIT_TIMEOUT, producer};
use crate::instance::FurtherInstance;
use crate::notify::{eventually, operate, variable};
use crate::raw_http::{request, send};

/// A text that nothing else contains.
struct Canary(String);

impl Canary {
    fn new() -> Self {
        Self(format!("cn{}", &Uuid::new_v4().simple().to_string()[..20]))
    }

    /// Its use somewhere; the place is part of the text, so that a log that has it says where it came from.
    fn at(&self, place: &str) -> String {
        format!("{}{place}", self.0)
    }
}

/// Every log of the stack: those of services and servers, and those that servers keep beside their data.
fn logs(layout: &Layout) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(layout.dir.join("logs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_file());
    assert!(found.len() > 10, "{found:?}");
    let mut folders = vec![layout.data.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // Kafka's records and Postgres' rows are data, and end in `.log` too.
            let is_data = ["PaymentTopic", "kafka/logs", "cluster", "mnesia"]
                .iter()
                .any(|part| path.to_string_lossy().contains(part));
            if is_folder && !is_data {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                found.push(path);
            }
        }
    }
    found
}

/// Lines of logs that contain one of the texts.
fn shown(logs: &[PathBuf], texts: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for path in logs {
        let bytes = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let has_one = |line: &&str| texts.iter().any(|text| line.contains(text));
        lines.extend(text.lines().filter(has_one).map(|line| format!("{name}: {line:.400}")));
    }
    lines
}

/// The same text in the other ways in which a log may write it.
fn spellings(text: &str) -> Vec<String> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let decimal = |between| text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(between);
    vec![text.to_owned(), hex, decimal(", "), decimal(",")]
}

/// Requests of clients, at the edge and at a service.
async fn clients(harness: &Harness, canary: &Canary) {
    let user = Uuid::now_v7().to_string();
    let user = user.as_str();
    let json = ("content-type", "application/json");
    let service = &harness.stack.demo_service_id;
    let number = canary.at("number");
    let good = |key: &str| order(&number, service, 100, key);
    let with = |field: &str, value: Value| {
        let mut body = good(&canary.at("bodykey"));
        body[field] = value;
        body.to_string()
    };
    let bodies = [
        good(&canary.at("bodykey")).to_string(),
        with("amount", json!(canary.at("amount"))),
        with("amount", json!(-1)),
        with(&canary.at("field"), json!(1)),
        with("service_id", json!(canary.at("service"))),
        with("client_number", json!(format!("{}@mail.example", canary.at("mail")))),
        with("client_number", json!(canary.at("number").repeat(5))),
        with("idempotency_key", json!(format!("{}\u{0}", canary.at("nul")))),
        format!("{{\"client_number\":\"{}\"", canary.at("broken")),
        format!("{{\"{0}\":1,\"{0}\":2}}", canary.at("twice")),
        canary.at("nojson"),
    ];
    let (bearer, key, trace) =
        (format!("Bearer {}", canary.at("bearer")), canary.at("headerkey"), canary.at("trace"));
    let (cookie, last, agent) =
        (format!("session={}", canary.at("cookie")), canary.at("last"), canary.at("agent"));
    let fields = [
        ("authorization", bearer.as_str()),
        ("idempotency-key", key.as_str()),
        ("traceparent", trace.as_str()),
        ("cookie", cookie.as_str()),
        ("last-event-id", last.as_str()),
        ("user-agent", agent.as_str()),
        ("referer", agent.as_str()),
    ];
    for door in [&harness.stack.edge_url, &harness.stack.payments_url] {
        for body in &bodies {
            for more in [&[][..], &fields[..]] {
                let headers = [("host", "coro"), ("x-user-id", user), json];
                let headers: Vec<_> = headers.iter().chain(more).copied().collect();
                request(door, "POST /payments HTTP/1.1", &headers, body).await;
            }
        }
        paths(door, canary, user, &fields).await;
        broken(door, canary).await;
    }
    paths(&harness.stack.balance_url, canary, user, &fields).await;
}

/// Paths and queries, right and wrong, as a user and as nobody.
async fn paths(door: &str, canary: &Canary, user: &str, fields: &[(&str, &str)]) {
    let (query, path, nobody) = (canary.at("query"), canary.at("path"), canary.at("user"));
    let id = Uuid::now_v7();
    for line in [
        format!("GET /payments?idempotency_key={query}"),
        format!("GET /payments?status={query}&service_id={query}&cursor={query}&{query}=1"),
        format!("GET /payments/search?q={query}"),
        format!("GET /payments/{path}"),
        format!("GET /payments/{id}?wait={query}"),
        format!("GET /payments/{id}/events?{query}"),
        format!("POST /payments/{path}/cancel?{query}"),
        format!("GET /balance?{query}"),
        format!("GET /balance/movements?cursor={query}"),
        format!("GET /{path}?{query}"),
        format!("BREW /payments?{query}"),
        format!("OPTIONS /payments?{query}"),
    ] {
        for user in [user, &nobody] {
            let headers: Vec<_> =
                [("host", "coro"), ("x-user-id", user)].iter().chain(fields).copied().collect();
            request(door, &format!("{line} HTTP/1.1"), &headers, "").await;
        }
    }
}

/// What is no HTTP.
async fn broken(door: &str, canary: &Canary) {
    let many: String = (0..200).map(|nth| format!("x-{nth}: {}\r\n", canary.at("many"))).collect();
    for text in [
        format!("{}\r\n\r\n", canary.at("nonsense")),
        format!(
            "GET /payments?q={} HTTP/1.1\r\nhost: coro\r\nbad name: {}\r\n\r\n",
            canary.at("q"),
            canary.at("bad")
        ),
        format!("GET /payments?q={0} HTTP/1.1\r\nhost: {0}\r\nhost: {0}\r\n\r\n", canary.at("host")),
        format!("GET /payments/\u{1}{} HTTP/1.1\r\nhost: coro\r\n\r\n", canary.at("control")),
        format!("GET /services HTTP/1.1\r\nhost: coro\r\n{many}\r\n"),
    ] {
        send(door, text.as_bytes()).await;
    }
}

/// Payments that the gateway answers badly, and one that it completes; each has the canary in its number.
async fn gateway(harness: &Harness, canary: &Canary) -> Value {
    let user = harness.client.user_with(1_000_000).await.unwrap();
    for script in ["decline", "thenhttp500", "http502", "garbage", "cut", "strayno", "amountno"] {
        harness.client.pay(user, &format!("{}-{script}", canary.at("n")), 100).await.unwrap();
    }
    let completed = harness.settle(user, &canary.at("completed"), 100).await;
    assert_eq!(completed["status"], "completed");
    completed
}

/// Operators' mistakes at admin listeners.
async fn operators(harness: &Harness, canary: &Canary) {
    let door = &harness.stack.balance_admin_url;
    let bearer = format!("Bearer {}", canary.at("admintoken"));
    let wrong =
        [("host", "localhost"), ("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = json!({"user_id": canary.at("account"), "amount": 1, "idempotency_key": canary.at("deposit")});
    request(door, "POST /deposits HTTP/1.1", &wrong, &body.to_string()).await;
    let bearer = format!("Bearer {}", harness.stack.admin_token);
    let right =
        [("host", "localhost"), ("authorization", bearer.as_str()), ("content-type", "application/json")];
    request(door, "POST /deposits HTTP/1.1", &right, &body.to_string()).await.expect_problem(
        400,
        "validation",
        door,
    );
}

/// An address and a URL at the notifier: refused, and then used, the URL without success. Returns the endpoint's secret.
async fn notifications(harness: &Harness, canary: &Canary) -> String {
    let user = harness.client.user_with(1_000).await.unwrap();
    let channel = format!("canary-{}", user.simple());
    let (contact, endpoint) = (format!("/contacts/{user}"), format!("/endpoints/{channel}"));
    let door = variable("NOTIFIER_ADMIN_URL");
    let bearer = format!("Bearer {}", harness.stack.admin_token);
    let headers =
        [("host", "localhost"), ("authorization", bearer.as_str()), ("content-type", "application/json")];
    let (address, url) = (json!({"email": canary.at("address")}), json!({"url": canary.at("url")}));
    for (path, body) in [(&contact, address), (&endpoint, url)] {
        let answer = request(&door, &format!("PUT {path} HTTP/1.1"), &headers, &body.to_string()).await;
        answer.expect_problem(400, "validation", path);
    }
    let address = json!({"email": format!("{}@mail.example", canary.at("mailbox"))});
    operate(harness, "PUT", &contact, &address).await;
    let url = json!({"url": format!("http://127.0.0.1:1/{0}?{0}", canary.at("hook"))});
    let created = operate(harness, "PUT", &endpoint, &url).await;
    let payment = harness.settle(user, "0812", 400).await;
    let path = format!("/notifications/{}", payment["payment_id"].as_str().unwrap());
    eventually("an e-mail that is sent, and a webhook that is not", async || {
        let found = operate(harness, "GET", &path, &Value::Null).await;
        let of = |channel: &str| {
            let found = found["notifications"].as_array().unwrap().iter();
            found.clone().find(|notification| notification["channel"] == channel).cloned().unwrap_or_default()
        };
        (of("email")["delivered_at"].is_string() && of(&channel)["last_error"].is_string()).then_some(())
    })
    .await;
    operate(harness, "DELETE", &endpoint, &Value::Null).await;
    operate(harness, "DELETE", &contact, &Value::Null).await;
    created["secret"].as_str().unwrap().to_owned()
}

/// Statements that Postgres refuses: rows that break constraints, with values in the text and as parameters.
async fn statements(harness: &Harness, canary: &Canary) {
    let (server, _) = harness.stack.postgres_admin_url.rsplit_once('/').unwrap();
    let client = sql::connect(&format!("{server}/payments")).await.unwrap();
    let (literal, parameter) = (canary.at("literal"), canary.at("parameter"));
    let columns = "insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, expires_at)";
    let refused = format!(
        "{columns} values (gen_random_uuid(), gen_random_uuid(), '{literal}', '', '{literal}', 'x', 0, now())"
    );
    client.batch_execute(&refused).await.expect_err("an amount of 0");
    let refused =
        format!("{columns} values (gen_random_uuid(), gen_random_uuid(), $1, '', $1, 'x', 0, now())");
    client.execute(&refused, &[&parameter]).await.expect_err("an amount of 0");
    client.batch_execute(&format!("select '{literal}' from nowhere")).await.expect_err("no such table");
}

/// The topic of a record, `ce_type` and text: each cannot be applied, or contradicts the payment's row.
fn forgeries(completed: &Value, canary: &Canary) -> Vec<(&'static str, String, String)> {
    let (user, payment) = (&completed["user_id"], &completed["payment_id"]);
    let new = Uuid::now_v7();
    let initiated = json!({
        "user_id": user, "payment_id": new, "client_number": canary.at("forged"), "service_id": completed["service_id"],
        "amount": 0, "status": "initiated", "event": "initiated", "reason": null, "version": 1, "traceparent": null,
        "initiated_at": "2026-11-28T12:00:00.000000Z", "expires_at": "2026-11-28T12:15:00.000000Z", "authorized_at": null,
        "completed_at": null, "rejected_at": null, "failed_at": null, "cancelled_at": null, "cancel_requested_at": null,
    });
    let mut no_amount = initiated.clone();
    no_amount["amount"] = json!(canary.at("noamount"));
    let unknown = json!({
        "payment_id": payment, "user_id": user, "client_number": canary.at("another"), "service_id": completed["service_id"],
        "amount": completed["amount"], "status": "unknown", "reason": canary.at("reason"), "version": 2, "attempt": 1,
        "created_at": "2026-11-28T12:00:00.000000Z",
    });
    let entry = json!({
        "user_id": user, "payment_id": payment, "phase": canary.at("phase"), "kind": "hold", "amount": 100,
        "service_id": canary.at("ledger"),
    });
    let type_text = canary.at("type");
    let forgeries = [
        // A hold of nothing: a constraint of the ledger refuses the row.
        (PAYMENT_TOPIC, "payment.initiated.v1", initiated.to_string()),
        // Readers quote what they cannot read: an amount that is a text, and a type that nobody knows.
        (PAYMENT_TOPIC, "payment.initiated.v1", no_amount.to_string()),
        (PAYMENT_TOPIC, type_text.as_str(), initiated.to_string()),
        (PAYMENT_TOPIC, "payment.initiated.v1", canary.at("unreadable")),
        (PAYMENT_TOPIC, "payment.exploded.v1", canary.at("untyped")),
        (PAYMENT_RESULT_TOPIC, "payment.result.unknown.v1", unknown.to_string()),
        (BALANCE_TOPIC, "balance.held.v1", entry.to_string()),
    ];
    forgeries.map(|(topic, kind, body)| (topic, kind.to_owned(), body)).into()
}

/// Those on the topic of payments that no subscriber can read.
const UNREADABLE_PAYMENTS: usize = 4;

/// Produces them; returns the ids under which they will be parked.
async fn forge(completed: &Value, canary: &Canary) -> BTreeSet<String> {
    let producer = producer();
    let key = completed["user_id"].as_str().unwrap();
    let mut parked = BTreeSet::new();
    for (topic, kind, body) in forgeries(completed, canary) {
        let text = canary.at("header");
        let headers = OwnedHeaders::new()
            .insert(Header { key: EXPLAINED.0, value: Some(EXPLAINED.1) })
            .insert(Header { key: HEADER_TYPE, value: Some(&kind) })
            .insert(Header { key: "traceparent", value: Some(&text) });
        let record = FutureRecord::to(topic).key(key).payload(&body).headers(headers);
        let at = producer.send(record, WAIT_TIMEOUT).await.map_err(|(error, _)| error).unwrap();
        parked.insert(format!("{topic}/{}/{}", at.partition, at.offset));
    }
    parked
}

/// Work that is none, and another charge than the one that was made.
async fn misplace(harness: &Harness, completed: &Value, canary: &Canary) -> BTreeSet<String> {
    let connection =
        Connection::connect(&harness.stack.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let work = |amount: &str, payment_id: &Value| {
        let (user, service, number) = (&completed["user_id"], &completed["service_id"], canary.at("work"));
        let work = json!({"user_id": user, "client_number": number, "service_id": service, "amount": amount, "transaction_id": payment_id});
        json!({"payload": work}).to_string()
    };
    let nothing = work("0", &json!(Uuid::now_v7()));
    let mut parked = BTreeSet::new();
    for body in [canary.at("nowork"), nothing, work("101", &completed["payment_id"])] {
        let id = format!("canary-{}", Uuid::new_v4());
        let mut headers = FieldTable::default();
        headers.insert(EXPLAINED.0.into(), AMQPValue::LongString(EXPLAINED.1.into()));
        let properties = BasicProperties::default().with_message_id(id.as_str().into());
        let properties = properties.with_type("payment.authorized.v1".into()).with_headers(headers);
        let options = BasicPublishOptions::default();
        let published =
            channel.basic_publish("".into(), PAYMENT_QUEUE.into(), options, body.as_bytes(), properties);
        assert!(published.await.unwrap().await.unwrap().is_ack());
        parked.insert(format!("{PAYMENT_QUEUE}/{id}"));
    }
    connection.close(200, "done".into()).await.unwrap();
    parked
}

/// The services lose their sessions in the middle of requests, and the edge its services.
async fn outages(harness: &Harness, canary: &Canary) {
    let user = harness.client.user_with(1_000_000).await.unwrap();
    let (server, _) = harness.stack.postgres_admin_url.rsplit_once('/').unwrap();
    let admin = sql::connect(&format!("{server}/payments")).await.unwrap();
    let terminate =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename like '%\\_svc'";
    for nth in 0..20 {
        let body = order(
            &canary.at("lost"),
            &harness.stack.demo_service_id,
            1,
            &format!("{}{nth}", canary.at("lost")),
        );
        let (_, answered) =
            tokio::join!(admin.query_one(terminate, &[]), harness.client.post_payment(user, &body));
        answered.unwrap();
    }
    for instance in ["payments-svc", "payments-svc-2"] {
        harness.cargo_stack("stop", instance).await;
    }
    let line = format!("GET /payments?idempotency_key={} HTTP/1.1", canary.at("away"));
    let answer =
        request(&harness.stack.edge_url, &line, &[("host", "coro"), ("x-user-id", &user.to_string())], "")
            .await;
    assert_eq!(answer.status, 503, "{answer:?}");
    for instance in ["payments-svc", "payments-svc-2"] {
        harness.cargo_stack("start", instance).await;
    }
}

/// Waits until all of these messages are parked.
async fn until_parked(harness: &Harness, expected: &BTreeSet<String>) {
    let began = Instant::now();
    loop {
        let parked: BTreeSet<String> = harness.explained().await.into_iter().map(|(_, id)| id).collect();
        if expected.is_subset(&parked) {
            return;
        }
        let missing: Vec<_> = expected.difference(&parked).collect();
        assert!(began.elapsed() < WAIT_TIMEOUT, "not parked: {missing:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until search-indexer has parked what is on the topic of payments and cannot be read, if this stack has it: its log
/// then says so.
async fn until_parked_by_search(harness: &Harness, expected: &BTreeSet<String>) {
    let targets = Targets::from(&harness.stack);
    let began = Instant::now();
    loop {
        let parked = search::parked(&targets).await.unwrap();
        let found = parked.iter().filter(|message| expected.contains(&message.parked_id)).count();
        if found == UNREADABLE_PAYMENTS || harness.stack.search_url.is_none() {
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{found} are parked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The passwords and tokens of this stack.
fn secrets(layout: &Layout) -> Vec<String> {
    let files = fs::read_dir(layout.secrets()).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: &Path| fs::read_to_string(path).unwrap().trim().to_owned();
    let secrets: Vec<String> = files.map(|path| read(&path)).collect();
    assert!(secrets.len() > 10 && secrets.iter().all(|secret| secret.len() >= 16));
    secrets
}

#[tokio::test]
async fn no_log_shows_what_people_typed_or_a_secret() {
    let harness = Harness::alone().await;
    let (layout, canary) = (Layout::from_env().unwrap(), Canary::new());
    let token = [
        ("AUTH", "jwt"),
        ("AUTH_ISSUER", "https://issuer.example/"),
        ("AUTH_AUDIENCE", "https://pay.example"),
        ("AUTH_JWKS_URL", "http://127.0.0.1:1/"),
    ];
    let signed_in = FurtherInstance::start("payments-svc", &token).await;
    clients(&harness, &canary).await;
    let completed = gateway(&harness, &canary).await;
    operators(&harness, &canary).await;
    let secret = notifications(&harness, &canary).await;
    statements(&harness, &canary).await;
    let bearer = format!("Bearer {0}.{0}.{0}", canary.at("jwt"));
    let headers = [("host", "coro"), ("authorization", bearer.as_str())];
    request(&signed_in.url, "GET /payments HTTP/1.1", &headers, "").await;
    let mut parked = forge(&completed, &canary).await;
    parked.extend(misplace(&harness, &completed, &canary).await);
    until_parked(&harness, &parked).await;
    until_parked_by_search(&harness, &parked).await;
    outages(&harness, &canary).await;

    let logs = logs(&layout);
    // The failures are logged at all: by the id of what was parked, and by the edge.
    for id in &parked {
        assert!(!shown(&logs, std::slice::from_ref(id)).is_empty(), "no log has {id}");
    }
    assert!(!shown(&logs, &["payments_amount_range".to_owned()]).is_empty(), "Postgres logs no error");
    assert!(!shown(&logs, &["payments-svc/<NOSRV>".to_owned()]).is_empty(), "the edge logs no failure");
    assert_eq!(shown(&logs, &spellings(&canary.0)), [""; 0]);
    assert_eq!(shown(&logs, &secrets(&layout)), [""; 0]);
    assert_eq!(shown(&logs, &[secret]), [""; 0]);
}
