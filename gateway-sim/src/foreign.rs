//! Answers that are not about the requested charge: those of another charge, those without a name, and pages of proxies.
//!
//! * The documents have the shape of real ones. Only their name is wrong or missing.
//! * Directives of the client number plan them for calls, inquiries and voids ([`PlannedFaults`]).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use warp::http::StatusCode;
use warp::reply::{Reply, Response};

use crate::http::{Gateway, problem_document};
use crate::record::Decision;
use crate::script::{Answer, Claim, Fault, Foreign, Name, Script};

/// The reference of the charge that stray answers name.
pub const STRANGER: &str = "00000000-0000-7000-8000-00000000dead";

/// The call and the charge of a request.
#[derive(Clone, Copy)]
pub struct About<'a> {
    pub call: Call,
    pub reference: &'a str,
    pub amount: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Charge,
    Inquiry,
    Void,
}

/// The faults that the next inquiries and voids of a reference will have.
#[derive(Default)]
pub struct PlannedFaults(Mutex<HashMap<String, Plan>>);

struct Plan {
    inquiry: Option<Fault>,
    void: Option<Fault>,
    amount: i64,
}

impl PlannedFaults {
    /// Plans the faults of inquiries and voids in the script of a charge. The first call of a reference counts.
    pub fn plan(&self, reference: &str, amount: i64, script: &Script) {
        let Script { inquiry, void, .. } = *script;
        if inquiry.is_some() || void.is_some() {
            let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            plans.entry(reference.to_owned()).or_insert(Plan { inquiry, void, amount });
        }
    }

    /// The fault of this inquiry or void, and the amount of its charge.
    pub fn take(&self, call: Call, reference: &str) -> Option<(Answer, i64)> {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.get_mut(reference)?;
        let planned = match call {
            Call::Charge => return None,
            Call::Inquiry => &mut plan.inquiry,
            Call::Void => &mut plan.void,
        };
        let fault = planned.as_mut().filter(|fault| fault.times > 0)?;
        fault.times -= 1;
        Some((fault.answer, plan.amount))
    }
}

/// The last two charges in answers, of different references.
#[derive(Default)]
pub struct Recent(Mutex<[Option<Decision>; 2]>);

impl Recent {
    pub fn record(&self, decision: &Decision) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent[0].as_ref().is_none_or(|last| last.reference != decision.reference) {
            recent.swap(0, 1);
            recent[0] = Some(decision.clone());
        }
    }

    /// The last charge with another reference than this.
    fn other_than(&self, reference: &str) -> Option<Decision> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let other = |decision: &&Decision| decision.reference.to_string() != reference;
        recent.iter().flatten().find(other).cloned()
    }
}

impl Gateway {
    pub fn foreign(&self, foreign: Foreign, about: About<'_>) -> Response {
        match foreign {
            Foreign::Document(name, claim) => document(name, claim, about),
            Foreign::Cached => match self.recent.other_than(about.reference) {
                Some(decision) => self.charge_document(&decision, &[], about.call),
                None => document(Name::Stranger, Claim::Declined, about),
            },
            Foreign::Page(status) => {
                let page = "<html><body><h1>This page comes from something in between</h1></body></html>";
                with_status(status, warp::reply::html(page).into_response())
            }
        }
    }
}

fn document(name: Name, claim: Claim, about: About<'_>) -> Response {
    let (mut status, mut body) = match (claim, about.call) {
        (Claim::Succeeded, Call::Charge | Call::Inquiry) => {
            (200, json!({"status": "succeeded", "provider_reference": "ch_00000000deadbeef"}))
        }
        (Claim::Succeeded, Call::Void) => (200, json!({"status": "voided", "voided": [], "barred": true})),
        (Claim::Declined, _) => (402, json!({"status": "declined", "code": "not_this_charge"})),
        (Claim::Rejected, _) => (400, problem_document(400, "invalid-charge", "The input is rejected.")),
        (Claim::NotFound, _) => (404, problem_document(404, "charge-not-found", "No such charge.")),
    };
    if about.call == Call::Inquiry && claim == Claim::Declined {
        status = 200;
    }
    let (reference, amount) = match name {
        Name::None => (Value::Null, Value::Null),
        Name::Stranger => (STRANGER.into(), about.amount.into()),
        Name::OtherAmount => (about.reference.into(), about.amount.map(|amount| amount + 1).into()),
    };
    for (field, value) in [("reference", reference), ("amount", amount)] {
        if !value.is_null() {
            body[field] = value;
        }
    }
    with_status(status, warp::reply::json(&body).into_response())
}

fn with_status(status: u16, mut response: Response) -> Response {
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response
}
