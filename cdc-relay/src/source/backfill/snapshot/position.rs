//! How far the snapshot of a table has come, as a record of the state topic.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::state::Cluster;
use crate::routes::{Source, Table};
use crate::source::backfill::rows;

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
    pub fn beginning(table: &rows::Table, system_id: &str, heals: bool) -> TableProgress {
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

/// The first table whose existing rows are not all emitted: of those with `snapshot`, and of those that are healed. `positions` are by
/// table.
pub fn unfinished(
    source: &Source,
    cluster: &Cluster,
    positions: &BTreeMap<String, TableProgress>,
) -> Option<String> {
    let is_unfinished = |table: &&Table| {
        let position = positions.get(&table.table_name.to_string());
        let done = |position: &TableProgress| position.done && position.system_id == cluster.system_id;
        let heals = |position: &TableProgress| position.heals && !position.done;
        (table.snapshot && !position.is_some_and(done)) || position.is_some_and(heals)
    };
    source.tables.iter().find(is_unfinished).map(|table| table.table_name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of such a table may be emitted from the old server and from the promoted one, and in neither order.
    #[test]
    fn a_table_that_is_healed_is_unfinished_until_its_rows_are_emitted() {
        let file = "[[sources]]\nname = \"s\"\nurl = \"postgres://h/d\"\n\
            [[sources.tables]]\nname = \"a\"\nsnapshot = true\n[[sources.tables]]\nname = \"b\"\n";
        let source = crate::routes::Routes::parse(file, |_| None).expect("routes").sources.remove(0);
        let cluster = Cluster { system_id: "1".to_owned(), timeline: 1, flush: crate::postgres::lsn::Lsn(1) };
        let position = |system_id: &str, done, heals| TableProgress {
            system_id: system_id.to_owned(),
            key: Vec::new(),
            key_text: String::new(),
            after: Vec::new(),
            rows: 0,
            done,
            heals,
        };
        let found = |a: Option<TableProgress>, b: Option<TableProgress>| {
            let both = [("public.a", a), ("public.b", b)];
            let positions =
                both.into_iter().filter_map(|(name, position)| Some((name.to_owned(), position?)));
            unfinished(&source, &cluster, &positions.collect())
        };
        let (a, b) = (Some("public.a".to_owned()), Some("public.b".to_owned()));
        let done = || Some(position("1", true, false));
        assert_eq!(found(None, None), a, "it is to be read, and nothing is");
        assert_eq!(found(Some(position("2", true, false)), None), a, "it was read on another cluster");
        assert_eq!(found(done(), None), None);
        assert_eq!(found(done(), Some(position("1", false, true))), b);
        assert_eq!(found(done(), Some(position("1", true, true))), None);
        assert_eq!(
            found(done(), Some(position("1", false, false))),
            None,
            "nobody asks for its rows any more"
        );
    }

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
