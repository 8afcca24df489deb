//! Highly available Postgres (`up --ha`): three nodes of Patroni, each with a PostgreSQL of its own, and three members of etcd.
//!
//! * Strict synchronous mode: no commit is acknowledged that only the primary has, and only a synchronous standby is promoted.
//! * `failsafe_mode`: while etcd is away, a primary that all nodes still answer stays one.
//! * The relay's slots are made by the relay. Patroni leaves such slots alone (`ignore_slots`); once they are there, it also copies
//!   them to the standbys and keeps them near (`keep_slots`).
//! * A promotion begins another incarnation of each database. Whoever promotes vouches for it: `ROLE_CHANGED` opens it, since a
//!   synchronous standby has every commit that was acknowledged.
//! * Nothing fences a node that is frozen and wakes: this machine has no watchdog. It finds its lock lost and demotes itself; what it
//!   commits until then, no standby confirms.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Node, etcd, postgres, text};
use crate::cache;
use crate::launch;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::maven::run;
use crate::output::Step;
use crate::probe;
use crate::program::find_program;
use crate::spec::{Spec, StopSignal};

/// From the Python Package Index; distributions have older ones, which know neither `failsafe_mode` nor etcd's third protocol.
const VERSION: &str = "4.1.5";
/// The name of the cluster in etcd.
const SCOPE: &str = "coro";
/// A primary that is gone is replaced after so many seconds. Patroni's minimum is 20.
const TTL_SECONDS: u32 = 20;
/// The databases of the saga, which a promotion closes.
const GUARDED: &str = "payments balance processor";

/// Patroni runs it after each change of a node's role.
const ROLE_CHANGED: &str = r#"#!/bin/sh
# Opens the databases of a standby that was promoted: it was synchronous, so it has every commit that was acknowledged.
# $1: the action, $2: the role, $3: the name of the cluster
set -u
[ "$1" = on_role_change ] || exit 0
case "$2" in primary | master) ;; *) exit 0 ;; esac
ask() { psql -X -A -t -q -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }
tries=0
until [ "$(ask postgres 'select not pg_is_in_recovery()' 2>&1)" = t ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || exit 1
    sleep 0.2
done
for database in $GUARDED; do
    # Before the first migration there is none.
    [ "$(ask postgres "select count(*) from pg_database where datname = '$database'")" = 1 ] || continue
    ask "$database" "insert into incarnations (incarnation, operator, reason)
        select incarnation(), 'patroni', 'A synchronous standby was promoted: it has every commit that was acknowledged.'
        where exists (select from incarnations) on conflict do nothing" || echo "$database stays closed" >&2
done
"#;

fn port(node: Node) -> Port {
    node.of([Port::Postgres1, Port::Postgres2, Port::Postgres3])
}

fn rest_port(node: Node) -> Port {
    node.of([Port::Patroni1, Port::Patroni2, Port::Patroni3])
}

pub fn ports(node: Node) -> &'static [Port] {
    node.of([
        &[Port::Postgres1, Port::Patroni1],
        &[Port::Postgres2, Port::Patroni2],
        &[Port::Postgres3, Port::Patroni3],
    ])
}

pub fn name(node: Node) -> &'static str {
    node.of(["postgres-1", "postgres-2", "postgres-3"])
}

/// Hosts and ports of all nodes, as a URL lists them.
pub fn addresses(layout: &Layout) -> String {
    Node::addresses(layout, port)
}

/// The modules of Patroni, shared by all stacks.
fn modules(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("patroni-{VERSION}"))
}

pub fn downloaded(layout: &Layout) -> bool {
    modules(layout).is_dir()
}

/// Installs its modules into a folder that the servers' user can read; a virtual environment of root's it could not.
///
/// # Errors
/// When Python has no venv, or the modules cannot be had.
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    let target = modules(layout);
    cache::once(layout, &target, |scratch| {
        step.now(format!("Patroni {VERSION} from the Python Package Index"));
        let (tools, made) = (scratch.join("tools"), scratch.join("modules"));
        // The one that runs it: some modules are compiled for one version.
        let mut venv = Command::new(find_program("python3").context("Python is not installed")?);
        venv.args(["-m", "venv"]).arg(&tools);
        run(venv).context("python3 -m venv failed")?;
        let mut pip = Command::new(tools.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&made);
        pip.arg(format!("patroni[etcd3,psycopg2-binary]=={VERSION}"));
        run(pip).context("pip install of Patroni failed")?;
        ensure!(made.join("patroni").is_dir(), "pip installed no Patroni");
        Ok(made)
    })?;
    Ok(format!("{VERSION} in {}", target.display()))
}

/// The environment of a program of Patroni's.
fn environment(layout: &Layout) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("PYTHONPATH".to_owned(), text(&modules(layout))),
        ("PYTHONUNBUFFERED".to_owned(), "1".to_owned()),
    ])
}

pub fn prepare(layout: &Layout, node: Node) -> Result<Vec<Spec>> {
    let python = find_program("python3").context("Python is not installed")?;
    let programs = postgres::programs().context("PostgreSQL is not installed")?;
    let home = layout.server_dir(name(node))?;
    let settings = settings(layout, node, &home, &programs)?;
    let config = home.join("patroni.json");
    // JSON is YAML.
    layout.write_for_server(&config, &serde_json::to_string_pretty(&settings)?)?;
    let passwords = home.join("passwords");
    let superuser = Login::Superuser.password(layout)?;
    layout.write_for_server(&passwords, &format!("*:*:*:{}:{superuser}\n", Login::Superuser.user()))?;
    let role_changed = home.join("role-changed");
    layout.write_for_server(&role_changed, ROLE_CHANGED)?;
    fs::set_permissions(&role_changed, fs::Permissions::from_mode(0o700))?;
    let argv = vec![text(&python), "-m".to_owned(), "patroni".to_owned(), text(&config)];
    let mut spec = super::spec(layout, name(node), home.clone(), argv, port(node));
    spec.env = environment(layout);
    // For the script: Patroni passes its environment on.
    spec.env.extend(
        [
            ("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display())),
            ("PGHOST", text(&home)),
            ("PGPORT", layout.port(port(node)).to_string()),
            ("PGUSER", Login::Superuser.user().to_owned()),
            ("PGPASSFILE", text(&passwords)),
            ("GUARDED", GUARDED.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    // It stops its PostgreSQL in order.
    spec.stop_signal = StopSignal::Term;
    Ok(vec![spec])
}

fn settings(layout: &Layout, node: Node, home: &Path, programs: &Path) -> Result<Value> {
    let (port, rest) = (layout.port(port(node)), layout.port(rest_port(node)));
    let login = |user: &str, password: String| json!({"username": user, "password": password});
    let address = |port: u16| format!("127.0.0.1:{port}");
    Ok(json!({
        "scope": SCOPE,
        "name": name(node),
        "restapi": {"listen": address(rest), "connect_address": address(rest)},
        "etcd3": {"hosts": etcd::addresses(layout)},
        "bootstrap": {
            "dcs": shared(&postgres::settings(port, home)),
            "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
        },
        "postgresql": {
            "listen": address(port),
            "connect_address": address(port),
            "data_dir": text(&home.join("cluster")),
            "bin_dir": text(programs),
            "pgpass": text(&home.join("pgpass")),
            "authentication": {
                "superuser": login(Login::Superuser.user(), Login::Superuser.password(layout)?),
                "replication": login("coro_standby", layout.secret("postgres-coro_standby")?),
                "rewind": login("coro_rewind", layout.secret("postgres-coro_rewind")?),
            },
            "parameters": {"unix_socket_directories": text(home)},
            "pg_hba": [
                "local all all scram-sha-256",
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication coro_standby 127.0.0.1/32 scram-sha-256",
            ],
            "callbacks": {"on_role_change": text(&home.join("role-changed"))},
        },
    }))
}

/// The settings that all nodes share; at the first start they go to etcd.
fn shared(settings: &str) -> Value {
    json!({
        "ttl": TTL_SECONDS,
        "loop_wait": 2,
        "retry_timeout": 5,
        "maximum_lag_on_failover": 1_048_576,
        "check_timeline": true,
        "synchronous_mode": true,
        "synchronous_mode_strict": true,
        "synchronous_node_count": 1,
        "failsafe_mode": true,
        // The relay makes its slots itself, and so does `cdc-relay tail`.
        "ignore_slots": [{"type": "logical", "plugin": "pgoutput"}],
        "postgresql": {
            "use_pg_rewind": true,
            "use_slots": true,
            "parameters": parameters(settings),
        },
    })
}

/// The settings of every stack's Postgres, but for those of one node, and what standbys need.
fn parameters(settings: &str) -> Value {
    const OF_A_NODE: [&str; 3] = ["port", "listen_addresses", "unix_socket_directories"];
    let lines = settings.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once(" = "));
    let own = pairs.filter(|(name, _)| !OF_A_NODE.contains(name));
    let own = own.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').into()));
    // Three of them share the machine.
    let more = [("hot_standby_feedback", "on"), ("wal_log_hints", "on"), ("shared_buffers", "128MB")];
    let more = more.map(|(name, value)| (name.to_owned(), value.into()));
    Value::Object(own.chain(more).collect())
}

/// Whether the PostgreSQL of a node runs, as a primary or a standby.
pub fn ready(layout: &Layout, node: Node) -> bool {
    probe::http(layout, rest_port(node), "/health") && primary(layout).is_some()
}

/// The node that takes writes.
pub fn primary(layout: &Layout) -> Option<Node> {
    Node::ALL.into_iter().find(|node| probe::http(layout, rest_port(*node), "/primary"))
}

/// Has Patroni copy the relay's slots to the standbys, and keep them near. Slots that do not exist yet are left to the relay.
///
/// # Errors
/// When no node takes writes, or etcd is away.
pub fn keep_slots(layout: &Layout) -> Result<String> {
    let node = primary(layout).context("no node of Postgres takes writes")?;
    let home = layout.server_dir(name(node))?;
    let programs = postgres::programs().context("PostgreSQL is not installed")?;
    let url =
        format!("postgres://{}@127.0.0.1:{}/postgres", Login::Superuser.user(), layout.port(port(node)));
    let query = "select slot_name, database from pg_replication_slots
                 where slot_type = 'logical' and plugin = 'pgoutput' and not temporary order by 1";
    let ask = ["-X", "-A", "-t", "-q", "-F", " ", "-d", &url, "-c", query].map(str::to_owned);
    let argv: Vec<String> = std::iter::once(text(&programs.join("psql"))).chain(ask).collect();
    let password = BTreeMap::from([("PGPASSFILE".to_owned(), text(&home.join("passwords")))]);
    let found = launch::tool(&home, layout.uid, &argv, &password).context("cannot look up the slots")?;
    let slots: Vec<(&str, &str)> = found.lines().filter_map(|line| line.split_once(' ')).collect();
    let slot = |(name, database): &(&str, &str)| {
        ((*name).to_owned(), json!({"type": "logical", "database": database, "plugin": "pgoutput"}))
    };
    let wanted = json!({"slots": Value::Object(slots.iter().map(slot).collect())});
    let file = home.join("slots.json");
    layout.write_for_server(&file, &wanted.to_string())?;
    let python = text(&find_program("python3").context("Python is not installed")?);
    let ctl = "from patroni.ctl import ctl; ctl(prog_name='patronictl')";
    let config = text(&home.join("patroni.json"));
    let argv = [
        &python,
        "-c",
        ctl,
        "-c",
        &config,
        "edit-config",
        SCOPE,
        "--force",
        "--quiet",
        "--apply",
        &text(&file),
    ];
    launch::tool(&home, layout.uid, &argv.map(str::to_owned), &environment(layout)).context("patronictl")?;
    Ok(format!("{} kept on every node", slots.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (Layout, PathBuf) {
        let dir = std::env::temp_dir().join(format!("stack-patroni-{}", std::process::id()));
        let layout =
            Layout { data: dir.join("data"), uid: None, ..Layout::new(Some(dir.clone()), 22_000).unwrap() };
        (layout, dir)
    }

    #[test]
    fn durability_is_that_of_a_single_server_and_no_commit_is_acknowledged_that_one_node_has() {
        let shared = shared(&postgres::settings(21_070, Path::new("/d")));
        for (name, value) in [
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            ("wal_level", "logical"),
            ("hot_standby_feedback", "on"),
            ("log_line_prefix", "%m [%p] %e %q%u@%d "),
        ] {
            assert_eq!(shared["postgresql"]["parameters"][name], value, "{name}");
        }
        for name in ["port", "listen_addresses", "unix_socket_directories"] {
            assert!(
                shared["postgresql"]["parameters"].get(name).is_none(),
                "{name} differs from node to node"
            );
        }
        for name in ["synchronous_mode", "synchronous_mode_strict", "failsafe_mode"] {
            assert_eq!(shared[name], true, "{name}");
        }
        let number = |name: &str| shared[name].as_u64().unwrap();
        assert!(number("ttl") >= number("loop_wait") + 2 * number("retry_timeout"), "Patroni's own rule");
    }

    #[test]
    fn each_node_has_addresses_of_its_own_and_the_passwords_of_the_stack() {
        let (layout, dir) = layout();
        let of = |node| settings(&layout, node, Path::new("/h"), Path::new("/p")).unwrap();
        let (first, second) = (of(Node::One), of(Node::Two));
        for path in ["/postgresql/listen", "/restapi/listen", "/name"] {
            assert_ne!(first.pointer(path), second.pointer(path), "{path}");
        }
        for path in ["/postgresql/authentication", "/etcd3", "/scope"] {
            assert_eq!(first.pointer(path), second.pointer(path), "{path}");
        }
        let password = &first["postgresql"]["authentication"]["superuser"]["password"];
        assert_eq!(*password, Login::Superuser.password(&layout).unwrap());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_script_is_valid_shell() {
        let status = Command::new("sh").args(["-n", "-c", ROLE_CHANGED]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn the_databases_that_a_promotion_closes_are_those_with_incarnations() {
        let sql = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("sql");
        let mut guarded: Vec<String> = fs::read_dir(sql)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|folder| folder.is_dir())
            .filter(|folder| {
                let mut files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
                files.any(|file| file.to_string_lossy().ends_with("__incarnations.sql"))
            })
            .map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        guarded.sort();
        let mut listed: Vec<&str> = GUARDED.split(' ').collect();
        listed.sort_unstable();
        assert_eq!(listed, guarded);
    }
}
