//! Which tables a publication sends, and what it leaves out of them: what the stream itself never says.
//!
//! * Names, columns, types and identities are announced in the stream, in their place. That a table is not sent any
//!   more is announced by nothing.
//! * A change and its reversal are a change: the catalog's rows are compared by their oids and by the transactions that
//!   made them, not by what they say.
//! * Additions lose nothing. What replaces a part of the publication is an addition only if one statement took the old
//!   part away and brought a wider one.

pub mod baseline;
pub mod query;
pub mod record;
mod routed;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::postgres::sql;
use crate::routes::{Deletes, Source};

/// What a publication sends of the tables that a source has routes for, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// `None`: there is no such publication.
    pub publication: Option<Publication>,
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub oid: u32,
    /// The transaction that altered it last, and by which of its commands.
    #[serde(rename = "made")]
    pub transaction: String,
    #[serde(default)]
    pub command: u32,
    pub inserts: bool,
    pub updates: bool,
    pub deletes: bool,
}

/// A table under the name that the stream has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub oid: u32,
    /// The transaction that put it into its schema.
    #[serde(rename = "place")]
    pub schema_transaction: Option<String>,
    /// Its columns and what identifies its rows, as a hash: what the stream says too, if a row comes.
    #[serde(default)]
    pub shape: String,
    /// Where its large values are stored: another place after every `alter table` that rewrites its rows. 0: none has any,
    /// or an earlier release wrote this down.
    #[serde(default)]
    pub toast: u32,
    /// Why it is published; empty where everything is.
    pub members: Vec<Member>,
    /// All below it in its tree of partitions.
    pub parts: Vec<Part>,
    /// Parts that it had once.
    #[serde(default)]
    pub detached: Vec<u32>,
}

/// A table or a schema of the publication.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub oid: u32,
    pub of: String,
    /// The transaction that put it in, and by which of its commands.
    #[serde(rename = "made")]
    pub transaction: String,
    #[serde(default)]
    pub command: u32,
    /// The numbers of the columns that it is limited to.
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

/// What replaced something or took it away: a command of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub transaction: String,
    pub number: u32,
}

/// By `Publication::key` and `Member::key`: what replaced it or took it away.
#[derive(Debug, Clone, Default)]
pub struct Replaced(pub BTreeMap<String, Command>);

impl Replaced {
    /// Whether one statement replaced the publication as it was by what it is.
    fn altered_once(&self, was: &Publication, now: &Publication) -> bool {
        let by = Command { transaction: now.transaction.clone(), number: now.command };
        self.0.get(&was.key()) == Some(&by)
    }

    /// Whether one statement took the old member away and brought the new one. It takes all old ones away first, each by
    /// a command of its own, and brings the new ones by the next; a statement in between would have taken one more.
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

    /// Whether it sends more than the other, and nothing less.
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

    /// The tables that have routes, and all below them.
    pub fn watched(&self, source: &Source) -> Vec<u32> {
        let of = |table: &Table| {
            [table.oid].into_iter().chain(table.parts.iter().map(|part| part.oid)).collect::<Vec<_>>()
        };
        self.routed(source).flat_map(of).collect()
    }

    /// Whether columns or identities of tables with routes are others.
    pub fn reshaped(&self, after: &Coverage, source: &Source) -> bool {
        let shape = |table: &Table| (table.named(), table.shape.clone());
        let of = |coverage: &Coverage| coverage.routed(source).map(shape).collect::<Vec<_>>();
        of(self) != of(after)
    }

    /// This coverage after another one, of which it keeps what only time shows.
    pub fn after(mut self, before: &Coverage) -> Coverage {
        for table in &mut self.tables {
            let Some(was) = before.table(table).filter(|was| was.oid == table.oid) else { continue };
            table.detached.clone_from(&was.detached);
            let there = |part: &&Part| table.parts.iter().all(|now| now.oid != part.oid);
            table.detached.extend(was.parts.iter().filter(there).map(|part| part.oid));
        }
        self
    }

    /// The parts that went away since: whatever is written to them is not sent.
    pub fn detached_since(&self, before: &Coverage) -> Vec<String> {
        let gone = |table: &Table| {
            let was = before.table(table)?;
            let gone = was.parts.iter().filter(|part| table.parts.iter().all(|now| now.oid != part.oid));
            Some(gone.map(|part| format!("{} of {}", part.name, table.named())).collect::<Vec<_>>())
        };
        self.tables.iter().filter_map(gone).flatten().collect()
    }
}

/// Why tables with routes may have sent nothing, or less, between two looks. Empty: they have sent all.
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
        format!("publication {name} was altered more than once, or while nobody looked: what it published in between is not known")
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

/// What may have been unlogged for a while, and so not in the WAL. That rewrites the rows, and leaves the columns as they
/// are; to truncate, to cluster and to vacuum a table leaves its large values where they are. A table that the publication
/// has by its name the server does not make unlogged; a part of it, it does.
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
