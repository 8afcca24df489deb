//! Compares which rows a publication sends at two times, and finds losses. The stream does not announce them.
//!
//! * The stream announces names, columns, types and identities. It does not announce that a table is no longer sent.
//! * A change and its reversal count as a change: rows of the catalog are compared by oid and by the transaction that wrote
//!   them, not by content.
//! * An addition loses nothing. A replacement is an addition only if one statement took the old part out and brought a wider
//!   one.

pub mod baseline;
pub mod query;
pub mod record;
mod routed;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::postgres::sql;
use crate::routes::{Deletes, Source};

/// The routed tables that a publication sends at one time, and its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// `None` if the publication does not exist.
    pub publication: Option<Publication>,
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub oid: u32,
    /// The transaction that last altered it, and the number of the command.
    #[serde(rename = "made")]
    pub transaction: String,
    #[serde(default)]
    pub command: u32,
    pub inserts: bool,
    pub updates: bool,
    pub deletes: bool,
}

/// A table under its name in the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub oid: u32,
    /// The transaction that put it into its schema.
    #[serde(rename = "place")]
    pub schema_transaction: Option<String>,
    /// A hash of its columns and its identity, which the stream announces with the next row.
    #[serde(default)]
    pub shape: String,
    /// The relfilenode of its TOAST table, which changes with every `alter table` that rewrites rows. 0: it has none, or
    /// an earlier release wrote this record.
    #[serde(default)]
    pub toast: u32,
    /// The members of the publication that include it; empty if all tables are published.
    pub members: Vec<Member>,
    /// All partitions below it.
    pub parts: Vec<Part>,
    /// Partitions that it had earlier.
    #[serde(default)]
    pub detached: Vec<u32>,
}

/// A table or a schema of the publication.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub oid: u32,
    pub of: String,
    /// The transaction that added it, and the number of the command.
    #[serde(rename = "made")]
    pub transaction: String,
    #[serde(default)]
    pub command: u32,
    /// The numbers of the published columns, if they are limited.
    pub columns: Option<Vec<i32>>,
    pub filter: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub oid: u32,
    pub name: String,
    /// The transaction that attached it.
    #[serde(rename = "made")]
    pub transaction: String,
    /// As `Table::toast`.
    #[serde(default)]
    pub toast: u32,
}

/// A command of a transaction that replaced or removed a row of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub transaction: String,
    pub number: u32,
}

/// The command that replaced or removed a row, by `Publication::key` and `Member::key`.
#[derive(Debug, Clone, Default)]
pub struct Replaced(pub BTreeMap<String, Command>);

impl Replaced {
    /// Whether one statement replaced the old state of the publication by the new one.
    fn altered_once(&self, was: &Publication, now: &Publication) -> bool {
        let by = Command { transaction: now.transaction.clone(), number: now.command };
        self.0.get(&was.key()) == Some(&by)
    }

    /// Whether one statement replaced the old member by the new one. Such a statement removes all old members first, each
    /// with a command number of its own, and adds the new ones with the next. A statement in between takes one more number.
    fn at_once(&self, old: &Member, new: &Member) -> bool {
        if self.0.get(&old.key()).is_none_or(|command| command.transaction != new.transaction) {
            return false;
        }
        let members = self.0.iter().filter(|(key, _)| key.starts_with(MEMBER));
        let together = members.filter(|(_, command)| command.transaction == new.transaction);
        let numbers: Vec<u32> = together.map(|(_, command)| command.number).collect();
        let first = numbers.iter().min().copied().unwrap_or_default();
        new.command >= first && (new.command - first) as usize <= numbers.len()
    }
}

const MEMBER: &str = "member ";

impl Publication {
    pub fn key(&self) -> String {
        format!("publication {}", self.oid)
    }
}

impl Member {
    pub fn key(&self) -> String {
        format!("{MEMBER}{}", self.oid)
    }

    fn whole(&self) -> bool {
        self.columns.is_none() && self.filter.is_none()
    }

    /// Whether it sends all rows and columns of the other, and more.
    fn wider(&self, other: &Member) -> bool {
        let columns = match (&self.columns, &other.columns) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => theirs.iter().all(|column| ours.contains(column)),
        };
        let filter = self.filter.is_none() || self.filter == other.filter;
        columns && filter && (&self.columns, &self.filter) != (&other.columns, &other.filter)
    }
}

impl Table {
    fn named(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl Coverage {
    fn table(&self, of: &Table) -> Option<&Table> {
        self.tables.iter().find(|table| (&table.schema, &table.name) == (&of.schema, &of.name))
    }

    /// The oids of routed tables and their partitions.
    pub fn watched(&self, source: &Source) -> Vec<u32> {
        let of = |table: &Table| {
            [table.oid].into_iter().chain(table.parts.iter().map(|part| part.oid)).collect::<Vec<_>>()
        };
        self.routed(source).flat_map(of).collect()
    }

    /// Whether columns or identities of routed tables changed.
    pub fn reshaped(&self, after: &Coverage, source: &Source) -> bool {
        let shape = |table: &Table| (table.named(), table.shape.clone());
        let of = |coverage: &Coverage| coverage.routed(source).map(shape).collect::<Vec<_>>();
        of(self) != of(after)
    }

    /// This coverage after an earlier one, from which it takes over the detached partitions.
    pub fn after(mut self, before: &Coverage) -> Coverage {
        for table in &mut self.tables {
            let Some(was) = before.table(table).filter(|was| was.oid == table.oid) else { continue };
            table.detached.clone_from(&was.detached);
            let there = |part: &&Part| table.parts.iter().all(|now| now.oid != part.oid);
            table.detached.extend(was.parts.iter().filter(there).map(|part| part.oid));
        }
        self
    }

    /// The partitions that were detached since: rows written to them are not sent.
    pub fn detached_since(&self, before: &Coverage) -> Vec<String> {
        let gone = |table: &Table| {
            let was = before.table(table)?;
            let gone = was.parts.iter().filter(|part| table.parts.iter().all(|now| now.oid != part.oid));
            Some(gone.map(|part| format!("{} of {}", part.name, table.named())).collect::<Vec<_>>())
        };
        self.tables.iter().filter_map(gone).flatten().collect()
    }
}

/// Returns why routed tables may have sent fewer rows between the two coverages. It is empty if they have sent all.
pub fn losses(before: &Coverage, after: &Coverage, source: &Source, replaced: &Replaced) -> Vec<String> {
    let name = source.publication.get_ref();
    let Some(was) = &before.publication else { return Vec::new() };
    let Some(now) = &after.publication else { return vec![format!("publication {name} was dropped")] };
    if was.oid != now.oid {
        return vec![format!("publication {name} was dropped and made again, or is another one than before")];
    }
    let mut losses: Vec<String> = altered(was, now, source, replaced).into_iter().collect();
    for table in before.routed(source) {
        losses.extend(match after.table(table) {
            None => Some(format!(
                "{} is not published any more: it was taken out of publication {name}, dropped, renamed, moved, or made \
                 unlogged",
                table.named()
            )),
            Some(now) if now.oid != table.oid => {
                Some(format!("{} was dropped and made again", table.named()))
            }
            Some(now) => membership(table, now, replaced)
                .or_else(|| left_schema(table, now))
                .or_else(|| attached_again(table, now))
                .or_else(|| unlogged(table, now)),
        });
    }
    losses
}

fn altered(was: &Publication, now: &Publication, source: &Source, replaced: &Replaced) -> Option<String> {
    let name = source.publication.get_ref();
    let mut routes = source.tables.iter().flat_map(|table| &table.routes);
    let takes_deletes = routes.any(|route| route.deletes.is_some_and(|deletes| deletes != Deletes::Ignore));
    let lost = [
        ("inserts", was.inserts && !now.inserts),
        ("updates", was.updates && !now.updates),
        ("deletes", was.deletes && !now.deletes && takes_deletes),
    ];
    if let Some((what, _)) = lost.iter().find(|(_, lost)| *lost) {
        return Some(format!("publication {name} does not publish {what} any more"));
    }
    (was.transaction != now.transaction && !replaced.altered_once(was, now)).then(|| {
        format!("publication {name} was altered more than once, or while no relay watched it: what it published in between is not known")
    })
}

fn membership(was: &Table, now: &Table, replaced: &Replaced) -> Option<String> {
    let has = |table: &Table, member: &Member| table.members.iter().any(|other| other.oid == member.oid);
    let stays = was.members.iter().any(|member| member.whole() && has(now, member));
    let gained = || now.members.iter().filter(|member| !has(was, member));
    let replaces =
        |new: &Member, old: &Member| new.of == old.of && new.wider(old) && replaced.at_once(old, new);
    for member in was.members.iter().filter(|member| !has(now, member)) {
        if stays || gained().any(|new| replaces(new, member)) {
            continue;
        }
        let (table, of) = (was.named(), &member.of);
        return Some(match gained().find(|new| new.of == *of) {
            Some(new)
                if (&new.columns, &new.filter) != (&member.columns, &member.filter)
                    && replaced.at_once(member, new) =>
            {
                format!(
                    "{of} is published with another filter or list of columns than before, which limits {table}"
                )
            }
            Some(_) => format!(
                "{of} was taken out of the publication and put in again, which {table} is published by"
            ),
            None => format!("{of} was taken out of the publication, which {table} was published by"),
        });
    }
    let narrows = |new: &&Member| !new.whole() && !was.members.iter().any(|old| replaces(new, old));
    let new = gained().find(narrows).filter(|_| !was.members.is_empty())?;
    Some(format!(
        "{} was put into the publication with a filter or a list of columns, which limits {}",
        new.of,
        was.named()
    ))
}

fn left_schema(was: &Table, now: &Table) -> Option<String> {
    let by_schema =
        !was.members.is_empty() && was.members.iter().all(|member| member.of.starts_with("schema "));
    (by_schema && was.schema_transaction != now.schema_transaction)
        .then(|| format!("{} was moved out of its schema and back, which it is published by", was.named()))
}

fn attached_again(was: &Table, now: &Table) -> Option<String> {
    let again = |part: &&Part| {
        let other = |old: &Part| old.oid == part.oid && old.transaction != part.transaction;
        was.detached.contains(&part.oid) || was.parts.iter().any(other)
    };
    let part = now.parts.iter().find(again)?;
    Some(format!("{} was detached from {} and attached again", part.name, was.named()))
}

/// Returns a table or partition that may have been unlogged for a while, so that its changes are not in the WAL. `set
/// unlogged` rewrites the rows and keeps the columns; `truncate`, `cluster` and `vacuum` keep the TOAST table. The server
/// does not make a table unlogged that is published by its name, but it does so with its partitions.
fn unlogged(was: &Table, now: &Table) -> Option<String> {
    if was.shape != now.shape {
        return None;
    }
    let itself = format!("table {}", sql::table(&was.schema, &was.name));
    let is_rewritten = |was: u32, now: u32| was != 0 && now != 0 && was != now;
    let by_name = was.members.iter().any(|member| member.of == itself);
    let whole = (!by_name && is_rewritten(was.toast, now.toast)).then(|| was.named());
    let mut parts = now.parts.iter().filter(|part| {
        was.parts.iter().any(|old| old.oid == part.oid && is_rewritten(old.toast, part.toast))
    });
    let name = whole.or_else(|| parts.next().map(|part| part.name.clone()))?;
    Some(format!(
        "{name} was rewritten by an `alter table` that left its columns as they were: it may have been unlogged for a while"
    ))
}

#[cfg(test)]
#[path = "coverage_tests.rs"]
mod tests;
