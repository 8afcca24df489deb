//! Each bucket has one owner.

use saga::shards::bucket::BUCKETS;

use crate::audit::finding::{Offender, Tally};
use crate::audit::observed::Observed;

/// O1: of the shards of a service, one owns each bucket. It is judged where a service has several databases.
pub fn one_owner(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (service, ownership) in &observed.databases.ownership {
        let undecided = ownership.undecided();
        tally.examined += BUCKETS as u64;
        tally.violations += undecided.buckets().count() as u64;
        if tally.first.is_none() && !undecided.is_empty() {
            tally.first = Some(Offender { payment_id: None, what: undecided.describe(service) });
        }
    }
    tally
}
