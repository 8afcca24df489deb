//! Coro on Kubernetes: the values of its secrets, made by the functions that make those of a stack.
//!
//! * Every link is encrypted, so the stack that is described is an encrypted one. Only addresses and the paths of certificates
//!   differ; `PLACES` is the one list of the former.
//! * The manifests in `compose/kubernetes` are written by hand, since people without Rust read and change them. A test compares
//!   them with what the stack starts, and with compose.yaml (`kubernetes/tests.rs`).
//! * Secrets are made once and kept; running it again writes the same files.
//! * The folder is for its owner alone, and so is each file: they go from there into the store that the cluster reads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::compose::{Given, file_stem, kebab, moved, secret_file};
use crate::database_url::postgres_url;
use crate::layout::{Layout, Port, write_private};
use crate::login::Login;
use crate::output::say;
use crate::servers::kafka::Users;
use crate::servers::{kafka, rabbitmq, redis};
use crate::services::{INSTANCES, Instance, Service};
use crate::{compose, environment, secrets};

/// The address in the cluster behind each port of a stack. The mail server is not in it, and is to be named.
const PLACES: [(Port, &str, u16); 7] = [
    (Port::Postgres, "postgres-rw.coro.svc", 5432),
    (Port::KafkaSasl, "kafka-kafka-bootstrap.coro.svc", 9094),
    (Port::Amqp, "rabbitmq.coro.svc", 5671),
    (Port::Redis, "valkey.coro.svc", 6379),
    (Port::Search, "opensearch.coro.svc", 9200),
    (Port::Gateway, "gateway-sim.coro.svc", 21027),
    (Port::Smtp, "mail.example", 465),
];

/// Where pods find certificates, and the authority.
const TLS: &str = "/run/tls";

/// Settings of processes that share a machine, or its few users. Without an instance's name members of a group come and go as pods
/// do, and take no partition with them.
const LOCAL: [&str; 3] = ["GROUP_INSTANCE_ID", "REQUESTS_PER_USER", "WEBHOOK_ALLOW"];

/// The logins of OpenSearch; `cargo stack` runs it without any.
const SEARCH_USERS: [&str; 3] = ["admin", "payments-svc", "search-indexer"];

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Write the secrets that compose/kubernetes takes from the cluster's secret store, each a file with the name of its key. What is
    /// there is kept.
    Prepare { folder: PathBuf },
}

/// # Errors
/// When a file cannot be written.
pub fn run(action: &Action) -> Result<()> {
    let Action::Prepare { folder } = action;
    let count = prepare(folder)?.len();
    say(&format!("{count} files in {}", folder.display()));
    Ok(())
}

/// Writes all secrets; the answer is their keys in the store, and their values.
///
/// # Errors
/// When one cannot be written.
fn prepare(folder: &Path) -> Result<BTreeMap<String, String>> {
    let files = files(&layout(folder)?)?;
    let stored: BTreeMap<String, String> =
        files.into_iter().map(|(name, text)| (store_key(&name), text)).collect();
    for (key, text) in &stored {
        write_private(&folder.join(key), text)?;
    }
    Ok(stored)
}

/// The key of a file in the store. Some stores take letters, digits and hyphens only.
fn store_key(file: &str) -> String {
    format!("coro-{}", file.replace(['.', '_'], "-"))
}

/// An encrypted stack with every part, whose secrets lie in `folder`. It is described, not started.
fn layout(folder: &Path) -> Result<Layout> {
    let layout = compose::layout(folder)?;
    fs::create_dir_all(layout.tls()).context("cannot make the folder of certificates")?;
    // Pods have others; that one is there says that links are encrypted.
    write_private(&layout.authority(), "")?;
    Ok(layout)
}

/// The text as a pod has it: with the addresses of the cluster, and the authority where pods find it.
fn placed(layout: &Layout, text: &str) -> String {
    moved(layout, &PLACES, text).replace(&layout.authority().display().to_string(), &format!("{TLS}/ca.crt"))
}

/// The variables of an instance, as its pods have them.
fn variables(layout: &Layout, instance: Instance) -> Result<BTreeMap<String, Given>> {
    let passwords = secrets::all(layout)?;
    let own = [instance.public, instance.admin].map(|port| format!("127.0.0.1:{}", layout.port(port)));
    let mut all = BTreeMap::new();
    for (name, value) in instance.spec(layout)?.env {
        let given = match name.as_str() {
            local if LOCAL.contains(&local) => continue,
            // It verifies receivers outside, by the authorities of its image.
            "SSL_CERT_FILE" if instance.name == "notifier" => continue,
            "KAFKA_CONFIG" => {
                let text = fs::read_to_string(&value).with_context(|| format!("cannot read {value}"))?;
                Given::File { name: format!("kafka-{}", file_stem(&value)), text: placed(layout, &text) }
            }
            "RELAY_ROUTES" => Given::Text(format!("/etc/coro/{}.toml", instance.name)),
            // A commit there is acknowledged once a standby has it, and no event is to be ahead of that.
            "RELAY_SYNCHRONOUS" => Given::Text("require".to_owned()),
            "LEDGER_PATH" => Given::Text("/var/lib/coro/ledger.ndjson".to_owned()),
            "TLS_CERT_FILE" => Given::Text(format!("{TLS}/tls.crt")),
            "TLS_KEY_FILE" => Given::Text(format!("{TLS}/tls.key")),
            "SEARCH_URL" => {
                let text = search_url(layout, instance)?;
                Given::File { name: secret_file(instance, &name), text }
            }
            // A mail server has a login, which is in its URL.
            "SMTP_URL" => Given::File { name: secret_file(instance, &name), text: placed(layout, &value) },
            _ if own.contains(&value) => Given::Text(value.replace("127.0.0.1", "0.0.0.0")),
            _ if passwords.iter().any(|password| value.contains(password)) => {
                Given::File { name: secret_file(instance, &name), text: placed(layout, &value) }
            }
            _ => Given::Text(placed(layout, &value)),
        };
        all.insert(name, given);
    }
    if instance.service == Service::Relay {
        // Two pods read, each some of the databases, where a stack has one process that reads them all.
        all.insert("RELAY_SHARE_SOURCES".to_owned(), Given::Text("true".to_owned()));
    }
    Ok(all)
}

/// OpenSearch with the login of a service, by TLS.
fn search_url(layout: &Layout, instance: Instance) -> Result<String> {
    let user = instance.service.program();
    let password = layout.secret(&search_secret(user))?;
    let address = placed(layout, &format!("127.0.0.1:{}", layout.port(Port::Search)));
    Ok(format!("https://{user}:{password}@{address}"))
}

fn search_secret(user: &str) -> String {
    format!("opensearch-{user}")
}

/// Whether pods run this instance. Of a service they run one Deployment, and traces are the cluster's own business.
fn has_pods(instance: &Instance) -> bool {
    !instance.name.ends_with("-2") && instance.name != "tracer"
}

/// The files by name, as pods have them.
fn files(layout: &Layout) -> Result<BTreeMap<String, String>> {
    kafka::write_client_files(layout, Users::Kept)?;
    let mut files = BTreeMap::new();
    for instance in INSTANCES.into_iter().filter(has_pods) {
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
    for user in kafka::USERS.into_iter().chain([kafka::ADMIN]) {
        let password = layout.secret(&kafka::secret_name(user))?;
        files.insert(format!("kafka-{user}-password"), password);
    }
    for user in SEARCH_USERS {
        files.insert(search_secret(user), layout.secret(&search_secret(user))?);
    }
    let definitions = serde_json::to_string_pretty(&rabbitmq::definitions(layout)?)?;
    files.insert("rabbitmq-definitions.json".to_owned(), definitions);
    let listener = format!(
        "port 0
tls-port 6379
tls-cert-file {TLS}/tls.crt
tls-key-file {TLS}/tls.key
tls-ca-cert-file {TLS}/ca.crt
tls-auth-clients no"
    );
    let valkey = redis::settings(layout, &listener)?;
    files.insert("valkey.conf".to_owned(), valkey.replace("bind 127.0.0.1\n", "bind 0.0.0.0\n"));
    Ok(files)
}

#[cfg(test)]
mod tests;
