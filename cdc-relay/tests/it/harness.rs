//! Gives each test a database, a routes file and relay processes of its own, and waits for conditions.

mod relay;
mod routes;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

pub use self::relay::{Relay, ended};

/// A server's address, from the environment.
pub fn server(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run `cargo stack test`, or point it at a server"))
}

/// How long a test waits for a condition.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until `check` returns a value; panics with `what` after [`WAIT_TIMEOUT`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let until = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(answer) = check().await {
            return answer;
        }
        assert!(Instant::now() < until, "timed out waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres");
    tokio::spawn(connection);
    client
}

/// Connects; `None` while the server is away.
pub async fn attempt(url: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// The admin URL with another database.
pub fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let (server, _) = base.rsplit_once('/').expect("a URL with a database");
    query.map_or(format!("{server}/{name}"), |query| format!("{server}/{name}?{query}"))
}

/// The servers of a test.
#[derive(Debug, Clone)]
pub struct Servers {
    pub postgres: String,
    pub kafka: String,
    pub amqp: String,
}

impl Servers {
    /// The servers that all tests share.
    pub fn shared() -> Servers {
        Servers {
            postgres: server("POSTGRES_ADMIN_URL"),
            kafka: server("KAFKA_BROKERS"),
            amqp: server("AMQP_URL"),
        }
    }
}

pub struct Harness {
    /// Unique: prefix of topics and queue, name of database and slot.
    pub name: String,
    pub url: String,
    pub sql: Client,
    folder: PathBuf,
    pub servers: Servers,
    pub amqp_url: String,
    /// Variables of the relay's environment that replace the usual ones.
    pub overrides: Vec<(&'static str, String)>,
    relays: u32,
}

/// A table of events with a large column, and the publication for it.
pub const SCHEMA: &str = "
    create table items (
        owner text not null, id bigint not null, version int not null, kind text not null default 'made',
        note text, amount bigint, at timestamptz, raw bytea, doc jsonb, ok boolean, price numeric,
        constraint items_pkey primary key (owner, id)
    );
    create publication events for table items with (publish = 'insert, update');";

impl Harness {
    pub async fn new(test: &str) -> Harness {
        Harness::on(Servers::shared(), test).await
    }

    pub async fn on(servers: Servers, test: &str) -> Harness {
        let harness = Harness::bare_on(servers, test).await;
        harness.sql.batch_execute(SCHEMA).await.expect("schema");
        harness.routes(&harness.default_routes());
        harness
    }

    /// A harness without schema and routes.
    pub async fn bare(test: &str) -> Harness {
        Harness::bare_on(Servers::shared(), test).await
    }

    /// A harness without schema and routes on these servers.
    pub async fn bare_on(servers: Servers, test: &str) -> Harness {
        Harness::like(servers, test, "template template0").await
    }

    /// A harness without schema and routes, whose database has these options of `create database`.
    pub async fn like(servers: Servers, test: &str, how: &str) -> Harness {
        let unique = uuid::Uuid::now_v7().simple().to_string();
        let name = format!("it_{}_{}", test.chars().take(24).collect::<String>(), &unique[20..]);
        let maintenance = connect(&servers.postgres).await;
        maintenance.batch_execute(&format!("create database {name} {how}")).await.expect("database");
        let url = with_database(&servers.postgres, &name);
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&folder).expect("folder");
        let amqp_url = servers.amqp.clone();
        Harness {
            sql: connect(&url).await,
            name,
            url,
            folder,
            servers,
            amqp_url,
            overrides: Vec::new(),
            relays: 0,
        }
    }

    /// Host and port of the database.
    pub fn host(&self) -> String {
        let (_, rest) = self.url.rsplit_once('@').expect("a login");
        rest.split_once('/').expect("a database").0.to_owned()
    }

    /// The database's URL by way of a proxy at this address.
    pub fn url_by(&self, address: SocketAddr) -> String {
        self.url.replacen(&self.host(), &address.to_string(), 1)
    }

    /// Connects again after the server was away.
    pub async fn reconnect(&mut self) {
        self.sql = eventually("Postgres to be back", || async { attempt(&self.url).await }).await;
    }

    pub fn topic(&self) -> String {
        format!("{}.items", self.name)
    }

    pub fn queue(&self) -> String {
        format!("{}.work", self.name)
    }

    pub fn dead_letter_topic(&self) -> String {
        format!("{}.dead", self.name)
    }

    /// Starts a relay, which may refuse.
    pub fn start(&mut self) -> Relay {
        self.start_with(&[], &[])
    }

    pub fn start_with(&mut self, arguments: &[&str], environment: &[(&str, &str)]) -> Relay {
        self.relays += 1;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let admin = SocketAddr::from(([127, 0, 0, 1], port));
        let log = self.folder.join(format!("relay-{}.log", self.relays));
        let child = self
            .command("run")
            .args(arguments)
            .env("ADMIN_ADDR", admin.to_string())
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("log"))
            .spawn()
            .expect("the relay");
        Relay { child, admin, log }
    }

    /// The program with one of its commands.
    pub fn command(&self, command: &str) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_cdc-relay"));
        program
            .arg(command)
            .env("RELAY_ROUTES", self.folder.join("relay.toml"))
            .env("KAFKA_BROKERS", &self.servers.kafka)
            .envs(self.kafka_config().map(|file| ("KAFKA_CONFIG", file)))
            .env("AMQP_URL", &self.amqp_url)
            .env("IT_URL", &self.url)
            .envs(self.overrides.iter().map(|(name, value)| (name, value)));
        program
    }

    /// The file by which the administrator signs in to the shared Kafka. A private Kafka asks for no login.
    pub fn kafka_config(&self) -> Option<String> {
        let shared = self.servers.kafka == server("KAFKA_BROKERS");
        shared.then(|| server("KAFKA_ADMIN_CONFIG"))
    }

    /// Starts a relay and waits until it streams.
    pub async fn streaming(&mut self) -> Relay {
        let relay = self.start();
        relay.streams().await;
        relay
    }

    pub async fn row(&self, owner: &str, id: i64, version: i32, kind: &str) {
        let insert = "insert into items (owner, id, version, kind, at) values ($1, $2, $3, $4, now())
                      on conflict (owner, id) do update set version = excluded.version, kind = excluded.kind";
        self.sql.execute(insert, &[&owner, &id, &version, &kind]).await.expect("a row");
    }

    /// The end of the WAL, and the confirmed position of the slot.
    pub async fn positions(&self) -> (u64, Option<u64>) {
        let query = "select (pg_current_wal_flush_lsn() - '0/0')::int8,
                            (select (confirmed_flush_lsn - '0/0')::int8 from pg_replication_slots where slot_name = $1)";
        let row = self.sql.query_one(query, &[&self.name]).await.expect("positions");
        (row.get::<_, i64>(0) as u64, row.get::<_, Option<i64>>(1).map(|lsn| lsn as u64))
    }

    /// Waits until the slot is confirmed up to everything that is committed now.
    pub async fn confirmed(&self) {
        let (end, _) = self.positions().await;
        eventually("the slot to be confirmed", || async {
            self.positions().await.1.filter(|confirmed| *confirmed >= end)
        })
        .await;
    }

    /// Waits for a whole check of the publication that began after now: until the next one has begun, too.
    pub async fn publication_checked(&self) {
        let checks = "select max(xact_start)::text from pg_stat_activity
                      where datname = current_database() and application_name = 'cdc-relay'
                        and state = 'idle in transaction' and xact_start > $1::text::timestamptz";
        let now = self.sql.query_one("select clock_timestamp()::text", &[]).await.expect("the time");
        let mut since: String = now.get(0);
        for _ in 0..2 {
            since = eventually("a check of the publication", || async {
                self.sql.query_one(checks, &[&since]).await.expect("activity").get::<_, Option<String>>(0)
            })
            .await;
        }
    }

    /// Ends the walsender, if there is one.
    pub async fn kill_walsender(&self) -> bool {
        let kill = "select pg_terminate_backend(active_pid) from pg_replication_slots
                    where slot_name = $1 and active_pid is not null";
        !self.sql.query(kill, &[&self.name]).await.expect("kill").is_empty()
    }

    /// Waits until nobody reads the slot.
    pub async fn slot_is_free(&self) {
        let query = "select 1 from pg_replication_slots where slot_name = $1 and active";
        eventually("the slot to be free", || async {
            self.sql.query(query, &[&self.name]).await.expect("slot").is_empty().then_some(())
        })
        .await;
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // keep everything for the analysis
        }
        // On its own thread: a test's runtime must not block.
        let (admin, name) = (self.servers.postgres.clone(), self.name.clone());
        let cleanup = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let Some(admin) = attempt(&admin).await else { return };
                let drop_slot = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                                 where slot_name like $1 || '%' and not active";
                let _ = admin.query(drop_slot, &[&name]).await;
                let _ = admin.batch_execute(&format!("drop database {name} with (force)")).await;
            });
        });
        let _ = cleanup.join();
        crate::kafka::delete(&self.servers.kafka, &self.name);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
