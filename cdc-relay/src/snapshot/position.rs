//! How far the rows of a table are told, as the state topic keeps it; and which tables can be told in chunks.

use serde::{Deserialize, Serialize};

use crate::rows::Table;

/// Between the memory's key and the table, in the key of a position's record.
const INFIX: &str = "/snapshot/";

/// How far a table is told: the value of its record in the state topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub system_id: String,
    /// The columns that identify a row.
    pub key: Vec<String>,
    /// The key of the last row that was told and acknowledged; empty at the beginning.
    pub after: Vec<String>,
    /// Rows passed so far.
    pub rows: u64,
    pub done: bool,
    /// It is read because the publication left something out of it, whether or not the routes say `snapshot`.
    #[serde(default)]
    pub heals: bool,
}

impl Position {
    /// At the beginning of a table with this key.
    pub fn beginning(table: &Table, system_id: &str, heals: bool) -> Position {
        Position {
            system_id: system_id.to_owned(),
            key: table.key_columns().map(str::to_owned).collect(),
            after: Vec::new(),
            rows: 0,
            done: false,
            heals,
        }
    }
}

/// The record's key in the state topic.
pub fn record_key(memory_key: &str, table: &str) -> String {
    format!("{memory_key}{INFIX}{table}")
}

/// The table, if the record is a position of this memory's.
pub fn record_table<'k>(memory_key: &str, key: &'k [u8]) -> Option<&'k str> {
    std::str::from_utf8(key).ok()?.strip_prefix(memory_key)?.strip_prefix(INFIX)
}

/// Why the rows of these tables cannot be told in chunks; empty if they can.
pub fn problems<'t>(tables: impl Iterator<Item = &'t Table>, version: u32) -> Vec<String> {
    let mut problems = Vec::new();
    for table in tables {
        let name = table.name();
        if version < 140_000 {
            problems.push(format!("{name} has `snapshot = true`, which needs PostgreSQL 14"));
        } else if table.key.is_empty() {
            problems.push(format!(
                "{name} has `snapshot = true` and no published primary key, or index of the replica identity, to read it by: add one \
                 (`alter table {} add primary key (…)`), or take the option away and tell all rows with \
                 `cdc-relay reconcile`",
                table.relation.sql()
            ));
        }
        problems.extend(table.unreadable.clone());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_found_by_source_slot_and_table_alone() {
        let key = record_key("payments/slot", "public.payments");
        assert_eq!(record_table("payments/slot", key.as_bytes()), Some("public.payments"));
        for other in ["payments/slo", "payments/slot2", "payment/slot", "payments/slot/snapshot"] {
            assert_eq!(record_table(other, key.as_bytes()), None, "{other}");
        }
        assert_eq!(record_table("payments/slot", b"payments/slot"), None, "the memory itself");
    }

    #[test]
    fn what_keeps_a_table_from_being_read_in_chunks_is_said() {
        let readable = Table { key: vec![crate::rows::Key::default()], ..Table::default() };
        let keyless = Table { key: Vec::new(), ..Table::default() };
        let hidden = Table { unreadable: Some("grant".to_owned()), ..readable.clone() };
        assert!(problems([&readable].into_iter(), 140_000).is_empty());
        for (table, version, says) in [
            (&readable, 130_009, "PostgreSQL 14"),
            (&keyless, 150_000, "primary key"),
            (&hidden, 150_000, "grant"),
        ] {
            let problems = problems([table].into_iter(), version);
            assert!(problems.len() == 1 && problems[0].contains(says), "{problems:?}");
        }
    }
}
