//! Names chains, for the header `pg_chain`.
//!
//! * A chain is what one slot sends in its life: positions that ascend. Positions of two chains say nothing about each other.
//! * A restart, another relay, other routes and a failover go on in the same chain. A resnapshot makes a slot, and so begins
//!   another chain; so does a source that begins anew.
//! * The name begins with the source's, since several sources may have the same `ce_source`. The time at which the chain began
//!   follows: a restored server may make the same slot at the same position again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::postgres::lsn::PgTime;

/// `payments/2026-11-29T12:15:02.123456Z`; empty in the checkpoint of an earlier release.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainName(String);

impl ChainName {
    /// The name of a chain of this source that begins at this time.
    pub fn begin(source: &str, at: PgTime) -> ChainName {
        let mut name = format!("{source}/").into_bytes();
        at.write_rfc3339(&mut name);
        // Both parts are UTF-8.
        ChainName(String::from_utf8(name).unwrap_or_default())
    }

    /// The name as `pg_chain` has it.
    pub fn read(text: &str) -> ChainName {
        ChainName(text.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The source whose chain it is. A source's name may contain a slash, a time does not.
    pub fn source(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(source, _)| source)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_chain_it_is_and_when_it_began() {
        let name = ChainName::begin("payments-0", PgTime(1));
        assert_eq!(name.as_str(), "payments-0/2000-01-01T00:00:00.000001Z");
        assert_eq!(name.source(), Some("payments-0"));
        assert_eq!(ChainName::begin("a/b", PgTime(0)).source(), Some("a/b"));
        assert_eq!(ChainName::read("x").source(), None);
        assert_eq!(ChainName::read(name.as_str()), name);
        assert!(
            ChainName::begin("a", PgTime(1)) < ChainName::begin("a", PgTime(2)),
            "a source's chains sort by time"
        );
    }
}
