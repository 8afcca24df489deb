//! Pure: the events of one payment that were seen, compared with each other and with its rows.

use coroctl::audit::read::events::Versions;
use coroctl::audit::read::rows::{Charge, Entry, Payment};
use coroctl::audit::statuses::{PaymentEvent, PaymentStatus};
use coroctl::audit::transitions::PaymentState;

use crate::checks::{Check, Found};

/// A version or a phase, and the fingerprint of its body.
type Body = (u32, u64);

/// The rows of one payment, as they were when it was examined.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowsOf<'a> {
    pub payment: Option<&'a Payment>,
    pub entries: [Option<&'a Entry>; 2],
    pub charge: Option<&'a Charge>,
}

#[derive(Clone, Debug, Default)]
pub struct SeenEvents {
    payment_versions: Versions,
    state: Option<PaymentState>,
    payment: Option<Body>,
    entries: [Option<u64>; 2],
    results: Versions,
    result: Option<Body>,
}

impl SeenEvents {
    /// Takes an event of PaymentTopic.
    pub fn add_payment(
        &mut self,
        version: u32,
        status: &str,
        event: &str,
        fingerprint: u64,
    ) -> Option<Found> {
        let (Some(status), Some(event)) = (PaymentStatus::parse(status), PaymentEvent::parse(event)) else {
            return Some(Found::new(
                Check::T3,
                format!("version {version} has a status or an event that is unknown"),
            ));
        };
        if self.payment_versions.has(version) {
            return repeats(self.payment, (version, fingerprint), "version");
        }
        let last = self.payment_versions.last;
        self.payment_versions.add(version);
        // One that was emitted again from its row may overtake the versions before it.
        if version < last {
            return None;
        }
        let before = self.state.filter(|_| version == last + 1);
        let transition = PaymentState::transition(before, version, status, event);
        (self.state, self.payment) = (Some(transition.state), Some((version, fingerprint)));
        (!transition.legal).then(|| {
            let what =
                format!("version {version} is {event:?} to {status:?}{}", PaymentState::describe(before));
            Found::new(Check::S2, what)
        })
    }

    /// Takes an event of BalanceTopic.
    pub fn add_entry(&mut self, phase: i16, fingerprint: u64) -> Option<Found> {
        let index = usize::from(phase != 1);
        match self.entries[index].replace(fingerprint) {
            Some(known) if known != fingerprint => {
                let what = format!("the entry of phase {phase} was emitted before with another body");
                Some(Found::new(Check::T3, what))
            }
            Some(_) | None => None,
        }
    }

    /// Takes an event of PaymentResultTopic.
    pub fn add_result(&mut self, version: u32, fingerprint: u64) -> Option<Found> {
        if self.results.has(version) {
            return repeats(self.result, (version, fingerprint), "result");
        }
        if version > self.results.last {
            self.result = Some((version, fingerprint));
        }
        self.results.add(version);
        None
    }

    pub fn has_payment(&self, version: u32) -> bool {
        self.payment_versions.has(version)
    }

    /// What of these rows was not emitted: versions of the payment, phases of the ledger, the version of a decided charge.
    pub fn missing(&self, versions: u32, phases: [bool; 2], result: Option<u32>) -> Option<String> {
        if let Some(version) = (1..=versions).find(|version| !self.payment_versions.has(*version)) {
            return Some(format!("version {version} was never emitted on PaymentTopic"));
        }
        let phase = (0..2).find(|index| phases[*index] && self.entries[*index].is_none());
        if let Some(index) = phase {
            return Some(format!("its entry of phase {} was never emitted on BalanceTopic", index + 1));
        }
        let version = result.filter(|version| !self.results.has(*version))?;
        Some(format!("version {version} of its charge was never emitted on PaymentResultTopic"))
    }

    /// Compares the events with rows that were read after them.
    pub fn contradictions(&self, rows: &RowsOf<'_>) -> Vec<Found> {
        let t3 = |what: &str| Some(Found::new(Check::T3, what));
        let payment = match (self.payment, rows.payment) {
            (Some(_), None) => Some(Found::new(Check::S4, "emitted on PaymentTopic, and has no row")),
            (Some((version, _)), Some(row)) if version > row.version => {
                t3("its event on PaymentTopic is ahead of its row")
            }
            (Some((version, body)), Some(row)) if version == row.version && body != row.fingerprint => {
                t3("its row differs from its last event on PaymentTopic")
            }
            (Some(_) | None, _) => None,
        };
        let entries = [0, 1].map(|index| match (self.entries[index], rows.entries[index]) {
            (Some(_), None) => t3("emitted on BalanceTopic, and has no entry"),
            (Some(body), Some(row)) if body != row.fingerprint => {
                t3("an entry differs from its event on BalanceTopic")
            }
            (Some(_) | None, _) => None,
        });
        let result = match (self.result, rows.charge) {
            (Some(_), None) => t3("emitted on PaymentResultTopic, and has no charge"),
            (Some((version, _)), Some(row)) if version > row.version => {
                t3("its event on PaymentResultTopic is ahead of its charge")
            }
            (Some((version, body)), Some(row)) if version == row.version && body != row.fingerprint => {
                t3("its charge differs from its last event on PaymentResultTopic")
            }
            (Some(_) | None, _) => None,
        };
        [payment].into_iter().chain(entries).chain([result]).flatten().collect()
    }
}

/// A repetition has the body of the first emission.
fn repeats(known: Option<Body>, (version, body): Body, what: &str) -> Option<Found> {
    let differs = known.is_some_and(|(last, known)| last == version && known != body);
    differs.then(|| Found::new(Check::T3, format!("{what} {version} was emitted before with another body")))
}

#[cfg(test)]
#[path = "payment_events_tests.rs"]
mod tests;
