//! The ledger of the gateway: decisions, one per idempotency key, and voids.
//!
//! * Each entry is one line of an append-only file. It is written (not synced) before anybody receives an answer, so a
//!   killed process loses nothing.
//! * A last line that a kill tore is dropped at the next start: nobody has received its answer.
//! * RAM holds an index over the same lines, about 200 bytes per charge.

mod state;

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::Serialize;

use self::state::State;
use crate::record::{Decision, Entry, Id, Request, Verdict, fingerprint, micros, now, provider_reference};

/// The beginning of a call under a key.
pub enum Begin {
    /// The first call: decide, then [`Ledger::record`].
    Fresh(KeyReservation),
    /// The key was decided before: give the same answer again.
    Known(Decision),
    /// The first call under this key is not decided yet.
    InProgress,
    /// The key belongs to another request.
    Reused,
}

/// The right to decide under a key. Dropping it without a decision frees the key.
pub struct KeyReservation {
    ledger: Arc<Ledger>,
    key: Id,
}

impl Drop for KeyReservation {
    fn drop(&mut self) {
        self.ledger.state().open.remove(&self.key);
    }
}

/// The result of a lookup by reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The standing charge and its surplus, or the last decline.
    Decision {
        decision: Decision,
        surplus: Vec<Decision>,
    },
    /// Every charge was voided, or the reference is barred.
    Voided {
        /// `None` if nothing was ever charged and no void stated it.
        amount: Option<i64>,
    },
    /// The charge is declined for now and will be tried again.
    Pending {
        amount: i64,
    },
    Nothing,
}

/// The outcome of a void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoidOutcome {
    /// All voided charges of the reference.
    Done { voided: Vec<Decision>, barred: bool, amount: Option<i64> },
    /// The charge to keep does not stand; nothing was voided.
    UnknownKeep,
}

/// The number of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub charges: u64,
    pub declines: u64,
    pub voids: u64,
    /// Standing charges beyond the first of their reference, which must never happen to a customer.
    pub surplus: u64,
}

pub struct Ledger {
    state: Mutex<State>,
    seed: u64,
}

impl Ledger {
    /// Opens or creates the file and reads it.
    ///
    /// # Errors
    /// When another process has the file open, or when a line other than a torn last one cannot be read.
    pub fn open(path: &Path, seed: u64) -> anyhow::Result<Arc<Ledger>> {
        let open = || OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = open().with_context(|| {
            format!("cannot open the ledger {}; check that its folder exists and is writable", path.display())
        })?;
        if let Err(error) = file.try_lock() {
            bail!(
                "another process uses the ledger {}; stop it or choose another --ledger-path: {error}",
                path.display()
            );
        }
        let mut state = State::new(file);
        state.recover().with_context(|| {
            format!("the ledger {} is damaged; restore it or choose another --ledger-path", path.display())
        })?;
        Ok(Arc::new(Ledger { state: Mutex::new(state), seed }))
    }

    /// Reserves `key` for `request`, or returns its earlier decision.
    pub fn begin(self: &Arc<Self>, key: &str, request: &Request) -> Begin {
        let mut state = self.state();
        let key = Id::new(key);
        if let Some(known) = state.by_key.get(&key).and_then(|index| state.decision(*index)) {
            return if known.fingerprint == fingerprint(request) {
                Begin::Known(known.clone())
            } else {
                Begin::Reused
            };
        }
        if !state.open.insert(key.clone()) {
            return Begin::InProgress;
        }
        Begin::Fresh(KeyReservation { ledger: self.clone(), key })
    }

    /// Reserves a new key, as a gateway that ignores keys: `KEY~1`, `KEY~2`, …
    pub fn begin_anew(self: &Arc<Self>, key: &str) -> KeyReservation {
        let mut state = self.state();
        let mut number = 1u32;
        let key = loop {
            let candidate = Id::new(&format!("{key}~{number}"));
            if !state.by_key.contains_key(&candidate) && state.open.insert(candidate.clone()) {
                break candidate;
            }
            number += 1;
        };
        KeyReservation { ledger: self.clone(), key }
    }

    /// Writes a decision and indexes it. A barred reference is declined.
    ///
    /// # Errors
    /// When the file cannot be written. Nothing was decided then.
    pub fn record(
        &self,
        reservation: &KeyReservation,
        request: &Request,
        verdict: Verdict,
        lag: Duration,
    ) -> anyhow::Result<Decision> {
        let at = now();
        let reference = Id::new(&request.reference);
        let mut state = self.state();
        let barred = state.barred.contains_key(&reference);
        let decision = Decision {
            key: reservation.key.clone(),
            amount: request.amount,
            verdict: if barred {
                Verdict::Declined { code: "reference_voided".into(), status: 402 }
            } else {
                verdict
            },
            at,
            visible_at: at.checked_add(lag).unwrap_or(Timestamp::MAX),
            fingerprint: fingerprint(request),
            reference,
        };
        state.add(Entry::Decision(decision.clone()))?;
        Ok(decision)
    }

    /// Marks the reference pending until it is decided.
    pub fn pend(&self, reference: &str, amount: i64) {
        self.state().pending.insert(Id::new(reference), amount);
    }

    pub fn find(&self, reference: &str) -> Lookup {
        let state = self.state();
        let id = Id::new(reference);
        let mut standing = state.standing(&id);
        let visible = |decision: &&Decision| decision.visible_at <= now();
        if let Some(first) = standing.find(visible) {
            let surplus = standing.filter(visible).cloned().collect();
            return Lookup::Decision { decision: first.clone(), surplus };
        }
        drop(standing);
        if let Some(amount) = state.pending.get(&id).copied() {
            return Lookup::Pending { amount };
        }
        if state.barred.contains_key(&id) || state.given_back(&id).next().is_some() {
            return Lookup::Voided { amount: state.amount(&id) };
        }
        match state.by_reference.get(&id).and_then(|index| state.decision(*index)).filter(visible) {
            Some(decision) if decision.verdict != Verdict::Approved => {
                Lookup::Decision { decision: decision.clone(), surplus: Vec::new() }
            }
            Some(_) | None => Lookup::Nothing,
        }
    }

    /// Voids every charge of the reference except `keep`, a provider reference. Without `keep` it bars the reference too.
    /// `amount` is the amount of a charge that was never made.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn void(
        &self,
        reference: &str,
        keep: Option<&str>,
        amount: Option<i64>,
    ) -> anyhow::Result<VoidOutcome> {
        let mut state = self.state();
        let (id, at) = (Id::new(reference), now());
        let kept = |decision: &Decision| keep == Some(provider_reference(self.seed, &decision.key).as_str());
        let (kept, rest): (Vec<Decision>, Vec<Decision>) = state.standing(&id).cloned().partition(kept);
        if keep.is_some() && kept.is_empty() {
            return Ok(VoidOutcome::UnknownKeep);
        }
        for Decision { key, reference, amount, .. } in rest {
            state.add(Entry::Voided { key, reference, amount, at })?;
        }
        // A bar without an amount takes the first amount that a void states: without it no answer names the charge.
        let unnamed = |barred: &Option<i64>| barred.is_none() && amount.is_some();
        if keep.is_none() && state.barred.get(&id).is_none_or(unnamed) {
            state.add(Entry::Barred { reference: id.clone(), amount, at })?;
        }
        let (barred, amount) = (state.barred.contains_key(&id), state.amount(&id));
        Ok(VoidOutcome::Done { voided: state.given_back(&id).cloned().collect(), barred, amount })
    }

    pub fn provider_reference(&self, decision: &Decision) -> String {
        provider_reference(self.seed, &decision.key)
    }

    /// Counts a call of this reference and returns its number: 1, 2, …
    pub fn count_call(&self, reference: &str) -> u32 {
        let mut state = self.state();
        let calls = state.calls.entry(Id::new(reference)).or_insert(0);
        *calls = calls.saturating_add(1);
        *calls
    }

    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The number of calls that are not decided yet, whose charges may still come.
    pub fn undecided(&self) -> usize {
        self.state().open.len()
    }

    /// A page of the export, charges and voids in the order in which they were made, as NDJSON, and where the
    /// next one starts; `None` at the end.
    pub fn export(&self, from: usize, lines_max: usize) -> Option<(String, usize)> {
        let state = self.state();
        let page = state.entries.get(from..).filter(|page| !page.is_empty())?;
        let page = &page[..page.len().min(lines_max)];
        let mut text = String::with_capacity(page.len() * 160);
        for entry in page {
            let (kind, key, reference, amount, at) = match entry {
                Entry::Decision(decision) if decision.verdict == Verdict::Approved => {
                    ("charge", &decision.key, &decision.reference, decision.amount, decision.at)
                }
                Entry::Voided { key, reference, amount, at } => ("void", key, reference, *amount, *at),
                Entry::Decision(_) | Entry::Barred { .. } => continue,
            };
            // Formatted by hand: every field is a number, a UUID, a fixed name or escaped by serde_json.
            let (reference, at) = (serde_json::Value::from(reference.to_string()), micros(at));
            let provider = provider_reference(self.seed, key);
            text.push_str(&format!(
                "{{\"reference\":{reference},\"amount\":{amount},\"kind\":\"{kind}\",\"at\":\"{at}\",\
                 \"provider_reference\":\"{provider}\"}}\n"
            ));
        }
        Some((text, from + page.len()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic does not corrupt the ledger: the index changes only after the file.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
