//! Reads the rows that published tables have now.
//!
//! * A table is read as its publication sends it: the same columns in the same order, through the same row filter. So a
//!   row looks as the stream would emit it.

use std::fmt::Write as _;

use crate::postgres::connection_url::Database;
use crate::postgres::decode::relation::Relation;
use crate::postgres::error::{PostgresError, Result};
use crate::postgres::facts::{self, Question, ask, ask_again};
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::postgres::sql::{self, identifier, literal};
use crate::postgres::utf8;
use crate::source::contract::existing;
use crate::source::inspect::text;
use crate::source::slots;

/// A published table, and how to read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// `id` is the table's oid; `key` marks the columns that identify a row.
    pub relation: Relation,
    /// The columns that identify a row, in the order of their index. It is empty if there are none, or if one of them is
    /// not published.
    pub key: Vec<Key>,
    /// The key with its types, which name and order rows: `(owner text, id bigint)`.
    pub key_text: String,
    /// The publication's row filter, as SQL.
    pub filter: Option<String>,
    pub partitioned: bool,
    /// The planner's estimate of the rows; `None` before the first `analyze`.
    pub estimate: Option<u64>,
    /// Why this role cannot read the whole table.
    pub unreadable: Option<String>,
}

/// A column that identifies a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key {
    /// Its index among the published columns.
    pub index: usize,
    /// The type as in a cast that cuts nothing off: `bpchar`, not `character`.
    kind: String,
}

/// One page of a table.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The key of the row before the first; empty at the beginning.
    pub after: &'a [String],
    pub limit: u32,
}

/// The oid of `"char"`.
const CHAR: u32 = 18;

/// Returns a column's value in SQL, from its text. A `"char"` that is not UTF-8 is written as a number: servers before 15
/// do not read the form that 15 prints.
fn value(text: &str, type_oid: u32) -> String {
    match utf8::byte(text) {
        Some(byte) if type_oid == CHAR => format!("({})::\"char\"", byte.cast_signed()),
        _ => literal(text),
    }
}

impl Table {
    /// `schema.table`, as the routes file names it.
    pub fn name(&self) -> String {
        self.relation.table_name().to_string()
    }

    /// The table in SQL. Tables that inherit from it are left out, since they are published by themselves.
    pub fn target(&self) -> String {
        let only = if self.partitioned { "" } else { "only " };
        format!("{only}{}", sql::table(&self.relation.schema, &self.relation.name))
    }

    /// The names of the key's columns.
    pub fn key_columns(&self) -> impl Iterator<Item = &str> {
        let columns = &self.relation.columns;
        self.key.iter().filter_map(|key| Some(columns.get(key.index)?.name.as_str()))
    }

    /// The condition that the column has the value of this text.
    pub fn equals(&self, name: &str, text: &str) -> String {
        let column = self.relation.columns.iter().find(|column| column.name == name);
        let type_oid = column.map_or(0, |column| column.type_oid);
        format!("{} = {}", identifier(name), value(text, type_oid))
    }

    fn type_of(&self, key: &Key) -> u32 {
        self.relation.columns.get(key.index).map_or(0, |column| column.type_oid)
    }

    /// The query for all rows, or for a page of them by key.
    pub fn select(&self, page: Option<Page<'_>>) -> String {
        let columns: Vec<String> =
            self.relation.columns.iter().map(|column| identifier(&column.name)).collect();
        let mut sql = format!("select {} from {}", columns.join(", "), self.target());
        let mut conditions: Vec<String> = self.filter.iter().map(|filter| format!("({filter})")).collect();
        let key: Vec<String> = self.key_columns().map(identifier).collect();
        if let Some(page) = page.filter(|page| !page.after.is_empty()) {
            let typed =
                |(text, key): (&String, &Key)| format!("{}::{}", value(text, self.type_of(key)), key.kind);
            let after: Vec<String> = page.after.iter().zip(&self.key).map(typed).collect();
            conditions.push(format!("({}) > ({})", key.join(", "), after.join(", ")));
        }
        if !conditions.is_empty() {
            sql.push_str(" where ");
            sql.push_str(&conditions.join(" and "));
        }
        if let Some(page) = page {
            // Writing into a String cannot fail.
            let _ = write!(sql, " order by {} limit {}", key.join(", "), page.limit);
        }
        sql
    }

    /// The query for the rows that a condition holds for; `tail` may order and limit them.
    pub fn select_where(&self, condition: &str, tail: &str) -> String {
        let all = self.select(None);
        let and = if self.filter.is_some() { "and" } else { "where" };
        format!("{all} {and} ({condition}) {tail}").trim_end().to_owned()
    }
}

/// The tables of a publication.
pub fn tables(session: &mut Session, publication: &str) -> Result<Vec<Table>> {
    let facts = ask(session, &Question::of_publication(publication))?;
    Ok(facts.tables.iter().map(Table::from).collect())
}

/// Returns the same table as it is now, if it is still published.
pub fn again(session: &mut Session, publication: &str, table: &Table) -> Result<Option<Table>> {
    let facts = ask_again(session, &Question::of_table(publication, table.relation.id))?;
    Ok(facts.tables.first().map(Table::from).filter(|found| found.name() == table.name()))
}

impl From<&facts::Table> for Table {
    fn from(found: &facts::Table) -> Table {
        let sent: Vec<&facts::Column> = found.sent().collect();
        let key = |name: &String| {
            let index = sent.iter().position(|column| column.name == *name)?;
            Some(Key { index, kind: sent.get(index)?.kind.clone() })
        };
        Table {
            // A query returns whole rows, so the key columns alone are marked.
            relation: Relation { identity: b'd', ..found.relation() },
            key: found.key().iter().filter_map(key).collect(),
            key_text: found.key_text(),
            filter: found.filter.clone(),
            partitioned: found.is_partitioned(),
            estimate: u64::try_from(found.estimate).ok(),
            unreadable: existing::unreadable(found).map(|mismatch| mismatch.to_string()),
        }
    }
}

/// Returns a table whose rows were moved to new storage since the session's snapshot, by `truncate` or by a rewrite. An
/// older snapshot may find such a table empty. The tables must be locked.
pub fn rewritten(session: &mut Session, tables: &[Table]) -> Result<Option<String>> {
    let oids: Vec<String> = tables.iter().map(|table| table.relation.id.to_string()).collect();
    if oids.is_empty() {
        return Ok(None);
    }
    let rows = session.query(&format!(
        "select c.oid::regclass from pg_catalog.pg_class c \
         where c.oid in (select t.oid from unnest(array[{0}]::oid[]) t(oid) union \
                         select p.relid from unnest(array[{0}]::oid[]) t(oid), pg_catalog.pg_partition_tree(t.oid::regclass) p) \
         and c.relkind = 'r' and c.relfilenode is distinct from pg_catalog.pg_relation_filenode(c.oid)",
        oids.join(", ")
    ))?;
    Ok(rows.first().map(|row| text(row, 0).to_owned()))
}

/// Makes the slot, gives the session's transaction the snapshot at its beginning, and returns that position. It waits for
/// running transactions; `notify` receives which one.
pub fn create_slot_with_snapshot(
    session: &mut Session,
    database: &Database,
    slot: &str,
    notify: &mut dyn FnMut(&str),
) -> Result<Lsn> {
    // This comes before the snapshot's transaction, whose first command must be the slot's.
    slots::prepare(session)?;
    // Servers from 16 on require a read-only transaction.
    session.query("begin isolation level repeatable read read only")?;
    let command = format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput USE_SNAPSHOT",
        sql::replication_identifier(slot)
    );
    let mut waits = |blocker: Option<&str>| {
        blocker.into_iter().for_each(&mut *notify);
        true
    };
    let made = slots::make(session, database, &command, &mut waits)?;
    made.ok_or_else(|| PostgresError::Protocol("the server ended the wait for the slot".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::decode::relation::Column;

    fn items() -> Table {
        let column = |name: &str, key| Column { name: name.to_owned(), type_oid: 25, key };
        let columns = vec![column("id", true), column("no\"te", false), column("owner", true)];
        Table {
            relation: Relation {
                id: 1,
                schema: "public".into(),
                name: "items".into(),
                identity: b'd',
                columns,
            },
            key: vec![Key { index: 2, kind: "text".into() }, Key { index: 0, kind: "bigint".into() }],
            key_text: "(owner text, id bigint)".into(),
            filter: None,
            partitioned: false,
            estimate: None,
            unreadable: None,
        }
    }

    #[test]
    fn all_rows_are_read_in_whatever_order() {
        let sql = r#"select id, "no""te", owner from only public.items"#;
        assert_eq!(items().select(None), sql);
    }

    #[test]
    fn a_page_begins_after_the_last_key_in_the_order_of_the_key() {
        let mut table = items();
        table.filter = Some("id > 0".to_owned());
        let first = table.select(Some(Page { after: &[], limit: 5 }));
        assert!(first.ends_with(r#"where (id > 0) order by owner, id limit 5"#), "{first}");
        let after = ["o'1".to_owned(), "7".to_owned()];
        let next = table.select(Some(Page { after: &after, limit: 5 }));
        let condition = r#"where (id > 0) and (owner, id) > ('o''1'::text, '7'::bigint) order by"#;
        assert!(next.contains(condition), "{next}");
    }

    #[test]
    fn a_condition_holds_besides_the_publications_filter() {
        let mut table = items();
        let sql = table.select_where("a or b", "limit 1");
        assert!(sql.ends_with("items where (a or b) limit 1"), "{sql}");
        table.filter = Some("c or d".to_owned());
        let sql = table.select_where("a or b", "");
        assert!(sql.ends_with("items where (c or d) and (a or b)"), "{sql}");
    }

    #[test]
    fn partitions_are_read_through_their_root() {
        let table = Table { partitioned: true, ..items() };
        assert!(table.select(None).ends_with("from public.items"));
    }
}
