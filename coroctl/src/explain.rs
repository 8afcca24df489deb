//! Explains one payment: every row and event of its life in order of time, and the step that it waits for.
//!
//! * [`life`]: the life, as text and as JSON.
//! * Rows come from the databases, events with their offsets from Kafka, the charge from the gateway. Of several shards of a service
//!   those rows count that [`owned_rows`](crate::owned_rows) says; each line names the shard of its row.
//! * A gateway that does not answer is reported, and the rest is printed.
//! * The diagnosis follows from the last committed row of the saga.

mod life;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::client::Client;
use crate::databases::{self, Databases};
use crate::find;
use crate::parked::OPEN_BY_PAYMENT;
use crate::progress::{self, Facts};
use crate::snapshots::{LocatedRow, SagaSnapshots};
use crate::stack::Stack;
use crate::topics::{self, Event, SAGA_TOPICS};
pub use life::Life;
use life::{Gateway, Moment, Place, Terms};

/// The life of `payment_id`.
///
/// # Errors
/// When there is no such payment, or a database or Kafka does not answer.
pub async fn life(stack: &Stack, payment_id: Uuid) -> Result<Life> {
    let databases = Databases::connect(stack).await?;
    let snapshots = SagaSnapshots::take(&databases).await?;
    let rows = rows(&snapshots, payment_id).await?;
    let payment = rows.payment.as_ref().with_context(|| {
        format!(
            "there is no payment {payment_id}: the payments database has no such row{}",
            snapshots.but_left_out()
        )
    })?;
    let payment = terms(&payment.row);
    let events = events(stack, payment_id, payment.initiated_at).await?;
    let gateway = match Client::new(stack)?.gateway_charge(payment_id).await {
        Ok(Some(charge)) => Gateway::Charge(charge),
        Ok(None) => Gateway::NoCharge,
        Err(error) => Gateway::NoAnswer(format!("{error:#}")),
    };
    let mut moments = rows.moments();
    moments.extend(events.iter().map(moment));
    moments.sort_by_key(|moment| moment.at);
    Ok(Life {
        payment,
        moments,
        gateway,
        difference: rows.difference(),
        diagnosis: diagnosis(&rows, &events),
        left_out: snapshots.left_out(),
    })
}

/// The rows of one payment in the databases.
struct PaymentRows<'a> {
    payment: Option<LocatedRow<'a>>,
    ledger: Vec<LocatedRow<'a>>,
    charge: Option<LocatedRow<'a>>,
    attempts: Vec<LocatedRow<'a>>,
    /// Proposals of operators, with their confirmations.
    resolutions: Vec<LocatedRow<'a>>,
    /// Messages that nobody has dealt with, each with its database.
    parked: Vec<(&'static str, LocatedRow<'a>)>,
}

async fn rows<'a>(snapshots: &'a SagaSnapshots<'_>, payment_id: Uuid) -> Result<PaymentRows<'a>> {
    let SagaSnapshots { payments, balance, processor } = snapshots;
    // The id says when the payment was accepted, and the index of that time leads to its blocks.
    let (begin, end) = find::accepted_between(payment_id)?;
    let payment =
        "select * from {payments} p where payment_id = $1 and initiated_at >= $2 and initiated_at < $3";
    let payment = payments.query(payment, &[&payment_id, &begin, &end], "payments").await?;
    let payment = at_most_one(payment, "payments", payment_id)?;
    let charge = "select * from {charges} c where payment_id = $1";
    let charge =
        at_most_one(processor.query(charge, &[&payment_id], "charges").await?, "charges", payment_id)?;
    // The charge may name another user, who may have entries under the same id.
    let users: Vec<Uuid> = payment.iter().chain(&charge).map(|located| located.row.get("user_id")).collect();
    let ledger = "select * from {ledger} l where user_id = any($1) and payment_id = $2 order by phase";
    let mut ledger = balance.query(ledger, &[&users, &payment_id], "ledger").await?;
    ledger.sort_by_key(|located| located.row.get::<_, i16>("phase"));
    let attempts = "select * from {charge_attempts} a where payment_id = $1 order by attempt, seq";
    let attempts = processor.query(attempts, &[&payment_id], "charge_attempts").await?;
    let resolutions = processor.query(RESOLUTIONS, &[&payment_id], "resolutions").await?;
    let mut parked = Vec::new();
    for of in snapshots.services() {
        let ids = vec![payment_id.to_string()];
        let found = of.query(OPEN_BY_PAYMENT, &[&ids], "parked").await?;
        parked.extend(found.into_iter().map(|located| (of.service, located)));
    }
    Ok(PaymentRows { payment, ledger, charge, attempts, resolutions, parked })
}

fn at_most_one<'a>(
    mut found: Vec<LocatedRow<'a>>,
    table: &str,
    payment_id: Uuid,
) -> Result<Option<LocatedRow<'a>>> {
    ensure!(found.len() < 2, "{table} has two rows of {payment_id}: run `coroctl audit`");
    Ok(found.pop())
}

const RESOLUTIONS: &str = "
    select r.evidence, r.operator, r.reason, r.proposed_at, c.operator as confirmed_by, c.reason as confirmed_for,
           c.confirmed_at
      from {resolutions} r left join resolution_confirmations c using (resolution_id)
     where r.payment_id = $1 order by r.proposed_at";

impl PaymentRows<'_> {
    fn moments(&self) -> Vec<Moment> {
        let mut moments = Vec::new();
        if let Some(LocatedRow { shard, row: payment }) = &self.payment {
            let table = databases::name("payments", *shard);
            let states = [
                "initiated",
                "authorized",
                "completed",
                "rejected",
                "failed",
                "cancelled",
                "cancel_requested",
            ];
            for state in states {
                if let Some(at) = payment.get::<_, Option<Timestamp>>(format!("{state}_at").as_str()) {
                    moments.push(row_moment(at, &table, state, payment.get("reason")));
                }
            }
        }
        for LocatedRow { shard, row: entry } in &self.ledger {
            let table = databases::name("ledger", *shard);
            moments.push(row_moment(entry.get("created_at"), &table, entry.get("kind"), entry.get("reason")));
        }
        if let Some(LocatedRow { shard, row: charge }) = &self.charge {
            let table = databases::name("charges", *shard);
            moments.push(row_moment(charge.get("created_at"), &table, "calling", None));
            if let Some(at) = charge.get::<_, Option<Timestamp>>("decided_at") {
                let detail: Option<String> =
                    charge.get::<_, Option<String>>("reason").or(charge.get("provider_reference"));
                moments.push(row_moment(at, &table, charge.get("status"), detail));
            }
        }
        for LocatedRow { shard, row: attempt } in &self.attempts {
            let table = databases::name("charge_attempts", *shard);
            let step =
                format!("{} {}", attempt.get::<_, String>("kind"), attempt.get::<_, String>("outcome"));
            moments.push(row_moment(attempt.get("at"), &table, &step, attempt.get("detail")));
        }
        for LocatedRow { shard, row } in &self.resolutions {
            let table = databases::name("resolutions", *shard);
            let (evidence, by): (String, String) = (row.get("evidence"), row.get("operator"));
            let detail = format!("{evidence}, by {by}: {}", row.get::<_, String>("reason"));
            moments.push(row_moment(row.get("proposed_at"), &table, "proposed", Some(detail)));
            if let Some(at) = row.get("confirmed_at") {
                let (by, reason): (String, String) = (row.get("confirmed_by"), row.get("confirmed_for"));
                let detail = format!("{evidence}, by {by}: {reason}");
                moments.push(row_moment(at, &table, "confirmed", Some(detail)));
            }
        }
        for (service, LocatedRow { shard, row }) in &self.parked {
            let table = databases::name(&format!("{service}.parked"), *shard);
            moments.push(row_moment(row.get("parked_at"), &table, "parked", row.get("reason")));
        }
        moments
    }
}

impl PaymentRows<'_> {
    /// A sentence about rows whose user, amount or service is not the payment's.
    fn difference(&self) -> Option<String> {
        let terms = |row: &Row| -> (Uuid, i64, String) {
            let service: Option<String> = row.get("service_id");
            (row.get("user_id"), row.get("amount"), service.unwrap_or_default())
        };
        let payment = self.payment.as_ref().map(|located| terms(&located.row))?;
        let entries =
            self.ledger.iter().map(|LocatedRow { row, .. }| (row.get::<_, String>("kind"), terms(row)));
        let charge = self.charge.iter().map(|located| ("charge".to_owned(), terms(&located.row)));
        let others = entries.chain(charge).filter(|(_, terms)| *terms != payment);
        let describe = |(what, (user, amount, service)): (String, _)| {
            format!("the {what} has user {user}, amount {amount}, service {service}")
        };
        let others: Vec<String> = others.map(describe).collect();
        (!others.is_empty()).then(|| format!("The databases disagree: {}.", others.join("; ")))
    }
}

fn row_moment(at: Timestamp, table: &str, step: &str, detail: Option<String>) -> Moment {
    let detail = detail.unwrap_or_default();
    Moment { at, place: Place::Row(table.to_owned()), step: step.to_owned(), detail }
}

async fn events(stack: &Stack, payment_id: Uuid, since: Timestamp) -> Result<Vec<Event>> {
    let (brokers, subject) = (stack.kafka()?, payment_id.to_string());
    let read = tokio::task::spawn_blocking(move || topics::about(&brokers, &SAGA_TOPICS, since, &subject));
    read.await?.context("cannot read its events from Kafka")
}

/// An event has the time of its commit; its detail is its place on Kafka.
fn moment(event: &Event) -> Moment {
    Moment {
        at: event.header("ce_time").parse().unwrap_or(Timestamp::UNIX_EPOCH),
        place: Place::Event(event.topic.clone()),
        step: event.event_type().to_owned(),
        detail: format!("partition {} offset {}  {}", event.partition, event.offset, event.header("ce_id")),
    }
}

fn terms(payment: &Row) -> Terms {
    Terms {
        payment_id: payment.get("payment_id"),
        user_id: payment.get("user_id"),
        service_id: payment.get("service_id"),
        client_number: payment.get("client_number"),
        amount: payment.get("amount"),
        status: payment.get("status"),
        version: payment.get("version"),
        initiated_at: payment.get("initiated_at"),
        traceparent: payment.get("traceparent"),
    }
}

/// The step that the payment waits for, by the last committed row of its saga.
fn diagnosis(rows: &PaymentRows<'_>, events: &[Event]) -> String {
    if let Some((service, LocatedRow { shard, row })) = rows.parked.first() {
        let database = databases::name(service, *shard);
        let (parked_id, reason): (String, String) = (row.get("parked_id"), row.get("reason"));
        return format!(
            "It is stuck: a message about it is parked in the {database} database as {parked_id} ({reason}). Retry or \
             dismiss it: coroctl parked."
        );
    }
    let status: String = rows.payment.as_ref().map(|located| located.row.get("status")).unwrap_or_default();
    let facts = Facts {
        status: &status,
        last_entry: rows.ledger.last().map(|located| located.row.get("kind")),
        charge: rows.charge.as_ref().map(|located| located.row.get("status")),
        charge_agrees: rows.difference().is_none(),
        parked_in: None,
    };
    let emitted = |name: &str| Some(events.iter().any(|event| event.event_type() == name));
    match progress::wait(&facts, &emitted) {
        None => format!("It has ended: {status}."),
        Some(wait) => format!("It waits for {}.", wait.step),
    }
}
