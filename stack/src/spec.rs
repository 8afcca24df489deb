//! The specification of a process that the supervisor runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Children of a higher tier stop first: the edge, services, servers, what servers need.
pub const HELPER_TIER: u8 = 0;
pub const SERVER_TIER: u8 = 1;
pub const SERVICE_TIER: u8 = 2;
pub const EDGE_TIER: u8 = 3;

/// Whether a child that ended by itself comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Servers: a test that stops Postgres must find it stopped.
    OnCommand,
    /// Services: with a growing delay.
    Always,
}

/// How a child is asked to end before it is made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopSignal {
    Term,
    Int,
}

impl StopSignal {
    pub fn signal(self) -> rustix::process::Signal {
        match self {
            Self::Term => rustix::process::Signal::TERM,
            Self::Int => rustix::process::Signal::INT,
        }
    }
}

/// One child: its command line, its whole environment, its place in the order of stopping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub argv: Vec<String>,
    /// Nothing is inherited: this and what [`Spec::environment`] adds is all it sees.
    pub env: BTreeMap<String, String>,
    pub cwd: PathBuf,
    pub log: PathBuf,
    /// The user and group it runs as, when the supervisor is root.
    pub uid: Option<u32>,
    pub restart: Restart,
    /// Children of a higher tier are stopped first.
    pub tier: u8,
    pub stop_signal: StopSignal,
    /// After so many seconds a stop becomes SIGKILL.
    pub stop_seconds: u64,
    /// For display.
    pub port: Option<u16>,
}

/// The variable by which any process of a stack can be recognised, also when its parents are gone.
pub const MEMBER: &str = "CORO_STACK_MEMBER";
/// The variable that names the child which a process belongs to, also when its parents are gone: Patroni leaves its PostgreSQL to
/// the supervisor.
pub const CHILD: &str = "CORO_STACK_CHILD";

impl Spec {
    /// The whole environment of the child.
    pub fn environment(&self, member: &str) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        env.entry("PATH".to_owned()).or_insert_with(|| path.to_owned());
        env.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
        env.entry("HOME".to_owned()).or_insert_with(|| self.cwd.display().to_string());
        env.insert(MEMBER.to_owned(), member.to_owned());
        env.insert(CHILD.to_owned(), self.name.clone());
        env
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_sees_only_what_it_is_given() {
        let spec = Spec {
            name: "x".into(),
            argv: vec!["true".into()],
            env: [("RUST_LOG".to_owned(), "info".to_owned())].into(),
            cwd: "/tmp".into(),
            log: "/dev/null".into(),
            uid: None,
            restart: Restart::Always,
            tier: 1,
            stop_signal: StopSignal::Term,
            stop_seconds: 1,
            port: None,
        };
        let names: Vec<_> = spec.environment("m").into_keys().collect();
        assert_eq!(names, ["CORO_STACK_CHILD", "CORO_STACK_MEMBER", "HOME", "LANG", "PATH", "RUST_LOG"]);
    }
}
