//! Renders a notification: pure functions of the immutable columns of its row, so that every attempt says the same.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How a payment ended, as its row says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaymentEnd {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    /// The last version of the payment.
    pub version: i32,
    /// completed, rejected, failed or cancelled.
    pub event: String,
    pub service_id: String,
    /// Minor units.
    pub amount: i64,
    pub reason: Option<String>,
    pub ended_at: Timestamp,
}

/// The body of a webhook, in the order of Standard Webhooks.
#[derive(Serialize)]
struct WebhookBody<'a> {
    #[serde(rename = "type")]
    event_type: String,
    timestamp: Timestamp,
    data: WebhookData<'a>,
}

#[derive(Serialize)]
struct WebhookData<'a> {
    payment_id: Uuid,
    user_id: Uuid,
    version: i32,
    status: &'a str,
    service_id: &'a str,
    amount: i64,
    reason: Option<&'a str>,
}

impl PaymentEnd {
    /// The id of the message: the same at every attempt. It has no dot, which a signature could mistake for its own.
    pub fn message_id(&self) -> String {
        format!("{}-{}", self.payment_id, self.version)
    }
}

/// The body of a webhook: the same bytes at every attempt.
///
/// # Errors
/// Never: the struct has nothing that JSON cannot say.
pub fn webhook(end: &PaymentEnd) -> serde_json::Result<Vec<u8>> {
    let data = WebhookData {
        payment_id: end.payment_id,
        user_id: end.user_id,
        version: end.version,
        status: &end.event,
        service_id: &end.service_id,
        amount: end.amount,
        reason: end.reason.as_deref(),
    };
    let event_type = format!("payment.{}.v1", end.event);
    serde_json::to_vec(&WebhookBody { event_type, timestamp: end.ended_at, data })
}

/// An e-mail: subject, text and HTML say the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Email {
    pub subject: String,
    pub text: String,
    pub html: String,
}

/// The one template. Amounts have two decimals here: adapt it to your currency.
pub fn email(payment: &PaymentEnd) -> Email {
    let end = match payment.event.as_str() {
        "completed" => "It was charged.",
        "cancelled" => "You cancelled it, and nothing was charged.",
        "rejected" => "Your balance does not allow it, and nothing was charged.",
        _ => "It was not accepted, and nothing was charged.",
    };
    let (service, event) = (&payment.service_id, &payment.event);
    let amount = format!("{}.{:02}", payment.amount / 100, payment.amount % 100);
    let first = format!("Your payment of {amount} to {service}: {event}. {end}");
    let second = format!("Payment {}, {}", payment.payment_id, payment.ended_at);
    Email {
        subject: format!("Payment to {service}: {event}"),
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
