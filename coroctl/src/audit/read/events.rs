//! Collects the events on Kafka, record by record in the order of each partition.
//!
//! * Some hundred bytes a payment stay in memory, so order and transitions are counted while reading.
//! * A version that was emitted before must have the same body; it counts once.
//! * Pure: a record is a value, wherever it comes from.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, bail, ensure};
use saga::contract::{
    BALANCE_TOPIC, ChargeResult, EventBody, EventType, LedgerEntry, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC,
    Payment,
};
use uuid::Uuid;

use super::chain::{ChainNumber, ChainPosition, Chains, format_lsn};
use super::rows::fingerprint;
use crate::audit::finding::Tally;
use crate::audit::statuses::{ChargeStatus, PaymentEvent, PaymentStatus};
use crate::audit::transitions::PaymentState;

/// One record of a topic.
#[derive(Clone, Debug, Default)]
pub struct Record<'a> {
    /// Without the prefix.
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub key: &'a [u8],
    pub id: Option<&'a str>,
    pub event_type: Option<&'a str>,
    pub source: Option<&'a str>,
    /// `pg_chain`; records of earlier releases have none.
    pub chain: Option<&'a str>,
    pub position: Option<&'a str>,
    pub value: &'a [u8],
}

impl Record<'_> {
    /// As `parked.parked_id` names it.
    pub fn at(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }

    /// The chain of its position. Before chains had names, a source had one.
    fn chain(&self) -> Option<&str> {
        self.chain.or_else(|| self.source?.rsplit('/').next())
    }
}

/// The place of a record in its topic: partition and offset.
pub type TopicOffset = (i32, i64);

/// The versions that were emitted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Versions {
    /// Bit n stands for version n.
    bits: u64,
    pub last: u32,
}

impl Versions {
    /// Beyond the bits, a version up to the last counts as emitted: only charges get there, by many attempts.
    pub fn has(self, version: u32) -> bool {
        if version < u64::BITS { self.bits >> version & 1 == 1 } else { version <= self.last }
    }

    pub fn add(&mut self, version: u32) {
        if version < u64::BITS {
            self.bits |= 1 << version;
        }
        self.last = self.last.max(version);
    }

    /// The first version after `after` that is missing.
    pub fn gap(self, after: u32) -> Option<u32> {
        (after + 1..self.last).find(|version| !self.has(*version))
    }
}

#[derive(Clone, Debug, Default)]
pub struct PaymentEvents {
    pub versions: Versions,
    /// A version that was re-emitted from its row, without a position: those before it may be missing.
    pub re_emitted: u32,
    /// By version.
    fingerprints: Vec<(u32, u64)>,
    pub at: TopicOffset,
    state: Option<PaymentState>,
}

#[derive(Clone, Debug, Default)]
pub struct EntryEvents {
    /// By phase.
    pub entries: [Option<(u64, TopicOffset)>; 2],
}

#[derive(Clone, Debug, Default)]
pub struct ChargeEvents {
    pub versions: Versions,
    fingerprints: Vec<(u32, u64)>,
    pub at: TopicOffset,
    definite: Option<ChargeStatus>,
    /// The user that the last version names. A resolution may name another one than the version before.
    user_id: Uuid,
}

impl PaymentEvents {
    /// The last version's.
    pub fn fingerprint(&self) -> u64 {
        fingerprint_of(&self.fingerprints, self.versions.last).unwrap_or_default()
    }
}

impl ChargeEvents {
    /// The last version's.
    pub fn fingerprint(&self) -> u64 {
        fingerprint_of(&self.fingerprints, self.versions.last).unwrap_or_default()
    }
}

fn fingerprint_of(fingerprints: &[(u32, u64)], version: u32) -> Option<u64> {
    fingerprints.iter().find(|(known, _)| *known == version).map(|(_, fingerprint)| *fingerprint)
}

/// A record that somebody has to look at, and why.
#[derive(Clone, Debug)]
pub struct FlaggedRecord {
    pub at: String,
    pub why: String,
}

#[derive(Debug, Default)]
pub struct PublishedEvents {
    pub payments: HashMap<Uuid, PaymentEvents>,
    pub ledger: HashMap<Uuid, EntryEvents>,
    pub charges: HashMap<Uuid, ChargeEvents>,
    pub foreign: Vec<FlaggedRecord>,
    pub chains: Chains,
    /// First emissions of a user come in the order of their commits.
    pub order: Tally,
    /// Each first emission is a legal transition from the one before.
    pub transitions: Tally,
    /// Charges whose definite outcome another one followed: how often, and the last of them, for people.
    pub replaced: HashMap<Uuid, (usize, String)>,
    /// Records on the topics of the saga.
    pub records: u64,
    /// Records that somebody has explained, as topic/partition/offset: they count for nothing.
    explained: BTreeSet<String>,
    /// The last commit of a user, by topic and chain. Across chains versions give the order.
    latest: HashMap<(&'static str, Uuid, ChainNumber), (u64, u32)>,
}

impl PublishedEvents {
    /// An empty collection that leaves out the records that are `explained`: topic/partition/offset, without the prefix
    /// of topics.
    pub fn except(explained: BTreeSet<String>) -> Self {
        Self { explained, ..Self::default() }
    }

    /// Forgets the events of the payments that do not count.
    pub fn retain(&mut self, counts: impl Fn(&Uuid) -> bool) {
        self.payments.retain(|id, _| counts(id));
        self.ledger.retain(|id, _| counts(id));
        self.charges.retain(|id, _| counts(id));
        self.replaced.retain(|id, _| counts(id));
    }

    /// Adds the next record of a partition.
    pub fn add(&mut self, record: &Record<'_>) {
        self.records += 1;
        self.add_to_chain(record);
        if !self.explained.is_empty() && self.explained.contains(&record.at()) {
            return;
        }
        if let Err(error) = self.read(record) {
            self.foreign.push(FlaggedRecord { at: record.at(), why: format!("{error:#}") });
        }
    }

    /// Adds only its chain position: records of other topics belong to a chain too.
    pub fn add_to_chain(&mut self, record: &Record<'_>) {
        let position = record.position.and_then(|text| ChainPosition::parse(text).ok());
        if let (Some(chain), Some(position)) = (record.chain(), position) {
            self.chains.add(chain, position);
        }
    }

    fn read(&mut self, record: &Record<'_>) -> Result<()> {
        let id = record.id.context("no ce_id")?;
        let name = record.event_type.context("no ce_type")?;
        let event_type = EventType::parse(name).with_context(|| format!("unknown type {name}"))?;
        ensure!(event_type.topic() == record.topic, "{name} belongs on {}", event_type.topic());
        let position = record.position.map(ChainPosition::parse).transpose()?;
        let event = EventRecord { raw: record, id, event_type, position };
        match event_type.topic() {
            PAYMENT_TOPIC => self.payment(&event, &serde_json::from_slice(record.value)?),
            BALANCE_TOPIC => self.entry(&event, &serde_json::from_slice(record.value)?),
            PAYMENT_RESULT_TOPIC => self.charge(&event, &serde_json::from_slice(record.value)?),
            other => bail!("{other} is no topic of the saga"),
        }
    }

    fn payment(&mut self, record: &EventRecord<'_>, body: &Payment) -> Result<()> {
        let (id, version) = (body.payment_id, body.version.unsigned_abs());
        record.matches(body)?;
        let status =
            PaymentStatus::parse(&body.status).with_context(|| format!("unknown status {}", body.status))?;
        let event =
            PaymentEvent::parse(&body.event).with_context(|| format!("unknown event {}", body.event))?;
        let fingerprint = fingerprint(body)?;
        let events = self.payments.entry(id).or_default();
        if record.position.is_none() {
            events.re_emitted = events.re_emitted.max(version);
        }
        if events.versions.has(version) {
            let known = fingerprint_of(&events.fingerprints, version);
            return record.repeats(known.is_none_or(|known| known == fingerprint));
        }
        events.fingerprints.push((version, fingerprint));
        let in_order = version > events.versions.last;
        if in_order {
            let follows = version == events.versions.last + 1;
            let before = events.state.filter(|_| follows);
            let transition = PaymentState::transition(before, version, status, event);
            let what =
                || format!("version {version} is {event:?} to {status:?}{}", PaymentState::describe(before));
            self.transitions.check(transition.legal, id, what);
            events.state = Some(transition.state);
            events.at = record.offset();
        }
        events.versions.add(version);
        self.first(record, body.user_id, id, in_order);
        Ok(())
    }

    fn entry(&mut self, record: &EventRecord<'_>, body: &LedgerEntry) -> Result<()> {
        let (id, phase) = (body.payment_id, body.phase);
        record.matches(body)?;
        let fingerprint = fingerprint(body)?;
        let index = match phase {
            1 => 0,
            2 => 1,
            other => bail!("unknown phase {other}"),
        };
        let entries = &mut self.ledger.entry(id).or_default().entries;
        if let Some((known, _)) = entries[index] {
            return record.repeats(known == fingerprint);
        }
        let in_order = phase == 1 || entries[0].is_some() || record.position.is_none();
        entries[index] = Some((fingerprint, record.offset()));
        self.first(record, body.user_id, id, in_order);
        Ok(())
    }

    fn charge(&mut self, record: &EventRecord<'_>, body: &ChargeResult) -> Result<()> {
        let (id, version) = (body.payment_id, body.version.unsigned_abs());
        record.matches(body)?;
        let status =
            ChargeStatus::parse(&body.status).with_context(|| format!("unknown status {}", body.status))?;
        let fingerprint = fingerprint(body)?;
        let events = self.charges.entry(id).or_default();
        if events.versions.has(version) {
            let known = fingerprint_of(&events.fingerprints, version);
            return record.repeats(known.is_none_or(|known| known == fingerprint));
        }
        events.fingerprints.push((version, fingerprint));
        // Versions of two users are on two partitions, which have no order.
        let is_of_another = events.versions.last > 0 && events.user_id != body.user_id;
        let in_order = version > events.versions.last;
        if in_order {
            events.user_id = body.user_id;
            self.transitions.count();
            match events.definite {
                Some(before) => {
                    let (count, what) = self.replaced.entry(id).or_default();
                    *count += 1;
                    *what = format!("its charge becomes {status:?} after {before:?}");
                }
                None => events.definite = status.is_definite().then_some(status),
            }
            events.at = record.offset();
        }
        events.versions.add(version);
        self.first(record, body.user_id, id, in_order || is_of_another);
        Ok(())
    }

    /// Checks a first emission: after the last of its user on this topic, and under the user's key.
    fn first(&mut self, record: &EventRecord<'_>, user_id: Uuid, id: Uuid, in_order: bool) {
        let raw = record.raw;
        self.order.count();
        if raw.key != user_id.to_string().as_bytes() {
            let key = String::from_utf8_lossy(raw.key);
            return self.order.violate(id, || format!("{} has the key {key}, not its user's", raw.at()));
        }
        let last = record.position.and_then(|position| {
            let found = (position.commit, position.ordinal);
            let chain = self.chains.number(raw.chain().unwrap_or_default());
            let latest = self.latest.entry((record.event_type.topic(), user_id, chain)).or_default();
            let last = std::mem::replace(latest, found.max(*latest));
            (last >= found).then_some((found.0, last.0))
        });
        match last {
            Some((commit, last)) => self.order.violate(id, || {
                let (commit, last) = (format_lsn(commit), format_lsn(last));
                format!("{} is of commit {commit} and comes after {last}", raw.at())
            }),
            None if !in_order => {
                let what = || format!("{} ({}) comes after its successor", raw.at(), record.id);
                self.order.violate(id, what);
            }
            None => {}
        }
    }
}

/// A record with the headers that every event has.
struct EventRecord<'a> {
    raw: &'a Record<'a>,
    id: &'a str,
    event_type: EventType,
    position: Option<ChainPosition>,
}

impl EventRecord<'_> {
    fn offset(&self) -> TopicOffset {
        (self.raw.partition, self.raw.offset)
    }

    /// Id and type are those of the body.
    fn matches(&self, body: &impl EventBody) -> Result<()> {
        let (id, found) = (body.event_id(), self.event_type.as_str());
        ensure!(self.id == id, "ce_id {} on the body of {id}", self.id);
        let expected =
            body.event_type().with_context(|| format!("ce_type {found} on a body that is no event"))?;
        ensure!(self.event_type == expected, "ce_type {found} on the body of {}", expected.as_str());
        Ok(())
    }

    /// A repetition has the body of the first emission.
    fn repeats(&self, same: bool) -> Result<()> {
        ensure!(same, "{} was emitted before with another body", self.id);
        Ok(())
    }
}
