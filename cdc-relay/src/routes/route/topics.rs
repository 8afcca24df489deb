//! Topics by name, for routes whose topic depends on the row.

use std::collections::BTreeMap;

use super::Destination;
use crate::routes::Routes;

/// The topics by name, and the size limits of records.
#[derive(Debug, Clone, Default)]
pub struct Topics {
    by_name: BTreeMap<Vec<u8>, usize>,
    /// The size limit in bytes, by topic index.
    limits: Vec<usize>,
    /// The size limit of queues, in bytes.
    default_limit: usize,
}

impl Topics {
    /// `limits` are by topic index.
    pub fn new(routes: &Routes, limits: Vec<usize>) -> Topics {
        let by_name = routes.topics.iter().enumerate();
        Topics {
            by_name: by_name
                .map(|(index, topic)| (topic.name.get_ref().as_bytes().to_vec(), index))
                .collect(),
            limits,
            default_limit: routes.relay.max_record_bytes,
        }
    }

    /// The index of a topic.
    #[inline]
    pub(super) fn index(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The largest record of a destination, in bytes.
    #[inline]
    pub(super) fn limit(&self, destination: Destination) -> usize {
        match destination {
            Destination::Topic(index) => self.limits.get(index).copied().unwrap_or(self.default_limit),
            Destination::Queue(_) => self.default_limit,
        }
    }
}
