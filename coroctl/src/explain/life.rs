//! The life of a payment: what `coroctl explain` prints, for people and as JSON.

use std::fmt::{self, Display, Formatter};

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// Everything that is known of one payment.
#[derive(Serialize)]
pub struct Life {
    pub payment: Terms,
    /// In order of time.
    pub moments: Vec<Moment>,
    pub gateway: Gateway,
    /// A sentence about rows whose user, amount or service is not the payment's.
    pub difference: Option<String>,
    /// A sentence: the step that it waits for, or that it has ended.
    pub diagnosis: String,
    /// A sentence about users whose rows are not looked at.
    pub left_out: Option<String>,
}

/// The payment's row.
#[derive(Serialize)]
pub struct Terms {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    pub service_id: String,
    pub client_number: String,
    /// In minor units.
    pub amount: i64,
    pub status: String,
    pub version: i32,
    pub initiated_at: Timestamp,
    pub traceparent: Option<String>,
}

/// One step: a committed row, or its event.
#[derive(Serialize)]
pub struct Moment {
    pub at: Timestamp,
    #[serde(flatten)]
    pub place: Place,
    pub step: String,
    /// Of an event its place on Kafka.
    pub detail: String,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The table, with its shard.
    Row(String),
    /// The topic.
    Event(String),
}

/// What the gateway says of the charge.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gateway {
    Charge(Value),
    NoCharge,
    NoAnswer(String),
}

impl Display for Life {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { payment, moments, gateway, difference, diagnosis, left_out } = self;
        write!(out, "{payment}\n\n{}\n\n{gateway}", timeline(moments))?;
        let sentences = [difference.as_deref(), Some(diagnosis), left_out.as_deref()];
        sentences.into_iter().flatten().try_for_each(|sentence| write!(out, "\n\n{sentence}"))
    }
}

impl Display for Terms {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { payment_id, user_id, service_id, client_number, amount, status, version, .. } = self;
        let trace = self.traceparent.as_deref().unwrap_or_default();
        write!(
            out,
            "Payment {payment_id}\n  user {user_id}  service {service_id}  client {client_number}  amount {amount}\n  \
             {status} (version {version})  trace {trace}"
        )
    }
}

impl Display for Place {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(table) => write!(out, "row    {table}"),
            Self::Event(topic) => write!(out, "event  {topic}"),
        }
    }
}

impl Display for Gateway {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Charge(charge) => write!(out, "Gateway: {charge}"),
            Self::NoCharge => write!(out, "Gateway: it has no charge with this reference."),
            Self::NoAnswer(why) => write!(out, "Gateway: it does not answer ({why})."),
        }
    }
}

/// One line per moment: milliseconds since the start, and since the line before.
fn timeline(moments: &[Moment]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["MS", "HOP", "WHERE", "STEP", "DETAIL"]);
    let start = moments.first().map(|moment| moment.at);
    let mut before = start;
    for moment in moments {
        let since = |earlier: Option<Timestamp>| {
            earlier.map_or(0.0, |earlier| moment.at.duration_since(earlier).as_secs_f64() * 1000.0)
        };
        table.add_row([
            format!("{:.1}", since(start)),
            format!("+{:.1}", since(before)),
            moment.place.to_string(),
            moment.step.clone(),
            moment.detail.clone(),
        ]);
        before = Some(moment.at);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn life() -> Life {
        let at = |text: &str| text.parse().unwrap();
        let moment = |time: &str, place: Place, step: &str, detail: &str| Moment {
            at: at(time),
            place,
            step: step.to_owned(),
            detail: detail.to_owned(),
        };
        Life {
            payment: Terms {
                payment_id: Uuid::nil(),
                user_id: Uuid::max(),
                service_id: "electricity".to_owned(),
                client_number: "0812".to_owned(),
                amount: 15_000,
                status: "initiated".to_owned(),
                version: 1,
                initiated_at: at("2026-11-30T20:00:00Z"),
                traceparent: None,
            },
            moments: vec![
                moment("2026-11-30T20:00:00Z", Place::Row("payments".to_owned()), "initiated", ""),
                moment(
                    "2026-11-30T20:00:00.0025Z",
                    Place::Event("PaymentTopic".to_owned()),
                    "payment.initiated.v1",
                    "partition 1 offset 7",
                ),
            ],
            gateway: Gateway::NoCharge,
            difference: None,
            diagnosis: "It waits for the hold.".to_owned(),
            left_out: None,
        }
    }

    #[test]
    fn people_read_what_is_known_in_order_of_time() {
        let text = life().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Payment 00000000-0000-0000-0000-000000000000");
        assert!(lines[1].ends_with("service electricity  client 0812  amount 15000"), "{text}");
        assert!(lines[6].contains("2.5") && lines[6].contains("event  PaymentTopic"), "{text}");
        assert_eq!(
            lines[8..],
            ["Gateway: it has no charge with this reference.", "", "It waits for the hold."]
        );
    }

    #[test]
    fn programs_read_the_same() {
        let life = serde_json::to_value(life()).unwrap();
        assert_eq!(life["payment"]["amount"], 15_000);
        assert_eq!(
            life["moments"][1],
            json!({
                "at": "2026-11-30T20:00:00.0025Z", "event": "PaymentTopic", "step": "payment.initiated.v1",
                "detail": "partition 1 offset 7"
            })
        );
        assert_eq!((&life["gateway"], &life["difference"]), (&json!("no_charge"), &Value::Null));
        let answers = |gateway: Gateway| serde_json::to_value(gateway).unwrap();
        assert_eq!(
            answers(Gateway::Charge(json!({"status": "succeeded"}))),
            json!({"charge": {"status": "succeeded"}})
        );
        assert_eq!(answers(Gateway::NoAnswer("refused".to_owned())), json!({"no_answer": "refused"}));
    }
}
