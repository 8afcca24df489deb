//! The client of the payment gateway: sends requests and judges the replies.
//!
//! * A definite outcome needs an answer that names our charge and our amount ([`answer`]). Any other result of a request
//!   that may have left is unknown, never a failure.
//! * An answer about another charge means that the answers of a connection are out of step. All connections are replaced.
//! * With an `https` URL the gateway proves who it is to the authorities that the system trusts.
//! * Nothing is retried here: committed rows decide who calls again, and when.

pub mod answer;
mod judgement;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::saga::http_client;
use anyhow::Context;
use reqwest::{Client, Response};
use serde::Serialize;
use uuid::Uuid;

use crate::cause::Cause;
use crate::charge::Charge;
use crate::failpoints::{Failpoint, hit};
use crate::saga::{Finding, Outcome};

pub use self::judgement::{
    GatewayReply, Lookup, Repair, VOIDED, health, judge_call, judge_inquiry, judge_void,
};

/// The gateway's answers are a few hundred bytes; more is not one of them.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Shorter than servers keep idle connections, so that a call seldom uses one that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The idempotency key of a payment at the gateway. It never changes.
pub fn key(payment_id: Uuid) -> String {
    payment_id.to_string()
}

#[derive(Clone)]
pub struct Gateway {
    connections: Connections,
    charges: String,
    /// The gateway charges the same key only once. Otherwise a charge is never sent again.
    idempotent: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    reference: Uuid,
    amount: i64,
    client_number: &'a str,
    service_id: &'a str,
}

#[derive(Serialize)]
struct VoidRequest<'a> {
    amount: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<&'a str>,
}

impl Gateway {
    /// A client for the gateway at `url`, which has no path.
    ///
    /// # Errors
    /// When the URL is malformed.
    pub fn new(
        url: &str,
        connect_max: Duration,
        call_max: Duration,
        idle_max: usize,
        idempotent: bool,
    ) -> anyhow::Result<Gateway> {
        let connections = Connections::new(Limits { connect_max, call_max, idle_max })?;
        let charges = format!("{}/charges", url.trim_end_matches('/'));
        reqwest::Url::parse(&charges).with_context(|| {
            format!("the gateway URL {url} is malformed; give one such as http://gateway:8080")
        })?;
        Ok(Gateway { connections, charges, idempotent })
    }

    /// Charges a payment. A payment that was charged before gets the same answer.
    pub async fn charge(&self, charge: &Charge) -> Outcome {
        let body = Request {
            reference: charge.payment_id,
            amount: charge.amount,
            client_number: &charge.client_number,
            service_id: &charge.service_id,
        };
        let (http, generation) = self.connections.current();
        let mut request = http.post(&self.charges).json(&body);
        request = request.header("idempotency-key", key(charge.payment_id));
        if let Some(traceparent) = &charge.traceparent {
            request = request.header("traceparent", traceparent);
        }
        let outcome = judge_call(charge, &receive(request.send().await).await);
        self.connections.judged(outcome.cause(), generation);
        outcome
    }

    /// Inquires about a charge by our reference, and repairs charges that must not stand. `conclusive`: the visibility
    /// delay of the gateway has passed, so that a charge that was made would be found.
    pub async fn inquire(&self, charge: &Charge, conclusive: bool) -> Finding {
        let (http, generation) = self.connections.current();
        let request = http.get(format!("{}/{}", self.charges, charge.payment_id));
        let lookup = judge_inquiry(charge, &receive(request.send().await).await);
        self.connections.judged(lookup.cause(), generation);
        let repair = lookup.repair(conclusive, self.idempotent);
        match self.repair(charge, repair).await {
            Ok(()) => lookup.finding(conclusive, self.idempotent),
            Err(cause) => Finding::Unavailable { why: Cause::Void(Box::new(cause)) },
        }
    }

    async fn repair(&self, charge: &Charge, repair: Option<Repair>) -> Result<(), Cause> {
        let keep = match &repair {
            None => return Ok(()),
            Some(Repair::VoidOthers { keep }) => Some(keep.as_str()),
            Some(Repair::Reverse) => None,
        };
        let (http, generation) = self.connections.current();
        let request = http.post(format!("{}/{}/void", self.charges, charge.payment_id));
        let request = request.json(&VoidRequest { amount: charge.amount, keep });
        hit(Failpoint::BeforeVoid);
        let reply = receive(request.send().await).await;
        hit(Failpoint::AfterVoid);
        let voided = judge_void(charge, &reply, repair == Some(Repair::Reverse));
        self.connections.judged(voided.as_ref().err(), generation);
        voided
    }
}

/// The connections to the gateway. All are replaced when one is out of step, since the client does not say which one it
/// was, and each later request on it would get the answer to another request.
#[derive(Clone)]
struct Connections {
    limits: Limits,
    current: Arc<Mutex<(Client, u64)>>,
}

#[derive(Clone, Copy)]
struct Limits {
    connect_max: Duration,
    call_max: Duration,
    idle_max: usize,
}

impl Connections {
    fn new(limits: Limits) -> anyhow::Result<Connections> {
        let client = limits.client().context("cannot create the HTTP client of the gateway")?;
        Ok(Connections { limits, current: Arc::new(Mutex::new((client, 0))) })
    }

    /// The current client and its generation.
    fn current(&self) -> (Client, u64) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the judgement of an answer of this client.
    fn judged(&self, cause: Option<&Cause>, generation: u64) {
        if cause != Some(&Cause::Mismatch) {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1 != generation {
            return;
        }
        match self.limits.client() {
            Ok(client) => *current = (client, generation + 1),
            Err(error) => {
                tracing::warn!(%error, "a new client cannot be created; connections that may be out of step stay in use");
            }
        }
    }
}

impl Limits {
    fn client(&self) -> reqwest::Result<Client> {
        http_client::builder()
            .connect_timeout(self.connect_max)
            .timeout(self.call_max)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(self.idle_max)
            .tcp_nodelay(true)
            .build()
    }
}

async fn receive(sent: reqwest::Result<Response>) -> GatewayReply {
    let mut response = match sent {
        Ok(response) => response,
        Err(error) if error.is_connect() => return GatewayReply::NotConnected,
        Err(error) => return lost(&error),
    };
    let status = response.status().as_u16();
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_BYTES_MAX => body.extend_from_slice(&chunk),
            Ok(Some(_)) => return GatewayReply::Lost(Cause::AnswerTooLarge),
            Ok(None) => return GatewayReply::Answer { status, body },
            Err(error) => return lost(&error),
        }
    }
}

fn lost(error: &reqwest::Error) -> GatewayReply {
    GatewayReply::Lost(if error.is_timeout() { Cause::TimedOut } else { Cause::ConnectionLost })
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
