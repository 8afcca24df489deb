//! The events that Kafka would hold if the relay had emitted the rows of the fixture.

use std::collections::BTreeSet;

use coroctl::audit::read::chain::format_lsn;
use coroctl::audit::read::events::{PublishedEvents, Record};
use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Transaction};
use uuid::Uuid;

use crate::fixture::PATHS;

/// One event; its topic implies its database.
#[derive(Clone, Debug)]
pub struct EmittedEvent {
    pub topic: &'static str,
    pub key: String,
    /// Empty: the header is missing.
    pub id: String,
    pub event_type: String,
    pub position: Option<String>,
    pub body: Value,
}

/// Events in the order in which they were emitted, each topic with one partition.
#[derive(Clone, Debug, Default)]
pub struct EmittedEvents(pub Vec<EmittedEvent>);

fn source(topic: &str) -> &'static str {
    match topic {
        PAYMENT_TOPIC => "/coro/payments",
        BALANCE_TOPIC => "/coro/balance",
        _ => "/coro/processor",
    }
}

impl EmittedEvents {
    /// The present rows, with the versions that led there.
    pub async fn of(transactions: &[Transaction<'_>; 3]) -> Self {
        let [payments, balance, processor] = transactions;
        let mut events = Self::default();
        for payment in rows(payments, "payments", "payment_id, version").await {
            events.payment(&payment);
        }
        for entry in rows(balance, "ledger", "created_at, payment_id, phase").await {
            events.entry(&entry);
        }
        for charge in rows(processor, "charges", "payment_id").await {
            let emitted = ["succeeded", "declined", "unknown", "expired", "cancelled"];
            if emitted.iter().any(|status| charge["status"] == *status) {
                events.charge(&charge);
            }
        }
        events.link();
        events
    }

    fn payment(&mut self, row: &Value) {
        let id: Uuid = parsed(&row["payment_id"]);
        let path = PATHS.iter().find(|(known, _)| *known == id).map_or(&["initiated"][..], |(_, path)| path);
        let last = usize::try_from(row["version"].as_u64().unwrap()).unwrap();
        for (index, event) in path[..path.len().min(last) - 1].iter().enumerate() {
            let status = match *event {
                "cancel_recorded" => "initiated",
                "cancel_requested" | "outcome_unknown" => "authorized",
                other => other,
            };
            let mut earlier = row.clone();
            (earlier["version"], earlier["event"], earlier["status"]) =
                (json!(index + 1), json!(event), json!(status));
            self.emit_payment(earlier);
        }
        self.emit_payment(row.clone());
    }

    pub fn emit_payment(&mut self, body: Value) {
        let id = format!("payments/payments/{}/{}", text(&body["payment_id"]), body["version"]);
        let event_type = format!("payment.{}.v1", text(&body["event"]));
        self.emit(PAYMENT_TOPIC, id, event_type, body);
    }

    pub fn entry(&mut self, row: &Value) {
        let word = match text(&row["kind"]) {
            "hold" => "held",
            "rejection" => "rejected",
            "deposit" => "deposited",
            "capture" => "captured",
            _ => "released",
        };
        let id = format!("balance/ledger/{}/{}", text(&row["payment_id"]), row["phase"]);
        self.emit(BALANCE_TOPIC, id, format!("balance.{word}.v1"), row.clone());
    }

    fn charge(&mut self, row: &Value) {
        let id = format!("processor/charges/{}/{}", text(&row["payment_id"]), row["version"]);
        let event_type = format!("payment.result.{}.v1", text(&row["status"]));
        self.emit(PAYMENT_RESULT_TOPIC, id, event_type, row.clone());
    }

    fn emit(&mut self, topic: &'static str, id: String, event_type: String, body: Value) {
        let key = text(&body["user_id"]).to_owned();
        self.0.push(EmittedEvent { topic, key, id, event_type, position: None, body });
    }

    /// Adds a record that is no event.
    pub fn poison(&mut self) {
        let (id, event_type) = (String::new(), String::new());
        let (key, body) = ("?".to_owned(), json!("poison"));
        self.0.push(EmittedEvent { topic: PAYMENT_TOPIC, key, id, event_type, position: None, body });
    }

    /// Gives each event a commit of its own, in their order.
    pub fn link(&mut self) {
        for topic in [PAYMENT_TOPIC, BALANCE_TOPIC, PAYMENT_RESULT_TOPIC] {
            let of_topic = self.0.iter_mut().filter(|event| event.topic == topic);
            for (event, commit) in of_topic.zip((16_u64..).step_by(16)) {
                let before = if commit == 16 { 0 } else { commit - 16 };
                event.position = Some(format!("{};0;{}", format_lsn(commit), format_lsn(before)));
            }
        }
    }

    pub fn index(&self, id: &str) -> usize {
        self.0.iter().position(|event| event.id == id).unwrap_or_else(|| panic!("{id} is not emitted"))
    }

    pub fn get(&mut self, id: &str) -> &mut EmittedEvent {
        let index = self.index(id);
        &mut self.0[index]
    }

    /// Removes an event, as if its row had never been committed.
    pub fn remove(&mut self, id: &str) {
        self.0.remove(self.index(id));
        self.link();
    }

    pub fn published(&self, explained: BTreeSet<String>) -> PublishedEvents {
        let mut published = PublishedEvents::except(explained);
        for (index, event) in self.0.iter().enumerate() {
            let offset = self.0[..index].iter().filter(|before| before.topic == event.topic).count();
            let given = |text: &'_ str| -> Option<String> { (!text.is_empty()).then(|| text.to_owned()) };
            let (id, event_type) = (given(&event.id), given(&event.event_type));
            published.add(&Record {
                topic: event.topic,
                partition: 0,
                offset: i64::try_from(offset).unwrap(),
                key: event.key.as_bytes(),
                id: id.as_deref(),
                event_type: event_type.as_deref(),
                source: Some(source(event.topic)),
                chain: None,
                position: event.position.as_deref(),
                value: &serde_json::to_vec(&event.body).unwrap(),
            });
        }
        published
    }
}

/// The columns of the ledger that are not published.
const UNPUBLISHED: &str = "array['entry_no', 'available_after', 'held_after']";

/// The rows of a table as JSON, as the relay renders them.
async fn rows(transaction: &Transaction<'_>, table: &str, order: &str) -> Vec<Value> {
    let query = format!("select to_jsonb(t) - {UNPUBLISHED} from {table} t order by {order}");
    let rows = GenericClient::query(transaction, &query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn parsed<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}
