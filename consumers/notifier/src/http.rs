//! The admin listener of the notifier; it has no other.
//!
//! * An endpoint has the name that its operator gave it, so that a repeated call changes nothing.
//! * To put it once more enables it, after it was disabled: what waited is due then.
//! * Its secret is shown once, when it is created or rotated. Without the token no answer contains an e-mail address, a
//!   secret, or more of a URL than its host.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use lettre::address::Address;
use saga::CancellationToken;
use saga::fields::{Fields, parse_uuid};
use saga::http;
use saga::postgres::Pool;
use saga::problem::{Kind, Problem};
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::reply::{Reply, Response};
use webhook::WebhookClient;

use crate::SERVICE;
use crate::metrics::Metrics;
use crate::store::{self, PutEndpoint, statements};

const EMAIL_CHARS_MAX: usize = 254;
const URL_CHARS_MAX: usize = 2_000;
const CHANNEL_CHARS_MAX: usize = 64;
const TIME_CHARS_MAX: usize = 64;
/// As long as Standard Webhooks recommends, at least.
const SECRET_BYTES: usize = 32;

/// The parts that the calls work with.
#[derive(Clone)]
struct Context {
    pool: Pool,
    /// Notified when rows may have become due.
    due: Arc<Notify>,
    webhooks: WebhookClient,
}

type Answer = Result<Response, Problem>;

/// `PUT` and `DELETE /contacts/{user_id}`; `GET /endpoints`, `PUT` and `DELETE /endpoints/{channel}`,
/// `POST /endpoints/{channel}/secret`; `GET /notifications/{payment_id}`, `POST /replay`; `/health`, `/ready`,
/// `/metrics`.
pub fn admin(
    pool: Pool,
    due: Arc<Notify>,
    webhooks: WebhookClient,
    metrics: &Metrics,
    leaving: CancellationToken,
) -> BoxedFilter<(Response,)> {
    let ready = http::ready_with(pool.clone());
    let context = Context { pool, due, webhooks };
    let with = warp::any().map(move || context.clone());
    let contact = warp::path!("contacts" / String);
    let put_contact = contact.and(http::put()).and(with.clone()).and(http::json_body()).then(put_contact);
    let erase_contact = contact.and(http::delete()).and(with.clone()).then(erase_contact);
    let endpoint = warp::path!("endpoints" / String);
    let put_endpoint = endpoint.and(http::put()).and(with.clone()).and(http::json_body()).then(put_endpoint);
    let remove_endpoint = endpoint.and(http::delete()).and(with.clone()).then(remove_endpoint);
    let secret = warp::path!("endpoints" / String / "secret");
    let rotate_secret = secret.and(http::post()).and(with.clone()).and(http::json_body()).then(rotate_secret);
    let endpoints = warp::path!("endpoints").and(http::get()).and(with.clone()).then(endpoints);
    let notifications =
        warp::path!("notifications" / String).and(http::get()).and(with.clone()).then(notifications);
    let replay = warp::path!("replay").and(http::post()).and(with).and(http::json_body()).then(replay);
    let contacts = put_contact.or(erase_contact).unify();
    let endpoints = endpoints.or(put_endpoint).unify().or(remove_endpoint).unify().or(rotate_secret).unify();
    let own = contacts.or(endpoints).unify().or(notifications).unify().or(replay).unify();
    let own = own.map(|answer: Answer| answer.unwrap_or_else(Reply::into_response));
    own.or(http::admin(SERVICE, metrics.registry.clone(), ready, leaving)).unify().boxed()
}

fn unavailable(error: &anyhow::Error) -> Problem {
    http::log_unavailable("database", error);
    Problem::unavailable()
}

fn json_reply(body: &Value) -> Response {
    warp::reply::json(body).into_response()
}

/// 204, or 404 when nothing was changed.
fn changed(count: anyhow::Result<u64>) -> Answer {
    match count.map_err(|error| unavailable(&error))? {
        0 => Err(Problem::not_found("There is nothing of this name.")),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

fn id(text: &str) -> Result<Uuid, Problem> {
    parse_uuid(text).ok_or_else(|| Problem::not_found("An id is a hyphenated UUID."))
}

async fn put_contact(user: String, context: Context, body: Value) -> Answer {
    let (user, mut fields) = (id(&user)?, Fields::of(body)?);
    let email = fields.text("email", EMAIL_CHARS_MAX);
    if email.parse::<Address>().is_err() {
        fields.refuse("email", "must be an e-mail address");
    }
    fields.finish()?;
    changed(store::change(&context.pool, statements::PUT_CONTACT, &[&user, &email]).await)
}

async fn erase_contact(user: String, context: Context) -> Answer {
    changed(store::change(&context.pool, statements::ERASE_CONTACT, &[&id(&user)?]).await)
}

async fn put_endpoint(channel: String, context: Context, body: Value) -> Answer {
    let mut fields = Fields::of(body)?;
    let url = fields.text("url", URL_CHARS_MAX);
    if !context.webhooks.accepts(&url) {
        fields.refuse(
            "url",
            "must be a URL with a host and without user and password, of https; of http too where WEBHOOK_ALLOW is set",
        );
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if channel == "email" || channel.len() > CHANNEL_CHARS_MAX || !channel.chars().all(plain) {
        fields.refuse("channel", format!("must be 1 to {CHANNEL_CHARS_MAX} of a-z, 0-9, -, and not `email`"));
    }
    fields.finish()?;
    let secret = new_secret();
    let put = store::put_endpoint(&context.pool, &channel, &url, &secret).await;
    let put = put.map_err(|error| unavailable(&error))?;
    context.due.notify_one();
    match put {
        PutEndpoint::TooMany => Err(Problem::new(Kind::TooManyEndpoints, "Remove one that is not used.")),
        PutEndpoint::Changed => Ok(json_reply(&json!({"channel": channel, "url": url}))),
        PutEndpoint::Created => {
            let body = warp::reply::json(&json!({"channel": channel, "url": url, "secret": secret}));
            Ok(warp::reply::with_status(body, StatusCode::CREATED).into_response())
        }
    }
}

/// The secret is created here, and sent back once. Who lost it asks for another one.
async fn rotate_secret(channel: String, context: Context, body: Value) -> Answer {
    Fields::of(body)?.finish()?;
    let secret = new_secret();
    changed(store::change(&context.pool, statements::ROTATE_SECRET, &[&channel, &secret]).await)?;
    Ok(json_reply(&json!({"channel": channel, "secret": secret})))
}

fn new_secret() -> String {
    format!("whsec_{}", STANDARD.encode(rand::random::<[u8; SECRET_BYTES]>()))
}

/// Repeated, it goes on where it was broken off.
async fn remove_endpoint(channel: String, context: Context) -> Answer {
    let removed = changed(store::change(&context.pool, statements::REMOVE_ENDPOINT, &[&channel]).await)?;
    let given_up = store::give_up_removed(&context.pool, &channel).await;
    given_up.map(|()| removed).map_err(|error| unavailable(&error))
}

async fn endpoints(context: Context) -> Answer {
    let found = store::list(&context.pool, statements::ENDPOINTS, &[]).await;
    found.map(|found| json_reply(&json!({"endpoints": found}))).map_err(|error| unavailable(&error))
}

async fn notifications(payment: String, context: Context) -> Answer {
    let found = store::list(&context.pool, statements::NOTIFICATIONS, &[&id(&payment)?]).await;
    found.map(|found| json_reply(&json!({"notifications": found}))).map_err(|error| unavailable(&error))
}

/// Of one payment (`payment_id`), or of what was given up on a channel (`channel`, `from`).
async fn replay(context: Context, body: Value) -> Answer {
    let of_payment = body.get("payment_id").is_some();
    let mut fields = Fields::of(body)?;
    let count = if of_payment {
        let payment_id = fields.uuid("payment_id");
        fields.finish()?;
        store::change(&context.pool, statements::REPLAY_PAYMENT, &[&payment_id]).await
    } else {
        let channel = fields.text("channel", CHANNEL_CHARS_MAX);
        let from = fields.text("from", TIME_CHARS_MAX).parse().unwrap_or(Timestamp::MAX);
        if from == Timestamp::MAX {
            fields.refuse("from", "must be a time, such as 2026-01-02T03:04:05Z");
        }
        fields.finish()?;
        store::change(&context.pool, statements::REPLAY_CHANNEL, &[&channel, &from]).await
    };
    context.due.notify_one();
    count.map(|count| json_reply(&json!({"replayed": count}))).map_err(|error| unavailable(&error))
}
