//! Answers that are not about the requested charge: those of another charge, those without a name, and pages of proxies.
//!
//! * The documents have the shape of real ones. Only their name is wrong or missing.
//! * Directives of the client number plan them for calls, inquiries and voids ([`crate::planned`]).

use serde_json::{Value, json};
use warp::http::StatusCode;
use warp::reply::{Reply, Response};

use crate::gateway::Gateway;
use crate::planned::{About, Call};
use crate::problem::problem_document;
use crate::script::{Claim, Foreign, Name};

/// The reference of the charge that stray answers name.
pub const STRANGER: &str = "00000000-0000-7000-8000-00000000dead";

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
