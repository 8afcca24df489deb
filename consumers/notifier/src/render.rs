//! Renders a notification: pure functions of the immutable columns of its row, so that every attempt says the same.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

/// How a payment ended, as its row says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Ended {
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

impl Ended {
    /// The id of the message: the same at every attempt. It has no dot, which a signature could mistake for its own.
    pub fn message_id(&self) -> String {
        format!("{}-{}", self.payment_id, self.version)
    }
}

/// The body of a webhook.
pub fn webhook(ended: &Ended) -> Vec<u8> {
    let data = json!({
        "payment_id": ended.payment_id,
        "user_id": ended.user_id,
        "version": ended.version,
        "status": ended.event,
        "service_id": ended.service_id,
        "amount": ended.amount,
        "reason": ended.reason,
    });
    let kind = format!("payment.{}.v1", ended.event);
    json!({"type": kind, "timestamp": ended.ended_at, "data": data}).to_string().into_bytes()
}

/// An e-mail: subject, text and HTML say the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Email {
    pub subject: String,
    pub text: String,
    pub html: String,
}

/// The one template. Amounts have two decimals here: adapt it to your currency.
pub fn email(ended: &Ended) -> Email {
    let end = match ended.event.as_str() {
        "completed" => "It was charged.",
        "cancelled" => "You cancelled it, and nothing was charged.",
        "rejected" => "Your balance does not allow it, and nothing was charged.",
        _ => "It was not accepted, and nothing was charged.",
    };
    let (service, event) = (&ended.service_id, &ended.event);
    let amount = format!("{}.{:02}", ended.amount / 100, ended.amount % 100);
    let first = format!("Your payment of {amount} to {service}: {event}. {end}");
    let second = format!("Payment {}, {}", ended.payment_id, ended.ended_at);
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
