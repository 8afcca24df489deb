//! The system gets another release under load: migrations, then each process, one after the other.
//!
//! * `--release` names the folder of the new programs, which stay. Afterwards each process has to run the program of that folder, byte by
//!   byte, and they may not all be those of before ([`revision`]). `cargo stack test --only upgrade` begins with the programs and
//!   schemas of the revision before this one. Without the option the processes are replaced by the same programs.
//! * Beside the release's own migrations, of which there may be none, the drill applies some of its own: on each busy table a column
//!   with a default and an index, which its end removes again. Nothing is published by them, since nothing that is published can
//!   be taken back in passing.
//! * No request fails, payments go on settling, and nobody is paged.
//! * Relays are replaced while a second one stands by. No event takes longer from its commit to Kafka than [`LONGEST_MAX`]; that
//!   none is lost, and that order is kept, the audit finds at the end.

mod revision;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use coroctl::databases;
use coroctl::stack::Stack;
use stack::layout::Layout;
use stack::services::{Instance, Service};

use self::revision::Revision;
use super::arrivals::{Arrivals, LONGEST_MAX, Reader};
use super::harness::Harness;
use super::{pages, script};

/// The table of what the drill applied.
const HISTORY: &str = "drill_history";
/// The busy tables of each database.
const TABLES: [(&str, &[&str]); 3] =
    [("payments", &["payments"]), ("balance", &["ledger", "accounts"]), ("processor", &["charges"])];

/// # Errors
/// When a migration or a script fails, a process does not run the release, payments or events stand still for too long, or
/// somebody is paged.
pub async fn play(harness: &mut Harness, release: Option<&Path>) -> Result<()> {
    let is_other = release.is_some();
    let release = match release {
        Some(folder) => folder.canonicalize().with_context(|| folder.display().to_string())?,
        None => script::programs()?,
    };
    let before = Revision::now(&harness.stack).await?;
    let quiet = pages::Quiet::begin(harness).await?;
    let reader = Reader::begin(&harness.stack).await?;
    expand(&harness.stack).await?;
    harness.view.line("migrated: a column and an index on each busy table");
    let variables = [
        ("RELEASE", release.display().to_string()),
        ("SUBSCRIBERS", subscribers()?),
        ("SERVICES", services()?),
    ];
    harness.run_runbook(&variables.each_ref().map(|(name, value)| (*name, value.as_str()))).await?;
    contract(&harness.stack).await?;
    harness.view.line("migrated: columns and indexes are gone");
    let after = Revision::now(&harness.stack).await?;
    let (others, changes) = after.changes_since(&before)?;
    harness.note(changes);
    after.ensure_of(&release)?;
    ensure!(
        others > 0 || !is_other,
        "{} has the programs that ran before, so the drill shows nothing",
        release.display()
    );
    quiet.end(harness).await?;
    arrived(harness, &reader.end().await?)
}

/// Notes how long events took to Kafka.
fn arrived(harness: &mut Harness, arrivals: &Arrivals) -> Result<()> {
    let Arrivals { events, repetitions, longest, .. } = arrivals;
    harness.note(format!(
        "{events} events came; the longest time from a commit to Kafka was {:.1} s, and {repetitions} came twice",
        longest.as_secs_f64()
    ));
    ensure!(*events > 0, "no event came");
    ensure!(*longest < LONGEST_MAX, "an event took {:.1} s from its commit to Kafka", longest.as_secs_f64());
    Ok(())
}

/// Removes what a drill left that did not come to its end.
///
/// # Errors
/// When a database does not answer.
pub async fn undo(stack: &Stack) -> Result<()> {
    let client = databases::reader("payments", &stack.payments_database_url).await?;
    let left = "select to_regclass('public.drill_history') is not null";
    match client.query_one(left, &[]).await.context("payments")?.get(0) {
        true => contract(stack).await,
        false => Ok(()),
    }
}

/// The drill's migrations of one database: what expands it, and what takes that back.
struct Migrations {
    column: String,
    /// Before the next one, by hand: no transaction builds an index beside those who write.
    concurrently: Vec<String>,
    index: String,
    contract: String,
}

impl Migrations {
    fn of(tables: &[&str]) -> Self {
        let each = |text: &dyn Fn(&str) -> String| tables.iter().map(|table| text(table)).collect::<Vec<_>>();
        let index = |kind: &str, table: &str| {
            format!("create index {kind} if not exists {table}_drill_note on {table} (drill_note)")
        };
        Self {
            column: each(&|table| {
                format!(
                    "alter table {table} add column drill_note text not null default 'of every row';
                     comment on column {table}.drill_note is 'Of an upgrade drill, which removes it.'"
                )
            })
            .join(";\n"),
            concurrently: each(&|table| index("concurrently", table)),
            index: each(&|table| index("", table)).join(";\n"),
            contract: each(&|table| format!("alter table {table} drop column drill_note")).join(";\n"),
        }
    }

    /// Applies the first so many.
    async fn apply(&self, stack: &Stack, database: &str, count: usize) -> Result<()> {
        let all =
            [("V1__column", &self.column), ("V2__index", &self.index), ("V3__contract", &self.contract)];
        let all = all.map(|(name, text)| (name, text.as_str()));
        sql::apply(&stack.postgres_admin_url, database, HISTORY, &all[..count]).await
    }
}

async fn expand(stack: &Stack) -> Result<()> {
    for (database, tables) in TABLES {
        let migrations = Migrations::of(tables);
        migrations.apply(stack, database, 1).await?;
        let owner = databases::connect(&sql::with_database(&stack.postgres_admin_url, database)?).await?;
        for statement in &migrations.concurrently {
            owner.batch_execute(statement).await.with_context(|| statement.clone())?;
        }
        migrations.apply(stack, database, 2).await?;
    }
    Ok(())
}

/// Also what was applied in part: after the last migration nothing is left.
async fn contract(stack: &Stack) -> Result<()> {
    for (database, tables) in TABLES {
        Migrations::of(tables).apply(stack, database, 3).await?;
        sql::forget(&stack.postgres_admin_url, database, HISTORY).await?;
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

/// The instances that the saga needs, as many as there are, in the order in which they are replaced.
///
/// # Errors
/// When the stack is not known.
pub fn services() -> Result<String> {
    let instances = Instance::of(&Layout::from_env()?);
    let of = |service| instances.iter().filter(move |it| it.service == service).map(|it| it.name);
    let ordered = [Service::Processor, Service::Balance, Service::Payments].into_iter().flat_map(of);
    Ok(ordered.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expands_each_table_is_taken_back() {
        let Migrations { column, concurrently, index, contract } = Migrations::of(&["a", "b"]);
        for table in ["a", "b"] {
            assert!(column.contains(&format!("alter table {table} add column drill_note")));
            assert!(contract.contains(&format!("alter table {table} drop column drill_note")));
            let concurrent = format!("create index concurrently if not exists {table}_drill_note on {table}");
            assert_eq!(concurrently.iter().filter(|text| text.contains(&concurrent)).count(), 1);
        }
        assert!(index.contains("if not exists a_drill_note") && !index.contains("concurrently"), "{index}");
    }
}
