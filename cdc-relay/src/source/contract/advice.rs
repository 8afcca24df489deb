//! Words a mismatch of publication and tables: what was found, why it matters, and the fix.

use std::fmt;

use super::identity::{self, Harm, Publishing};
use crate::postgres::facts::{Facts, Member, Publication, Table};
use crate::postgres::sql::{self, identifier};

/// A violation of the contract. `run` refuses the source because of it, `doctor` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The check's name in `doctor`.
    pub check: &'static str,
    /// `public.orders`, or `publication events`.
    pub subject: String,
    pub found: String,
    pub why: String,
    /// Each of them suffices.
    pub fixes: Vec<Fix>,
    /// A stream that goes on loses changes.
    pub loses: bool,
    /// The source may have streamed before.
    pub streamed: bool,
}

/// A repair of a mismatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// A statement or a sentence.
    pub text: String,
    sends: Sends,
}

/// How a fix changes the rows that are sent of tables that were sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sends {
    /// The same rows are sent.
    TheSame,
    /// More rows are sent. A relay that streams notices it; otherwise the rows sent in between are unknown.
    More,
    /// A table is sent again, whose changes were not sent until then.
    Again,
}

const MORE: &str = "and then `cdc-relay resnapshot`, unless a relay streams at that moment with unchanged routes: nobody knows \
                    which rows a publication left out while no relay read it";
const AGAIN: &str = "and then `cdc-relay resnapshot`, if the table was streamed before: rows written to it until then are \
                     not sent";

impl Mismatch {
    pub fn new(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Mismatch {
        let (subject, found, why) = (subject.into(), found.into(), String::new());
        Mismatch { check, subject, found, why, fixes: Vec::new(), loses: false, streamed: false }
    }

    pub fn loses(mut self) -> Mismatch {
        self.loses = true;
        self
    }

    pub fn why(mut self, why: impl Into<String>) -> Mismatch {
        self.why = why.into();
        self
    }

    pub fn fix(self, fix: impl Into<String>) -> Mismatch {
        self.fixed(fix, Sends::TheSame)
    }

    /// A statement that alters what a publication sends of its tables, or makes the publication.
    pub fn fix_of_publication(self, fix: impl Into<String>) -> Mismatch {
        self.fixed(fix, Sends::More)
    }

    /// A statement after which a table is sent that was not.
    pub fn fix_of_table(self, fix: impl Into<String>) -> Mismatch {
        self.fixed(fix, Sends::Again)
    }

    fn fixed(mut self, fix: impl Into<String>, sends: Sends) -> Mismatch {
        self.fixes.push(Fix { text: fix.into(), sends });
        self
    }

    /// Returns the step that must follow a fix so that the source has no gap.
    pub fn afterwards(&self, fix: &Fix) -> Option<&'static str> {
        match fix.sends {
            Sends::More if self.streamed => Some(MORE),
            Sends::Again if self.streamed => Some(AGAIN),
            Sends::TheSame | Sends::More | Sends::Again => None,
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.subject, self.found)?;
        if !self.why.is_empty() {
            write!(f, " ({})", self.why)?;
        }
        for (index, fix) in self.fixes.iter().enumerate() {
            f.write_str(if index == 0 { ": " } else { ", or " })?;
            let text = &fix.text;
            if is_sql(text) {
                write!(f, "`{text}`")?;
            } else {
                f.write_str(text)?;
            }
            if let Some(afterwards) = self.afterwards(fix) {
                write!(f, " ({afterwards})")?;
            }
        }
        Ok(())
    }
}

/// Whether a fix is a statement, and not a sentence.
pub fn is_sql(fix: &str) -> bool {
    ["alter ", "begin;", "create ", "drop ", "grant "].iter().any(|start| fix.starts_with(start))
}

/// Returns the table's name in SQL.
pub fn sql_name(member: &Member) -> String {
    sql::table(&member.schema, &member.name)
}

/// Returns the updates and deletes that the server refuses because of the publication, or would refuse with one.
pub fn harms(facts: &Facts, table: &Table) -> Vec<Mismatch> {
    let found = identity::harms(Publishing::of(facts), table);
    found.iter().map(|(member, harm)| harm_mismatch(facts, table, member, harm)).collect()
}

fn harm_mismatch(facts: &Facts, table: &Table, member: &Member, harm: &Harm) -> Mismatch {
    let check = if matches!(harm, Harm::Filter(_)) { "table.row_filter" } else { "table.identity" };
    let why = "the server refuses its updates and deletes while they are published";
    let mut mismatch = Mismatch::new(check, member.qualified(), found(member, harm)).why(why);
    for fix in fixes(Publishing::of(facts), table, member, harm) {
        mismatch = mismatch.fix(fix);
    }
    for fix in facts.publication.iter().flat_map(|publication| in_publication(publication, table, harm)) {
        mismatch = mismatch.fix_of_publication(fix);
    }
    mismatch
}

fn found(member: &Member, harm: &Harm) -> String {
    match harm {
        Harm::Unidentified => match (member.identity, member.deferrable) {
            ('n', _) => "has replica identity nothing".to_owned(),
            ('i', _) => "has an index as replica identity that is gone or not valid".to_owned(),
            (_, true) => "has only a deferrable primary key, and no other replica identity".to_owned(),
            _ => "has no primary key and no other replica identity".to_owned(),
        },
        Harm::FullWithList => "has replica identity full and a column list".to_owned(),
        Harm::NotListed(columns) => {
            format!("has a column list without {}, of its replica identity", columns.join(", "))
        }
        Harm::Generated { columns, .. } => {
            format!(
                "has the generated column {} in its replica identity, which is not published",
                columns.join(", ")
            )
        }
        Harm::Filter(columns) => {
            format!("has a row filter that reads {}, not part of its replica identity", columns.join(", "))
        }
    }
}

/// Returns the fixes of the table.
fn fixes(publishing: Publishing, table: &Table, member: &Member, harm: &Harm) -> Vec<String> {
    let name = sql_name(member);
    let usable_key = member.primary_key.is_some() && !member.deferrable;
    let mut fixes = Vec::new();
    // A partition gets its primary key from its root.
    let root =
        if table.is_partitioned() && table.itself.primary_key.is_none() { &table.itself } else { member };
    let add_key = match (&root.primary_key, root.deferrable) {
        (None, _) => Some(format!("alter table {} add primary key (…)", sql_name(root))),
        (Some(key), true) => {
            let key: Vec<String> = key.iter().map(|name| identifier(name)).collect();
            let name = sql_name(root);
            Some(format!("alter table {name} drop constraint …, add primary key ({})", key.join(", ")))
        }
        _ => None,
    };
    let default = || format!("alter table {name} replica identity default");
    let full = || format!("alter table {name} replica identity full");
    match harm {
        Harm::Unidentified => {
            if usable_key {
                fixes.push(default());
            }
            fixes.extend(add_key);
            if full_works(publishing, table, member) {
                fixes.push(full());
            }
        }
        Harm::FullWithList | Harm::Generated { .. } if usable_key && member.identity != 'd' => {
            fixes.push(default());
        }
        Harm::FullWithList | Harm::Generated { .. } => {
            fixes.extend(add_key.map(|add| format!("begin; {add}; {}; commit", default())));
        }
        Harm::NotListed(_) => {}
        Harm::Filter(_) => {
            if full_works(publishing, table, member) {
                fixes.push(full());
            }
        }
    }
    fixes
}

/// Returns the statement that makes the whole row the replica identity of the table and its partitions; `None` if the
/// server would then refuse the table's updates.
pub fn make_full(publishing: Publishing, table: &Table) -> Option<String> {
    if !table.members().iter().all(|member| full_works(publishing, table, member)) {
        return None;
    }
    // The stream sends a row under the root's name, with the identity of its partition.
    let members = std::iter::once(&table.itself).chain(&table.partitions).filter(|member| member.kind != 'f');
    let statements: Vec<String> =
        members.map(|member| format!("alter table {} replica identity full", sql_name(member))).collect();
    Some(statements.join("; "))
}

/// Whether the whole row can be the replica identity.
fn full_works(publishing: Publishing, table: &Table, member: &Member) -> bool {
    let full = Member { identity: 'f', ..member.clone() };
    let table = Table { itself: full, partitions: Vec::new(), ..table.clone() };
    identity::harms(publishing, &table).is_empty()
}

/// Returns the fixes of the publication.
fn in_publication(publication: &Publication, table: &Table, harm: &Harm) -> Vec<String> {
    let (name, target) = (identifier(&publication.name), sql_name(&table.itself));
    let again = |columns: &str| {
        let filter = table.filter.as_ref().filter(|_| !matches!(harm, Harm::Filter(_)));
        let filter = filter.map_or_else(String::new, |filter| format!(" where ({filter})"));
        format!(
            "begin; alter publication {name} drop table {target}; \
             alter publication {name} add table {target}{columns}{filter}; commit"
        )
    };
    match harm {
        Harm::Unidentified | Harm::Generated { fatal: true, .. } => Vec::new(),
        Harm::Generated { fatal: false, .. } => {
            vec![format!("alter publication {name} set (publish_generated_columns = stored)")]
        }
        Harm::FullWithList | Harm::Filter(_) => vec![again("")],
        Harm::NotListed(missing) => {
            let listed = table.sent().map(|column| &column.name).chain(missing);
            let columns: Vec<String> = listed.map(|name| identifier(name)).collect();
            vec![again(&format!(" ({})", columns.join(", ")))]
        }
    }
}
