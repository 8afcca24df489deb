//! Renders a notification: pure functions of the immutable columns of its row, so that every attempt says the same.

use jiff::Timestamp;
use mailer::Email;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How a payment ended, as its row says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaymentEnd {
    #[serde(flatten)]
    pub payment: EndedPayment,
    pub ended_at: Timestamp,
}

/// The payment as a webhook shows it, field by field.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EndedPayment {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    /// The last version of the payment.
    pub version: i32,
    /// completed, rejected, failed or cancelled: the event of the row.
    #[serde(alias = "event")]
    pub status: String,
    pub service_id: String,
    /// Minor units.
    pub amount: i64,
    pub reason: Option<String>,
}

/// The body of a webhook, in the order of Standard Webhooks.
#[derive(Serialize)]
struct WebhookBody<'a> {
    #[serde(rename = "type")]
    event_type: String,
    timestamp: Timestamp,
    data: &'a EndedPayment,
}

impl PaymentEnd {
    /// The id of the message: the same at every attempt. It has no dot, which a signature could mistake for its own.
    pub fn message_id(&self) -> String {
        format!("{}-{}", self.payment.payment_id, self.payment.version)
    }
}

/// The body of a webhook: the same bytes at every attempt.
///
/// # Errors
/// Never: the struct has nothing that JSON cannot say.
pub fn webhook(end: &PaymentEnd) -> serde_json::Result<Vec<u8>> {
    let event_type = format!("payment.{}.v1", end.payment.status);
    serde_json::to_vec(&WebhookBody { event_type, timestamp: end.ended_at, data: &end.payment })
}

/// The one template. Amounts have two decimals here: adapt it to your currency.
pub fn email(PaymentEnd { payment, ended_at }: &PaymentEnd) -> Email {
    let end = match payment.status.as_str() {
        "completed" => "It was charged.",
        "cancelled" => "You cancelled it, and nothing was charged.",
        "rejected" => "Your balance does not allow it, and nothing was charged.",
        _ => "It was not accepted, and nothing was charged.",
    };
    let (service, status) = (&payment.service_id, &payment.status);
    let amount = format!("{}.{:02}", payment.amount / 100, payment.amount % 100);
    let first = format!("Your payment of {amount} to {service}: {status}. {end}");
    let second = format!("Payment {}, {ended_at}", payment.payment_id);
    Email {
        subject: format!("Payment to {service}: {status}"),
        text: format!("{first}\n\n{second}\n"),
        html: format!("<!doctype html>\n<p>{}</p>\n<p>{}</p>\n", escape(&first), escape(&second)),
    }
}

/// Text as HTML shows it, in elements and in attributes.
fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
