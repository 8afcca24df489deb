//! `.stack/env`: where everything is, in sh syntax, for people, tests and tools.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::database_url::postgres_url;
use crate::extras::Extra;
use crate::layout::{Layout, Port, write_private};
use crate::login::Login;
use crate::servers::{kafka, rabbitmq, smtp};
use crate::shards;

/// The user that demonstrations pay as.
const DEMO_USER: &str = "018f0000-0000-7000-8000-000000000001";

/// # Errors
/// As [`Login::password`].
pub fn amqp_url(layout: &Layout, user: Login) -> Result<String> {
    let (password, nodes) = (user.password(layout)?, rabbitmq::addresses(layout));
    // %2f is the default virtual host.
    let scheme = if layout.is_encrypted() { "amqps" } else { "amqp" };
    Ok(format!("{scheme}://{}:{password}@{nodes}/%2f", user.user()))
}

/// # Errors
/// As [`Login::password`].
pub fn redis_url(layout: &Layout, user: Login) -> Result<String> {
    let (password, port) = (user.password(layout)?, layout.port(Port::Redis));
    let scheme = if layout.is_encrypted() { "rediss" } else { "redis" };
    Ok(format!("{scheme}://{}:{password}@127.0.0.1:{port}", user.user()))
}

/// The search index, if the stack has one.
pub fn search_url(layout: &Layout) -> Option<String> {
    Extra::of(layout).contains(&Extra::Search).then(|| layout.http(Port::Search, ""))
}

/// The password of each role of Postgres, by the name of the variable that `migrate` and tests take it from.
///
/// # Errors
/// As [`Login::password`].
pub fn role_passwords(layout: &Layout) -> Result<Vec<(&'static str, String)>> {
    Login::ROLES.into_iter().map(|(role, variable)| Ok((variable, role.password(layout)?))).collect()
}

/// Where the consumers of `--with notify` are.
fn notify(layout: &Layout) -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("NOTIFIER_ADMIN_URL", layout.http(Port::Notifier, "")),
        ("FRAUD_ADMIN_URL", layout.http(Port::Fraud, "")),
        ("NOTIFIER_DATABASE_URL", postgres_url(layout, "notifier", Login::Checker)?),
        ("FRAUD_DATABASE_URL", postgres_url(layout, "fraud", Login::Checker)?),
        ("MAIL_DIR", smtp::mails(layout).display().to_string()),
    ])
}

/// Everything in `.stack/env`: for people and tests, so with the administrators' logins.
///
/// # Errors
/// As [`Login::password`].
pub fn variables(layout: &Layout) -> Result<BTreeMap<&'static str, String>> {
    let http = |port| layout.http(port, "");
    let shards = |database, role| shards::list(layout, database, role);
    let fixed = [
        ("STACK_DIR", layout.dir.display().to_string()),
        ("STACK_PORT", layout.base_port.to_string()),
        ("EDGE_URL", http(Port::Edge)),
        ("PAYMENTS_URL", http(Port::Payments)),
        ("BALANCE_URL", http(Port::Balance)),
        ("GATEWAY_URL", http(Port::Gateway)),
        ("EDGE_ADMIN_URL", http(Port::EdgeAdmin)),
        ("PAYMENTS_ADMIN_URL", http(Port::PaymentsAdmin)),
        ("PAYMENTS_2_ADMIN_URL", http(Port::SecondPaymentsAdmin)),
        ("BALANCE_ADMIN_URL", http(Port::BalanceAdmin)),
        ("PROCESSOR_ADMIN_URL", http(Port::ProcessorAdmin)),
        ("RELAY_ADMIN_URL", http(Port::RelayAdmin)),
        ("PROMETHEUS_URL", http(Port::Prometheus)),
        ("KAFKA_BROKERS", kafka::addresses(layout)),
        ("KAFKA_ADMIN_CONFIG", kafka::client_file(layout, kafka::ADMIN).display().to_string()),
        ("AMQP_URL", amqp_url(layout, Login::QueueAdministrator)?),
        ("REDIS_URL", redis_url(layout, Login::CacheAdministrator)?),
        ("PAYMENTS_DATABASE_URL", shards::tools_url(layout, "payments")?),
        ("BALANCE_DATABASE_URL", shards::tools_url(layout, "balance")?),
        ("PROCESSOR_DATABASE_URL", postgres_url(layout, "processor", Login::Checker)?),
        // For `coroctl shard`: as SHARDS, and as SHARDS_ADMIN.
        ("PAYMENTS_SHARDS", shards("payments", Login::Checker)?),
        ("BALANCE_SHARDS", shards("balance", Login::Checker)?),
        ("PAYMENTS_SHARDS_ADMIN", shards("payments", Login::Superuser)?),
        ("BALANCE_SHARDS_ADMIN", shards("balance", Login::Superuser)?),
        ("POSTGRES_ADMIN_URL", postgres_url(layout, "postgres", Login::Superuser)?),
        ("ADMIN_TOKEN", layout.admin_token()?),
        ("DEMO_USER_ID", DEMO_USER.to_owned()),
        ("DEMO_SERVICE_ID", "electricity".to_owned()),
    ];
    let encrypted = layout.is_encrypted().then(|| {
        let reader = kafka::client_file(layout, kafka::READER).display().to_string();
        [("KAFKA_CONFIG", reader), ("CA_FILE", authority(layout))]
    });
    let search = search_url(layout).into_iter().flat_map(|url| {
        let admin = http(Port::SearchIndexer);
        let second = http(Port::SecondSearchIndexer);
        [("SEARCH_URL", url), ("SEARCH_INDEXER_ADMIN_URL", admin), ("SEARCH_INDEXER_2_ADMIN_URL", second)]
    });
    let notify = if Extra::of(layout).contains(&Extra::Notify) { notify(layout)? } else { Vec::new() };
    let audit = Extra::of(layout).contains(&Extra::Audit).then(|| ("AUDITOR_ADMIN_URL", http(Port::Auditor)));
    let traces = Extra::of(layout).contains(&Extra::Traces).then(|| ("ZIPKIN_URL", http(Port::Zipkin)));
    let extra = encrypted.into_iter().flatten().chain(search).chain(notify).chain(audit).chain(traces);
    Ok(fixed.into_iter().chain(extra).chain(role_passwords(layout)?).collect())
}

/// For a program that this command starts: whom it trusts. Not in the file: whatever is started from a shell that has read
/// it would trust nobody else.
pub fn trust(layout: &Layout) -> Option<(&'static str, String)> {
    layout.is_encrypted().then(|| ("SSL_CERT_FILE", authority(layout)))
}

fn authority(layout: &Layout) -> String {
    layout.authority().display().to_string()
}

/// Writes `.stack/env` and the files that it names, readable by the caller only: they hold passwords.
///
/// # Errors
/// When it cannot be written.
pub fn write(layout: &Layout) -> Result<()> {
    kafka::write_client_files(layout, kafka::Users::of(layout))?;
    let lines =
        variables(layout)?.into_iter().map(|(name, value)| format!("export {name}={}\n", quote(&value)));
    write_private(&layout.dir.join("env"), &lines.collect::<String>())
}

/// As one word of a shell, whatever it contains.
fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_-+=:,./".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for value in
            ["plain", "postgres://u:p@127.0.0.1:1/d", "", "a b", "it's", "$HOME `x` \"y\" \\ *", "a\nb"]
        {
            let script = format!("printf %s {}", quote(value));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
        assert_eq!(quote("http://127.0.0.1:21020"), "http://127.0.0.1:21020");
    }
}
