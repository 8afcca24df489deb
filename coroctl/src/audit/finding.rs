//! The finding of a check, and the tally it comes from.

use serde::Serialize;
use uuid::Uuid;

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub promise: &'static str,
    /// How many things were examined.
    pub examined: u64,
    /// How many of them break the promise.
    pub violations: u64,
    /// The first of them, explained.
    pub first: Option<String>,
    /// The payment that the first is about, if it is about one.
    pub payment_id: Option<Uuid>,
    /// Why the check was skipped. Then nothing is known: it neither holds nor is it violated.
    pub skipped: Option<String>,
}

impl Finding {
    pub fn is_violated(&self) -> bool {
        self.violations > 0
    }

    pub fn holds(&self) -> bool {
        self.violations == 0 && self.skipped.is_none()
    }
}

/// Counts what a check examines. It keeps the offender with the smallest payment id, which is the oldest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub examined: u64,
    pub violations: u64,
    pub first: Option<Offender>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offender {
    pub payment_id: Option<Uuid>,
    pub what: String,
}

impl Tally {
    pub fn count(&mut self) {
        self.examined += 1;
    }

    /// Counts a violation. `what` is called only when it may be shown.
    pub fn violate(&mut self, who: impl Into<Option<Uuid>>, what: impl FnOnce() -> String) {
        self.violations += 1;
        let payment_id = who.into();
        let earlier = match (&self.first, payment_id) {
            (None, _) => true,
            (Some(first), Some(id)) => first.payment_id.is_some_and(|known| id < known),
            (Some(_), None) => false,
        };
        if earlier {
            self.first = Some(Offender { payment_id, what: what() });
        }
    }

    /// Counts one examined thing, and a violation unless it holds.
    pub fn check(&mut self, holds: bool, who: impl Into<Option<Uuid>>, what: impl FnOnce() -> String) {
        self.count();
        if !holds {
            self.violate(who, what);
        }
    }

    /// The sum of both.
    pub fn and(mut self, other: &Tally) -> Self {
        self.examined += other.examined;
        if let Some(first) = &other.first {
            self.violate(first.payment_id, || first.what.clone());
            self.violations += other.violations - 1;
        }
        self
    }

    pub fn finding(self, name: &'static str, promise: &'static str) -> Finding {
        let (first, payment_id) = match self.first {
            Some(Offender { payment_id: Some(id), what }) => (Some(format!("{id}: {what}")), Some(id)),
            Some(Offender { payment_id: None, what }) => (Some(what), None),
            None => (None, None),
        };
        let Self { examined, violations, .. } = self;
        Finding { name, promise, examined, violations, first, payment_id, skipped: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_offender_is_the_one_that_is_shown() {
        let ids: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let mut tally = Tally::default();
        for id in [ids[1], ids[2], ids[0]] {
            tally.check(false, id, || "bad".to_owned());
        }
        tally.check(true, ids[0], || unreachable!("it is fine"));
        assert_eq!((tally.examined, tally.violations), (4, 3));
        assert_eq!(tally.first.as_ref().and_then(|first| first.payment_id), Some(ids[0]));
        let both = Tally::default().and(&tally).and(&tally);
        assert_eq!((both.examined, both.violations), (8, 6));
        let finding = both.finding("X", "y");
        assert_eq!(finding.first, Some(format!("{}: bad", ids[0])));
        assert!(finding.is_violated() && !finding.holds());
    }
}
