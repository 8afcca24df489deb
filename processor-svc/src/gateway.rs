//! The client of the payment gateway, and what its answers mean.
//!
//! A definite outcome needs an answer that names our charge and our amount. Whatever else arrives after a
//! request may have left is unknown, never a failure. Nothing is retried here: who calls again, and when, is
//! decided from committed rows.

use std::time::Duration;

use anyhow::Context;
use reqwest::{Client, Response, redirect, retry};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::breaker::Health;
use crate::charge::Charge;
use crate::failpoints::{Place, reach};
use crate::saga::{Finding, Outcome};

/// The gateway's answers are a few hundred bytes; more is not one of them.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const CODE_CHARS_MAX: usize = 64;
const REFERENCE_CHARS_MAX: usize = 128;
/// Shorter than servers keep idle connections, so that a call seldom meets one that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The gateway's idempotency key of a payment: one for ever, whatever happens to it.
pub fn key(payment_id: Uuid) -> String {
    payment_id.to_string()
}

/// What came back, before it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    /// No connection: certainly no request left.
    NotConnected,
    /// The request may have left; no whole answer came.
    Lost(&'static str),
}

/// A judgement. `alarm`: the gateway and we disagree about what this charge is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged<T> {
    pub verdict: T,
    pub alarm: bool,
}

#[derive(Clone)]
pub struct Gateway {
    http: Client,
    charges: String,
    /// The same key is charged once; otherwise a charge is never sent again.
    idempotent: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    reference: Uuid,
    amount: i64,
    client_number: &'a str,
    service_id: &'a str,
}

/// The gateway's document about a charge; fields it may leave out are optional.
#[derive(Deserialize)]
struct Answer {
    status: String,
    reference: Option<String>,
    amount: Option<i64>,
    provider_reference: Option<String>,
    code: Option<String>,
    /// A decline that the gateway itself will try again is no outcome.
    #[serde(default)]
    retryable: bool,
    /// Charges of the same reference beside this one.
    #[serde(default)]
    surplus: Vec<serde_json::Value>,
}

/// The gateway's document about a void.
#[derive(Deserialize)]
struct VoidAnswer {
    status: String,
    reference: String,
    barred: bool,
}

#[derive(Deserialize)]
struct Problem {
    r#type: String,
}

impl Gateway {
    /// `url` is where the gateway is, without a path of its own; `call_max` bounds a call from connecting to
    /// the last byte of the answer.
    pub fn new(
        url: &str,
        connect_max: Duration,
        call_max: Duration,
        idle_max: usize,
        idempotent: bool,
    ) -> anyhow::Result<Gateway> {
        let http = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .connect_timeout(connect_max)
            .timeout(call_max)
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(idle_max)
            .tcp_nodelay(true)
            .build()
            .context("gateway client")?;
        let charges = format!("{}/charges", url.trim_end_matches('/'));
        reqwest::Url::parse(&charges).with_context(|| format!("gateway URL {url}"))?;
        Ok(Gateway { http, charges, idempotent })
    }

    /// Charges, or repeats the answer if this payment was charged before.
    pub async fn charge(&self, charge: &Charge) -> Judged<Outcome> {
        let body = Request {
            reference: charge.payment_id,
            amount: charge.amount,
            client_number: &charge.client_number,
            service_id: &charge.service_id,
        };
        let mut request = self.http.post(&self.charges).json(&body);
        request = request.header("idempotency-key", key(charge.payment_id));
        if let Some(traceparent) = &charge.traceparent {
            request = request.header("traceparent", traceparent);
        }
        judge_call(charge, &hear(request.send().await).await)
    }

    /// Asks by our reference what became of a charge, and puts right what must not stay so. `settled`: the
    /// gateway's visibility delay had passed.
    pub async fn inquire(&self, charge: &Charge, settled: bool) -> Judged<Finding> {
        let request = self.http.get(format!("{}/{}", self.charges, charge.payment_id));
        let Judged { verdict, alarm } = judge_inquiry(charge, &hear(request.send().await).await);
        let repair = verdict.repair(settled, self.idempotent);
        let verdict = match self.repair(charge, repair).await {
            Ok(()) => verdict.finding(settled, self.idempotent),
            Err(why) => Finding::Unavailable { why },
        };
        Judged { verdict, alarm }
    }

    async fn repair(&self, charge: &Charge, repair: Option<Repair>) -> Result<(), String> {
        let body = match &repair {
            None => return Ok(()),
            Some(Repair::VoidOthers { keep }) => serde_json::json!({"keep": keep}),
            Some(Repair::Reverse) => serde_json::json!({}),
        };
        let request = self.http.post(format!("{}/{}/void", self.charges, charge.payment_id)).json(&body);
        reach(Place::BeforeVoid);
        let heard = hear(request.send().await).await;
        reach(Place::AfterVoid);
        judge_void(charge, &heard, repair == Some(Repair::Reverse))
    }
}

async fn hear(sent: reqwest::Result<Response>) -> Heard {
    let mut response = match sent {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Heard::NotConnected,
        Err(error) => return lost(&error),
    };
    let status = response.status().as_u16();
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_BYTES_MAX => body.extend_from_slice(&chunk),
            Ok(Some(_)) => return Heard::Lost("answer_too_large"),
            Ok(None) => return Heard::Answer { status, body },
            Err(error) => return lost(&error),
        }
    }
}

fn lost(error: &reqwest::Error) -> Heard {
    Heard::Lost(if error.is_timeout() { "timeout" } else { "connection_lost" })
}

/// How a call ended.
pub fn judge_call(charge: &Charge, heard: &Heard) -> Judged<Outcome> {
    let unknown = |why: &str| Outcome::Unknown { why: why.to_owned() };
    let (status, body) = match heard {
        Heard::NotConnected => return calm(Outcome::NotSent { why: "not_connected".to_owned() }),
        Heard::Lost(why) => return calm(unknown(why)),
        Heard::Answer { status, body } => (*status, body.as_slice()),
    };
    match status {
        200 | 402 => match definite(charge, status, body) {
            // Whether more than this one stands is for an inquiry to find out and put right.
            Ok(Definite::Succeeded { surplus: true, .. }) => alarm(unknown("surplus")),
            Ok(Definite::Succeeded { provider_reference, surplus: false }) => {
                calm(Outcome::Succeeded { provider_reference })
            }
            Ok(Definite::Declined { code }) => calm(Outcome::Declined { code }),
            Ok(Definite::Voided) => calm(unknown("voided")),
            Err(NotDefinite::Mismatch) => alarm(unknown("answer_mismatch")),
            Err(NotDefinite::Unreadable) => calm(unknown("unreadable_answer")),
            Err(NotDefinite::Pending) => calm(unknown("pending")),
            Err(NotDefinite::Retryable) => calm(unknown("decline_retryable")),
        },
        // Rejected input is final, but only the gateway may say so, not something in between.
        400 if is_problem(body, "invalid-charge") => {
            calm(Outcome::Declined { code: "rejected_input".to_owned() })
        }
        // Our key was used with another body: there is a charge, and it is not this one.
        422 => alarm(unknown("key_reused")),
        status => calm(unknown(&format!("http_{status}"))),
    }
}

/// What a call says about the gateway itself. An answer that settles nothing and is not about its health (a
/// decline it will try again, another call in progress, a disagreement) counts neither way.
pub fn health(outcome: &Outcome) -> Health {
    match outcome {
        Outcome::Succeeded { .. } | Outcome::Declined { .. } => Health::Answered,
        Outcome::NotSent { .. } => Health::Fault,
        Outcome::Unknown { why } => match why.as_str() {
            "decline_retryable" | "http_409" | "key_reused" | "answer_mismatch" | "surplus" | "pending"
            | "voided" => Health::Neither,
            _ => Health::Fault,
        },
    }
}

/// What an inquiry found. Whether a miss is settled depends on when the call ended, which the caller knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// `surplus`: further charges of the same payment stand.
    Succeeded {
        provider_reference: String,
        surplus: bool,
    },
    Declined {
        code: String,
    },
    /// Every charge was given back.
    Voided,
    NotFound,
    Unavailable {
        why: String,
    },
}

/// What has to be done at the gateway, and confirmed, before what an inquiry found may be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Give back every charge of this payment but one.
    VoidOthers { keep: String },
    /// Give back every charge of this payment, and bar those that are still under way.
    Reverse,
}

/// Why a charge is declined that was reversed.
pub const VOIDED: &str = "voided";

impl Lookup {
    /// Exactly one charge may stand behind a success, and none behind a decline. Where the same key may be
    /// charged twice nothing is ever sent again, so a charge that is not there is made impossible instead.
    pub fn repair(&self, settled: bool, idempotent: bool) -> Option<Repair> {
        match self {
            Lookup::Succeeded { provider_reference, surplus: true } => {
                Some(Repair::VoidOthers { keep: provider_reference.clone() })
            }
            Lookup::Voided => Some(Repair::Reverse),
            Lookup::NotFound if settled && !idempotent => Some(Repair::Reverse),
            Lookup::Succeeded { surplus: false, .. }
            | Lookup::Declined { .. }
            | Lookup::NotFound
            | Lookup::Unavailable { .. } => None,
        }
    }

    /// What it amounts to once it was repaired.
    pub fn finding(self, settled: bool, idempotent: bool) -> Finding {
        match self {
            Lookup::Succeeded { provider_reference, surplus: _ } => Finding::Succeeded { provider_reference },
            Lookup::Declined { code } => Finding::Declined { code },
            Lookup::Voided => Finding::Declined { code: VOIDED.to_owned() },
            Lookup::NotFound if settled && !idempotent => Finding::Declined { code: VOIDED.to_owned() },
            Lookup::NotFound => Finding::NotFound { settled },
            Lookup::Unavailable { why } => Finding::Unavailable { why },
        }
    }
}

/// Whether a void is confirmed. `bars`: it must also keep later charges out.
pub fn judge_void(charge: &Charge, heard: &Heard, bars: bool) -> Result<(), String> {
    let (status, body) = match heard {
        Heard::NotConnected => return Err("void_not_connected".to_owned()),
        Heard::Lost(why) => return Err(format!("void_{why}")),
        Heard::Answer { status, body } => (*status, body.as_slice()),
    };
    if status != 200 {
        return Err(format!("void_http_{status}"));
    }
    let answer: VoidAnswer = serde_json::from_slice(body).map_err(|_| "void_unreadable_answer".to_owned())?;
    let ours = answer.reference == charge.payment_id.to_string();
    if ours && answer.status == "voided" && (answer.barred || !bars) {
        return Ok(());
    }
    Err("void_not_confirmed".to_owned())
}

/// What an inquiry found.
pub fn judge_inquiry(charge: &Charge, heard: &Heard) -> Judged<Lookup> {
    let unavailable = |why: &str| Lookup::Unavailable { why: why.to_owned() };
    let (status, body) = match heard {
        Heard::NotConnected => return calm(unavailable("not_connected")),
        Heard::Lost(why) => return calm(unavailable(why)),
        Heard::Answer { status, body } => (*status, body.as_slice()),
    };
    match status {
        200 => match definite(charge, status, body) {
            Ok(Definite::Succeeded { provider_reference, surplus }) => {
                calm(Lookup::Succeeded { provider_reference, surplus })
            }
            Ok(Definite::Declined { code }) => calm(Lookup::Declined { code }),
            Ok(Definite::Voided) => calm(Lookup::Voided),
            Err(NotDefinite::Mismatch) => alarm(unavailable("answer_mismatch")),
            Err(NotDefinite::Unreadable) => calm(unavailable("unreadable_answer")),
            Err(NotDefinite::Pending) => calm(unavailable("pending")),
            Err(NotDefinite::Retryable) => calm(unavailable("decline_retryable")),
        },
        // A 404 of a proxy, or of a wrong URL, says nothing about the charge.
        404 if is_problem(body, "charge-not-found") => calm(Lookup::NotFound),
        status => calm(unavailable(&format!("http_{status}"))),
    }
}

enum Definite {
    Succeeded { provider_reference: String, surplus: bool },
    Declined { code: String },
    Voided,
}

enum NotDefinite {
    Pending,
    Unreadable,
    Mismatch,
    Retryable,
}

fn definite(charge: &Charge, status: u16, body: &[u8]) -> Result<Definite, NotDefinite> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| NotDefinite::Unreadable)?;
    let ours = charge.payment_id.to_string();
    let other_reference = answer.reference.as_ref().is_some_and(|reference| *reference != ours);
    let other_amount = answer.amount.is_some_and(|amount| amount != charge.amount);
    if other_reference || other_amount {
        return Err(NotDefinite::Mismatch);
    }
    match (answer.status.as_str(), status) {
        ("succeeded", 200) => {
            // A success must say of what: money is taken on its word.
            let complete = answer.reference.is_some() && answer.amount.is_some();
            let provider_reference = answer.provider_reference.filter(|r| fits(r, REFERENCE_CHARS_MAX));
            match provider_reference {
                Some(provider_reference) if complete => {
                    Ok(Definite::Succeeded { provider_reference, surplus: !answer.surplus.is_empty() })
                }
                Some(_) | None => Err(NotDefinite::Unreadable),
            }
        }
        ("declined", _) if answer.retryable => Err(NotDefinite::Retryable),
        ("declined", _) => match answer.code.filter(|code| fits(code, CODE_CHARS_MAX)) {
            Some(code) => Ok(Definite::Declined { code }),
            None => Err(NotDefinite::Unreadable),
        },
        // These two speak of no amount; they must at least name our charge.
        ("voided", 200) if answer.reference.is_some() => Ok(Definite::Voided),
        ("pending", 200) if answer.reference.is_some() => Err(NotDefinite::Pending),
        (_, _) => Err(NotDefinite::Unreadable),
    }
}

fn fits(text: &str, chars_max: usize) -> bool {
    !text.is_empty() && text.chars().count() <= chars_max && !text.chars().any(char::is_control)
}

/// A problem document whose type ends in `kind`.
fn is_problem(body: &[u8], kind: &str) -> bool {
    serde_json::from_slice::<Problem>(body)
        .is_ok_and(|problem| problem.r#type.rsplit([':', '/']).next() == Some(kind))
}

fn calm<T>(verdict: T) -> Judged<T> {
    Judged { verdict, alarm: false }
}

fn alarm<T>(verdict: T) -> Judged<T> {
    Judged { verdict, alarm: true }
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
