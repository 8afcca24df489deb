//! RabbitMQ with a port mapper (epmd) of its own, so that stacks side by side do not see each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::text;
use crate::certificates;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::program::find_program;
use crate::spec::{HELPER_TIER, Restart, Spec};

/// The work queue, as the relay's routes file and processor-svc name it.
pub const QUEUE: &str = "PaymentInitiated";

/// The start script itself: the one in /usr/sbin insists on the system's user.
pub fn program() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/rabbitmq/lib").ok()?;
    versions
        .flatten()
        .map(|entry| entry.path().join("sbin/rabbitmq-server"))
        .filter(|path| path.is_file())
        .max()
}

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let program = program().context("RabbitMQ is not installed")?;
    let epmd = find_program("epmd").context("Erlang is not installed")?;
    let home = layout.server_dir("rabbitmq")?;
    let users = home.join("definitions.json");
    layout.write_for_server(&users, &serde_json::to_string_pretty(&definitions(layout)?)?)?;
    layout.write_for_server(&home.join("rabbitmq.conf"), &settings(layout, &home, &users))?;
    if layout.is_encrypted() {
        certificates::give(layout, "rabbitmq", &home)?;
    }
    layout.write_for_server(&home.join("enabled_plugins"), "[rabbitmq_management,rabbitmq_prometheus].\n")?;
    layout.write_for_server(&home.join("env.conf"), "")?;
    layout.server_dir("rabbitmq/logs")?;

    let epmd_port = layout.port(Port::Epmd).to_string();
    let argv = vec![text(&epmd), "-address".into(), "127.0.0.1".into(), "-port".into(), epmd_port];
    let mut mapper = super::spec(layout, "epmd", home.clone(), argv, Port::Epmd);
    mapper.tier = HELPER_TIER;
    // The broker would otherwise start one of its own, which nobody watches.
    mapper.restart = Restart::Always;
    // It ignores SIGTERM as long as nodes are registered; none is left when its turn comes.
    mapper.stop_seconds = 2;
    let mut broker = super::spec(layout, "rabbitmq", home.clone(), vec![text(&program)], Port::Amqp);
    broker.env = environment(layout, &home);
    Ok(vec![mapper, broker])
}

/// Its three listeners, by TLS with the files in `home` where the stack is encrypted.
fn listeners(layout: &Layout, home: &Path) -> String {
    let (amqp, management) = (layout.port(Port::Amqp), layout.port(Port::RabbitManagement));
    let prometheus = layout.port(Port::RabbitPrometheus);
    let plugin = |name: &str, kind: &str, port: u16| {
        format!("{name}.{kind}.ip = 127.0.0.1\n{name}.{kind}.port = {port}\n")
    };
    if !layout.is_encrypted() {
        let plugins = plugin("management", "tcp", management) + &plugin("prometheus", "tcp", prometheus);
        return format!("listeners.tcp.1 = 127.0.0.1:{amqp}\n{plugins}");
    }
    let home = home.display();
    let files = |prefix: &str| {
        format!(
            "{prefix}.cacertfile = {home}/ca.pem
{prefix}.certfile = {home}/tls.crt
{prefix}.keyfile = {home}/tls.key
"
        )
    };
    let plugin = |name: &str, port| plugin(name, "ssl", port) + &files(&format!("{name}.ssl"));
    let plugins = plugin("management", management) + &plugin("prometheus", prometheus);
    let options = files("ssl_options");
    format!(
        "listeners.tcp = none
listeners.ssl.1 = 127.0.0.1:{amqp}
{options}ssl_options.verify = verify_none
{plugins}"
    )
}

fn settings(layout: &Layout, home: &Path, definitions: &Path) -> String {
    listeners(layout, home) + &limits(definitions)
}

/// What does not depend on where it listens.
pub fn limits(definitions: &Path) -> String {
    format!(
        "# Read at every start: users that changed since the last one are changed over the data that are there.
load_definitions = {}
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 200MB
# Quorum queues keep their log in memory up to this size.
raft.wal_max_size_bytes = 67108864
cluster_partition_handling = ignore
",
        definitions.display(),
    )
}

/// Everyone who signs in.
pub const USERS: [Login; 3] = [Login::QueueAdministrator, Login::QueueRelay, Login::QueueProcessor];

/// The users and what each may do.
pub fn definitions(layout: &Layout) -> Result<Value> {
    let users: Vec<Value> = USERS
        .into_iter()
        .map(|login| {
            let tags = if login == Login::QueueAdministrator { "administrator" } else { "" };
            Ok(json!({"name": login.user(), "password": login.password(layout)?, "tags": tags}))
        })
        .collect::<Result<_>>()?;
    let permissions = USERS.map(|login| {
        let [configure, write, read] = rights(login);
        json!({"user": login.user(), "vhost": "/", "configure": configure, "write": write, "read": read})
    });
    Ok(json!({"vhosts": [{"name": "/"}], "users": users, "permissions": permissions}))
}

/// What a user may configure, write and read, each a regular expression of names.
fn rights(login: Login) -> [String; 3] {
    let queue = format!("^{QUEUE}$");
    let nothing = "^$".to_owned();
    match login {
        // It declares the queue and publishes to it by the default exchange, which is `amq.default` here.
        Login::QueueRelay => [queue, r"^amq\.default$".to_owned(), nothing],
        Login::QueueProcessor => [nothing.clone(), nothing, queue],
        Login::QueueAdministrator => [".*".to_owned(), ".*".to_owned(), ".*".to_owned()],
        // A login of another server.
        _ => [nothing.clone(), nothing.clone(), nothing],
    }
}

fn environment(layout: &Layout, home: &Path) -> BTreeMap<String, String> {
    let at = |name: &str| text(&home.join(name));
    let entries = [
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ("ERL_EPMD_PORT", layout.port(Port::Epmd).to_string()),
        ("RABBITMQ_NODENAME", "rabbit@localhost".to_owned()),
        ("RABBITMQ_CONF_ENV_FILE", at("env.conf")),
        ("RABBITMQ_CONFIG_FILE", at("rabbitmq")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
        ("RABBITMQ_MNESIA_BASE", at("mnesia")),
        ("RABBITMQ_LOG_BASE", at("logs")),
        ("RABBITMQ_PID_FILE", at("beam.pid")),
        ("RABBITMQ_DIST_PORT", layout.port(Port::RabbitDistribution).to_string()),
        ("RABBITMQ_LOGS", "-".to_owned()),
        // Idle schedulers sleep instead of spinning: the machine has other work.
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}".to_owned(),
        ),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_that_of_the_relays_routes_file() {
        let layout = Layout::new(Some(std::env::temp_dir()), 22_000).unwrap();
        let routes = fs::read_to_string(layout.root.join("cdc-relay/relay.toml")).unwrap();
        assert!(routes.contains(&format!("[[queues]]\nname = \"${{QUEUE:-{QUEUE}}}\"")), "{QUEUE}");
    }
}
