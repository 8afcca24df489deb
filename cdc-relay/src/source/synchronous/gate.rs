//! Decides when a transaction may be emitted, and when the server is asked for its standbys: pure, no clock, no I/O.
//!
//! * A transaction passes once enough synchronous standbys have flushed its whole commit record.
//! * A position that was flushed stays flushed: the gate keeps the greatest one, so a batch shares one answer.
//! * The stream shows the end of a commit record only at the end of the transaction. Where that is not in the buffer yet, the
//!   transaction waits for the end of the WAL as an answer shows it that was asked for after the transaction had arrived: its
//!   commit record is flushed before the server decodes it.
//! * The server is asked while something waits, and at first until everything from before the session is flushed. Each pause is a quarter of the wait so far, within bounds: so asking adds
//!   at most a quarter to a wait, and a standby that is away for long costs one query a second.

use std::time::{Duration, Instant};

use crate::postgres::lsn::Lsn;
use crate::postgres::quorum::Standing;

/// The shortest pause between two questions. Transactions that arrive meanwhile share the next one.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The number of a question, from 1 on.
pub type Question = u64;

/// An answer of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    pub question: Question,
    /// The end of the server's flushed WAL, or a later one.
    pub wal_end: Lsn,
    pub standing: Standing,
}

/// A transaction that waits.
#[derive(Debug, Clone, Copy)]
struct Held {
    commit_lsn: Lsn,
    since: Instant,
    /// The first question that is asked after the transaction arrived.
    question: Question,
    /// Its commit record ends here or before, if that is known.
    bound: Option<Lsn>,
}

/// Why a transaction waits, as the last answer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No answer yet.
    NotAnswered,
    Behind(Lsn),
    NotConfigured,
    TooFew {
        needed: usize,
        connected: usize,
    },
}

impl From<Standing> for Reason {
    fn from(standing: Standing) -> Reason {
        match standing {
            Standing::Flushed(position) => Reason::Behind(position),
            Standing::NotConfigured => Reason::NotConfigured,
            Standing::TooFew { needed, connected } => Reason::TooFew { needed, connected },
        }
    }
}

#[derive(Debug)]
pub struct Gate {
    /// Enough synchronous standbys have flushed up to here.
    flushed: Lsn,
    held: Option<Held>,
    /// Everything that was ever emitted from this timeline is flushed by synchronous standbys.
    kept: bool,
    /// Everything that was emitted before this session was committed before this position.
    before_session: Option<Lsn>,
    began: Instant,
    asked: Question,
    answered: Question,
    answered_at: Option<Instant>,
    /// When the last usable answer came.
    observed_at: Option<Instant>,
    reason: Reason,
}

impl Gate {
    /// `kept`: the checkpoint says that every session before kept to the rule.
    pub fn new(kept: bool, now: Instant) -> Gate {
        Gate {
            flushed: Lsn::ZERO,
            held: None,
            kept,
            before_session: None,
            began: now,
            asked: 0,
            answered: 0,
            answered_at: None,
            observed_at: None,
            reason: Reason::NotAnswered,
        }
    }

    /// Whether a transaction that was committed at `commit_lsn` may be emitted. `end` finds the end of its commit record, if
    /// it is known by now.
    pub fn passes(&mut self, commit_lsn: Lsn, end: impl FnOnce() -> Option<Lsn>, now: Instant) -> bool {
        let bound = self.held.filter(|held| held.commit_lsn == commit_lsn).and_then(|held| held.bound);
        let is_flushed = |until: Lsn| until <= self.flushed;
        // Most answers are decided by the first comparison, which spares the search for the end.
        if commit_lsn < self.flushed && (bound.is_some_and(is_flushed) || end().is_some_and(is_flushed)) {
            self.held = None;
            return true;
        }
        if self.held.is_none_or(|held| held.commit_lsn != commit_lsn) {
            self.held = Some(Held { commit_lsn, since: now, question: self.asked + 1, bound: None });
        }
        false
    }

    /// Takes an answer.
    pub fn observe(&mut self, observation: Observation, now: Instant) {
        let Observation { question, wal_end, standing } = observation;
        self.answered(question, now);
        self.observed_at = Some(now);
        if let Some(held) = &mut self.held
            && question >= held.question
        {
            held.bound.get_or_insert(wal_end);
        }
        // No session before this one can have emitted anything behind it: this one has the slot.
        let before_session = *self.before_session.get_or_insert(wal_end);
        self.reason = standing.into();
        if let Standing::Flushed(position) = standing {
            self.flushed = self.flushed.max(position);
            self.kept |= self.flushed >= before_session;
        }
    }

    /// The question had no usable answer.
    pub fn answered(&mut self, question: Question, now: Instant) {
        self.answered = self.answered.max(question);
        self.answered_at = Some(now);
    }

    /// Returns the number of the question that is to be asked now, if one is.
    pub fn ask(&mut self, now: Instant) -> Option<Question> {
        if self.asked > self.answered || self.next_question_at()? > now {
            return None;
        }
        self.asked += 1;
        Some(self.asked)
    }

    /// When the next question is due; `None` while nothing waits, or while an answer is awaited.
    pub fn due(&self) -> Option<Instant> {
        if self.asked > self.answered { None } else { self.next_question_at() }
    }

    fn next_question_at(&self) -> Option<Instant> {
        let since = match self.held {
            Some(held) => held.since,
            None if !self.kept => self.began,
            None => return None,
        };
        let Some(answered_at) = self.answered_at else { return Some(since) };
        let waited = answered_at.saturating_duration_since(since);
        Some(since.max(answered_at + (waited / 4).clamp(PAUSE_MIN, PAUSE_MAX)))
    }

    /// Whether everything that was emitted from this timeline is flushed by synchronous standbys.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// Since when a transaction waits.
    pub fn held_since(&self) -> Option<Instant> {
        self.held.map(|held| held.since)
    }

    /// How long a transaction has waited without a usable answer of the server.
    pub fn silence(&self, now: Instant) -> Duration {
        let since = self.held.map(|held| self.observed_at.map_or(held.since, |at| at.max(held.since)));
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The commit of the transaction that waits, and why.
    pub fn held(&self) -> Option<(Lsn, Reason)> {
        self.held.map(|held| (held.commit_lsn, self.reason))
    }

    /// Enough synchronous standbys have flushed up to here.
    pub fn flushed(&self) -> Lsn {
        self.flushed
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
