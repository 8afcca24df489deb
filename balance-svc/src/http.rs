//! The HTTP interface of balance-svc.
//!
//! * Users read their balance and its movements on the public listener. Operators make deposits and act on parked
//!   messages on the admin listener.
//! * A deposit is credited once per user and idempotency key.
//! * A failure of the database is 503 for the client and its cause is logged.
//!
//! A balance has a largest value, 2^53 - 1 for available and held together: the largest integer that every JSON reader keeps
//! exact. Only a deposit adds to that sum, so only a deposit is refused (422 `balance-limit`, by the named constraint).

use saga::CancellationToken;
use saga::fields::Fields;
use saga::http::{self, answer, unavailable};
use saga::identity::{Caller, Identity, Scope};
use saga::parked;
use saga::problem::{Kind, Problem};
use saga::query::Query;
use saga::rate_limit::RateLimit;
use saga::shards::Router;
use saga::weight::Weight;
use serde_json::{Value, json};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::{Reply, Response};

use crate::events::Ledger;
use crate::metrics::Metrics;
use crate::render;
use crate::store::{self, BALANCE_MAX, Deposit};
use crate::{SERVICE, store::Balance};

/// Length limit of an idempotency key, in characters.
const KEY_CHARS_MAX: usize = 255;

/// `GET /balance`, `GET /balance/movements`, `GET /health`.
pub fn public(
    router: Router,
    identity: &Identity,
    rate: &RateLimit,
    weight: &Weight,
) -> BoxedFilter<(Response,)> {
    let (reader, of_balance, of_movements) = (router.clone(), weight.clone(), weight.clone());
    let user = rate.limit(identity.user(Scope::Read));
    let balance = warp::path!("balance").and(http::get()).and(user.clone()).then(move |caller: Caller| {
        let (router, weight) = (reader.clone(), of_balance.clone());
        async move { answer(balance(&router, &weight, caller.user_id).await) }
    });
    let movements = warp::path!("balance" / "movements").and(http::get()).and(user).and(http::query()).then(
        move |caller: Caller, query| {
            let (router, weight) = (router.clone(), of_movements.clone());
            async move { answer(movements(&router, &weight, caller.user_id, query).await) }
        },
    );
    weight.on(balance.or(movements).unify().or(http::health(SERVICE)).unify().boxed())
}

/// The admin listener: `POST /deposits`, `POST /parked/retry`, `POST /parked/dismiss`, `/health`, `/ready`, `/metrics`.
pub fn admin(
    router: Router,
    ledger: &Ledger,
    metrics: &Metrics,
    leaving: CancellationToken,
) -> BoxedFilter<(Response,)> {
    let ready = http::ready_with(&router);
    let parked = parked::routes::routes(&router, ledger);
    let deposits = warp::path!("deposits").and(http::post()).and(http::json_body()).then(move |body| {
        let router = router.clone();
        async move { answer(deposit(&router, body).await) }
    });
    let acts = deposits.or(parked).unify();
    acts.or(http::admin(SERVICE, metrics.registry.clone(), ready, leaving)).unify().boxed()
}

async fn balance(router: &Router, weight: &Weight, user_id: Uuid) -> Result<Response, Problem> {
    let read = |owned| async move { store::balance(&owned, user_id).await };
    let found = weight.timed(router.repeat(user_id, read)).await.map_err(|error| unavailable(&error))?;
    let Balance { available, held } =
        found.ok_or_else(|| Problem::not_found("This user has no account yet; a deposit makes one."))?;
    let body = json!({"user_id": user_id, "available": available, "held": held});
    Ok(http::json_reply(StatusCode::OK, &body))
}

/// A page of the statement. A user without an account has no movements.
async fn movements(
    router: &Router,
    weight: &Weight,
    user_id: Uuid,
    mut query: Query,
) -> Result<Response, Problem> {
    let limit = query.limit();
    let before = query.cursor(render::parse_cursor);
    query.finish()?;
    let read = |owned| async move { store::movements(&owned, user_id, before, limit).await };
    let page = weight.timed(router.repeat(user_id, read)).await.map_err(|error| unavailable(&error))?;
    let mut response = render::statement(&page).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn deposit(router: &Router, body: Value) -> Result<Response, Problem> {
    let mut fields = Fields::of(body)?;
    let user_id = fields.uuid("user_id");
    let amount = fields.amount("amount");
    let key = fields.text("idempotency_key", KEY_CHARS_MAX);
    fields.finish()?;
    let deposit_id = deposit_id(user_id, &key);
    let credit = |owned| async move { store::deposit(&owned, user_id, deposit_id, amount).await };
    let done = router.repeat(user_id, credit).await.map_err(|error| unavailable(&error))?;
    let body = json!({"deposit_id": deposit_id, "user_id": user_id, "amount": amount});
    let created = http::json_reply(StatusCode::CREATED, &body);
    match done {
        Deposit::Credited => Ok(created),
        Deposit::Repeated => {
            Ok(warp::reply::with_header(created, "idempotent-replayed", "true").into_response())
        }
        Deposit::KeyReused => Err(Problem::new(
            Kind::IdempotencyKeyReused,
            "Use a new key for a new deposit, or send the same amount again.",
        )),
        Deposit::TooMuch => Err(Problem::new(
            Kind::BalanceLimit,
            format!(
                "Available and held together are at most {BALANCE_MAX}. Nothing was credited; deposit less."
            ),
        )),
    }
}

/// A pure function of user and key: the ledger's primary key is the idempotency check.
fn deposit_id(user_id: Uuid, key: &str) -> Uuid {
    Uuid::new_v5(&user_id, format!("deposit:{key}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These ids are stored. With others a deposit that is repeated after an upgrade would be credited twice.
    #[test]
    fn the_id_of_a_deposit_is_stable() {
        let user_id = Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0001);
        assert_eq!(deposit_id(user_id, "order-1").to_string(), "982e0f13-8633-51b7-98c9-ce7df2aebbc5");
        assert_ne!(deposit_id(user_id, "order-1"), deposit_id(user_id, "Order-1"));
        assert_ne!(deposit_id(user_id, "order-1"), deposit_id(Uuid::nil(), "order-1"));
    }
}
