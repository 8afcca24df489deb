//! Exporters give Prometheus the metrics of what exposes none by itself: the machine, Postgres and Redis, each by a program of the
//! distribution. Kafka's is in its own process (`kafka/agent.rs`).
//!
//! * Each reads when it is scraped, and does nothing in between.
//! * Each collects what a panel or a rule needs, and nothing else.
//! * Each signs in to its server by a login of its own, which reads statistics only. The password is in a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::text;
use crate::certificates;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::program::find_program;
use crate::spec::Spec;

pub const NODE: &str = "prometheus-node-exporter";
pub const POSTGRES: &str = "prometheus-postgres-exporter";
pub const REDIS: &str = "prometheus-redis-exporter";

/// The collectors of the machine's exporter.
pub const COLLECTORS: [&str; 5] = [
    "--collector.disable-defaults",
    "--collector.cpu",
    "--collector.diskstats",
    "--collector.filesystem",
    "--collector.meminfo",
];

fn program(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("{name} is not installed"))
}

/// Settings that exporters have in common.
fn spec(layout: &Layout, name: &str, home: PathBuf, argv: Vec<String>, port: Port) -> Spec {
    let mut spec = super::spec(layout, name, home, argv, port);
    // They have little to do, and the machine has other work.
    spec.env.insert("GOMAXPROCS".to_owned(), "1".to_owned());
    spec
}

/// The argument by which an exporter of the Prometheus project speaks TLS, where the stack is encrypted.
fn tls(layout: &Layout, home: &Path) -> Result<Option<String>> {
    if !layout.is_encrypted() {
        return Ok(None);
    }
    certificates::give(layout, certificates::EXPORTERS, home)?;
    let (config, home) = (home.join("web.yml"), home.display());
    let text = format!("tls_server_config: {{cert_file: {home}/tls.crt, key_file: {home}/tls.key}}\n");
    layout.write_for_server(&config, &text)?;
    Ok(Some(format!("--web.config.file={}", config.display())))
}

fn listens(layout: &Layout, port: Port) -> String {
    format!("--web.listen-address=127.0.0.1:{}", layout.port(port))
}

pub fn node(layout: &Layout) -> Result<Vec<Spec>> {
    let home = layout.server_dir("node-exporter")?;
    let mut argv = vec![text(&program(NODE)?), listens(layout, Port::NodeExporter)];
    argv.extend(COLLECTORS.map(str::to_owned));
    argv.push("--log.level=warn".to_owned());
    argv.extend(tls(layout, &home)?);
    Ok(vec![spec(layout, "node-exporter", home, argv, Port::NodeExporter)])
}

pub fn postgres(layout: &Layout) -> Result<Vec<Spec>> {
    let home = layout.server_dir("postgres-exporter")?;
    let (queries, password) = (home.join("metrics.yml"), home.join("password"));
    layout.write_for_server(&queries, &layout.compose_file("postgres/metrics.yml")?)?;
    layout.write_for_server(&password, &Login::Monitor.password(layout)?)?;
    let mut argv = vec![text(&program(POSTGRES)?), listens(layout, Port::PostgresExporter)];
    argv.push(format!("--extend.query-path={}", queries.display()));
    for own in [
        "disable-default-metrics",
        "disable-settings-metrics",
        "no-collector.database",
        "no-collector.bgwriter",
    ] {
        argv.push(format!("--{own}"));
    }
    argv.push("--log.level=warn".to_owned());
    argv.extend(tls(layout, &home)?);
    let env = postgres_environment(layout, &home, &password);
    let mut spec = spec(layout, "postgres-exporter", home, argv, Port::PostgresExporter);
    spec.env.extend(env.map(|(name, value)| (name.to_owned(), value)));
    Ok(vec![spec])
}

/// The server that is watched. Of several nodes it is the first, whichever takes writes.
fn postgres_address(layout: &Layout) -> String {
    let port = if layout.is_ha() { Port::Postgres1 } else { Port::Postgres };
    format!("127.0.0.1:{}", layout.port(port))
}

/// How it reaches Postgres. The authority, where there is one, is in `home`.
pub fn postgres_environment(layout: &Layout, home: &Path, password: &Path) -> [(&'static str, String); 3] {
    let tls = match layout.is_encrypted() {
        true => format!("sslmode=verify-full&sslrootcert={}/ca.pem", home.display()),
        false => "sslmode=disable".to_owned(),
    };
    [
        ("DATA_SOURCE_URI", format!("{}/postgres?{tls}", postgres_address(layout))),
        ("DATA_SOURCE_USER", Login::Monitor.user().to_owned()),
        ("DATA_SOURCE_PASS_FILE", text(password)),
    ]
}

pub fn redis(layout: &Layout) -> Result<Vec<Spec>> {
    let home = layout.server_dir("redis-exporter")?;
    let passwords = home.join("passwords.json");
    layout.write_for_server(&passwords, &redis_passwords(layout)?)?;
    let mut argv = vec![text(&program(REDIS)?)];
    argv.push(format!("-web.listen-address=127.0.0.1:{}", layout.port(Port::RedisExporter)));
    // Its login may not.
    argv.push("-set-client-name=false".to_owned());
    if layout.is_encrypted() {
        certificates::give(layout, certificates::EXPORTERS, &home)?;
        let files = [("server-cert", "tls.crt"), ("server-key", "tls.key"), ("ca-cert", "ca.pem")];
        argv.extend(files.map(|(flag, name)| format!("-tls-{flag}-file={}", home.join(name).display())));
    }
    let env = redis_environment(layout, &passwords);
    let mut spec = spec(layout, "redis-exporter", home, argv, Port::RedisExporter);
    spec.env.extend(env.map(|(name, value)| (name.to_owned(), value)));
    Ok(vec![spec])
}

fn redis_address(layout: &Layout, user: &str) -> String {
    let scheme = if layout.is_encrypted() { "rediss" } else { "redis" };
    format!("{scheme}://{user}127.0.0.1:{}", layout.port(Port::Redis))
}

/// How it reaches Redis.
pub fn redis_environment(layout: &Layout, passwords: &Path) -> [(&'static str, String); 3] {
    [
        ("REDIS_ADDR", redis_address(layout, "")),
        ("REDIS_USER", Login::CacheMonitor.user().to_owned()),
        ("REDIS_PASSWORD_FILE", text(passwords)),
    ]
}

/// Its passwords by address. Newer versions look for the address with the user.
pub fn redis_passwords(layout: &Layout) -> Result<String> {
    let login = Login::CacheMonitor;
    let password = login.password(layout)?;
    let (plain, named) = (redis_address(layout, ""), redis_address(layout, &format!("{}@", login.user())));
    Ok(serde_json::to_string_pretty(&json!({plain: password, named: password}))?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Any user of the machine may read arguments and what `/proc` shows of them.
    #[test]
    fn a_password_is_in_a_file_of_its_server_alone() {
        let dir = std::env::temp_dir().join(format!("stack-exporters-{}", std::process::id()));
        let layout = Layout { data: dir.join("data"), uid: None, ..Layout::new(Some(dir), 22_000).unwrap() };
        let home = layout.server_dir("postgres-exporter").unwrap();
        let environment = postgres_environment(&layout, &home, &home.join("password"));
        let cache = redis_environment(&layout, &home.join("passwords.json"));
        for login in Login::ALL {
            let secret = login.password(&layout).unwrap();
            for (name, value) in environment.iter().chain(&cache) {
                assert!(!value.contains(&secret), "{name} has the secret of {login:?}");
            }
            let given = redis_passwords(&layout).unwrap().contains(&secret);
            assert_eq!(given, login == Login::CacheMonitor, "{login:?}");
        }
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
