//! The calls of the admin listener by which operators resolve charges.
//!
//! * `POST /resolutions` proposes: 201, 200 when the same was proposed before, 409 `act-refused` when it could not be confirmed.
//! * `POST /resolutions/{id}/confirm` confirms, as another operator: 200 with the charge before and after; 404 without such a
//!   proposal; 409 `act-refused` with the reason. Nothing is changed then.
//! * The same request again has the same answer (`Idempotent-Replayed: true`).
//! * Whoever shows a token of their own acts under their own name, so that two names are two people.

use saga::fields::{Fields, parse_uuid};
use saga::http::{self as edge, answer, unavailable};
use saga::parked::routes::{Operator, REASON_CHARS_MAX, holder, operator};
use saga::problem::{Kind, Problem};
use serde_json::{Value, json};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::reply::{Reply, Response};

use crate::charge::Charge;
use crate::operators::Operators;
use crate::saga::resolution::Evidence;
use crate::store::resolutions::{Confirmation, Confirmed, NewProposal, Proposed};

/// Length limits, in characters, as those of the columns and events.
const KEY_CHARS_MAX: usize = 255;
const NAME_CHARS_MAX: usize = 64;
const REFERENCE_CHARS_MAX: usize = 128;
const CODE_CHARS_MAX: usize = 64;

/// `POST /resolutions`, `POST /resolutions/{id}/confirm`.
pub fn routes(operators: &Operators) -> BoxedFilter<(Response,)> {
    let operators = operators.clone();
    let with = warp::any().map(move || operators.clone());
    let propose = warp::path!("resolutions")
        .and(edge::post())
        .and(with.clone())
        .and(holder())
        .and(edge::json_body())
        .then(|operators: Operators, holder: Option<Operator>, body| async move {
            answer(propose(&operators, holder.as_ref(), body).await)
        });
    let confirm = warp::path!("resolutions" / String / "confirm")
        .and(edge::post())
        .and(with)
        .and(holder())
        .and(edge::json_body())
        .then(|id: String, operators: Operators, holder: Option<Operator>, body| async move {
            answer(confirm(&operators, &id, holder.as_ref(), body).await)
        });
    propose.or(confirm).unify().boxed()
}

async fn propose(operators: &Operators, holder: Option<&Operator>, body: Value) -> Result<Response, Problem> {
    let proposal = proposal(body, holder)?;
    let done = operators.cancels.store.propose(&proposal).await.map_err(|error| unavailable(&error))?;
    let (status, at, is_repeated) = match done {
        Proposed::Recorded(at) => (StatusCode::CREATED, at, false),
        Proposed::Repeated(at) => (StatusCode::CREATED, at, true),
        Proposed::KeyReused => {
            return Err(Problem::new(Kind::IdempotencyKeyReused, "Use a new key for another proposal."));
        }
        Proposed::Refused(why) => return Err(Problem::new(Kind::ActRefused, why)),
    };
    let body = json!({
        "resolution_id": proposal.resolution_id,
        "payment_id": proposal.terms.payment_id,
        "operator": proposal.operator,
        "reason": proposal.reason,
        "proposed_at": at,
    });
    Ok(replayed(warp::reply::with_status(warp::reply::json(&body), status), is_repeated))
}

async fn confirm(
    operators: &Operators,
    id: &str,
    holder: Option<&Operator>,
    body: Value,
) -> Result<Response, Problem> {
    let unknown = || Problem::not_found("There is no proposal with this id.");
    let resolution_id = parse_uuid(id).ok_or_else(unknown)?;
    let mut fields = Fields::of(body)?;
    let operator = operator(&mut fields, holder);
    let reason = fields.text("reason", REASON_CHARS_MAX);
    fields.finish()?;
    let done = operators.confirm(resolution_id, &operator, &reason).await;
    let (confirmation, is_repeated) = match done.map_err(|error| unavailable(&error))? {
        Confirmed::Done(confirmation, _) => (confirmation, false),
        Confirmed::Repeated(confirmation) => (confirmation, true),
        Confirmed::Unknown => return Err(unknown()),
        Confirmed::Refused(why) => return Err(Problem::new(Kind::ActRefused, why)),
    };
    Ok(replayed(warp::reply::json(&rendered(resolution_id, &confirmation)), is_repeated))
}

fn replayed(reply: impl Reply, is_repeated: bool) -> Response {
    if is_repeated {
        warp::reply::with_header(reply, "idempotent-replayed", "true").into_response()
    } else {
        reply.into_response()
    }
}

fn rendered(resolution_id: Uuid, confirmation: &Confirmation) -> Value {
    json!({
        "resolution_id": resolution_id,
        "payment_id": confirmation.payment_id,
        "operator": confirmation.operator,
        "reason": confirmation.reason,
        "outcome": confirmation.outcome,
        "before": confirmation.before,
        "after": confirmation.after,
        "confirmed_at": confirmation.confirmed_at,
    })
}

fn proposal(body: Value, holder: Option<&Operator>) -> Result<NewProposal, Problem> {
    let mut fields = Fields::of(body)?;
    let terms = Charge {
        payment_id: fields.uuid("payment_id"),
        user_id: fields.uuid("user_id"),
        client_number: fields.text("client_number", NAME_CHARS_MAX),
        service_id: fields.text("service_id", NAME_CHARS_MAX),
        amount: fields.amount("amount"),
        traceparent: None,
    };
    let evidence = evidence(&mut fields);
    let operator = operator(&mut fields, holder);
    let reason = fields.text("reason", REASON_CHARS_MAX);
    let key = fields.text("idempotency_key", KEY_CHARS_MAX);
    fields.finish()?;
    let name = format!("resolution:{operator}:{key}");
    let resolution_id = Uuid::new_v5(&terms.payment_id, name.as_bytes());
    Ok(NewProposal { resolution_id, terms, evidence, operator, reason })
}

/// `evidence`, and the fields that go with it.
fn evidence(fields: &mut Fields) -> Evidence {
    match fields.text("evidence", NAME_CHARS_MAX).as_str() {
        "succeeded" => Evidence::Succeeded {
            provider_reference: fields.text("provider_reference", REFERENCE_CHARS_MAX),
            amount: fields.amount("charged_amount"),
        },
        "declined" => Evidence::Declined { code: fields.text("code", CODE_CHARS_MAX) },
        "never_made" => Evidence::NeverMade,
        _ => {
            fields.refuse("evidence", "must be succeeded, declined or never_made");
            Evidence::NeverMade
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(evidence: &Value) -> Value {
        let id = "0198c0de-0000-7000-8000-000000000001";
        let mut body = json!({
            "payment_id": id, "user_id": id, "client_number": "12", "service_id": "power", "amount": 400,
            "operator": "alice", "reason": "seen at the gateway", "idempotency_key": "k",
        });
        let members = evidence.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(members);
        body
    }

    #[test]
    fn each_kind_of_evidence_has_its_own_fields() {
        let succeeded = json!({"evidence": "succeeded", "provider_reference": "ch_1", "charged_amount": 401});
        for (given, expected) in [
            (succeeded, Evidence::Succeeded { provider_reference: "ch_1".into(), amount: 401 }),
            (json!({"evidence": "declined", "code": "voided"}), Evidence::Declined { code: "voided".into() }),
            (json!({"evidence": "never_made"}), Evidence::NeverMade),
        ] {
            assert_eq!(proposal(body(&given), None).unwrap().evidence, expected);
        }
        for bad in [
            json!({}),
            json!({"evidence": "paid"}),
            json!({"evidence": "succeeded"}),
            json!({"evidence": "declined"}),
            json!({"evidence": "never_made", "code": "voided"}),
            json!({"evidence": "never_made", "operator": "Alice"}),
        ] {
            assert!(proposal(body(&bad), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proposal_is_named_by_payment_operator_and_key() {
        let id = |change: &Value| {
            let mut change = change.clone();
            change["evidence"] = "never_made".into();
            proposal(body(&change), None).unwrap().resolution_id
        };
        let first = id(&json!({}));
        assert_eq!(first, id(&json!({"reason": "another"})));
        for other in [json!({"operator": "bob"}), json!({"idempotency_key": "2"})] {
            assert_ne!(first, id(&other), "{other}");
        }
    }
}
