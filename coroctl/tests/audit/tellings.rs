//! What Kafka would hold if the relay had told the rows of the fixture.

use std::collections::BTreeSet;

use coroctl::audit::chain::print_lsn;
use coroctl::audit::told::{Record, Told};
use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Transaction};
use uuid::Uuid;

use crate::fixture::PATHS;

/// One record; its topic says which database it is of.
#[derive(Clone, Debug)]
pub struct Telling {
    pub topic: &'static str,
    pub key: String,
    /// Empty: the header is missing.
    pub id: String,
    pub event_type: String,
    pub position: Option<String>,
    pub body: Value,
}

/// Records in the order in which they were told, each topic with one partition.
#[derive(Clone, Debug, Default)]
pub struct Tellings(pub Vec<Telling>);

fn source(topic: &str) -> &'static str {
    match topic {
        PAYMENT_TOPIC => "/coro/payments",
        BALANCE_TOPIC => "/coro/balance",
        _ => "/coro/processor",
    }
}

impl Tellings {
    /// All that the rows now say, with the versions that led there.
    pub async fn of(transactions: &[Transaction<'_>; 3]) -> Self {
        let [payments, balance, processor] = transactions;
        let mut tellings = Self::default();
        for payment in rows(payments, "payments", "payment_id, version").await {
            tellings.payment(&payment);
        }
        for entry in rows(balance, "ledger", "created_at, payment_id, phase").await {
            tellings.entry(&entry);
        }
        for charge in rows(processor, "charges", "payment_id").await {
            let told = ["succeeded", "declined", "unknown", "expired", "cancelled"];
            if told.iter().any(|word| charge["status"] == *word) {
                tellings.charge(&charge);
            }
        }
        tellings.link();
        tellings
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
            self.tell_payment(earlier);
        }
        self.tell_payment(row.clone());
    }

    pub fn tell_payment(&mut self, body: Value) {
        let id = format!("payments/payments/{}/{}", text(&body["payment_id"]), body["version"]);
        let event_type = format!("payment.{}.v1", text(&body["event"]));
        self.tell(PAYMENT_TOPIC, id, event_type, body);
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
        self.tell(BALANCE_TOPIC, id, format!("balance.{word}.v1"), row.clone());
    }

    fn charge(&mut self, row: &Value) {
        let id = format!("processor/charges/{}/{}", text(&row["payment_id"]), row["version"]);
        let event_type = format!("payment.result.{}.v1", text(&row["status"]));
        self.tell(PAYMENT_RESULT_TOPIC, id, event_type, row.clone());
    }

    fn tell(&mut self, topic: &'static str, id: String, event_type: String, body: Value) {
        let key = text(&body["user_id"]).to_owned();
        self.0.push(Telling { topic, key, id, event_type, position: None, body });
    }

    /// Something on a topic that is no event.
    pub fn poison(&mut self) {
        let (id, event_type) = (String::new(), String::new());
        let (key, body) = ("?".to_owned(), json!("poison"));
        self.0.push(Telling { topic: PAYMENT_TOPIC, key, id, event_type, position: None, body });
    }

    /// Each record tells a commit of its own, in the order they stand in.
    pub fn link(&mut self) {
        for topic in [PAYMENT_TOPIC, BALANCE_TOPIC, PAYMENT_RESULT_TOPIC] {
            let told = self.0.iter_mut().filter(|telling| telling.topic == topic);
            for (telling, commit) in told.zip((16_u64..).step_by(16)) {
                let before = if commit == 16 { 0 } else { commit - 16 };
                telling.position = Some(format!("{};0;{}", print_lsn(commit), print_lsn(before)));
            }
        }
    }

    pub fn index(&self, id: &str) -> usize {
        self.0.iter().position(|telling| telling.id == id).unwrap_or_else(|| panic!("{id} is not told"))
    }

    pub fn get(&mut self, id: &str) -> &mut Telling {
        let index = self.index(id);
        &mut self.0[index]
    }

    /// As if it had never been committed.
    pub fn forget(&mut self, id: &str) {
        self.0.remove(self.index(id));
        self.link();
    }

    pub fn told(&self, explained: BTreeSet<String>) -> Told {
        let mut told = Told::beside(explained);
        for (index, telling) in self.0.iter().enumerate() {
            let offset = self.0[..index].iter().filter(|before| before.topic == telling.topic).count();
            let given = |text: &'_ str| -> Option<String> { (!text.is_empty()).then(|| text.to_owned()) };
            let (id, event_type) = (given(&telling.id), given(&telling.event_type));
            told.hear(&Record {
                topic: telling.topic,
                partition: 0,
                offset: i64::try_from(offset).unwrap(),
                key: telling.key.as_bytes(),
                id: id.as_deref(),
                event_type: event_type.as_deref(),
                source: Some(source(telling.topic)),
                position: telling.position.as_deref(),
                value: &serde_json::to_vec(&telling.body).unwrap(),
            });
        }
        told
    }
}

/// The rows of a table as JSON, as the relay would print them.
async fn rows(transaction: &Transaction<'_>, table: &str, order: &str) -> Vec<Value> {
    let query = format!("select to_jsonb(t) from {table} t order by {order}");
    let rows = GenericClient::query(transaction, &query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn parsed<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}
