//! Reads the passwords of the roles.
//!
//! * Each role has a password of its own.
//! * Passwords come from the environment, or from the files that it names (`secret_files`), never from arguments, which every
//!   user of a machine can read.
//! * No error contains a password.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::ROLES;

/// A password for each role that logs in.
#[derive(Clone)]
pub struct Passwords(BTreeMap<&'static str, String>);

impl Passwords {
    /// Reads a variable for each role, see [`crate::Role::variable`], or the file that it names.
    ///
    /// # Errors
    /// When some are not set or empty, and names them all; when a file cannot be used; or when two roles share a password.
    pub fn from_env() -> Result<Self> {
        Self::read(secret_files::value)
    }

    fn read(variable: impl Fn(&str) -> Result<Option<String>>) -> Result<Self> {
        let mut given = BTreeMap::new();
        let mut missing = Vec::new();
        for role in ROLES.iter().filter(|role| role.login) {
            match variable(&role.variable())?.filter(|password| !password.is_empty()) {
                Some(password) => drop(given.insert(role.name, password)),
                None => missing.push(role.variable()),
            }
        }
        ensure!(
            missing.is_empty(),
            "not set: {}. Each role needs a password of its own; in a stack run `. .stack/env` first",
            missing.join(", ")
        );
        for (role, password) in &given {
            let other = given.iter().find(|(other, same)| *other != role && *same == password);
            if let Some((other, _)) = other {
                anyhow::bail!("{role} and {other} have the same password: give each role one of its own");
            }
        }
        Ok(Self(given))
    }

    /// Asks `password` for each role that logs in.
    pub fn from_fn(password: impl Fn(&str) -> String) -> Self {
        let roles = ROLES.iter().filter(|role| role.login);
        Self(roles.map(|role| (role.name, password(role.name))).collect())
    }

    /// # Errors
    /// When this role does not log in.
    pub fn of(&self, role: &str) -> Result<&str> {
        self.0
            .get(role)
            .map(String::as_str)
            .with_context(|| format!("{role} is no role that logs in, so it has no password"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(given: &[(&str, &str)]) -> Result<Passwords> {
        Passwords::read(|name| {
            Ok(given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        })
    }

    const ALL: [(&str, &str); 8] = [
        ("PAYMENTS_SVC_PASSWORD", "1"),
        ("BALANCE_SVC_PASSWORD", "2"),
        ("PROCESSOR_SVC_PASSWORD", "3"),
        ("CORO_RELAY_PASSWORD", "4"),
        ("CORO_CHECKER_PASSWORD", "5"),
        ("NOTIFIER_PASSWORD", "6"),
        ("FRAUD_PASSWORD", "7"),
        ("CORO_MONITOR_PASSWORD", "8"),
    ];

    #[test]
    fn each_role_that_logs_in_has_its_variable() {
        let passwords = reading(&ALL).unwrap();
        assert_eq!(passwords.of("payments_svc").unwrap(), "1");
        assert_eq!(passwords.of("coro_checker").unwrap(), "5");
        assert!(passwords.of("coro_owner").is_err(), "nobody logs in as the owner");
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut given = ALL;
        given[1].1 = "";
        given[4].1 = "";
        let refusal = reading(&given).map(drop).unwrap_err().to_string();
        assert!(refusal.contains("BALANCE_SVC_PASSWORD, CORO_CHECKER_PASSWORD"), "{refusal}");
        assert!(!refusal.contains("PAYMENTS_SVC_PASSWORD"), "{refusal}");
    }

    #[test]
    fn one_password_for_two_roles_is_refused_and_not_shown() {
        let mut given = ALL;
        given[0].1 = "shared";
        given[3].1 = "shared";
        let refusal = reading(&given).map(drop).unwrap_err().to_string();
        assert!(refusal.contains("payments_svc") && refusal.contains("coro_relay"), "{refusal}");
        assert!(!refusal.contains("shared"), "{refusal}");
    }
}
