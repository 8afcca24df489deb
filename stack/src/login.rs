//! Who logs in to the servers of a stack: each login has a name on its server and a secret of its own.
//!
//! The one list of them. What each may do stands beside its server: in `sql/src/roles.rs` and the migrations, in
//! `servers/rabbitmq.rs` and in `servers/redis.rs`.

use anyhow::{Result, ensure};

use crate::layout::Layout;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// Postgres' superuser: for migrations, for people and for tests.
    Superuser,
    PaymentsService,
    BalanceService,
    ProcessorService,
    Notifier,
    Fraud,
    /// Replicates from all databases.
    Relay,
    /// Reads all databases: the audit, `explain`, people.
    Checker,
    /// Reads statistics, and no table: the exporter of Postgres.
    Monitor,
    /// For people and for tests.
    QueueAdministrator,
    /// Declares the work queue and publishes to it.
    QueueRelay,
    /// Consumes the work queue.
    QueueProcessor,
    /// For people and for tests.
    CacheAdministrator,
    CacheProcessor,
    /// Reads statistics, and no key: the exporter of Redis.
    CacheMonitor,
}

impl Login {
    pub const ALL: [Self; 15] = [
        Self::Superuser,
        Self::PaymentsService,
        Self::BalanceService,
        Self::ProcessorService,
        Self::Notifier,
        Self::Fraud,
        Self::Relay,
        Self::Checker,
        Self::Monitor,
        Self::QueueAdministrator,
        Self::QueueRelay,
        Self::QueueProcessor,
        Self::CacheAdministrator,
        Self::CacheProcessor,
        Self::CacheMonitor,
    ];

    /// The roles that `migrate` makes and gives a password, each with the variable that it takes the password from.
    pub const ROLES: [(Self, &'static str); 8] = [
        (Self::PaymentsService, "PAYMENTS_SVC_PASSWORD"),
        (Self::BalanceService, "BALANCE_SVC_PASSWORD"),
        (Self::ProcessorService, "PROCESSOR_SVC_PASSWORD"),
        (Self::Notifier, "NOTIFIER_PASSWORD"),
        (Self::Fraud, "FRAUD_PASSWORD"),
        (Self::Relay, "CORO_RELAY_PASSWORD"),
        (Self::Checker, "CORO_CHECKER_PASSWORD"),
        (Self::Monitor, "CORO_MONITOR_PASSWORD"),
    ];

    /// The name of its server.
    fn server(self) -> &'static str {
        match self {
            Self::Superuser
            | Self::PaymentsService
            | Self::BalanceService
            | Self::ProcessorService
            | Self::Notifier
            | Self::Fraud
            | Self::Relay
            | Self::Checker
            | Self::Monitor => "postgres",
            Self::QueueAdministrator | Self::QueueRelay | Self::QueueProcessor => "rabbitmq",
            Self::CacheAdministrator | Self::CacheProcessor | Self::CacheMonitor => "redis",
        }
    }

    /// Its name on the server.
    pub fn user(self) -> &'static str {
        match self {
            Self::Superuser => "postgres",
            Self::PaymentsService => "payments_svc",
            Self::BalanceService => "balance_svc",
            Self::ProcessorService | Self::QueueProcessor | Self::CacheProcessor => "processor_svc",
            Self::Notifier => "notifier",
            Self::Fraud => "fraud",
            Self::Relay | Self::QueueRelay => "coro_relay",
            Self::Checker => "coro_checker",
            Self::Monitor | Self::CacheMonitor => "coro_monitor",
            Self::QueueAdministrator | Self::CacheAdministrator => "coro_admin",
        }
    }

    /// The name of its secret, see [`Layout::secret`].
    pub fn secret(self) -> String {
        format!("{}-{}", self.server(), self.user())
    }

    /// The secret that it logs in with; made at the first use.
    ///
    /// # Errors
    /// When it can be neither read nor written, or when a cluster of Postgres is there that another password opens.
    pub fn password(self, layout: &Layout) -> Result<String> {
        // `up` sets every other password anew; the superuser's is what it does that with.
        if self == Self::Superuser {
            let cluster = layout.postgres_data();
            ensure!(
                layout.secrets().join(self.secret()).is_file() || !cluster.exists(),
                "{} holds data of a stack, and the password of their superuser is not in {}: the folder of that \
                 stack was removed, or the stack is of a version that had one password for all logins. The data \
                 cannot be taken over. To remove them and start afresh: STACK_DIR={} cargo stack clean",
                cluster.display(),
                layout.secrets().display(),
                layout.dir.display()
            );
        }
        layout.secret(&self.secret())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// An empty stack in a folder of its own.
    fn layout(name: &str) -> Layout {
        let folder = std::env::temp_dir().join(format!("stack-{name}-{}", std::process::id()));
        let layout = Layout {
            root: folder.clone(),
            dir: folder.join("dir"),
            data: folder.join("data"),
            cache: folder,
            base_port: 22_000,
            uid: None,
        };
        fs::create_dir_all(&layout.dir).unwrap();
        layout
    }

    #[test]
    fn every_login_has_a_password_of_its_own_and_keeps_it() {
        let layout = layout("logins");
        let passwords = || Login::ALL.map(|login| login.password(&layout).unwrap());
        let first = passwords();
        let mut distinct = first.clone().to_vec();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), Login::ALL.len());
        fs::create_dir_all(layout.postgres_data()).unwrap();
        assert_eq!(passwords(), first);
        fs::remove_dir_all(&layout.root).unwrap();
    }

    #[test]
    fn the_superusers_password_is_not_replaced_under_its_data() {
        let layout = layout("superuser");
        fs::create_dir_all(layout.postgres_data()).unwrap();
        // As a version left it that had one password for all.
        layout.secret("password").unwrap();
        let refusal = Login::Superuser.password(&layout).unwrap_err().to_string();
        assert!(refusal.contains("cargo stack clean"), "{refusal}");
        assert!(refusal.contains("one password for all"), "{refusal}");
        assert!(Login::Relay.password(&layout).is_ok(), "`migrate` sets it");
        assert!(Login::Superuser.password(&layout).is_err(), "also when other secrets are there");
        fs::remove_dir_all(&layout.root).unwrap();
    }

    #[test]
    fn the_variable_of_a_role_is_named_after_it() {
        for (login, variable) in Login::ROLES {
            assert_eq!(variable, format!("{}_PASSWORD", login.user().to_uppercase()));
            assert_eq!(login.server(), "postgres");
        }
        let roles = Login::ALL.into_iter().filter(|login| login.server() == "postgres").count();
        assert_eq!(roles, Login::ROLES.len() + 1, "all but the superuser");
    }
}
