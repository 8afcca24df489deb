//! Dead letters: rows that cannot be told, and the rows of the same key that follow them.
//!
//! A row that cannot be told halts its key towards that destination: later rows of the key go to the dead-letter
//! topic as well, in order, until a release for the key is written there. The set of halted keys is what reading
//! the topic from its start yields; nothing else remembers it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::json;
use crate::pgoutput::Value;
use crate::route::{Plan, Transaction};
use crate::template::{Op, Problem, Row};

/// Columns longer than this are left out of a dead letter; the row itself is still in its table.
const LONGEST_COLUMN: usize = 16 << 10;
/// After so many bytes of columns the rest is left out too.
const LONGEST_ROW: usize = 256 << 10;

/// What identifies a halted key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Halt {
    pub source: String,
    pub destination: String,
    /// None: the key itself could not be told, so that every key of the destination is halted.
    pub key: Option<String>,
}

/// The head of a record in the dead-letter topic.
#[derive(Debug, Deserialize)]
struct Letter {
    #[serde(flatten)]
    halt: Halt,
    #[serde(default)]
    release: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Halted {
    keys: BTreeSet<Halt>,
    any: BTreeSet<(String, String)>,
}

impl Halted {
    /// Applies a record read from the topic. One that is not ours is an error: the set would be incomplete.
    pub fn apply(&mut self, value: &[u8]) -> Result<(), serde_json::Error> {
        let letter: Letter = serde_json::from_slice(value)?;
        if letter.release {
            self.release(&letter.halt);
        } else {
            self.halt(letter.halt);
        }
        Ok(())
    }

    pub fn halt(&mut self, halt: Halt) {
        if halt.key.is_none() {
            self.any.insert((halt.source, halt.destination));
        } else {
            self.keys.insert(halt);
        }
    }

    fn release(&mut self, halt: &Halt) {
        if halt.key.is_none() {
            self.any.remove(&(halt.source.clone(), halt.destination.clone()));
        } else {
            self.keys.remove(halt);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.any.is_empty()
    }

    pub fn len(&self) -> usize {
        self.keys.len() + self.any.len()
    }

    /// How many of them are the source's.
    pub fn of(&self, source: &str) -> usize {
        let keys = self.keys.iter().filter(|halt| halt.source == source).count();
        keys + self.any.iter().filter(|(other, _)| other == source).count()
    }

    pub fn contains(&self, halt: &Halt) -> bool {
        self.keys.contains(halt) || self.any.contains(&(halt.source.clone(), halt.destination.clone()))
    }
}

/// Writes the record's value.
pub fn letter(
    halt: &Halt,
    reason: &Problem,
    (plan, row, transaction): (&Plan, &Row<'_>, &Transaction),
    out: &mut Vec<u8>,
) {
    out.clear();
    let mut member = |name: &str, value: Option<&str>| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        json::string(name.as_bytes(), out);
        out.push(b':');
        match value {
            Some(value) => json::string(value.as_bytes(), out),
            None => out.extend_from_slice(b"null"),
        }
    };
    member("source", Some(&halt.source));
    member("destination", Some(&halt.destination));
    member("key", halt.key.as_deref());
    member("reason", Some(&reason.0));
    member("table", Some(&plan.relation));
    member("position", Some(&transaction.commit_lsn.to_string()));
    if row.op == Op::Delete {
        member("op", Some(row.op.name()));
    }
    out.extend_from_slice(b",\"row\":");
    columns(plan, row, out);
    out.push(b'}');
}

/// The columns as Postgres prints them; what is too long is named in `omitted`.
fn columns(plan: &Plan, row: &Row<'_>, out: &mut Vec<u8>) {
    let (start, mut omitted) = (out.len(), Vec::new());
    out.push(b'{');
    for (index, name) in plan.columns.iter().enumerate() {
        let text = match row.new.get(index) {
            // The log has no more of a deleted row than its key.
            Value::Null if row.op == Op::Delete && !plan.whole_deletes => continue,
            Value::Null => None,
            Value::Text(text) if text.len() <= LONGEST_COLUMN && out.len() - start < LONGEST_ROW => {
                Some(text)
            }
            _ => {
                omitted.push(name.as_str());
                continue;
            }
        };
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        json::string(name.as_bytes(), out);
        out.push(b':');
        match text {
            Some(text) => json::string(text, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
    if !omitted.is_empty() {
        out.extend_from_slice(b",\"omitted\":");
        json::string(omitted.join(",").as_bytes(), out);
    }
}
