//! Creates the roles: one per purpose (own, serve, replicate, read).

use anyhow::{Context, Result};
use postgres_protocol::password::scram_sha_256;

use crate::{Passwords, admin};

/// A role of the cluster.
#[derive(Debug)]
pub struct Role {
    pub name: &'static str,
    /// May log in, with a password of its own. The owner may not: who owns a table can remove what guards it.
    pub login: bool,
    /// May create replication slots and stream from them.
    pub replication: bool,
    /// A role of Postgres' own whose rights it has.
    pub member_of: Option<&'static str>,
}

/// Sees every session's statistics (lag, slots), not only its own.
const STATISTICS: Option<&str> = Some("pg_read_all_stats");
/// The same, the settings, and the names and sizes of the files of the WAL. No table.
const MONITOR: Option<&str> = Some("pg_monitor");

/// Every role of a stack. What each may do with a table stands beside the table, in its migration.
pub const ROLES: [Role; 9] = [
    Role { name: "coro_owner", login: false, replication: false, member_of: None },
    Role { name: "payments_svc", login: true, replication: false, member_of: None },
    Role { name: "balance_svc", login: true, replication: false, member_of: None },
    Role { name: "processor_svc", login: true, replication: false, member_of: None },
    Role { name: "notifier", login: true, replication: false, member_of: None },
    Role { name: "fraud", login: true, replication: false, member_of: None },
    Role { name: "coro_relay", login: true, replication: true, member_of: STATISTICS },
    Role { name: "coro_checker", login: true, replication: false, member_of: STATISTICS },
    Role { name: "coro_monitor", login: true, replication: false, member_of: MONITOR },
];

impl Role {
    /// The environment variable of its password.
    pub fn variable(&self) -> String {
        format!("{}_PASSWORD", self.name.to_uppercase())
    }
}

/// Creates missing roles, and sets all passwords, at one moment: clients have to find the new ones in their files soon after.
///
/// # Errors
/// When `admin_url` is not a superuser's or the server cannot be reached. Nothing has changed then.
pub async fn bootstrap(admin_url: &str, passwords: &Passwords) -> Result<()> {
    let client = admin::connect(admin_url).await?;
    admin::lock(&client, "roles").await?;
    let mut statements = String::new();
    for Role { name, login, replication, member_of } in &ROLES {
        let known = client.query_opt("select 1 from pg_roles where rolname = $1", &[name]).await?.is_some();
        let verb = if known { "alter" } else { "create" };
        let replication = if *replication { "replication" } else { "noreplication" };
        let login = match login {
            true => format!("login password '{}'", verifier(passwords.of(name)?)),
            false => "nologin password null".to_owned(),
        };
        statements.push_str(&format!(
            "{verb} role {name} nosuperuser nocreatedb nocreaterole {replication} {login};"
        ));
        if let Some(group) = member_of {
            statements.push_str(&format!("grant {group} to {name};"));
        }
    }
    // One transaction.
    client
        .batch_execute(&statements)
        .await
        .context("cannot create or alter the roles; is the URL a superuser's?")?;
    Ok(())
}

/// Gives the role of the URL another password.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn set_own_password(url: &str, password: &str) -> Result<()> {
    let client = admin::connect(url).await?;
    let statement = format!("alter role current_user password '{}'", verifier(password));
    client.batch_execute(&statement).await.context("cannot set the password of the URL's role")
}

/// The SCRAM verifier of a password. Statements contain it instead of the password, since they can be read in
/// `pg_stat_activity` and in logs.
fn verifier(password: &str) -> String {
    scram_sha_256(password.as_bytes())
}
