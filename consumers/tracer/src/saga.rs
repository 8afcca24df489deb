//! Pure decisions: which payments are traced, and which spans a payment has.
//!
//! * An event says when its transaction began, by a time of its row, and when it was committed. From the commit of its cause
//!   to that beginning the cause was under way: in the relay, on Kafka or RabbitMQ, and before the consumer.
//! * The ids of spans follow from the payment and its events, so a trace that is sent twice is one trace.
//! * The clocks of two databases may differ: a span that would end before it begins has no length.

use std::str::FromStr;

use ::saga::contract::EventType;
use ::saga::trace::is_valid;
use jiff::Timestamp;
use uuid::Uuid;

const PAYMENTS: &str = "payments-svc";
const BALANCE: &str = "balance-svc";
const PROCESSOR: &str = "processor-svc";
const RELAY: &str = "cdc-relay";
const WORK_QUEUE: &str = "PaymentInitiated";

/// The trace of a payment, and the span that its client was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: u128,
    pub parent: u64,
}

impl Context {
    /// The context in a `traceparent` that says "sampled" (W3C Trace Context, section 3.2).
    pub fn sampled(traceparent: &str) -> Option<Self> {
        if !is_valid(traceparent) {
            return None;
        }
        let flags = u8::from_str_radix(&traceparent[53..55], 16).ok()?;
        let trace = u128::from_str_radix(&traceparent[3..35], 16).ok()?;
        let parent = u64::from_str_radix(&traceparent[36..52], 16).ok()?;
        (flags & 1 == 1).then_some(Self { trace, parent })
    }
}

/// Which traces are taken: a share of them, by their id, so that all who sample by id take the same ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler(f64);

impl Sampler {
    pub const ALL: Self = Self(1.0);

    /// By the lower 56 bits of the id, which W3C Trace Context Level 2 wants to be random.
    pub fn takes(self, context: Context) -> bool {
        const RANGE: u128 = 1 << 56;
        // A share is from 0 to 1, and 2^56 times that is a number of 56 bits.
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let taken = (self.0 * RANGE as f64) as u128;
        context.trace % RANGE < taken
    }
}

impl std::fmt::Display for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Sampler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
        share.map(Self).ok_or_else(|| "a share is a number from 0 to 1".to_owned())
    }
}

/// What an event says of its step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub event: EventType,
    /// The id of the event.
    pub id: String,
    /// When the transaction of the step began.
    pub began_at: Timestamp,
    /// Of a charge: when the intent to call was written.
    pub called_at: Option<Timestamp>,
    pub committed_at: Timestamp,
    pub reason: Option<String>,
}

/// Kinds of spans, as OTLP numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Server = 2,
    Client = 3,
    Producer = 4,
    Consumer = 5,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub service: &'static str,
    pub name: String,
    pub kind: Kind,
    pub id: u64,
    pub parent: u64,
    pub start: Timestamp,
    pub end: Timestamp,
    pub attributes: Vec<(&'static str, String)>,
}

/// Whether the cause of each of them is among them.
pub fn is_whole(facts: &[Fact]) -> bool {
    facts.iter().all(|fact| causes(fact.event).is_empty() || cause(fact.event, facts).is_some())
}

/// The events of which one has brought about this one; none for what a client asked for.
fn causes(event: EventType) -> &'static [EventType] {
    use EventType as E;
    match event {
        E::PaymentInitiated | E::PaymentCancelRecorded | E::PaymentCancelRequested => &[],
        E::BalanceHeld | E::BalanceRejected => &[E::PaymentInitiated],
        E::PaymentAuthorized => &[E::BalanceHeld],
        E::PaymentRejected => &[E::BalanceRejected],
        E::ResultSucceeded | E::ResultDeclined | E::ResultUnknown | E::ResultExpired => {
            &[E::PaymentAuthorized]
        }
        E::ResultCancelled => &[E::PaymentCancelRequested, E::PaymentAuthorized],
        E::PaymentOutcomeUnknown => &[E::ResultUnknown],
        E::BalanceCaptured => &[E::ResultSucceeded],
        E::BalanceReleased => &[E::ResultDeclined, E::ResultExpired, E::ResultCancelled],
        E::PaymentCompleted => &[E::BalanceCaptured],
        E::PaymentFailed | E::PaymentCancelled => &[E::BalanceReleased],
        // These are not of a payment.
        E::BalanceDeposited | E::ServiceAdded | E::ServiceChanged => &[],
    }
}

/// The first of its possible causes that is there.
fn cause(event: EventType, facts: &[Fact]) -> Option<&Fact> {
    causes(event).iter().find_map(|cause| facts.iter().find(|fact| fact.event == *cause))
}

/// Who commits this event.
fn service(event: EventType) -> &'static str {
    match event.topic() {
        ::saga::contract::BALANCE_TOPIC => BALANCE,
        ::saga::contract::PAYMENT_RESULT_TOPIC => PROCESSOR,
        _ => PAYMENTS,
    }
}

/// Where the cause of this event was read: the name of the messaging system, and of the topic or queue.
fn carrier(event: EventType, cause: EventType) -> (&'static str, &'static str) {
    match (service(event), cause) {
        (PROCESSOR, EventType::PaymentAuthorized) => ("rabbitmq", WORK_QUEUE),
        _ => ("kafka", cause.topic()),
    }
}

/// The spans of a payment: one over all, and below it the steps, the ways between them, and the call of the gateway.
pub fn spans(payment_id: Uuid, context: Context, facts: &[Fact]) -> Vec<Span> {
    let mut facts: Vec<Fact> = facts.to_vec();
    facts.sort_by(|one, other| (one.committed_at, &one.id).cmp(&(other.committed_at, &other.id)));
    let (Some(first), Some(last)) = (facts.first(), facts.last()) else { return Vec::new() };
    let payment = Payment { payment_id, root: span_id(payment_id, "payment"), facts: &facts };
    let root = Span {
        service: PAYMENTS,
        name: "payment".to_owned(),
        kind: Kind::Server,
        id: payment.root,
        parent: context.parent,
        start: first.began_at.min(first.committed_at),
        end: last.committed_at,
        attributes: payment.outcome(),
    };
    let call = payment.call();
    let steps = facts.iter().flat_map(|fact| [payment.way(fact), Some(payment.step(fact))]);
    [Some(root), call].into_iter().chain(steps).flatten().collect()
}

struct Payment<'a> {
    payment_id: Uuid,
    root: u64,
    /// In order of their commits.
    facts: &'a [Fact],
}

impl Payment<'_> {
    fn outcome(&self) -> Vec<(&'static str, String)> {
        let end = self.facts.iter().rev().find(|fact| service(fact.event) == PAYMENTS);
        let name = end.map_or("unknown", |fact| fact.event.as_str());
        vec![("payment_id", self.payment_id.to_string()), ("payment.event", name.to_owned())]
    }

    /// The results of the charge, of which the first names the intent and the last the outcome.
    fn results(&self) -> impl DoubleEndedIterator<Item = &Fact> {
        self.facts.iter().filter(|fact| service(fact.event) == PROCESSOR)
    }

    /// From the intent to the outcome, inquiries included; none if there was no call.
    fn call(&self) -> Option<Span> {
        use EventType::{ResultCancelled, ResultExpired};
        let last = self.results().next_back()?;
        if matches!(last.event, ResultCancelled | ResultExpired) {
            return None;
        }
        let called_at = last.called_at?;
        let span = self.span(PROCESSOR, "charge at the gateway", Kind::Client, [called_at, last.began_at]);
        Some(Span { attributes: vec![("peer.service", "gateway".to_owned())], ..span })
    }

    /// The way of a fact's cause to whoever wrote the fact.
    fn way(&self, fact: &Fact) -> Option<Span> {
        let cause = cause(fact.event, self.facts)?;
        // Further results of one charge come from inquiries, and not from the message.
        if service(fact.event) == PROCESSOR && self.results().next() != Some(fact) {
            return None;
        }
        let (system, destination) = carrier(fact.event, cause.event);
        let end = fact.called_at.unwrap_or(fact.began_at);
        let name = format!("{} to {}", cause.event.as_str(), service(fact.event));
        let attributes = vec![
            ("messaging.system", system.to_owned()),
            ("messaging.destination.name", destination.to_owned()),
            ("messaging.message.id", cause.id.clone()),
        ];
        let span = self.span(RELAY, &name, Kind::Producer, [cause.committed_at, end]);
        Some(Span { attributes, ..span })
    }

    /// The transaction of a fact.
    fn step(&self, fact: &Fact) -> Span {
        let mut attributes = vec![("event_id", fact.id.clone())];
        attributes.extend(fact.reason.clone().map(|reason| ("payment.reason", reason)));
        let moments = [fact.began_at, fact.committed_at];
        let span = self.span(service(fact.event), fact.event.as_str(), Kind::Consumer, moments);
        // Events of one type have one name, and a span each.
        Span { id: span_id(self.payment_id, &fact.id), attributes, ..span }
    }

    fn span(&self, service: &'static str, name: &str, kind: Kind, [start, end]: [Timestamp; 2]) -> Span {
        Span {
            service,
            name: name.to_owned(),
            kind,
            id: span_id(self.payment_id, name),
            parent: self.root,
            start,
            end: end.max(start),
            attributes: Vec::new(),
        }
    }
}

/// The id of a span of this payment; never 0, which means none.
fn span_id(payment_id: Uuid, name: &str) -> u64 {
    Uuid::new_v5(&payment_id, name.as_bytes()).as_u64_pair().1
}

#[cfg(test)]
#[path = "saga_tests.rs"]
mod tests;
