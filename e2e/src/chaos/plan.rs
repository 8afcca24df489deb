//! Plans each payment and its possible ends, as a pure function of the seed and its index.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Far more than a run spends, and far less than a payment without funds asks for.
pub const DEPOSIT: i64 = 1_000_000_000_000;
const UNAFFORDABLE_AMOUNT: i64 = 1_000_000_000_000_000;
const AMOUNT_MAX: i64 = 100_000;

/// Every way in which the gateway leaves its caller without a definite answer (`gateway-sim/src/script.rs`).
const FORMS: &[&str] = &[
    "hang",
    "reset",
    "http500",
    "http502",
    "http429",
    "http409",
    "garbage",
    "cut",
    "thenhang",
    "thenreset",
    "thenhttp500",
    "thenhttp502",
    "thengarbage",
    "thencut",
    "late3000",
    "late12000",
    "soft2000",
    "thenreset-lag3000",
    "thenhttp500-slow500-lag1000",
    "http500x2",
    "thenhttp500-hooklost",
    "namelessno",
    "thennamelessno",
    "thenstrayok",
    "thenpage402",
    "thenhttp500-askcached",
];

/// The forms after which the processor waits neither for its time-out nor for proof that nothing was charged.
const QUICK_FORMS: &[&str] = &["thenreset", "thenhttp500", "thenhttp502", "thengarbage", "thencut"];

/// The special payments of a hundred, by kind.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub declined: u32,
    pub without_funds: u32,
    pub unknown: u32,
    pub cancelled: u32,
    /// Payments of a hundred that are requested twice at the same moment.
    pub twice: u32,
    /// Also the calls of ordinary payments take a moment, so that a kill finds some under way.
    ordinary: &'static str,
    forms: &'static [&'static str],
}

impl Mix {
    pub const WHOLE: Self = Self {
        declined: 10,
        without_funds: 10,
        unknown: 5,
        cancelled: 2,
        twice: 3,
        ordinary: "0812-jitter100",
        forms: FORMS,
    };
    /// For runs that must not last.
    pub const QUICK: Self = Self { forms: QUICK_FORMS, ..Self::WHOLE };
    /// To be watched: whoever is killed has something in hand.
    pub const DEMO: Self = Self { cancelled: 4, ordinary: "0812-jitter1000", ..Self::QUICK };
}

/// The kind of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Ordinary,
    Declined,
    WithoutFunds,
    Unknown,
    /// Unknown at first, and a decline in the end.
    UnknownDeclined,
    Cancelled,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Ordinary,
        Self::Declined,
        Self::WithoutFunds,
        Self::Unknown,
        Self::UnknownDeclined,
        Self::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Declined => "declined",
            Self::WithoutFunds => "without funds",
            Self::Unknown => "unknown, charged",
            Self::UnknownDeclined => "unknown, declined",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it may end so. A cancel may come too late; everything else has one end.
    pub fn may_end(self, status: &str) -> bool {
        match self {
            Self::Ordinary | Self::Unknown => status == "completed",
            Self::Declined | Self::UnknownDeclined => status == "failed",
            Self::WithoutFunds => status == "rejected",
            Self::Cancelled => matches!(status, "cancelled" | "completed"),
        }
    }
}

/// One payment of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPayment {
    pub kind: Kind,
    /// Which of the run's users pays.
    pub user: usize,
    pub client_number: String,
    pub amount: i64,
    pub twice: bool,
}

impl PlannedPayment {
    /// Whether its user asks to cancel it as soon as it is accepted.
    pub fn is_cancelled(&self) -> bool {
        self.kind == Kind::Cancelled
    }
}

/// All payments of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub payments: usize,
    pub users: usize,
    pub mix: Mix,
}

impl Plan {
    pub fn payment(&self, index: usize) -> PlannedPayment {
        // Spread by a large odd number, so that neighbours in index and seed have nothing in common.
        let state = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64);
        let mut random = SmallRng::seed_from_u64(state);
        let kind = self.kind(&mut random);
        let form = self.mix.forms[random.random_range(0..self.mix.forms.len())];
        let client_number = match kind {
            Kind::Ordinary | Kind::WithoutFunds | Kind::Cancelled => self.mix.ordinary.to_owned(),
            Kind::Declined => format!("{}-decline", self.mix.ordinary),
            Kind::Unknown => format!("0812-{form}"),
            Kind::UnknownDeclined => format!("0812-decline-{form}"),
        };
        let amount = match kind {
            Kind::WithoutFunds => UNAFFORDABLE_AMOUNT,
            Kind::Ordinary | Kind::Declined | Kind::Unknown | Kind::UnknownDeclined | Kind::Cancelled => {
                random.random_range(1..=AMOUNT_MAX)
            }
        };
        let user = random.random_range(0..self.users);
        PlannedPayment {
            kind,
            user,
            client_number,
            amount,
            twice: random.random_range(0..100) < self.mix.twice,
        }
    }

    fn kind(&self, random: &mut SmallRng) -> Kind {
        let Mix { declined, without_funds, unknown, cancelled, .. } = self.mix;
        let drawn = random.random_range(0..100);
        if drawn < declined {
            Kind::Declined
        } else if drawn < declined + without_funds {
            Kind::WithoutFunds
        } else if drawn < declined + without_funds + unknown {
            if random.random_ratio(1, 4) { Kind::UnknownDeclined } else { Kind::Unknown }
        } else if drawn < declined + without_funds + unknown + cancelled {
            Kind::Cancelled
        } else {
            Kind::Ordinary
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan { seed, payments: 5_000, users: 50, mix: Mix::WHOLE }
    }

    fn all(plan: Plan) -> Vec<PlannedPayment> {
        (0..plan.payments).map(|index| plan.payment(index)).collect()
    }

    #[test]
    fn the_same_seed_plans_the_same_and_another_one_does_not() {
        assert_eq!(all(plan(1)), all(plan(1)));
        let same = all(plan(1)).iter().zip(all(plan(2))).filter(|(a, b)| **a == *b).count();
        // Payments without funds differ in nothing but the user.
        assert!(same < 50, "{same}");
    }

    #[test]
    fn shares_are_as_promised_and_no_form_of_unknown_is_left_out() {
        let all = all(plan(7));
        let share = |kinds: &[Kind]| {
            all.iter().filter(|payment| kinds.contains(&payment.kind)).count() * 100 / all.len()
        };
        assert!((9..=11).contains(&share(&[Kind::Declined])));
        assert!((9..=11).contains(&share(&[Kind::WithoutFunds])));
        assert!((4..=6).contains(&share(&[Kind::Unknown, Kind::UnknownDeclined])));
        assert!((1..=3).contains(&share(&[Kind::Cancelled])));
        let numbers: HashSet<&str> = all.iter().map(|payment| payment.client_number.as_str()).collect();
        for form in FORMS {
            assert!(numbers.contains(format!("0812-{form}").as_str()), "{form}");
        }
        assert_eq!(all.iter().map(|payment| payment.user).collect::<HashSet<_>>().len(), 50);
    }
}
