//! How far the snapshot of a table has come, as a record of the state topic.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::state::Cluster;
use crate::routes::Source;
use crate::source::backfill::rows::Table;

/// It separates the checkpoint's key from the table, in the key of a record.
const INFIX: &str = "/snapshot/";

/// The value of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProgress {
    pub system_id: String,
    /// The columns that identify a row.
    pub key: Vec<String>,
    /// The key with the types that decide its order: `(owner text, id bigint)`. An earlier release wrote none.
    #[serde(default)]
    pub key_text: String,
    /// The key of the last row that was emitted and acknowledged; empty at the beginning.
    pub after: Vec<String>,
    /// Rows passed so far.
    pub rows: u64,
    pub done: bool,
    /// The table is read because the publication left rows out, whether or not it has `snapshot = true`.
    #[serde(default)]
    pub heals: bool,
}

impl TableProgress {
    /// Before the first row of a table with this key.
    pub fn beginning(table: &Table, system_id: &str, heals: bool) -> TableProgress {
        TableProgress {
            system_id: system_id.to_owned(),
            key: table.key_columns().map(str::to_owned).collect(),
            key_text: table.key_text.clone(),
            after: Vec::new(),
            rows: 0,
            done: false,
            heals,
        }
    }
}

/// Returns the record's key in the state topic.
pub fn record_key(checkpoint_key: &str, table: &str) -> String {
    format!("{checkpoint_key}{INFIX}{table}")
}

/// Returns the table, if the key is that of a progress record of this checkpoint.
pub fn record_table<'k>(checkpoint_key: &str, key: &'k [u8]) -> Option<&'k str> {
    std::str::from_utf8(key).ok()?.strip_prefix(checkpoint_key)?.strip_prefix(INFIX)
}

/// The first table whose existing rows are not all emitted. `positions` are by table.
pub fn unfinished(
    source: &Source,
    cluster: &Cluster,
    positions: &BTreeMap<String, TableProgress>,
) -> Option<String> {
    let mut names =
        source.tables.iter().filter(|table| table.snapshot).map(|table| table.table_name.to_string());
    let done = |name: &String| {
        let position = positions.get(name);
        position.is_some_and(|position| position.done && position.system_id == cluster.system_id)
    };
    names.find(|name| !done(name))
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
        assert_eq!(record_table("payments/slot", b"payments/slot"), None, "the checkpoint itself");
    }
}
