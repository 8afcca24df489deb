//! The stack under test, and the rule who may disturb it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::audit;
use e2e::client::{Client, order};
use e2e::stack::Stack;
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use uuid::Uuid;

/// Longer than a group needs to notice a killed member, and then some for two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(90);

static QUIET: RwLock<()> = RwLock::const_new(());

/// Keeps others from disturbing, or everybody else away.
#[allow(dead_code, reason = "held, never read")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

pub struct World {
    pub stack: Stack,
    pub client: Client,
    _turn: Turn,
}

impl World {
    /// For tests that only use the stack.
    pub async fn shared() -> Self {
        Self::with(Turn::Shared(QUIET.read().await))
    }

    /// For tests that stop or kill parts of it.
    pub async fn alone() -> Self {
        Self::with(Turn::Alone(QUIET.write().await))
    }

    fn with(turn: Turn) -> Self {
        let stack = Stack::from_env().unwrap();
        let client = Client::new(&stack).unwrap();
        Self { stack, client, _turn: turn }
    }

    /// Pays and waits for the end.
    pub async fn settle(&self, user_id: Uuid, client_number: &str, amount: i64) -> Value {
        let payment_id = self.client.pay(user_id, client_number, amount).await.unwrap();
        self.client.ended(user_id, payment_id, PATIENCE).await.unwrap()
    }

    pub fn order(&self, amount: i64, key: &str) -> Value {
        order("081234567890", &self.stack.demo_service_id, amount, key)
    }

    /// `cargo stack VERB NAME`.
    pub async fn cargo_stack(&self, verb: &'static str, name: &str) {
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || {
            let status =
                Command::new(stack_binary()).args([verb, &name]).stdout(Stdio::null()).status().unwrap();
            assert!(status.success(), "stack {verb} {name}");
        })
        .await
        .unwrap();
    }

    /// Every invariant, on everything there is.
    pub async fn adds_up(&self) {
        let findings = audit::run(&self.stack).await.unwrap();
        let broken: Vec<_> = findings.iter().filter(|finding| !finding.holds()).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    /// Waits until the intent to charge is committed.
    pub async fn committed_charge(&self, payment_id: Uuid) {
        let client = e2e::databases::connect(&self.stack.processor_database_url).await.unwrap();
        let query = "select 1 from charges where payment_id = $1";
        let look = async {
            while client.query_opt(query, &[&payment_id]).await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.unwrap();
    }

    pub async fn payments_of(&self, user_id: Uuid) -> i64 {
        let client = e2e::databases::connect(&self.stack.payments_database_url).await.unwrap();
        let query = "select count(*) from payments where user_id = $1";
        client.query_one(query, &[&user_id]).await.unwrap().get(0)
    }
}

/// Built beside this test program.
fn stack_binary() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().and_then(|deps| deps.parent()).unwrap().join("stack")
}
