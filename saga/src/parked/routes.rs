//! The calls of an admin listener by which operators act on parked messages.
//!
//! * `POST /parked/retry` and `POST /parked/dismiss`, with `parked_id`, `operator` and `reason`. Whoever shows a token of their own
//!   acts under their own name.
//! * 200 with the act, also when it was done before (`Idempotent-Replayed: true`); 404 without such a message; 409
//!   `act-refused` with the reason; nothing is changed then.

use std::convert::Infallible;

pub use listener::operators::Operator;
use listener::operators::{OPERATOR_CHARS_MAX, is_operator_name};
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

use super::acts::{Act, ActAnswer, ActRecord, ActRequest, Reapply, act_on};
use crate::fields::Fields;
use crate::http;
use crate::problem::{Kind, Problem};
use crate::shards::Databases;

/// Length limit of an id: queue and message id of at most 255 bytes each, and a hash.
const PARKED_ID_CHARS_MAX: usize = 1_000;
/// Length limit of a reason, in characters.
pub const REASON_CHARS_MAX: usize = 500;

/// `POST /parked/retry`, `POST /parked/dismiss`.
pub fn routes<R: Reapply>(databases: impl Into<Databases>, service: &R) -> BoxedFilter<(Response,)> {
    let (databases, service) = (databases.into(), service.clone());
    let with = warp::any().map(move || (databases.clone(), service.clone()));
    let retry = warp::path!("parked" / "retry")
        .and(http::post())
        .and(with.clone())
        .and(holder())
        .and(http::json_body())
        .then(|(databases, service): (Databases, R), holder, body| {
            answer(databases, service, Act::Retried, holder, body)
        });
    let dismiss = warp::path!("parked" / "dismiss")
        .and(http::post())
        .and(with)
        .and(holder())
        .and(http::json_body())
        .then(|(databases, service): (Databases, R), holder, body| {
            answer(databases, service, Act::Dismissed, holder, body)
        });
    retry.or(dismiss).unify().boxed()
}

/// The operator whose token the request carries, if it is somebody's own.
pub fn holder() -> impl Filter<Extract = (Option<Operator>,), Error = Infallible> + Clone {
    warp::ext::optional::<Operator>()
}

async fn answer<R: Reapply>(
    databases: Databases,
    service: R,
    act: Act,
    holder: Option<Operator>,
    body: Value,
) -> Response {
    http::answer(done(&databases, &service, act, holder.as_ref(), body).await)
}

async fn done<R: Reapply>(
    databases: &Databases,
    service: &R,
    what: Act,
    holder: Option<&Operator>,
    body: Value,
) -> Result<Response, Problem> {
    let mut fields = Fields::of(body)?;
    let parked_id = fields.text("parked_id", PARKED_ID_CHARS_MAX);
    let operator = operator(&mut fields, holder);
    let reason = fields.text("reason", REASON_CHARS_MAX);
    fields.finish()?;
    let request = ActRequest { act: what, parked_id, operator, reason };
    match act_on(databases, service, &request).await.map_err(|error| http::unavailable(&error))? {
        ActAnswer::Done(record) => Ok(warp::reply::json(&rendered(&request, &record)).into_response()),
        ActAnswer::Repeated(record) => {
            let reply = warp::reply::json(&rendered(&request, &record));
            Ok(warp::reply::with_header(reply, "idempotent-replayed", "true").into_response())
        }
        ActAnswer::Unknown => Err(Problem::not_found("No message with this parked_id is parked here.")),
        ActAnswer::Refused(why) => Err(Problem::new(Kind::ActRefused, why)),
    }
}

fn rendered(request: &ActRequest, record: &ActRecord) -> Value {
    json!({
        "parked_id": request.parked_id,
        "act": request.act.as_str(),
        "operator": record.operator,
        "reason": record.reason,
        "outcome": record.outcome,
        "acted_at": record.acted_at,
    })
}

/// The name of an operator. Whoever shows a token of their own (`holder`) acts under no other name.
pub fn operator(fields: &mut Fields, holder: Option<&Operator>) -> String {
    let name = fields.text("operator", OPERATOR_CHARS_MAX);
    // An error about its length is enough.
    if !name.is_empty() && name.len() <= OPERATOR_CHARS_MAX && !is_operator_name(&name) {
        fields.refuse(
            "operator",
            "must be lower-case letters, digits and ._@-, and begin with a letter or digit",
        );
    } else if let Some(Operator(holder)) = holder.filter(|Operator(holder)| *holder != name) {
        fields.refuse("operator", format!("must be {holder}, whose token this is"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_has_one_spelling() {
        let is_accepted = |name: &str| {
            let mut fields = Fields::of(json!({"operator": name})).unwrap();
            operator(&mut fields, None);
            fields.finish().is_ok()
        };
        for good in ["alice", "a", "bob.smith@example.org", "0-1_2"] {
            assert!(is_accepted(good), "{good}");
        }
        for bad in ["", "Alice", "al ice", "-a", "álice", "a\u{200b}", &"a".repeat(65)] {
            assert!(!is_accepted(bad), "{bad}");
        }
    }

    #[test]
    fn whoever_shows_a_token_of_their_own_acts_under_their_own_name() {
        let is_accepted = |name: &str, holder: Option<&str>| {
            let mut fields = Fields::of(json!({"operator": name})).unwrap();
            operator(&mut fields, holder.map(|name| Operator(name.to_owned())).as_ref());
            fields.finish().is_ok()
        };
        assert!(is_accepted("alice", None) && is_accepted("alice", Some("alice")));
        assert!(!is_accepted("bob", Some("alice")) && !is_accepted("", Some("alice")));
    }
}
