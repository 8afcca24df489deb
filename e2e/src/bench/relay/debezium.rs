//! Debezium's PostgreSQL connector on a Kafka Connect worker that runs through all rounds.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use brokers::Brokers;
use saga::http_client;
use serde_json::{Value, json};
use stack::process::ProcessId;

use super::BenchContext;
use super::backlog::{Backlog, PUBLICATION, TABLE};
use super::run::{Run, process};

/// The settings of Debezium. No single profile is its best in both parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// The best drain found.
    Balanced,
    /// The lowest latency found; drains a quarter slower.
    Latency,
}

impl Profile {
    fn settings(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Balanced => [("producer.override.linger.ms", "2"), ("poll.interval.ms", "5")],
            Self::Latency => [("producer.override.linger.ms", "0"), ("poll.interval.ms", "1")],
        }
    }
}

const START_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Debezium {
    child: Child,
    url: String,
    http: reqwest::Client,
    pub profile: Profile,
    /// The connector that runs.
    connector: Option<String>,
}

impl Debezium {
    /// Starts the worker and waits until it answers.
    pub async fn start(context: &BenchContext<'_>) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let url = format!("http://127.0.0.1:{port}/connectors");
        let (worker, logging) =
            (context.folder.join("worker.properties"), context.folder.join("log4j2.properties"));
        std::fs::write(&worker, settings(context, port)?)?;
        std::fs::write(&logging, LOGGING)?;
        let log = File::create(Self::log(context))?;
        let programs = &context.options.programs;
        let child = Command::new(&programs.java)
            .args([
                "-Xms256m",
                "-Xmx1g",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=20",
                "-Djava.awt.headless=true",
            ])
            .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
            .arg("-cp")
            .arg(programs.kafka.join("*"))
            .arg("org.apache.kafka.connect.cli.ConnectStandalone")
            .arg(&worker)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", programs.java.display()))?;
        let http = http_client::builder().timeout(Duration::from_secs(60)).build()?;
        let mut worker = Self { child, url, http, profile: Profile::Balanced, connector: None };
        let until = Instant::now() + START_TIMEOUT;
        while !worker.answers().await {
            ensure!(worker.child.try_wait()?.is_none(), "it ended: {}", Self::log(context).display());
            ensure!(Instant::now() < until, "it does not answer: {}", Self::log(context).display());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(worker)
    }

    async fn answers(&self) -> bool {
        self.http.get(&self.url).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    pub fn log(context: &BenchContext<'_>) -> PathBuf {
        context.folder.join("debezium.log")
    }

    pub fn process(&self) -> Option<ProcessId> {
        process(&self.child).filter(|id| id.alive())
    }

    pub async fn create(&mut self, context: &BenchContext<'_>, backlog: &Backlog, run: &Run) -> Result<()> {
        let body = connector(context, backlog, run, self.profile)?;
        let answer = self.http.post(&self.url).json(&body).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "connector: {status} {}", answer.text().await?);
        self.connector = Some(run.prefix.clone());
        let until = Instant::now() + START_TIMEOUT;
        loop {
            let url = format!("{}/{}/status", self.url, run.prefix);
            let status: Value = self.http.get(url).send().await?.json().await.unwrap_or_default();
            match status.pointer("/tasks/0/state").and_then(Value::as_str) {
                Some("RUNNING") => return Ok(()),
                Some("FAILED") => bail!("connector: {status}"),
                _ => ensure!(Instant::now() < until, "the connector does not run: {status}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn delete(&mut self, _: &BenchContext<'_>) -> Result<()> {
        if let Some(name) = self.connector.take() {
            self.http.delete(format!("{}/{name}", self.url)).send().await?.error_for_status()?;
        }
        Ok(())
    }

    pub async fn stop(mut self) -> Result<()> {
        if let Some(id) = self.process() {
            id.signal(rustix::process::Signal::TERM);
        }
        tokio::task::spawn_blocking(move || self.child.wait()).await??;
        Ok(())
    }
}

fn settings(context: &BenchContext<'_>, port: u16) -> Result<String> {
    let offsets = context.folder.join("connect.offsets");
    // Of an earlier run; its slots are gone.
    let _stale = std::fs::remove_file(&offsets);
    Ok(format!(
        "{}
listeners=http://127.0.0.1:{port}
plugin.path={}
plugin.discovery=service_load
key.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter=org.apache.kafka.connect.json.JsonConverter
value.converter.schemas.enable=false
offset.storage.file.filename={}
offset.flush.interval.ms=10000
",
        sign_in(&Brokers::read(&context.stack.kafka_admin_config)?)?,
        context.options.programs.debezium.display(),
        offsets.display()
    ))
}

/// The settings by which a Java client signs in: for the worker, and again for the producers of its connectors.
fn sign_in(brokers: &Brokers) -> Result<String> {
    let config = brokers.config();
    let get =
        |key: &str| config.get(key).with_context(|| format!("{key} is not in the administrator's file"));
    let (user, password) = (get("sasl.username")?, get("sasl.password")?);
    let (protocol, mechanism) = (get("security.protocol")?, get("sasl.mechanism")?);
    let module = match mechanism {
        "PLAIN" => "org.apache.kafka.common.security.plain.PlainLoginModule",
        _ => "org.apache.kafka.common.security.scram.ScramLoginModule",
    };
    let lines = ["", "producer."].map(|of| {
        format!(
            "{of}security.protocol={protocol}
{of}sasl.mechanism={mechanism}
{of}sasl.jaas.config={module} required username=\"{user}\" password=\"{password}\";
"
        )
    });
    Ok(format!("bootstrap.servers={}\n{}", brokers.servers, lines.concat()))
}

const LOGGING: &str = "status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %-5p %m (%c{1})%n
rootLogger.level=info
rootLogger.appenderRef.out.ref=out
";

fn connector(context: &BenchContext<'_>, backlog: &Backlog, run: &Run, profile: Profile) -> Result<Value> {
    let database: tokio_postgres::Config = backlog.url.parse()?;
    let password = String::from_utf8_lossy(database.get_password().unwrap_or_default()).into_owned();
    let mut config = json!({
        "name": run.prefix,
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": "127.0.0.1",
        "database.port": database.get_ports().first().context("a port")?.to_string(),
        "database.dbname": database.get_dbname(),
        "database.user": database.get_user(),
        "database.password": password,
        "topic.prefix": run.prefix,
        "table.include.list": format!("public.{TABLE}"),
        "plugin.name": "pgoutput",
        "slot.name": run.slot,
        "publication.name": PUBLICATION,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "tombstones.on.delete": "false",
        "status.update.interval.ms": "10000",
        "max.batch.size": "8192",
        "max.queue.size": "32768",
        // Connect's defaults are one request in flight and batches of 16 KiB.
        "producer.override.acks": "all",
        "producer.override.enable.idempotence": "true",
        "producer.override.max.in.flight.requests.per.connection": "5",
        "producer.override.compression.type": "lz4",
        "producer.override.buffer.memory": "67108864",
        "producer.override.batch.size": "262144",
    });
    for (key, value) in profile.settings() {
        config[key] = json!(value);
    }
    if context.options.unwrap {
        config["transforms"] = json!("unwrap");
        config["transforms.unwrap.type"] = json!("io.debezium.transforms.ExtractNewRecordState");
        config["transforms.unwrap.add.headers"] = json!("source.ts_us");
    }
    Ok(json!({ "name": run.prefix, "config": config }))
}
