//! Prepares what `compose/compose.yaml` mounts: secrets, and the configuration of the servers.
//!
//! * Names, users, rights and settings are those of `cargo stack`: the files are made by the functions that make its own.
//!   Only addresses differ, and `PLACES` is the one list of them.
//! * compose.yaml itself is written by hand, since people without Rust read and change it. A test compares it with what the
//!   stack starts: each variable, port, network, secret and version (`compose/tests.rs`).
//! * Secrets are made once and kept; running it again writes the same files.
//! * The folder is for its owner alone. The files in it are readable, since the engine gives them as they are to users of its
//!   own: only the folder keeps others out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};

use crate::database_url::postgres_url;
use crate::extras::Extra;
use crate::layout::{Layout, Port, write_private};
use crate::login::Login;
use crate::output::say;
use crate::servers::kafka::Users;
use crate::servers::{Node, collector, exporters, kafka, postgres, prometheus, rabbitmq, redis};
use crate::services::{INSTANCES, Instance};
use crate::{environment, secrets};

/// The container behind each port of a stack, and the port that it listens on there.
const PLACES: [(Port, &str, u16); 35] = [
    (Port::Edge, "haproxy", 21000),
    (Port::EdgeAdmin, "haproxy", 21030),
    (Port::Postgres, "postgres", 5432),
    (Port::Kafka, "kafka", 9092),
    (Port::KafkaController, "kafka", 9093),
    (Port::KafkaSasl, "kafka", 9094),
    (Port::Amqp, "rabbitmq", 5672),
    (Port::RabbitPrometheus, "rabbitmq", 15692),
    (Port::Redis, "valkey", 6379),
    (Port::Search, "opensearch", 9200),
    (Port::Smtp, "mailpit", 1025),
    (Port::Prometheus, "prometheus", 9090),
    (Port::Payments, "payments-svc", 21020),
    (Port::PaymentsAdmin, "payments-svc", 21021),
    (Port::SecondPayments, "payments-svc-2", 21028),
    (Port::SecondPaymentsAdmin, "payments-svc-2", 21029),
    (Port::Balance, "balance-svc", 21022),
    (Port::BalanceAdmin, "balance-svc", 21023),
    (Port::Processor, "processor-svc", 21024),
    (Port::ProcessorAdmin, "processor-svc", 21025),
    (Port::RelayAdmin, "cdc-relay", 21026),
    (Port::Gateway, "gateway-sim", 21027),
    (Port::SearchIndexer, "search-indexer", 21032),
    (Port::SecondSearchIndexer, "search-indexer-2", 21033),
    (Port::Notifier, "notifier", 21041),
    (Port::Fraud, "fraud", 21042),
    (Port::FraudRelay, "fraud-relay", 21043),
    (Port::Auditor, "auditor", 21044),
    (Port::Tracer, "tracer", 21050),
    (Port::Otlp, "collector", 4318),
    (Port::Zipkin, "zipkin", 9411),
    (Port::NodeExporter, "node-exporter", 9100),
    (Port::PostgresExporter, "postgres-exporter", 9187),
    (Port::RedisExporter, "redis-exporter", 9121),
    (Port::KafkaMetrics, "kafka", 9404),
];

/// The programs that images are made of, each by its name.
pub const PROGRAMS: [&str; 13] = [
    "payments-svc",
    "balance-svc",
    "processor-svc",
    "cdc-relay",
    "gateway-sim",
    "search-indexer",
    "notifier",
    "fraud",
    "auditor",
    "tracer",
    "migrate",
    "coroctl",
    "stack",
];

/// The first port of the stack whose addresses are replaced. It is never started.
const BASE_PORT: u16 = 21_000;

/// Where containers find the files.
const MOUNTED: &str = "/run/secrets";

/// The folder of Kafka's volume, in which its image keeps data.
const KAFKA_DATA: &str = "/var/lib/kafka/data";

const RULES_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Write the secrets and the servers' configuration that compose/compose.yaml mounts. What is there is kept.
    Prepare {
        #[arg(default_value = "compose/secrets")]
        folder: PathBuf,
    },
    /// Make the rules of Kafka, as its administrator: who may do what.
    KafkaRules {
        /// Kafka's listener for whoever signs in.
        #[arg(long, value_name = "HOST:PORT")]
        at: String,
        /// The file with the administrator's password.
        #[arg(long, value_name = "FILE")]
        password_file: PathBuf,
    },
}

/// # Errors
/// When a file cannot be read or written, or Kafka refuses.
pub fn run(action: &Action) -> Result<()> {
    match action {
        Action::Prepare { folder } => {
            let count = prepare(folder)?.len();
            say(&format!("{count} files in {}", folder.display()));
            Ok(())
        }
        Action::KafkaRules { at, password_file } => {
            let password = fs::read_to_string(password_file)
                .with_context(|| format!("cannot read {}", password_file.display()))?;
            kafka::acl::allow_at(at, password.trim(), RULES_TIMEOUT, &kafka::acl::rules())
        }
    }
}

/// Writes all files; the answer is their names and texts.
///
/// # Errors
/// When one cannot be written.
pub fn prepare(folder: &Path) -> Result<BTreeMap<String, String>> {
    let describe = || format!("cannot write into {}", folder.display());
    let layout = layout(folder)?;
    let files = files(&layout)?;
    for (name, text) in &files {
        let path = folder.join(name);
        write_private(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).with_context(describe)?;
    }
    Ok(files)
}

/// A stack with every part, whose secrets lie in `folder`, which only its owner can read. It is described, not started.
///
/// # Errors
/// When the folder cannot be made.
pub fn layout(folder: &Path) -> Result<Layout> {
    let describe = || format!("cannot write into {}", folder.display());
    fs::create_dir_all(folder).with_context(describe)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).with_context(describe)?;
    let folder = folder.canonicalize()?;
    let own = folder.join("passwords");
    fs::create_dir_all(&own)?;
    let layout = Layout {
        root: PathBuf::from("/coro"),
        data: own.join("data"),
        cache: own.clone(),
        dir: own,
        base_port: BASE_PORT,
        uid: None,
    };
    Extra::add(&layout, Extra::value_variants())?;
    Ok(layout)
}

/// The text with the addresses of containers instead of those of a stack.
fn placed(layout: &Layout, text: &str) -> String {
    moved(layout, &PLACES, text)
}

/// The text with these addresses instead of those of a stack.
pub fn moved(layout: &Layout, places: &[(Port, &str, u16)], text: &str) -> String {
    places.iter().fold(text.to_owned(), |text, (port, host, number)| {
        text.replace(&format!("127.0.0.1:{}", layout.port(*port)), &format!("{host}:{number}"))
    })
}

/// How a container is given a variable that the stack gives a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Given {
    /// As it is.
    Text(String),
    /// By a file with this text: the variable names it, or where it holds a secret, NAME_FILE does.
    File { name: String, text: String },
}

/// The variables of an instance, as its container has them.
fn variables(layout: &Layout, instance: Instance) -> Result<BTreeMap<String, Given>> {
    let passwords = secrets::all(layout)?;
    let listens = |port: Port| format!("127.0.0.1:{}", layout.port(port));
    let own = [listens(instance.public), listens(instance.admin)];
    let mut all = BTreeMap::new();
    for (name, value) in instance.spec(layout)?.env {
        let given = if name == "KAFKA_CONFIG" {
            let text = fs::read_to_string(&value).with_context(|| format!("cannot read {value}"))?;
            Given::File { name: format!("kafka-{}", file_stem(&value)), text: placed(layout, &text) }
        } else if name == "RELAY_ROUTES" {
            Given::Text(format!("/etc/coro/{}.toml", instance.name))
        } else if name == "LEDGER_PATH" {
            Given::Text("/var/lib/coro/ledger.ndjson".to_owned())
        } else if own.contains(&value) {
            Given::Text(value.replace("127.0.0.1", "0.0.0.0"))
        } else if passwords.iter().any(|password| value.contains(password)) {
            Given::File { name: secret_file(instance, &name), text: placed(layout, &value) }
        } else {
            Given::Text(placed(layout, &value))
        };
        all.insert(name, given);
    }
    Ok(all)
}

/// The name of a file without its folder and extension.
pub fn file_stem(path: &str) -> &str {
    Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

/// The file of a secret. The instances of a service share it, and all admin listeners share their token.
pub fn secret_file(instance: Instance, variable: &str) -> String {
    let name = instance.name.strip_suffix("-2").unwrap_or(instance.name);
    match variable {
        "ADMIN_TOKEN" => "admin-token".to_owned(),
        _ => format!("{name}-{}", kebab(variable)),
    }
}

/// The name of a variable as a file has it.
pub fn kebab(variable: &str) -> String {
    variable.to_lowercase().replace('_', "-")
}

/// The variables of `.stack/env` that coroctl is given, which hold a login.
const COROCTL_SECRETS: [&str; 6] = [
    "AMQP_URL",
    "PAYMENTS_DATABASE_URL",
    "BALANCE_DATABASE_URL",
    "PROCESSOR_DATABASE_URL",
    "NOTIFIER_DATABASE_URL",
    "FRAUD_DATABASE_URL",
];

/// The files by name.
fn files(layout: &Layout) -> Result<BTreeMap<String, String>> {
    kafka::write_client_files(layout, Users::Listed)?;
    let mut files = BTreeMap::new();
    for instance in INSTANCES {
        for given in variables(layout, instance)?.into_values() {
            if let Given::File { name, text } = given {
                files.insert(name, text);
            }
        }
    }
    let superuser = postgres_url(layout, "postgres", Login::Superuser)?;
    files.insert("postgres-superuser".to_owned(), Login::Superuser.password(layout)?);
    files.insert("migrate-admin-database-url".to_owned(), placed(layout, &superuser));
    for (variable, password) in environment::role_passwords(layout)? {
        files.insert(kebab(variable), password);
    }
    let shown = environment::variables(layout)?;
    for variable in COROCTL_SECRETS {
        let value = shown.get(variable).with_context(|| format!("{variable} is no variable of a stack"))?;
        files.insert(format!("coroctl-{}", kebab(variable)), placed(layout, value));
    }
    files.insert("grafana-admin".to_owned(), layout.secret("grafana-admin")?);
    files.insert("kafka-admin-password".to_owned(), layout.secret("kafka-admin")?);
    servers(layout, &mut files)?;
    Ok(files)
}

/// The configuration of the servers. A later line replaces an earlier one, in all but Redis'.
fn servers(layout: &Layout, files: &mut BTreeMap<String, String>) -> Result<()> {
    let mut add = |name: &str, text: String| drop(files.insert(name.to_owned(), text));
    add(
        "postgresql.conf",
        postgres::settings(5432, Path::new("/var/run/postgresql")) + "listen_addresses = '*'\n",
    );
    add("pg_hba.conf", "local all all scram-sha-256\nhost all all all scram-sha-256\n".to_owned());
    add(
        "kafka-server.properties",
        placed(layout, &kafka::settings(layout, Node::One, Path::new(KAFKA_DATA), Users::Listed)?),
    );
    add("kafka-log4j2.properties", kafka::LOGGING.to_owned());
    let definitions = Path::new(MOUNTED).join("rabbitmq-definitions.json");
    add("rabbitmq.conf", format!("listeners.tcp.default = 5672\n{}", rabbitmq::limits(&definitions)));
    add("rabbitmq-definitions.json", serde_json::to_string_pretty(&rabbitmq::definitions(layout)?)?);
    let port = layout.port(Port::Redis);
    let valkey = redis::settings(layout, &format!("port {port}"))?;
    add(
        "valkey.conf",
        valkey
            .replace("bind 127.0.0.1\n", "bind 0.0.0.0\n")
            .replace(&format!("port {port}\n"), "port 6379\n"),
    );
    add("redis-exporter-passwords.json", placed(layout, &exporters::redis_passwords(layout)?));
    add("collector.yaml", placed(layout, &collector::settings(layout, "")));
    let targets = serde_json::to_string_pretty(&prometheus::targets(layout))?;
    add("prometheus-targets.json", placed(layout, &targets));
    Ok(())
}

#[cfg(test)]
mod tests;
