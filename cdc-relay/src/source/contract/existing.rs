//! Checks whether the existing rows of tables can be read. Pure.

use super::advice::Mismatch;
use crate::postgres::facts::{Facts, Table};
use crate::postgres::sql::{self, identifier};
use crate::routes::Source;

/// The first version that shows which transactions it sees.
const SNAPSHOTS: u32 = 140_000;

/// Returns why tables with `snapshot = true` cannot be read in chunks beside the stream.
pub fn mismatches(source: &Source, facts: &Facts) -> Vec<Mismatch> {
    let asked = source.tables.iter().filter(|table| table.snapshot);
    of(asked.filter_map(|table| facts.table(&table.table_name)), facts.version)
}

/// Returns why these tables cannot be read in chunks.
pub fn of<'t>(tables: impl Iterator<Item = &'t Table>, version: u32) -> Vec<Mismatch> {
    tables.flat_map(|table| chunks(table, version).into_iter().chain(unreadable(table))).collect()
}

fn chunks(table: &Table, version: u32) -> Option<Mismatch> {
    let new = |found: &str| Mismatch::new("table.snapshot", table.qualified(), found);
    if version < SNAPSHOTS {
        return Some(new("has `snapshot = true`, which needs PostgreSQL 14"));
    }
    if !table.key().is_empty() {
        return None;
    }
    let found =
        "has `snapshot = true` and no published primary key, or index of the replica identity, to read it by";
    let name = sql::table(&table.itself.schema, &table.itself.name);
    Some(
        new(found)
            .fix(format!("alter table {name} add primary key (…)"))
            .fix("remove the option, and emit all rows with `cdc-relay resnapshot`"),
    )
}

/// Returns why the role cannot read the whole table.
pub fn unreadable(table: &Table) -> Option<Mismatch> {
    let (name, role) = (table.qualified(), identifier(&table.role));
    if !table.selectable {
        let sql = sql::table(&table.itself.schema, &table.itself.name);
        let mismatch = Mismatch::new("role.select", format!("role {role}"), format!("may not read {name}"));
        return Some(mismatch.fix(format!("grant select on {sql} to {role}")));
    }
    table.hidden.then(|| {
        Mismatch::new("role.row_security", "row security", format!("hides rows of {name}"))
            .fix(format!("alter role {role} bypassrls"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::facts::{Column, Member};

    #[test]
    fn what_keeps_a_table_from_being_read_in_chunks_is_said() {
        let column = Column { name: "id".to_owned(), published: true, ..Column::default() };
        let itself = Member { primary_key: Some(vec!["id".to_owned()]), ..Member::default() };
        let readable = Table { itself, columns: vec![column], selectable: true, ..Table::default() };
        let keyless = Table { itself: Member::default(), ..readable.clone() };
        let forbidden = Table { selectable: false, ..readable.clone() };
        let hidden = Table { hidden: true, ..readable.clone() };
        let mismatch_of = |table: &Table, version| chunks(table, version).or_else(|| unreadable(table));
        assert_eq!(mismatch_of(&readable, 140_000), None);
        for (table, version, says) in [
            (&readable, 130_009, "PostgreSQL 14"),
            (&keyless, 150_000, "add primary key"),
            (&forbidden, 150_000, "`grant select on"),
            (&hidden, 150_000, "bypassrls"),
        ] {
            let mismatch_of = mismatch_of(table, version).expect("a mismatch").to_string();
            assert!(mismatch_of.contains(says), "{mismatch_of}");
        }
    }
}
