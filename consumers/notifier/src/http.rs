//! The admin listener of the notifier; it has no other.
//!
//! * An endpoint has the name that its operator gave it, so that a repeated call changes nothing.
//! * To put it once more enables it, after it was disabled: what waited is due then.
//! * Its secret is shown once, when it is created or rotated. Without the token no answer contains an e-mail address, a
//!   secret, or more of a URL than its host.

use std::sync::Arc;

use jiff::Timestamp;
use saga::CancellationToken;
use saga::fields::{Fields, parse_uuid};
use saga::http::{self, json_reply, unavailable};
use saga::postgres::{self, Pool};
use saga::problem::{Kind, Problem};
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::reply::{Reply, Response};
use webhook::{WebhookClient, new_secret};

use crate::SERVICE;
use crate::metrics::Metrics;
use crate::store::{self, PutEndpoint, statements};

const EMAIL_CHARS_MAX: usize = 254;
const URL_CHARS_MAX: usize = 2_000;
const URL_EXPECTED: &str =
    "a URL with a host and without user and password, of https; of http too where WEBHOOK_ALLOW is set";
const CHANNEL_CHARS_MAX: usize = 64;
const TIME_CHARS_MAX: usize = 64;

/// The parts that the calls work with.
#[derive(Clone)]
pub struct Context {
    pub pool: Pool,
    /// Notified when rows may have become due.
    pub due: Arc<Notify>,
    pub webhooks: WebhookClient,
}

type Answer = Result<Response, Problem>;

/// `PUT` and `DELETE /contacts/{user_id}`; `GET /endpoints`, `PUT` and `DELETE /endpoints/{channel}`,
/// `POST /endpoints/{channel}/secret`; `GET /notifications/{payment_id}`, `POST /replay`; `/health`, `/ready`,
/// `/metrics`.
pub fn admin(context: Context, metrics: &Metrics, leaving: CancellationToken) -> BoxedFilter<(Response,)> {
    let ready = http::ready_with(context.pool.clone());
    let with = warp::any().map(move || context.clone());
    let contact = warp::path!("contacts" / String).and(with.clone());
    let put_contact = contact.clone().and(http::put()).and(http::json_body()).then(put_contact);
    let erase_contact = contact.and(http::delete()).then(erase_contact);
    let endpoint = warp::path!("endpoints" / String).and(with.clone());
    let put_endpoint = endpoint.clone().and(http::put()).and(http::json_body()).then(put_endpoint);
    let remove_endpoint = endpoint.and(http::delete()).then(remove_endpoint);
    let secret = warp::path!("endpoints" / String / "secret").and(with.clone());
    let rotate_secret = secret.and(http::post()).and(http::json_body()).then(rotate_secret);
    let endpoints = warp::path!("endpoints").and(with.clone()).and(http::get()).then(endpoints);
    let notifications = warp::path!("notifications" / String).and(with.clone());
    let notifications = notifications.and(http::get()).then(notifications_of);
    let replay = warp::path!("replay").and(with).and(http::post()).and(http::json_body()).then(replay);
    let contacts = put_contact.or(erase_contact).unify();
    let endpoints = endpoints.or(put_endpoint).unify().or(remove_endpoint).unify().or(rotate_secret).unify();
    let own = contacts.or(endpoints).unify().or(notifications).unify().or(replay).unify().map(http::answer);
    own.or(http::admin(SERVICE, metrics.registry.clone(), ready, leaving)).unify().boxed()
}

fn id(text: &str) -> Result<Uuid, Problem> {
    parse_uuid(text).ok_or_else(|| Problem::not_found("An id is a hyphenated UUID."))
}

/// Executes one of the [`statements`]; returns how many rows it changed.
async fn change(context: &Context, text: &str, parameters: postgres::Parameters<'_>) -> Result<u64, Problem> {
    let changed = postgres::execute(&context.pool, text, parameters, "cannot change rows for an operator");
    changed.await.map_err(|error| unavailable(&error))
}

/// As [`change`]: 204, or 404 when nothing was changed.
async fn changed(context: &Context, text: &str, parameters: postgres::Parameters<'_>) -> Answer {
    match change(context, text, parameters).await? {
        0 => Err(Problem::not_found("There is nothing of this name.")),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// The rows of one of the [`statements`], as an array of this name.
async fn list(context: &Context, name: &str, text: &str, parameters: postgres::Parameters<'_>) -> Answer {
    let rows = postgres::query(&context.pool, text, parameters, "cannot read rows for an operator").await;
    let rows = rows.map_err(|error| unavailable(&error))?;
    let rows: Value = rows.iter().map(|row| row.get::<_, Value>(0)).collect();
    Ok(json_reply(StatusCode::OK, &json!({name: rows})))
}

async fn put_contact(user: String, context: Context, body: Value) -> Answer {
    let (user, mut fields) = (id(&user)?, Fields::of(body)?);
    let address = |text: &str| mailer::is_address(text).then(|| text.to_owned());
    let email = fields.value("email", EMAIL_CHARS_MAX, "an e-mail address", address);
    fields.finish()?;
    changed(&context, statements::PUT_CONTACT, &[&user, &email]).await
}

async fn erase_contact(user: String, context: Context) -> Answer {
    changed(&context, statements::ERASE_CONTACT, &[&id(&user)?]).await
}

async fn put_endpoint(channel: String, context: Context, body: Value) -> Answer {
    let mut fields = Fields::of(body)?;
    let accepted = |url: &str| context.webhooks.accepts(url).then(|| url.to_owned());
    let url = fields.value("url", URL_CHARS_MAX, URL_EXPECTED, accepted);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if channel == "email" || channel.len() > CHANNEL_CHARS_MAX || !channel.chars().all(plain) {
        fields.refuse("channel", format!("must be 1 to {CHANNEL_CHARS_MAX} of a-z, 0-9, -, and not `email`"));
    }
    fields.finish()?;
    let secret = new_secret();
    let put = store::put_endpoint(&context.pool, &channel, &url, &secret).await;
    context.due.notify_one();
    match put.map_err(|error| unavailable(&error))? {
        PutEndpoint::TooMany => Err(Problem::new(Kind::TooManyEndpoints, "Remove one that is not used.")),
        PutEndpoint::Changed => Ok(json_reply(StatusCode::OK, &json!({"channel": channel, "url": url}))),
        PutEndpoint::Created => {
            let body = json!({"channel": channel, "url": url, "secret": secret});
            Ok(json_reply(StatusCode::CREATED, &body))
        }
    }
}

/// The secret is created here, and sent back once. Who lost it asks for another one.
async fn rotate_secret(channel: String, context: Context, body: Value) -> Answer {
    Fields::of(body)?.finish()?;
    let secret = new_secret();
    changed(&context, statements::ROTATE_SECRET, &[&channel, &secret]).await?;
    Ok(json_reply(StatusCode::OK, &json!({"channel": channel, "secret": secret})))
}

/// Repeated, it goes on where it was broken off.
async fn remove_endpoint(channel: String, context: Context) -> Answer {
    let removed = changed(&context, statements::REMOVE_ENDPOINT, &[&channel]).await?;
    let given_up = store::give_up_removed(&context.pool, &channel).await;
    given_up.map(|()| removed).map_err(|error| unavailable(&error))
}

async fn endpoints(context: Context) -> Answer {
    list(&context, "endpoints", statements::ENDPOINTS, &[]).await
}

async fn notifications_of(payment: String, context: Context) -> Answer {
    list(&context, "notifications", statements::NOTIFICATIONS, &[&id(&payment)?]).await
}

/// Of one payment (`payment_id`), or of what was given up on a channel (`channel`, `from`).
async fn replay(context: Context, body: Value) -> Answer {
    let of_payment = body.get("payment_id").is_some();
    let mut fields = Fields::of(body)?;
    let count = if of_payment {
        let payment_id = fields.uuid("payment_id");
        fields.finish()?;
        change(&context, statements::REPLAY_PAYMENT, &[&payment_id]).await?
    } else {
        let channel = fields.text("channel", CHANNEL_CHARS_MAX);
        let time = |text: &str| text.parse::<Timestamp>().ok();
        let from = fields.value("from", TIME_CHARS_MAX, "a time, such as 2026-01-02T03:04:05Z", time);
        fields.finish()?;
        change(&context, statements::REPLAY_CHANNEL, &[&channel, &from]).await?
    };
    context.due.notify_one();
    Ok(json_reply(StatusCode::OK, &json!({"replayed": count})))
}
