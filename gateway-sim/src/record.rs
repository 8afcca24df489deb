//! The entries of the ledger, in RAM and as lines of its file.
//!
//! * A line has a fixed form: files of earlier versions are read.
//! * Every function is pure except the clock.

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::script::roll;

/// The body of `POST /charges`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// The caller's name of the charge.
    pub reference: String,
    /// Minor units.
    pub amount: i64,
    pub client_number: String,
    pub service_id: String,
}

/// One decision, which never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub key: Id,
    pub reference: Id,
    pub amount: i64,
    pub verdict: Verdict,
    pub at: Timestamp,
    /// Inquiries do not find it before.
    pub visible_at: Timestamp,
    /// The fingerprint of the request, so that its key cannot be used for another one.
    pub fingerprint: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Approved,
    Declined { code: Box<str>, status: u16 },
}

/// One entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Decision(Decision),
    /// The charge under this key was voided.
    Voided {
        key: Id,
        reference: Id,
        amount: i64,
        at: Timestamp,
    },
    /// The reference will never be charged again.
    Barred {
        reference: Id,
        /// The amount that the void stated.
        amount: Option<i64>,
        at: Timestamp,
    },
}

/// The gateway's name of a charge. It is a function of the key, so every answer has the same, even after a loss.
pub fn provider_reference(seed: u64, key: &Id) -> String {
    format!("ch_{:016x}", roll(seed, &key.to_string(), 0))
}

/// A key or reference; UUIDs, which nearly all are, take 16 bytes instead of an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    Uuid(Uuid),
    Text(Box<str>),
}

impl Id {
    pub fn new(text: &str) -> Id {
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text => Id::Uuid(uuid),
            Ok(_) | Err(_) => Id::Text(text.into()),
        }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Id::Uuid(uuid) => uuid.fmt(f),
            Id::Text(text) => text.fmt(f),
        }
    }
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
pub struct Line<'a> {
    reference: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    amount: Option<i64>,
    kind: &'a str,
    at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(rename = "print", default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    visible_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
}

impl Line<'_> {
    pub fn of(entry: &Entry) -> Line<'static> {
        match entry {
            Entry::Decision(decision) => Line::of_decided(decision),
            Entry::Voided { key, reference, amount, at } => Line {
                amount: Some(*amount),
                key: Some(key.to_string()),
                ..Line::bare("void", reference, *at)
            },
            Entry::Barred { reference, amount, at } => {
                Line { amount: *amount, ..Line::bare("bar", reference, *at) }
            }
        }
    }

    fn bare(kind: &'static str, reference: &Id, at: Timestamp) -> Line<'static> {
        let reference = reference.to_string();
        Line {
            reference,
            kind,
            at,
            amount: None,
            key: None,
            fingerprint: None,
            visible_at: None,
            code: None,
            status: None,
        }
    }

    fn of_decided(decision: &Decision) -> Line<'static> {
        let (kind, code, status) = match &decision.verdict {
            Verdict::Approved => ("charge", None, None),
            Verdict::Declined { code, status } => ("decline", Some(code.clone()), Some(*status)),
        };
        Line {
            amount: Some(decision.amount),
            key: Some(decision.key.to_string()),
            fingerprint: Some(decision.fingerprint),
            visible_at: (decision.visible_at != decision.at).then_some(decision.visible_at),
            code,
            status,
            ..Line::bare(kind, &decision.reference, decision.at)
        }
    }

    pub fn into_entry(self) -> anyhow::Result<Entry> {
        let (reference, at) = (Id::new(&self.reference), self.at);
        let verdict = match (self.kind, self.code, self.status) {
            ("charge", None, None) => Verdict::Approved,
            ("decline", Some(code), Some(status)) => Verdict::Declined { code, status },
            ("bar", None, None) => return Ok(Entry::Barred { reference, amount: self.amount, at }),
            ("void", None, None) => {
                let key = Id::new(self.key.as_deref().context("the void has no key")?);
                let amount = self.amount.context("the void has no amount")?;
                return Ok(Entry::Voided { key, reference, amount, at });
            }
            (kind, _, _) => bail!("the line is no entry: kind {kind:?}"),
        };
        Ok(Entry::Decision(Decision {
            key: Id::new(self.key.as_deref().context("the decision has no key")?),
            reference,
            amount: self.amount.context("the decision has no amount")?,
            verdict,
            at,
            visible_at: self.visible_at.unwrap_or(at),
            fingerprint: self.fingerprint.context("the decision has no fingerprint (field print)")?,
        }))
    }
}

/// A hash that identifies a request under its key. Lengths keep neighbouring fields apart.
pub fn fingerprint(request: &Request) -> u64 {
    let mut hash = Sha256::new();
    for field in [&request.reference, &request.client_number, &request.service_id] {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field.as_bytes());
    }
    hash.update(request.amount.to_le_bytes());
    let digest = hash.finalize();
    digest[..8].iter().fold(0, |fingerprint, byte| (fingerprint << 8) | u64::from(*byte))
}

/// The clock in whole microseconds, so that a time survives being written and read.
pub fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub fn micros(at: Timestamp) -> impl std::fmt::Display {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
}
