//! One login per purpose: who owns, who serves, who replicates, who only reads.

use anyhow::{Context, Result};

use crate::admin;

/// A login of the cluster.
#[derive(Debug)]
pub struct Role {
    pub name: &'static str,
    /// May create replication slots and stream from them.
    pub replication: bool,
    /// May see every session's statistics (lag, slots), not only its own.
    pub statistics: bool,
}

/// Every role of a stack. What each may do with a table stands beside the table, in its migration.
pub const ROLES: [Role; 6] = [
    Role { name: "coro_owner", replication: false, statistics: false },
    Role { name: "payments_svc", replication: false, statistics: false },
    Role { name: "balance_svc", replication: false, statistics: false },
    Role { name: "processor_svc", replication: false, statistics: false },
    Role { name: "coro_relay", replication: true, statistics: true },
    Role { name: "coro_checker", replication: false, statistics: true },
];

/// Makes the roles that are missing and gives all of them `password`.
///
/// # Errors
/// When `admin_url` is not a superuser's or the server cannot be reached.
pub async fn bootstrap(admin_url: &str, password: &str) -> Result<()> {
    let client = admin::connect(admin_url).await?;
    admin::lock(&client, "roles").await?;
    let secret = password.replace('\'', "''");
    for Role { name, replication, statistics } in &ROLES {
        let known = client.query_opt("select 1 from pg_roles where rolname = $1", &[name]).await?.is_some();
        let verb = if known { "alter" } else { "create" };
        let replication = if *replication { "replication" } else { "noreplication" };
        let mut statement = format!(
            "{verb} role {name} login nosuperuser nocreatedb nocreaterole {replication} password E'{}';",
            secret.replace('\\', "\\\\")
        );
        if *statistics {
            statement.push_str(&format!("grant pg_read_all_stats to {name};"));
        }
        client.batch_execute(&statement).await.with_context(|| format!("cannot make role {name}"))?;
    }
    Ok(())
}
