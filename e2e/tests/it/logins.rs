//! Each login of the stack has a secret of its own, and may do what its owner needs and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coroctl::databases::urls;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use saga::contract::PAYMENT_QUEUE;
use stack::layout::Layout;
use stack::login::Login;
use stack::services::{INSTANCES, Instance};
use stack::{database_url, environment, state};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};

/// The variables of `.stack/env` that are an administrator's.
const ADMINISTRATORS: [&str; 3] = ["POSTGRES_ADMIN_URL", "AMQP_URL", "REDIS_URL"];
const MISSING_RIGHT: &str = "NOPERM";

fn layout() -> Layout {
    Layout::from_env().unwrap()
}

/// A variable that the service is started with.
fn of_service(name: &str, variable: &str) -> String {
    let spec = Instance::named(name).unwrap().spec(&layout()).unwrap();
    spec.env.get(variable).unwrap_or_else(|| panic!("{name} has no {variable}")).clone()
}

fn of_stack(variable: &str) -> String {
    environment::variables(&layout()).unwrap()[variable].clone()
}

/// The login in a variable, if there is one: the server and the user, and the secret.
fn login(variable: &str, value: &str) -> Option<((String, String), String)> {
    if let Some((scheme, rest)) = value.split_once("://") {
        let (login, _) = rest.rsplit_once('@')?;
        let (user, secret) = login.split_once(':')?;
        return Some(((scheme.to_owned(), user.to_owned()), secret.to_owned()));
    }
    if let Some(role) = variable.strip_suffix("_PASSWORD") {
        return Some((("postgres".to_owned(), role.to_lowercase()), value.to_owned()));
    }
    (variable == "ADMIN_TOKEN").then(|| (("admin listeners".to_owned(), String::new()), value.to_owned()))
}

/// The user and the secret of a URL, and what comes after them.
fn parts(url: &str) -> (String, String, String) {
    let ((_, user), secret) = login("", url).unwrap();
    let (_, address) = url.rsplit_once('@').unwrap();
    (user, secret, address.to_owned())
}

/// Every login that people, tests and services are given, with its secret.
fn secrets() -> BTreeMap<(String, String), String> {
    let layout = layout();
    let people = environment::variables(&layout).unwrap();
    let people = people.into_iter().map(|(name, value)| (name.to_owned(), value));
    let services = INSTANCES.into_iter().flat_map(|instance| instance.spec(&layout).unwrap().env);
    let mut secrets = BTreeMap::new();
    for (variable, value) in people.chain(services) {
        for (login, secret) in urls(&value).unwrap().iter().filter_map(|named| login(&variable, &named.url)) {
            let known = secrets.entry(login.clone()).or_insert_with(|| secret.clone());
            assert_eq!(*known, secret, "{login:?} has two secrets");
        }
    }
    secrets
}

#[test]
fn no_two_logins_share_a_secret() {
    let secrets = secrets();
    let mut owners = BTreeMap::new();
    for (login, secret) in &secrets {
        assert!(secret.len() >= 32, "{login:?}: a short secret");
        let other = owners.insert(secret, login);
        assert!(other.is_none(), "{login:?} and {other:?} share a secret");
    }
    assert!(secrets.len() > 10, "not all are read: {:?}", secrets.keys());
}

#[test]
fn no_service_holds_a_secret_of_an_administrator() {
    for variable in ADMINISTRATORS {
        let (user, secret, _) = parts(&of_stack(variable));
        for instance in INSTANCES {
            for (name, value) in instance.spec(&layout()).unwrap().env {
                assert!(!value.contains(&secret), "{name} of {} has the secret of {user}", instance.name);
            }
        }
    }
}

/// Any user of the machine may read the arguments of every process.
#[tokio::test]
async fn no_process_of_the_stack_has_a_secret_among_its_arguments() {
    let _world = Harness::shared().await;
    let members = state::members(&layout());
    assert!(members.len() > 10, "{members:?}");
    for process in members {
        // One that has just ended has no arguments.
        let arguments = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        for (login, secret) in secrets() {
            let shown = arguments.contains(&secret);
            assert!(!shown, "{login:?}: its secret is an argument of process {}", process.pid);
        }
    }
}

async fn code_of_refusal(url: &str, what: &str) -> SqlState {
    let error = sql::connect(url).await.map(drop).expect_err(what);
    let error = error.downcast_ref::<tokio_postgres::Error>().expect(what);
    error.code().unwrap_or_else(|| panic!("{what}: {error}")).clone()
}

#[tokio::test]
async fn the_password_of_a_role_opens_no_other_role() {
    let _world = Harness::shared().await;
    let roles = [
        of_service("payments-svc", "DATABASE_URL"),
        of_service("balance-svc", "DATABASE_URL"),
        of_service("processor-svc", "DATABASE_URL"),
        of_service("notifier", "DATABASE_URL"),
        of_service("fraud", "DATABASE_URL"),
        of_service("cdc-relay", "PAYMENTS_RELAY_URL"),
        of_stack("PAYMENTS_DATABASE_URL"),
    ];
    let all: Vec<String> = roles.iter().cloned().chain([of_stack("POSTGRES_ADMIN_URL")]).collect();
    for own in &roles {
        let (role, secret, _) = parts(own);
        sql::connect(own).await.unwrap();
        for other in all.iter().filter(|other| *other != own) {
            let (another, _, address) = parts(other);
            let url = format!("postgres://{another}:{secret}@{address}");
            let what = format!("the password of {role} for {another}");
            assert_eq!(code_of_refusal(&url, &what).await, SqlState::INVALID_PASSWORD, "{what}");
        }
    }
}

#[tokio::test]
async fn a_service_reaches_its_own_database_only() {
    let _world = Harness::shared().await;
    let services = [
        ("payments-svc", "payments"),
        ("balance-svc", "balance"),
        ("processor-svc", "processor"),
        ("notifier", "notifier"),
        ("fraud", "fraud"),
    ];
    for (service, own) in services {
        let url = of_service(service, "DATABASE_URL");
        let server = url.strip_suffix(own).unwrap();
        for (_, other) in services.into_iter().filter(|(_, other)| *other != own) {
            let what = format!("{service} in the database {other}");
            let code = code_of_refusal(&format!("{server}{other}"), &what).await;
            assert_eq!(code, SqlState::INSUFFICIENT_PRIVILEGE, "{what}");
        }
    }
}

/// A role that owns tables can remove the constraints that guard them: nobody logs in as that one.
#[tokio::test]
async fn nobody_logs_in_as_the_owner_of_the_tables() {
    let _world = Harness::shared().await;
    let admin = sql::connect(&of_stack("POSTGRES_ADMIN_URL")).await.unwrap();
    let query = "select rolcanlogin from pg_roles where rolname = 'coro_owner'";
    assert!(!admin.query_one(query, &[]).await.unwrap().get::<_, bool>(0));
}

async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, exchange: &str, key: &str) -> lapin::Result<()> {
    let options = BasicPublishOptions::default();
    let properties = BasicProperties::default();
    channel.basic_publish(exchange.into(), key.into(), options, b"x", properties).await?.await.map(drop)
}

fn refused<T>(answer: lapin::Result<T>, what: &str) {
    let error = answer.map(drop).expect_err(what).to_string();
    assert!(error.contains("ACCESS_REFUSED"), "{what}: {error}");
}

/// A queue that is nobody's, so that the test harms nothing where it fails.
fn nobodys() -> String {
    format!("logins-{}", Uuid::now_v7().simple())
}

#[tokio::test]
async fn the_processor_takes_work_and_produces_none() {
    let _world = Harness::shared().await;
    let url = of_service("processor-svc", "AMQP_URL");
    let (user, ..) = parts(&url);
    // The default exchange is how the relay produces; whoever may write there may write to every queue.
    for exchange in ["", "amq.direct", "amq.topic", "amq.fanout"] {
        let (_connection, channel) = channel(&url).await;
        refused(publish(&channel, exchange, &nobodys()).await, &format!("{user} publishes to {exchange:?}"));
    }
    let (connection, _) = channel(&url).await;
    let own = || async { connection.create_channel().await.unwrap() };
    let declare = QueueDeclareOptions::durable();
    let declared = own().await.queue_declare(nobodys().as_str().into(), declare, FieldTable::default()).await;
    refused(declared, "the processor declares a queue");
    // It is in use, so it would stay also if the user were allowed to remove it.
    let delete = QueueDeleteOptions { if_unused: true, ..QueueDeleteOptions::default() };
    refused(own().await.queue_delete(PAYMENT_QUEUE.into(), delete).await, "the processor removes its queue");
    let (_connection, admin) = self::channel(&of_stack("AMQP_URL")).await;
    let queue = nobodys();
    let short_lived = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    admin.queue_declare(queue.as_str().into(), short_lived, FieldTable::default()).await.unwrap();
    let got = own().await.basic_get(queue.as_str().into(), BasicGetOptions::default()).await;
    admin.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    refused(got, "the processor reads another queue");
}

#[tokio::test]
async fn the_relay_produces_work_and_takes_none() {
    let _world = Harness::shared().await;
    let url = of_service("cdc-relay", "AMQP_URL");
    let (connection, channel) = channel(&url).await;
    // Nobody has this queue: the broker accepts the message and drops it.
    publish(&channel, "", &nobodys()).await.expect("the relay produces");
    let own = || async { connection.create_channel().await.unwrap() };
    let consume = BasicConsumeOptions::default();
    let consumed =
        own().await.basic_consume(PAYMENT_QUEUE.into(), "".into(), consume, FieldTable::default()).await;
    refused(consumed, "the relay consumes");
    let got = own().await.basic_get(PAYMENT_QUEUE.into(), BasicGetOptions { no_ack: false }).await;
    refused(got, "the relay takes a message");
    let declare = QueueDeclareOptions::durable();
    let declared = own().await.queue_declare(nobodys().as_str().into(), declare, FieldTable::default()).await;
    refused(declared, "the relay declares another queue");
    for exchange in ["amq.direct", "amq.topic", "amq.fanout"] {
        let (_connection, channel) = self::channel(&url).await;
        refused(publish(&channel, exchange, "x").await, &format!("the relay publishes to {exchange}"));
    }
}

/// A session with Redis, in its own protocol.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(address: &str) -> Redis {
        let stream = TcpStream::connect(address.trim_end_matches('/')).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        Redis(BufReader::new(stream))
    }

    fn login(url: &str) -> Redis {
        let (user, secret, address) = parts(url);
        let mut redis = Redis::connect(&address);
        let answer = redis.ask(&format!("AUTH {user} {secret}"));
        assert_eq!(answer, "+OK", "{user}");
        redis
    }

    /// The first line of the answer.
    fn ask(&mut self, command: &str) -> String {
        write!(self.0.get_mut(), "{command}\r\n").unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

#[tokio::test]
async fn the_processor_has_its_keys_in_redis_and_nothing_else() {
    let _world = Harness::shared().await;
    let url = of_service("processor-svc", "REDIS_URL");
    let (_, secret, address) = parts(&url);
    let mut redis = Redis::login(&url);
    let key = format!("processor/{}", nobodys());
    assert_eq!(redis.ask(&format!("SETEX {key} 60 1")), "+OK");
    assert_eq!(redis.ask(&format!("MGET {key}")), "*1");
    let mut redis = Redis::login(&url);
    for command in [
        "FLUSHALL".to_owned(),
        "FLUSHDB".to_owned(),
        "CONFIG GET *".to_owned(),
        "ACL LIST".to_owned(),
        "ACL SETUSER default on nopass ~* +@all".to_owned(),
        "KEYS *".to_owned(),
        "SCAN 0".to_owned(),
        "CLIENT LIST".to_owned(),
        "SHUTDOWN NOSAVE NOW ABORT".to_owned(),
        "EVAL return 0".to_owned(),
        "PUBLISH channel x".to_owned(),
        "MGET another/key".to_owned(),
        "SETEX another/key 60 1".to_owned(),
        format!("DEL {key}"),
        format!("GET {key}"),
    ] {
        let answer = redis.ask(&command);
        assert!(answer.contains(MISSING_RIGHT), "{command}: {answer}");
    }
    // Without a name, which is the user `default`: nobody.
    for command in ["PING".to_owned(), format!("AUTH {secret}"), format!("AUTH default {secret}")] {
        let answer = Redis::connect(&address).ask(&command);
        assert!(answer.starts_with("-NOAUTH") || answer.starts_with("-WRONGPASS"), "{command}: {answer}");
    }
}

/// The logins of exporters read statistics, and neither a row nor a key.
#[tokio::test]
async fn exporters_see_no_row_and_no_key() {
    let _world = Harness::shared().await;
    let layout = layout();
    for database in ["payments", "balance", "processor", "notifier", "fraud"] {
        let url = database_url::postgres_url(&layout, database, Login::Monitor).unwrap();
        let code = code_of_refusal(&url, database).await;
        assert_eq!(code, SqlState::INSUFFICIENT_PRIVILEGE, "{database}");
    }
    let url = database_url::postgres_url(&layout, "postgres", Login::Monitor).unwrap();
    let monitor = sql::connect(&url).await.unwrap();
    monitor.batch_execute("select from pg_ls_waldir()").await.unwrap();
    for statement in ["select rolpassword from pg_authid", "select pg_read_file('PG_VERSION')", "checkpoint"]
    {
        let error = monitor.batch_execute(statement).await.expect_err(statement);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}: {error}");
    }
    let mut redis = Redis::login(&environment::redis_url(&layout, Login::CacheMonitor).unwrap());
    for command in ["PING", "GET processor/a", "KEYS *", "SCAN 0", "CONFIG GET *", "CLIENT LIST", "FLUSHALL"]
    {
        let answer = redis.ask(command);
        assert!(answer.contains(MISSING_RIGHT), "{command}: {answer}");
    }
    assert!(redis.ask("INFO memory").starts_with('$'), "its statistics");
}

/// The processor's rights suffice: it writes the charges that ended.
#[tokio::test]
async fn a_charge_that_ended_is_in_redis() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.settle(user, "0812", 400).await;
    let began = Instant::now();
    while Redis::login(&of_stack("REDIS_URL")).ask("KEYS processor/*/ended/*") == "*0" {
        assert!(began.elapsed() < WAIT_TIMEOUT, "the processor wrote nothing to Redis");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
