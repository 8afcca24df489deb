//! RabbitMQ with a port mapper (epmd) of its own, so that stacks side by side do not see each other.
//!
//! A stack has one node, a highly available one three, any of which may be lost: a quorum queue is on all of them, and a message is
//! confirmed once two have it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Node, text};
use crate::certificates;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::program::find_program;
use crate::spec::{HELPER_TIER, Restart, Spec};

/// The work queue, as the relay's routes file and processor-svc name it.
pub const QUEUE: &str = "PaymentInitiated";

pub fn name(node: Node) -> &'static str {
    node.of(["rabbitmq", "rabbitmq-2", "rabbitmq-3"])
}

/// The node's name in its cluster.
fn erlang_name(node: Node) -> String {
    format!("{}@localhost", node.of(["rabbit", "rabbit-2", "rabbit-3"]))
}

pub fn port(node: Node) -> Port {
    node.of([Port::Amqp, Port::Amqp2, Port::Amqp3])
}

pub fn management_port(node: Node) -> Port {
    node.of([Port::RabbitManagement, Port::RabbitManagement2, Port::RabbitManagement3])
}

pub fn metrics_port(node: Node) -> Port {
    node.of([Port::RabbitPrometheus, Port::RabbitPrometheus2, Port::RabbitPrometheus3])
}

fn distribution_port(node: Node) -> Port {
    node.of([Port::RabbitDistribution, Port::RabbitDistribution2, Port::RabbitDistribution3])
}

/// The first has that of the port mapper too, which is the same for all.
pub fn ports(node: Node) -> &'static [Port] {
    use Port::{Amqp, Amqp2, Amqp3, Epmd, RabbitDistribution, RabbitDistribution2, RabbitDistribution3};
    use Port::{RabbitManagement, RabbitManagement2, RabbitManagement3};
    use Port::{RabbitPrometheus, RabbitPrometheus2, RabbitPrometheus3};
    node.of([
        &[Amqp, RabbitManagement, RabbitPrometheus, RabbitDistribution, Epmd],
        &[Amqp2, RabbitManagement2, RabbitPrometheus2, RabbitDistribution2],
        &[Amqp3, RabbitManagement3, RabbitPrometheus3, RabbitDistribution3],
    ])
}

/// HOST:PORT of all nodes, with commas between.
pub fn addresses(layout: &Layout) -> String {
    Node::addresses(layout, port)
}

/// The start script itself: the one in /usr/sbin insists on the system's user.
pub fn program() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/rabbitmq/lib").ok()?;
    versions
        .flatten()
        .map(|entry| entry.path().join("sbin/rabbitmq-server"))
        .filter(|path| path.is_file())
        .max()
}

pub fn prepare(layout: &Layout, node: Node) -> Result<Vec<Spec>> {
    let program = program().context("RabbitMQ is not installed")?;
    let epmd = find_program("epmd").context("Erlang is not installed")?;
    let home = layout.server_dir(name(node))?;
    let users = home.join("definitions.json");
    layout.write_for_server(&users, &serde_json::to_string_pretty(&definitions(layout)?)?)?;
    layout.write_for_server(&home.join("rabbitmq.conf"), &settings(layout, node, &home, &users))?;
    if layout.is_ha() {
        share_cookie(layout, &home)?;
    }
    if layout.is_encrypted() {
        certificates::give(layout, "rabbitmq", &home)?;
    }
    layout.write_for_server(&home.join("enabled_plugins"), "[rabbitmq_management,rabbitmq_prometheus].\n")?;
    layout.write_for_server(&home.join("env.conf"), "")?;
    layout.server_dir(&format!("{}/logs", name(node)))?;
    let mut broker = super::spec(layout, name(node), home.clone(), vec![text(&program)], port(node));
    broker.env = environment(layout, node, &home);
    Ok(vec![mapper(layout, &epmd)?, broker])
}

/// The port mapper, which is the same for all nodes.
fn mapper(layout: &Layout, program: &Path) -> Result<Spec> {
    let port = layout.port(Port::Epmd).to_string();
    let argv = vec![text(program), "-address".into(), "127.0.0.1".into(), "-port".into(), port];
    let home = layout.server_dir(name(Node::One))?;
    let mut mapper = super::spec(layout, "epmd", home, argv, Port::Epmd);
    mapper.tier = HELPER_TIER;
    // The broker would otherwise start one of its own, which nobody watches.
    mapper.restart = Restart::Always;
    // It ignores SIGTERM as long as nodes are registered; none is left when its turn comes.
    mapper.stop_seconds = 2;
    Ok(mapper)
}

/// Nodes talk to those alone that have the same cookie. Erlang takes no file that others may read, and would make one for each node.
fn share_cookie(layout: &Layout, home: &Path) -> Result<()> {
    let path = home.join(".erlang.cookie");
    layout.write_for_server(&path, &layout.secret("erlang-cookie")?)?;
    let read_only = fs::Permissions::from_mode(0o400);
    fs::set_permissions(&path, read_only).with_context(|| format!("cannot protect {}", path.display()))
}

/// How the nodes of a cluster find each other at their first start, one after the other, whichever is first.
fn cluster(layout: &Layout) -> String {
    let peer = |(at, node): (usize, &Node)| {
        format!("cluster_formation.classic_config.nodes.{} = {}\n", at + 1, erlang_name(*node))
    };
    match Node::all(layout) {
        [_] => String::new(),
        nodes => {
            let peers: String = nodes.iter().enumerate().map(peer).collect();
            // Each joins while it holds a lock, which takes ten seconds and more where both processors compile; by itself it would ask
            // for half a minute, and then rest as long. Nodes that see no majority stop until they do.
            format!(
                "cluster_formation.peer_discovery_backend = classic_config
{peers}cluster_formation.internal_lock_retries = 60
cluster_formation.lock_retry_timeout = 1000
cluster_partition_handling = pause_minority
"
            )
        }
    }
}

/// Its three listeners, by TLS with the files in `home` where the stack is encrypted.
fn listeners(layout: &Layout, node: Node, home: &Path) -> String {
    let (amqp, management) = (layout.port(port(node)), layout.port(management_port(node)));
    let prometheus = layout.port(metrics_port(node));
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

fn settings(layout: &Layout, node: Node, home: &Path, definitions: &Path) -> String {
    listeners(layout, node, home) + &limits(definitions) + &cluster(layout)
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

fn environment(layout: &Layout, node: Node, home: &Path) -> BTreeMap<String, String> {
    let at = |name: &str| text(&home.join(name));
    let entries = [
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ("ERL_EPMD_PORT", layout.port(Port::Epmd).to_string()),
        ("RABBITMQ_NODENAME", erlang_name(node)),
        ("RABBITMQ_CONF_ENV_FILE", at("env.conf")),
        ("RABBITMQ_CONFIG_FILE", at("rabbitmq")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
        ("RABBITMQ_MNESIA_BASE", at("mnesia")),
        ("RABBITMQ_LOG_BASE", at("logs")),
        ("RABBITMQ_PID_FILE", at("beam.pid")),
        ("RABBITMQ_DIST_PORT", layout.port(distribution_port(node)).to_string()),
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

    fn highly_available(name: &str) -> Layout {
        let dir = std::env::temp_dir().join(format!("stack-{name}-{}", std::process::id()));
        let layout = Layout::new(Some(dir.clone()), 22_000).unwrap();
        let layout = Layout { data: dir.join("data"), uid: None, ..layout };
        layout.choose_ha().unwrap();
        layout
    }

    #[test]
    fn three_nodes_know_each_other_and_have_one_port_mapper() {
        let layout = highly_available("rabbitmq");
        let known = cluster(&layout);
        for line in
            ["cluster_partition_handling = pause_minority", "cluster_formation.internal_lock_retries = 60"]
        {
            assert!(known.contains(&format!("{line}\n")), "{known}");
        }
        for (at, node) in Node::ALL.into_iter().enumerate() {
            let peer = format!("classic_config.nodes.{} = {}\n", at + 1, erlang_name(node));
            assert!(known.contains(&peer), "{known}");
            let others = Node::ALL.into_iter().filter(|other| *other != node);
            let ours = environment(&layout, node, Path::new("/"));
            for other in others {
                let theirs = environment(&layout, other, Path::new("/"));
                for name in ["RABBITMQ_NODENAME", "RABBITMQ_DIST_PORT"] {
                    assert_ne!(ours[name], theirs[name], "{name}");
                }
            }
        }
        // Each node has it started; the supervisor leaves one that runs as it is, unless it is given another.
        let program = Path::new("/usr/bin/epmd");
        assert_eq!(mapper(&layout, program).unwrap(), mapper(&layout, program).unwrap());
        assert_eq!(addresses(&layout), "127.0.0.1:22006,127.0.0.1:22090,127.0.0.1:22094");
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn all_nodes_have_one_cookie_that_nobody_else_can_read() {
        let layout = highly_available("cookie");
        let mut cookies = Vec::new();
        for node in Node::ALL {
            let home = layout.server_dir(name(node)).unwrap();
            // Twice: it is there at the second start.
            share_cookie(&layout, &home).unwrap();
            share_cookie(&layout, &home).unwrap();
            let file = home.join(".erlang.cookie");
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
            cookies.push(fs::read_to_string(file).unwrap());
        }
        assert!(cookies[0].len() >= 32 && cookies.iter().all(|cookie| *cookie == cookies[0]));
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
