//! The system gets another release under load: migrations, then each process, one after the other.
//!
//! * Beside the release's own migrations, of which there may be none, the drill applies some of its own: a column on each busy
//!   table, which its end removes again. Nothing is published by them, since nothing that is published can be taken back in passing.
//! * `RELEASE` names the folder of the new programs; without it the processes are replaced by the same programs.
//! * No request fails, payments go on settling, and nobody is paged.

use anyhow::{Context, Result};
use coroctl::databases;
use coroctl::stack::Stack;
use stack::layout::Layout;
use stack::services::Instance;

use super::harness::Harness;
use super::{pages, script};

/// The table of what the drill applied.
const HISTORY: &str = "drill_history";

/// What the drill does to each database, and how it takes it back.
const MIGRATIONS: [(&str, [(&str, &str); 2]); 3] = [
    (
        "payments",
        [
            (
                "V1__expand",
                "alter table payments add column drill_note text;
                 comment on column payments.drill_note is 'Of an upgrade drill, which removes it.'",
            ),
            ("V2__contract", "alter table payments drop column drill_note"),
        ],
    ),
    (
        "balance",
        [
            (
                "V1__expand",
                "alter table ledger add column drill_note text;
                 comment on column ledger.drill_note is 'Of an upgrade drill, which removes it.';
                 alter table accounts add column drill_note text;
                 comment on column accounts.drill_note is 'Of an upgrade drill, which removes it.'",
            ),
            (
                "V2__contract",
                "alter table ledger drop column drill_note; alter table accounts drop column drill_note",
            ),
        ],
    ),
    (
        "processor",
        [
            (
                "V1__expand",
                "alter table charges add column drill_note text;
                 comment on column charges.drill_note is 'Of an upgrade drill, which removes it.'",
            ),
            ("V2__contract", "alter table charges drop column drill_note"),
        ],
    ),
];

/// # Errors
/// When a migration or a script fails, payments stand still for too long, or somebody is paged.
pub async fn play(harness: &mut Harness) -> Result<()> {
    let quiet = pages::Quiet::begin(harness).await?;
    migrate(&harness.stack, 1).await?;
    harness.view.line("migrated: a column on each busy table");
    let release = match std::env::var("RELEASE") {
        Ok(folder) => folder,
        Err(_) => script::programs()?.display().to_string(),
    };
    let subscribers = subscribers()?;
    harness.run_runbook(&[("RELEASE", &release), ("SUBSCRIBERS", &subscribers)]).await?;
    migrate(&harness.stack, 2).await?;
    harness.view.line("migrated: the columns are gone");
    quiet.end(harness).await
}

/// Removes what a drill left that did not come to its end.
///
/// # Errors
/// When a database does not answer.
pub async fn undo(stack: &Stack) -> Result<()> {
    let client = databases::reader("payments", &stack.payments_database_url).await?;
    let left = "select to_regclass('public.drill_history') is not null";
    match client.query_one(left, &[]).await.context("payments")?.get(0) {
        true => migrate(stack, 2).await,
        false => Ok(()),
    }
}

/// Applies the first so many migrations to each database; after the last of them nothing is left.
async fn migrate(stack: &Stack, count: usize) -> Result<()> {
    for (database, migrations) in MIGRATIONS {
        sql::apply(&stack.postgres_admin_url, database, HISTORY, &migrations[..count]).await?;
        if count == migrations.len() {
            sql::forget(&stack.postgres_admin_url, database, HISTORY).await?;
        }
    }
    Ok(())
}

/// The processes of the stack that the saga does not need, with spaces between.
///
/// # Errors
/// When the stack is not known.
pub fn subscribers() -> Result<String> {
    let instances = Instance::of(&Layout::from_env()?).into_iter();
    let names = instances.filter(|instance| instance.service.extra().is_some()).map(|instance| instance.name);
    Ok(names.collect::<Vec<_>>().join(" "))
}
