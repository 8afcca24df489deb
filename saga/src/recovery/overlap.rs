//! Finds out whether the topic is read from a time at which the backup had everything.
//!
//! * Within a partition the relay emits in the order of commits. So if the database has the first event that is read, it has
//!   those before.
//! * An event that was emitted again says nothing of those before it. It has no position in the chain.
//! * A partition that is read from its first offset has nothing before.

use std::collections::BTreeSet;

/// The partitions of one topic.
#[derive(Debug, Default)]
pub struct Overlap {
    /// Those that were decided.
    decided: BTreeSet<String>,
}

impl Overlap {
    /// Takes in the next event; a finding, if events before it may be lacking. `place`: topic/partition/offset. `is_first_emission`:
    /// it has a position in the chain.
    pub fn check(&mut self, place: &str, is_first_emission: bool, is_lacking: bool) -> Option<String> {
        let (partition, offset) = place.rsplit_once('/')?;
        if self.decided.contains(partition) || !(is_first_emission || is_lacking || offset == "0") {
            return None;
        }
        self.decided.insert(partition.to_owned());
        (is_lacking && offset != "0").then(|| {
            format!(
                "{place}: the first event that is read is lacking, so others before it may be lacking too; read since an earlier \
                 time"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sign per event: ! a finding, - none.
    fn signs(events: &[(&str, bool, bool)]) -> String {
        let mut overlap = Overlap::default();
        let sign = |(place, is_first_emission, is_lacking): &(&str, bool, bool)| {
            if overlap.check(place, *is_first_emission, *is_lacking).is_some() { '!' } else { '-' }
        };
        events.iter().map(sign).collect()
    }

    #[test]
    fn the_first_event_of_a_partition_must_be_there() {
        assert_eq!(signs(&[("t/0/7", true, false), ("t/0/8", true, true)]), "--", "as it should be");
        assert_eq!(signs(&[("t/0/7", true, true), ("t/0/8", true, true)]), "!-", "named once");
        assert_eq!(signs(&[("t/0/7", true, false), ("t/1/7", true, true)]), "-!", "each partition by itself");
        assert_eq!(signs(&[("t/0/0", true, true), ("t/0/1", true, true)]), "--", "read from its beginning");
        let again = [("t/0/7", false, false), ("t/0/8", true, true)];
        assert_eq!(signs(&again), "-!", "an event that was emitted again shows nothing");
        assert_eq!(signs(&[("t/0/7", false, true)]), "!", "and was first emitted before");
    }
}
