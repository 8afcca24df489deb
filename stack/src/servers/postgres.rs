//! PostgreSQL 15 or newer: one cluster, three databases, logical decoding on, durability as in production. Each shard has one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::text;
use crate::certificates;
use crate::launch;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::output::Step;
use crate::spec::{Spec, StopSignal};

/// The first version whose publications can list columns.
pub const VERSION_MIN: u32 = 15;

/// Names the folder of the programs to use instead.
const CHOSEN: &str = "STACK_POSTGRES";

/// The folder of the newest installed version that will do, or the one that was chosen.
pub fn programs() -> Option<PathBuf> {
    if let Some(chosen) = std::env::var_os(CHOSEN).map(PathBuf::from) {
        return chosen.join("postgres").is_file().then_some(chosen);
    }
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let numbered = versions.flatten().filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let folder = entry.path().join("bin");
        (version >= VERSION_MIN && folder.join("postgres").is_file()).then_some((version, folder))
    });
    numbered.max().map(|(_, folder)| folder)
}

/// The server of this name, on this port.
pub fn prepare(layout: &Layout, name: &str, port: Port, step: &Step) -> Result<Vec<Spec>> {
    let programs =
        programs().with_context(|| format!("PostgreSQL is not installed, or not where {CHOSEN} says"))?;
    let home = layout.server_dir(name)?;
    let cluster = layout.cluster(name);
    if !cluster.join("PG_VERSION").is_file() {
        step.now("making the cluster");
        initialise(layout, &programs, &home, &cluster)?;
    }
    let (mut settings, mut host) = (settings(layout.port(port), &home), "host");
    if layout.is_encrypted() {
        certificates::give(layout, "postgres", &cluster)?;
        settings += "ssl = on\nssl_cert_file = 'tls.crt'\nssl_key_file = 'tls.key'\n";
        host = "hostssl";
    }
    layout.write_for_server(&cluster.join("coro.conf"), &settings)?;
    // A relay's replication connection names a database, so "all" covers it. That of a base backup and of a standby does not.
    let access = format!(
        "local all all scram-sha-256\n{host} all all 127.0.0.1/32 scram-sha-256\n{host} replication postgres 127.0.0.1/32 \
         scram-sha-256\n"
    );
    layout.write_for_server(&cluster.join("pg_hba.conf"), &access)?;
    let argv = vec![text(&programs.join("postgres")), "-D".to_owned(), text(&cluster)];
    let mut spec = super::spec(layout, name, home, argv, port);
    // Fast shutdown: SIGTERM would wait for clients to leave.
    spec.stop_signal = StopSignal::Int;
    Ok(vec![spec])
}

/// Made beside its place and moved there when it is whole.
fn initialise(layout: &Layout, programs: &Path, home: &Path, cluster: &Path) -> Result<()> {
    let fresh = home.join("cluster.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    // A file, since another user cannot reopen our descriptors.
    let secret = home.join("password");
    layout.write_for_server(&secret, &Login::Superuser.password(layout)?)?;
    let argv = [
        text(&programs.join("initdb")),
        format!("--pgdata={}", fresh.display()),
        "--username=postgres".to_owned(),
        format!("--pwfile={}", secret.display()),
        "--auth=scram-sha-256".to_owned(),
        "--encoding=UTF8".to_owned(),
        "--locale=C.UTF-8".to_owned(),
    ];
    let made = launch::tool(home, layout.uid, &argv, &BTreeMap::new());
    fs::remove_file(&secret)?;
    made.context("cannot make the Postgres cluster")?;
    let main = fresh.join("postgresql.conf");
    let stock = fs::read_to_string(&main)?;
    layout.write_for_server(&main, &format!("{stock}\ninclude 'coro.conf'\n"))?;
    fs::rename(&fresh, cluster)?;
    Ok(())
}

pub fn settings(port: u16, home: &Path) -> String {
    format!(
        "# Written by `cargo stack up`; changes are overwritten.
port = {port}
listen_addresses = '127.0.0.1'
unix_socket_directories = '{}'
password_encryption = 'scram-sha-256'
max_connections = 200
shared_buffers = 512MB
# An acknowledged commit survives a crash: every event of a payment rests on it.
synchronous_commit = on
fsync = on
full_page_writes = on
wal_level = logical
wal_compression = off
max_wal_size = 4GB
max_replication_slots = 40
max_wal_senders = 40
# A relay that is down for long must not fill the disk; far above what a stack writes in a day.
max_slot_wal_keep_size = 16GB
# Nothing is kept until somebody says where: another archive_command takes a reload, archive_mode a restart.
archive_mode = on
archive_command = 'true'
autovacuum = on
log_line_prefix = '%m [%p] %e %q%u@%d '
# No log holds personal data. Details quote rows, statements their texts, and parameters are what people typed.
log_error_verbosity = terse
log_min_error_statement = panic
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_checkpoints = off
",
        home.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durability_is_never_traded() {
        let settings = settings(21_001, Path::new("/d"));
        for line in ["fsync = on", "synchronous_commit = on", "wal_level = logical", "port = 21001"] {
            assert!(settings.lines().any(|found| found == line), "{line}");
        }
    }

    #[test]
    fn no_row_no_statement_and_no_parameter_is_logged() {
        let settings = settings(21_001, Path::new("/d"));
        for line in [
            "log_error_verbosity = terse",
            "log_min_error_statement = panic",
            "log_parameter_max_length = 0",
            "log_parameter_max_length_on_error = 0",
        ] {
            assert!(settings.lines().any(|found| found == line), "{line}");
        }
    }
}
