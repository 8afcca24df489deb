//! Inquiries about charges, and voids.

use serde_json::json;
use warp::reply::{Reply, Response};

use crate::gateway::Gateway;
use crate::ledger::{Lookup, VoidOutcome};

/// `GET /charges/{reference}`.
pub fn inquire(gateway: &Gateway, reference: &str) -> Response {
    let status = |status: &str, amount: Option<i64>| {
        warp::reply::json(&json!({"status": status, "reference": reference, "amount": amount}))
    };
    match gateway.ledger.find(reference) {
        Lookup::Decision { decision, surplus } => {
            gateway.answer_decision("inquiry_found", &decision, &surplus)
        }
        Lookup::Pending { amount } => {
            gateway.metrics.calls.with_label_values(&["inquiry_pending"]).inc();
            status("pending", Some(amount)).into_response()
        }
        Lookup::Voided { amount } => {
            gateway.metrics.calls.with_label_values(&["inquiry_voided"]).inc();
            status("voided", amount).into_response()
        }
        Lookup::Nothing => {
            let (detail, about) = ("No charge has this reference.", json!({"reference": reference}));
            gateway.refuse_about("inquiry_not_found", 404, "charge-not-found", detail, &about)
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct VoidRequest {
    #[serde(default)]
    keep: Option<String>,
    /// The amount that answers name if the reference was never charged.
    #[serde(default)]
    amount: Option<i64>,
}

/// `POST /charges/{reference}/void`.
pub fn void(gateway: &Gateway, reference: &str, body: &[u8]) -> Response {
    // An object: serde would take `[]` for one with nothing in it.
    let object = listener::json::read(body).map(serde_json::Value::Object);
    let request: VoidRequest = match object.and_then(serde_json::from_value) {
        Ok(request) => request,
        Err(error) => return gateway.refuse("invalid", 400, "invalid-void", &error.to_string()),
    };
    match gateway.ledger.void(reference, request.keep.as_deref(), request.amount) {
        Ok(VoidOutcome::Done { voided, barred, amount }) => {
            gateway.metrics.calls.with_label_values(&["voided"]).inc();
            let voided: Vec<_> = voided.iter().map(|decision| gateway.charge_line(decision)).collect();
            let body = json!({"status": "voided", "reference": reference, "amount": amount,
                "voided": voided, "barred": barred});
            warp::reply::json(&body).into_response()
        }
        Ok(VoidOutcome::UnknownKeep) => {
            let detail = "The charge to keep does not stand; nothing was voided.";
            let about = json!({"reference": reference});
            gateway.refuse_about("void_refused", 422, "unknown-charge", detail, &about)
        }
        Err(error) => {
            tracing::error!(
                error = format!("{error:#}"),
                "the ledger cannot be written; the void is answered 500"
            );
            gateway.refuse("failed", 500, "internal", "The ledger cannot be written; try again.")
        }
    }
}
