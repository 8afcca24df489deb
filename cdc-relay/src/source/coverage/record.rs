//! The record of a source's publication in the state topic: its coverage, its break, and the healed breaks.

use serde::{Deserialize, Serialize};

use super::{Coverage, Replaced, losses};
use crate::checkpoint::refusal::Break;
use crate::postgres::lsn::Lsn;
use crate::postgres::lsn::as_text;
use crate::routes::Source;

/// The end of the record's key, after the checkpoint's key.
const SUFFIX: &str = "/publication";

/// The value of the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The coverage under which the stream is read.
    pub coverage: Coverage,
    /// Routed tables may have sent fewer rows. Nothing is emitted until their rows were read again.
    #[serde(default)]
    pub broken: Option<Break>,
    /// Breaks after which the rows were read again.
    #[serde(default)]
    pub healed: Vec<Healed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healed {
    #[serde(flatten)]
    pub broken: Break,
    /// The rows were read again in their state at this position.
    #[serde(with = "as_text")]
    pub until: Lsn,
    /// The tables that were left out. They are read beside the stream from `until` on, and have progress records. It is
    /// empty if all rows of the source were read before this record was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

impl Record {
    /// Returns the break that forbids to emit: the recorded one, or the losses of `found` against the recorded coverage.
    /// Everything up to `complete_until` was sent.
    pub fn judge(&self, found: &Coverage, source: &Source, complete_until: Lsn) -> Option<Break> {
        if self.broken.is_some() {
            return self.broken.clone();
        }
        let losses = losses(&self.coverage, found, source, &Replaced::default());
        (!losses.is_empty()).then(|| Break { what: losses.join("; "), since: complete_until })
    }

    /// Returns the record after all rows were read again, or, with named tables, before their rows are.
    pub fn healed(before: Option<Record>, coverage: Coverage, until: Lsn, tables: &[String]) -> Record {
        let Record { broken, mut healed, .. } = before.unwrap_or_default();
        healed.extend(broken.map(|broken| Healed { broken, until, tables: tables.to_vec() }));
        Record { coverage, broken: None, healed }
    }
}

/// Returns the record's key in the state topic.
pub fn record_key(checkpoint_key: &str) -> String {
    format!("{checkpoint_key}{SUFFIX}")
}
