//! The fingerprint of a source's routes: after a change of it the chain of positions begins again.
//!
//! * It covers exactly the keys that decide which transactions emit a record on Kafka that has a position.
//! * It is stable over releases: a key that is not used adds nothing.

use std::fmt::Display;

use sha2::{Digest, Sha256};

use super::{Condition, Deletes, OriginRule, Source};

impl Source {
    /// Eight bytes of a hash, in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |text: &dyn Display| hash.update(format!("{text}\0"));
        part(self.publication.get_ref());
        if self.origin == OriginRule::None {
            part(&"origin none");
        }
        for table in self.entries() {
            part(table.name.get_ref());
            for route in &table.routes {
                part(&route.topic.as_ref().map_or("", |topic| topic.get_ref()));
                route.compacted.iter().for_each(|topic| part(&format!("compacted {topic}")));
                for (column, condition) in &route.when {
                    part(column);
                    let (values, null) = match condition {
                        Condition::In(values) => (values, None),
                        Condition::Is { not, null } => {
                            part(&"not");
                            (not, *null)
                        }
                    };
                    values.iter().for_each(|value| part(value.get_ref()));
                    if let Some(null) = null {
                        part(&format!("null {null}"));
                    }
                }
                route.op.iter().for_each(|op| part(&format!("op {}", op.get_ref().name())));
                route.changed.iter().for_each(|column| part(&format!("changed {}", column.get_ref())));
                // An event and a tombstone are one record each; both are two.
                match route.deletes {
                    None => {}
                    Some(Deletes::Ignore) => part(&"deletes none"),
                    Some(Deletes::Event | Deletes::Tombstone) => part(&"deletes one"),
                    Some(Deletes::Both) => part(&"deletes two"),
                }
            }
        }
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}
