//! Pure: a contradiction is reported only if it is still there after some examinations, each of newer rows.
//!
//! * An examination of a subject that no longer shows a contradiction ends the suspicion.
//! * A reported contradiction is reported once; after a restart, or after [`REPORTED_MAX`] others, it may be reported again.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::checks::{Check, Found, Key};

/// The examinations that must show a contradiction before it is reported.
pub const CONFIRMATIONS: u32 = 3;
const REPORTED_MAX: usize = 10_000;

/// The thing that an examination is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The rows of a payment.
    Payment(Key),
    /// The events that a payment has had.
    Events(Key),
    Account(Uuid),
}

#[derive(Debug, Default)]
pub struct Suspicions {
    open: HashMap<(Subject, Check), u32>,
    reported: HashSet<(Subject, Check)>,
}

impl Suspicions {
    /// Takes what an examination of the subject found; returns what is to be reported now.
    pub fn examined(&mut self, subject: Subject, found: Vec<Found>) -> Vec<Found> {
        if found.is_empty() && self.open.is_empty() {
            return found;
        }
        self.open
            .retain(|(about, check), _| *about != subject || found.iter().any(|new| new.check == *check));
        found.into_iter().filter(|new| self.is_confirmed((subject, new.check))).collect()
    }

    fn is_confirmed(&mut self, suspicion: (Subject, Check)) -> bool {
        if self.reported.contains(&suspicion) {
            return false;
        }
        let count = self.open.entry(suspicion).or_default();
        *count += 1;
        if *count < CONFIRMATIONS {
            return false;
        }
        self.open.remove(&suspicion);
        if self.reported.len() >= REPORTED_MAX {
            self.reported.clear();
        }
        self.reported.insert(suspicion)
    }

    /// What must be examined again.
    pub fn subjects(&self) -> HashSet<Subject> {
        self.open.keys().map(|(subject, _)| *subject).collect()
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(check: Check) -> Found {
        Found { check, what: String::new() }
    }

    const SUBJECT: Subject = Subject::Account(Uuid::from_u128(1));
    const OTHER: Subject = Subject::Account(Uuid::from_u128(2));

    #[test]
    fn it_is_reported_once_and_only_when_it_stays() {
        let mut suspicions = Suspicions::default();
        for round in 1..=2 * CONFIRMATIONS {
            let reported = suspicions.examined(SUBJECT, vec![found(Check::M3)]);
            assert_eq!(reported.len(), usize::from(round == CONFIRMATIONS), "round {round}");
            assert_eq!(suspicions.subjects().contains(&SUBJECT), round < CONFIRMATIONS, "round {round}");
        }
    }

    #[test]
    fn what_is_gone_in_between_begins_anew() {
        let mut suspicions = Suspicions::default();
        for _ in 1..CONFIRMATIONS {
            assert!(suspicions.examined(SUBJECT, vec![found(Check::M3), found(Check::M7)]).is_empty());
        }
        assert_eq!(suspicions.len(), 2);
        // Another subject changes nothing, another check of the same one neither.
        assert!(suspicions.examined(OTHER, Vec::new()).is_empty());
        let reported = suspicions.examined(SUBJECT, vec![found(Check::M7)]);
        assert_eq!(reported.iter().map(|found| found.check).collect::<Vec<_>>(), [Check::M7]);
        for _ in 1..CONFIRMATIONS {
            assert!(suspicions.examined(SUBJECT, vec![found(Check::M3)]).is_empty());
        }
        assert!(suspicions.examined(SUBJECT, Vec::new()).is_empty() && suspicions.is_empty());
    }
}
