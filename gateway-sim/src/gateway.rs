//! The state that all handlers share, and the answers about charges.
//!
//! * Every answer is counted.
//! * Every answer about a charge names it by `reference` and `amount`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;
use warp::reply::{Reply, Response};

use crate::hooks::Hooks;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::mix::Mix;
use crate::outage::{How, Outage};
use crate::planned::{Call, PlannedFaults, Recent};
use crate::problem::{problem_document, problem_response};
use crate::record::{Decision, Request, Verdict};
use crate::script::Script;

/// The state that handlers share.
pub struct Gateway {
    pub ledger: Arc<Ledger>,
    pub metrics: Metrics,
    pub hooks: Hooks,
    /// The faults of inquiries and voids.
    pub planned_faults: PlannedFaults,
    pub recent: Recent,
    /// Scripts for client numbers without a directive.
    pub mix: RwLock<Mix>,
    pub outage: RwLock<Option<(Outage, Instant)>>,
    pub ignores_keys: AtomicBool,
    pub seed: u64,
    pub latency: Duration,
    /// The connection of a hanging call is closed after this.
    pub hang: Duration,
    pub shutdown: CancellationToken,
}

// The guarded values are valid after any panic.
pub fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Gateway {
    /// The script of a request: its own, or that of the mix.
    pub fn script(&self, request: &Request) -> Script {
        Script::of(&request.client_number, read(&self.mix).script(self.seed, &request.reference))
    }

    pub fn honours_keys(&self) -> bool {
        !self.ignores_keys.load(Ordering::Relaxed)
    }

    pub fn outage(&self) -> Option<How> {
        let (outage, since) = (*read(&self.outage))?;
        outage.is_on(since.elapsed()).then_some(outage.how)
    }

    pub fn charge_line(&self, decision: &Decision) -> serde_json::Value {
        json!({"provider_reference": self.ledger.provider_reference(decision), "amount": decision.amount})
    }

    /// Answers a call with a decision.
    pub fn answer_decision(&self, answer: &str, decision: &Decision, surplus: &[Decision]) -> Response {
        self.metrics.calls.with_label_values(&[answer]).inc();
        self.recent.record(decision);
        let call = if answer == "inquiry_found" { Call::Inquiry } else { Call::Charge };
        self.charge_document(decision, surplus, call)
    }

    /// The document of a charge, as the answer to this call.
    pub fn charge_document(&self, decision: &Decision, surplus: &[Decision], call: Call) -> Response {
        let (reference, amount) = (decision.reference.to_string(), decision.amount);
        let (status, mut body) = match &decision.verdict {
            Verdict::Approved => {
                let provider = self.ledger.provider_reference(decision);
                let body = json!({"status": "succeeded", "provider_reference": provider,
                    "reference": reference, "amount": amount});
                (200, body)
            }
            Verdict::Declined { code, status } => {
                let body =
                    json!({"status": "declined", "code": code, "reference": reference, "amount": amount});
                (*status, body)
            }
        };
        if !surplus.is_empty() {
            body["surplus"] = surplus.iter().map(|decision| self.charge_line(decision)).collect();
        }
        let status = if call == Call::Inquiry { 200 } else { status };
        let mut response = warp::reply::json(&body).into_response();
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        response
    }

    /// 409: the first call under the key is not decided yet.
    pub fn in_progress(&self, about: &Value) -> Response {
        let detail = "The first call under this key is not decided yet. Try again later.";
        self.refuse_about("in_progress", 409, "in-progress", detail, about)
    }

    /// A problem document that names no charge.
    pub fn refuse(&self, answer: &str, status: u16, kind: &str, detail: &str) -> Response {
        self.refuse_about(answer, status, kind, detail, &Value::Null)
    }

    /// A problem document. `about`: the members that name the charge.
    pub fn refuse_about(
        &self,
        answer: &str,
        status: u16,
        kind: &str,
        detail: &str,
        about: &Value,
    ) -> Response {
        self.metrics.calls.with_label_values(&[answer]).inc();
        let mut document = problem_document(status, kind, detail);
        for (field, value) in about.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            document[field] = value.clone();
        }
        problem_response(status, &document)
    }
}
