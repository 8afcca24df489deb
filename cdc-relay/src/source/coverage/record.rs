//! What the state topic keeps of a source's publication: what it sends, and since when that is in doubt.

use serde::{Deserialize, Serialize};

use super::{Coverage, Replaced, losses};
use crate::checkpoint::refusal::Break;
use crate::postgres::lsn::Lsn;
use crate::postgres::lsn::as_text;
use crate::routes::Source;

/// Between the checkpoint's key and nothing: the end of the record's key.
const SUFFIX: &str = "/publication";

/// The value of the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What the stream is read under.
    pub coverage: Coverage,
    /// Tables with routes may have sent nothing: nothing is emitted before the rows were read again.
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
    /// The rows were read again as they were here.
    #[serde(with = "as_text")]
    pub until: Lsn,
    /// Only the rows of these were left out. They are read beside the stream from `until` on, and their positions say how
    /// far. Empty: all rows of the source were read before this was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

impl Record {
    /// Why nothing may be emitted before the rows were read again: what was seen before, or what `found` lost while nobody
    /// looked. `complete_until`: up to here everything was sent.
    pub fn judge(&self, found: &Coverage, source: &Source, complete_until: Lsn) -> Option<Break> {
        if self.broken.is_some() {
            return self.broken.clone();
        }
        let losses = losses(&self.coverage, found, source, &Replaced::default());
        (!losses.is_empty()).then(|| Break { what: losses.join("; "), since: complete_until })
    }

    /// The record after all rows were read again, or, where tables are named, before theirs are.
    pub fn healed(before: Option<Record>, coverage: Coverage, (until, tables): (Lsn, &[String])) -> Record {
        let Record { broken, mut healed, .. } = before.unwrap_or_default();
        healed.extend(broken.map(|broken| Healed { broken, until, tables: tables.to_vec() }));
        Record { coverage, broken: None, healed }
    }
}

/// The record's key in the state topic.
pub fn record_key(checkpoint_key: &str) -> String {
    format!("{checkpoint_key}{SUFFIX}")
}
