//! What Kafka tells, gathered record by record in the order of each partition: some hundred bytes a payment.
//! Pure: a record is a value, wherever it comes from.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, bail, ensure};
use saga::contract::{
    BALANCE_TOPIC, ChargeResult, EventBody, EventType, LedgerEntry, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC,
    Payment,
};
use uuid::Uuid;

use super::chain::{Chains, Position, print_lsn};
use super::edges::Path;
use super::finding::Tally;
use super::rows::print;
use super::words::{Charged, Event, Status};

/// One record as it lies on a topic.
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
    pub position: Option<&'a str>,
    pub value: &'a [u8],
}

impl Record<'_> {
    /// As `parked.parked_id` names it.
    pub fn at(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// Where a version was told: partition and offset.
pub type Place = (i32, i64);

/// Small numbers, each told or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Versions {
    /// Bit n stands for version n.
    bits: u64,
    pub last: u32,
}

impl Versions {
    /// Beyond what the bits hold, a version up to the last counts as told: only charges get there, by many attempts.
    pub fn has(self, version: u32) -> bool {
        if version < u64::BITS { self.bits >> version & 1 == 1 } else { version <= self.last }
    }

    pub fn add(&mut self, version: u32) {
        if version < u64::BITS {
            self.bits |= 1 << version;
        }
        self.last = self.last.max(version);
    }

    /// The first version that was passed over.
    pub fn gap(self, after: u32) -> Option<u32> {
        (after + 1..self.last).find(|version| !self.has(*version))
    }
}

#[derive(Clone, Debug, Default)]
pub struct PaymentTold {
    pub versions: Versions,
    /// Told again from its row, without a position: the versions before it need not be there.
    pub retold: u32,
    /// Of each version that was told.
    prints: Vec<(u32, u64)>,
    pub at: Place,
    path: Option<Path>,
}

#[derive(Clone, Debug, Default)]
pub struct EntriesTold {
    /// By phase.
    pub entries: [Option<(u64, Place)>; 2],
}

#[derive(Clone, Debug, Default)]
pub struct ChargeTold {
    pub versions: Versions,
    prints: Vec<(u32, u64)>,
    pub at: Place,
    definite: Option<Charged>,
}

impl PaymentTold {
    /// Of the last version.
    pub fn print(&self) -> u64 {
        print_of(&self.prints, self.versions.last).unwrap_or_default()
    }
}

impl ChargeTold {
    /// Of the last version.
    pub fn print(&self) -> u64 {
        print_of(&self.prints, self.versions.last).unwrap_or_default()
    }
}

fn print_of(prints: &[(u32, u64)], version: u32) -> Option<u64> {
    prints.iter().find(|(told, _)| *told == version).map(|(_, print)| *print)
}

/// A record that is no telling of ours.
#[derive(Clone, Debug)]
pub struct Foreign {
    pub at: String,
    pub why: String,
}

#[derive(Debug, Default)]
pub struct Told {
    pub payments: HashMap<Uuid, PaymentTold>,
    pub ledger: HashMap<Uuid, EntriesTold>,
    pub charges: HashMap<Uuid, ChargeTold>,
    pub foreign: Vec<Foreign>,
    pub chains: Chains,
    /// First tellings of a user come in the order of their commits.
    pub order: Tally,
    /// Each first telling is a legal step from the one before.
    pub steps: Tally,
    /// Records on the topics of the saga.
    pub records: u64,
    /// Records that somebody has looked into, as topic/partition/offset: they say nothing.
    explained: BTreeSet<String>,
    /// The last commit told of a user, by topic.
    latest: HashMap<(&'static str, Uuid), (u64, u32)>,
}

impl Told {
    /// What Kafka tells beside the records that are `explained`: topic/partition/offset, without the prefix of topics.
    pub fn beside(explained: BTreeSet<String>) -> Self {
        Self { explained, ..Self::default() }
    }

    /// Takes the next record of a partition.
    pub fn hear(&mut self, record: &Record<'_>) {
        self.records += 1;
        self.link(record);
        if !self.explained.is_empty() && self.explained.contains(&record.at()) {
            return;
        }
        if let Err(error) = self.read(record) {
            self.foreign.push(Foreign { at: record.at(), why: format!("{error:#}") });
        }
    }

    /// Takes only its place in the chain of its source: records of other topics are links too.
    pub fn link(&mut self, record: &Record<'_>) {
        let position = record.position.and_then(|text| Position::parse(text).ok());
        if let (Some(source), Some(position)) = (record.source, position) {
            let name = source.rsplit('/').next().unwrap_or(source);
            self.chains.add(name, position);
        }
    }

    fn read(&mut self, record: &Record<'_>) -> Result<()> {
        let id = record.id.context("no ce_id")?;
        let name = record.event_type.context("no ce_type")?;
        let event_type = EventType::parse(name).with_context(|| format!("unknown type {name}"))?;
        ensure!(event_type.topic() == record.topic, "{name} belongs on {}", event_type.topic());
        let position = record.position.map(Position::parse).transpose()?;
        let telling = Telling { record, id, event_type, position };
        match event_type.topic() {
            PAYMENT_TOPIC => self.payment(&telling, &serde_json::from_slice(record.value)?),
            BALANCE_TOPIC => self.entry(&telling, &serde_json::from_slice(record.value)?),
            PAYMENT_RESULT_TOPIC => self.charge(&telling, &serde_json::from_slice(record.value)?),
            other => bail!("{other} is no topic of the saga"),
        }
    }

    fn payment(&mut self, telling: &Telling<'_>, body: &Payment) -> Result<()> {
        let (id, version) = (body.payment_id, body.version.unsigned_abs());
        telling.is_of(body)?;
        let status = Status::parse(&body.status).with_context(|| format!("status {}", body.status))?;
        let event = Event::parse(&body.event).with_context(|| format!("event {}", body.event))?;
        let print = print(body)?;
        let told = self.payments.entry(id).or_default();
        if telling.position.is_none() {
            told.retold = told.retold.max(version);
        }
        if told.versions.has(version) {
            return telling.is_repeated(print_of(&told.prints, version).is_some_and(|known| known != print));
        }
        told.prints.push((version, print));
        let in_order = version > told.versions.last;
        if in_order {
            let follows = version == told.versions.last + 1;
            let before = told.path.filter(|_| follows);
            let step = Path::step(before, version, status, event);
            let what = || format!("version {version} is {event:?} to {status:?}{}", Path::after(before));
            self.steps.look(step.legal, id, what);
            told.path = Some(step.path);
            told.at = telling.place();
        }
        told.versions.add(version);
        self.first(telling, body.user_id, id, in_order);
        Ok(())
    }

    fn entry(&mut self, telling: &Telling<'_>, body: &LedgerEntry) -> Result<()> {
        let (id, phase) = (body.payment_id, body.phase);
        telling.is_of(body)?;
        let print = print(body)?;
        let index = match phase {
            1 => 0,
            2 => 1,
            other => bail!("phase {other}"),
        };
        let entries = &mut self.ledger.entry(id).or_default().entries;
        if let Some((known, _)) = entries[index] {
            return telling.is_repeated(known != print);
        }
        let in_order = phase == 1 || entries[0].is_some() || telling.position.is_none();
        entries[index] = Some((print, telling.place()));
        self.first(telling, body.user_id, id, in_order);
        Ok(())
    }

    fn charge(&mut self, telling: &Telling<'_>, body: &ChargeResult) -> Result<()> {
        let (id, version) = (body.payment_id, body.version.unsigned_abs());
        telling.is_of(body)?;
        let status = Charged::parse(&body.status).with_context(|| format!("status {}", body.status))?;
        let print = print(body)?;
        let told = self.charges.entry(id).or_default();
        if told.versions.has(version) {
            return telling.is_repeated(print_of(&told.prints, version).is_some_and(|known| known != print));
        }
        told.prints.push((version, print));
        let in_order = version > told.versions.last;
        if in_order {
            let definite = told.definite;
            let what = || format!("its charge is told {status:?} after {:?}", definite.unwrap_or(status));
            self.steps.look(definite.is_none(), id, what);
            told.definite = definite.or(status.is_definite().then_some(status));
            told.at = telling.place();
        }
        told.versions.add(version);
        self.first(telling, body.user_id, id, in_order);
        Ok(())
    }

    /// A first telling: after the last of its user on this topic, and under the user's key.
    fn first(&mut self, telling: &Telling<'_>, user_id: Uuid, id: Uuid, in_order: bool) {
        let record = telling.record;
        self.order.saw();
        if record.key != user_id.to_string().as_bytes() {
            let key = String::from_utf8_lossy(record.key);
            return self.order.offends(id, || format!("{} has the key {key}, not its user's", record.at()));
        }
        let last = telling.position.and_then(|position| {
            let found = (position.commit, position.ordinal);
            let latest = self.latest.entry((telling.event_type.topic(), user_id)).or_default();
            let last = std::mem::replace(latest, found.max(*latest));
            (last >= found).then_some((found.0, last.0))
        });
        match last {
            Some((commit, last)) => self.order.offends(id, || {
                let (commit, last) = (print_lsn(commit), print_lsn(last));
                format!("{} tells commit {commit} after {last}", record.at())
            }),
            None if !in_order => {
                let what = || format!("{} ({}) comes after what followed it", record.at(), telling.id);
                self.order.offends(id, what);
            }
            None => {}
        }
    }
}

/// A record with what every telling has.
struct Telling<'a> {
    record: &'a Record<'a>,
    id: &'a str,
    event_type: EventType,
    position: Option<Position>,
}

impl Telling<'_> {
    fn place(&self) -> Place {
        (self.record.partition, self.record.offset)
    }

    /// Id and type are those of the body.
    fn is_of(&self, body: &impl EventBody) -> Result<()> {
        let (id, found) = (body.event_id(), self.event_type.as_str());
        ensure!(self.id == id, "ce_id {} on the body of {id}", self.id);
        let due = body.event_type().with_context(|| format!("ce_type {found} on a body of no event"))?;
        ensure!(self.event_type == due, "ce_type {found} on the body of {}", due.as_str());
        Ok(())
    }

    fn is_repeated(&self, differs: bool) -> Result<()> {
        ensure!(!differs, "{} was told before with another body", self.id);
        Ok(())
    }
}
