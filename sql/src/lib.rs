//! The databases of Coro: creates roles and databases, and applies migrations.
//!
//! * Everything is idempotent and safe to run from several processes at once: each step takes an advisory lock first.
//! * A migration makes nobody wait for longer than a second ([`apply()`]).
//! * Tests create and drop a database of their own ([`harness`]).

mod admin;
mod apply;
#[cfg(test)]
mod beside;
mod passwords;
mod roles;

pub mod harness;

pub use admin::{connect, database_url, with_database};
pub use apply::{apply, forget};
pub use passwords::Passwords;
pub use roles::{ROLES, Role, bootstrap, set_own_password};

use anyhow::{Context, Result, bail};
use strum::{IntoStaticStr, VariantArray};

/// A migration's name and text. By its macro refinery would be built a second time, for the compiler.
macro_rules! migrations {
    ($($folder:literal / $name:literal),+) => {
        &[$(($name, include_str!(concat!("../", $folder, "/", $name, ".sql")))),+]
    };
}

const PAYMENTS: &[(&str, &str)] = migrations!(
    "payments" / "V1__payments",
    "payments" / "V2__payments_publication",
    "payments" / "V3__services_published",
    "payments" / "V4__operators",
    "payments" / "V5__incarnations",
    "payments" / "V6__operators_published",
    "payments" / "V7__buckets",
    "payments" / "V8__incarnation_acts",
    "payments" / "V9__moves",
    "payments" / "V10__ownership"
);
const BALANCE: &[(&str, &str)] = migrations!(
    "balance" / "V1__balance",
    "balance" / "V2__balance_publication",
    "balance" / "V3__balance_max",
    "balance" / "V4__ledger_amount_checked",
    "balance" / "V5__movements",
    "balance" / "V6__operators",
    "balance" / "V7__incarnations",
    "balance" / "V8__operators_published",
    "balance" / "V9__buckets",
    "balance" / "V10__incarnation_acts",
    "balance" / "V11__moves",
    "balance" / "V12__ownership"
);
const PROCESSOR: &[(&str, &str)] = migrations!(
    "processor" / "V1__processor",
    "processor" / "V2__processor_publication",
    "processor" / "V3__operators",
    "processor" / "V4__incarnations",
    "processor" / "V5__operators_published",
    "processor" / "V6__buckets",
    "processor" / "V7__incarnation_acts",
    "processor" / "V8__moves",
    "processor" / "V9__ownership"
);
const NOTIFIER: &[(&str, &str)] = migrations!("notifier" / "V1__notifier");
const FRAUD: &[(&str, &str)] = migrations!("fraud" / "V1__fraud", "fraud" / "V2__fraud_publication");

/// The table in which each database keeps what was applied to it.
const HISTORY: &str = "refinery_schema_history";

/// The publication in each database that anything leaves. It lists all that does.
pub const PUBLICATION: &str = "coro_events";

/// One database per service; no service reads another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Database {
    Payments,
    Balance,
    Processor,
    /// Of the subscribers in `consumers`; empty where they do not run.
    Notifier,
    Fraud,
}

impl Database {
    pub const ALL: &[Self] = Self::VARIANTS;

    /// The name of the database in a stack. A test's database of the same kind has another name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The role its service logs in as.
    pub fn service_role(self) -> &'static str {
        match self {
            Self::Payments => "payments_svc",
            Self::Balance => "balance_svc",
            Self::Processor => "processor_svc",
            Self::Notifier => "notifier",
            Self::Fraud => "fraud",
        }
    }

    fn migrations(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Payments => PAYMENTS,
            Self::Balance => BALANCE,
            Self::Processor => PROCESSOR,
            Self::Notifier => NOTIFIER,
            Self::Fraud => FRAUD,
        }
    }
}

/// Creates the database `name` of this kind if it is missing, and applies its migrations.
///
/// `admin_url` is a superuser's; the roles must exist ([`bootstrap`]). The owner is `coro_owner`; only the
/// service's role, the relay and the checker may connect.
///
/// # Errors
/// When the server cannot be reached, a role is missing, or a migration that was applied has been changed.
pub async fn create_database(admin_url: &str, kind: Database, name: &str) -> Result<()> {
    let quoted = admin::quote_identifier(name)?;
    let admin = connect(admin_url).await?;
    admin::lock(&admin, name).await?;
    if admin.query_opt("select 1 from pg_database where datname = $1", &[&name]).await?.is_none() {
        // template0: unlike template1 it never has sessions, so databases can be made at the same time.
        let statement =
            format!("create database {quoted} owner coro_owner template template0 encoding 'UTF8'");
        admin.batch_execute(&statement).await.with_context(|| format!("cannot create database {name}"))?;
    }
    let service = kind.service_role();
    admin
        .batch_execute(&format!(
            "revoke connect, temporary on database {quoted} from public;
             grant connect on database {quoted} to {service}, coro_relay, coro_checker;"
        ))
        .await
        .with_context(|| {
            format!("cannot set who may connect to {name}; create the roles first (`migrate`)")
        })?;
    apply(admin_url, name, HISTORY, kind.migrations()).await
}

/// All databases of a stack, up to date.
///
/// # Errors
/// As [`create_database`].
pub async fn migrate_all(admin_url: &str) -> Result<()> {
    for &kind in Database::ALL {
        create_database(admin_url, kind, kind.name()).await?;
    }
    Ok(())
}

/// The version of the newest migration that this database has; 0 if it has none.
///
/// # Errors
/// When the database is missing, or was never migrated.
pub async fn version(admin_url: &str, database: &str) -> Result<i32> {
    let client = connect(&admin::with_database(admin_url, database)?).await?;
    let newest = format!("select coalesce(max(version), 0)::int4 from {HISTORY}");
    Ok(client.query_one(&newest, &[]).await.with_context(|| format!("the migrations of {database}"))?.get(0))
}

/// Adds the demo services to a payments database; what is there already stays as it is.
///
/// # Errors
/// When the database is missing or not migrated.
pub async fn seed(admin_url: &str, payments_database: &str) -> Result<()> {
    let client = connect(&admin::with_database(admin_url, payments_database)?).await?;
    client
        .batch_execute(
            "set role coro_owner;
             insert into services (service_id, name, enabled) values
                 ('electricity', 'Electricity',        true),
                 ('mobile',      'Mobile phone',       true),
                 ('water',       'Water',              true),
                 ('closed',      'A closed service',   false)
             on conflict (service_id) do nothing",
        )
        .await
        .context("cannot add the demo services")
}

/// Drops a database, its sessions and its replication slots. A missing database is no error.
///
/// # Errors
/// When sessions or slots cannot be ended within about five seconds. Refuses `postgres` and templates.
pub async fn drop_database(admin_url: &str, name: &str) -> Result<()> {
    if matches!(name, "postgres" | "template0" | "template1") {
        bail!("{name} belongs to the server and is not dropped; name another database");
    }
    let quoted = admin::quote_identifier(name)?;
    let client = connect(admin_url).await?;
    let mut last = None;
    for _ in 0..50 {
        // "force" does not end walsenders, and an active slot blocks the drop.
        let ended = "select pg_terminate_backend(active_pid) from pg_replication_slots
                     where database = $1 and active_pid is not null";
        client.execute(ended, &[&name]).await?;
        match client.batch_execute(&format!("drop database if exists {quoted} with (force)")).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    match last {
        Some(error) => Err(error).with_context(|| format!("cannot drop database {name}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_is_listed_in_order() {
        for kind in Database::ALL {
            let folder = format!("{}/{}", env!("CARGO_MANIFEST_DIR"), kind.name());
            let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
            let mut names: Vec<_> =
                files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
            // By number: V10 follows V9.
            names.sort_by_key(|name| name[1..].split("__").next().unwrap().parse::<u32>().unwrap());
            let listed: Vec<_> = kind.migrations().iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(listed, names, "{folder}");
        }
    }
}
