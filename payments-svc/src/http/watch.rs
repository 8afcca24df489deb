//! `GET /payments/{id}` with `wait`, and `GET /payments/{id}/events`: clients that follow a payment to its end.
//!
//! * `wait` answers at the end of the payment, or after so many milliseconds with what is there then.
//! * Each message of the stream is the document of `GET /payments/{id}`, and its `id` is the payment's `version`.
//!   Versions may be skipped and are never repeated, so `Last-Event-ID` is all that a client needs to resume.
//! * The stream ends with the payment. A client that resumes after that gets 204, which ends its tries.
//! * It also ends when the client's token expires. A client that resumes needs another one.
//! * Reads for all who follow share statements, so thousands who are woken together do not hold up those who pay.
//! * An instance that is about to stop ends its streams and waits at once; clients go on at another one.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use saga::CancellationToken;
use saga::fields::parse_uuid;
use saga::http::unavailable;
use saga::identity::Caller;
use saga::problem::Problem;
use saga::query::Query;
use sync_wrapper::SyncStream;
use tokio::time::Instant;
use uuid::Uuid;
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, HeaderValue};
use warp::reply::{Reply, Response};
use warp::sse::Event;

use super::{PublicContext, json_response, not_found};
use crate::reader::Reader;
use crate::render;
use crate::store::Payment;
use crate::waiters::Waiter;

/// The longest `wait`, in milliseconds: below the time-outs of the edge and of most clients.
const WAIT_MS_MAX: u64 = 25_000;
/// The longest time without a word on a stream, below the time-outs in between.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// No payment has more versions than that.
const VERSION_DIGITS_MAX: usize = 9;
/// How long a client waits before it connects again: until the edge no longer chooses an instance that stops.
const RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// `GET /payments/{id}?wait=ms`.
pub(super) async fn payment(
    public: &PublicContext,
    user_id: Uuid,
    id: &str,
    mut query: Query,
) -> Result<Response, Problem> {
    let wait = query.number("wait", 0..=WAIT_MS_MAX).unwrap_or(0);
    query.finish()?;
    let payment_id = parse_uuid(id).ok_or_else(not_found)?;
    let found = if wait == 0 {
        let found = public.metrics.weight.timed(public.reader.payment(user_id, payment_id)).await;
        found.map_err(|error| unavailable(&error))?.ok_or_else(not_found)?
    } else {
        ended(public, user_id, payment_id, Instant::now() + Duration::from_millis(wait)).await?
    };
    Ok(json_response(StatusCode::OK, render::payment(&found)))
}

/// One payment of the user, who may have none with this id.
pub(super) async fn read(reader: &Reader, user_id: Uuid, payment_id: Uuid) -> Result<Payment, Problem> {
    let found = reader.payment(user_id, payment_id).await.map_err(|error| unavailable(&error))?;
    found.ok_or_else(not_found)
}

/// The payment at its end, or at `deadline`.
async fn ended(
    public: &PublicContext,
    user_id: Uuid,
    payment_id: Uuid,
    deadline: Instant,
) -> Result<Payment, Problem> {
    // Registered before the row is read: a change in between wakes it.
    let mut waiter = public.waiters.register(payment_id);
    loop {
        let found = read(&public.reader, user_id, payment_id).await?;
        if found.is_terminal() || Instant::now() >= deadline || public.leaving.is_cancelled() {
            return Ok(found);
        }
        tokio::select! {
            _ = waiter.ended(deadline) => {}
            () = public.leaving.cancelled() => {}
        }
    }
}

/// `GET /payments/{id}/events`.
pub(super) async fn events(
    public: &PublicContext,
    caller: Caller,
    id: &str,
    last_event_id: Option<HeaderValue>,
) -> Result<Response, Problem> {
    let payment_id = parse_uuid(id).ok_or_else(not_found)?;
    let sent = last_event_id.as_ref().map(version).transpose()?.unwrap_or(0);
    let waiter = public.waiters.register(payment_id);
    let found = read(&public.reader, caller.user_id, payment_id).await?;
    if found.is_terminal() && found.version <= sent {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let following = Following {
        reader: public.reader.clone(),
        leaving: public.leaving.clone(),
        user_id: caller.user_id,
        payment_id,
        waiter,
        sent: newest_sent(sent, found.version),
        heartbeat_at: Instant::now() + HEARTBEAT_INTERVAL,
        found: Some(found),
    };
    let start = stream::iter([Event::default().retry(RECONNECT_DELAY).comment("")]);
    let events = start.chain(following.events()).take_until(caller.expiry()).map(Ok::<_, Infallible>);
    let mut response = warp::sse::reply(SyncStream::new(events)).into_response();
    // A proxy that collects an answer before it passes it on would hold the events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The version that `Last-Event-ID` names.
fn version(last_event_id: &HeaderValue) -> Result<i32, Problem> {
    let text = last_event_id.to_str().unwrap_or_default();
    // `parse` would take a sign too.
    let is_version = text.len() <= VERSION_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
    let version = text.parse().ok().filter(|_| is_version);
    version.ok_or_else(|| Problem::field("Last-Event-ID", "must be the id of an event of this stream"))
}

/// The newest version that a client has, who names one. One beyond the present version is none of ours, and hides nothing.
fn newest_sent(named: i32, present: i32) -> i32 {
    named.min(present)
}

/// A client that follows a payment.
struct Following {
    reader: Reader,
    leaving: CancellationToken,
    user_id: Uuid,
    payment_id: Uuid,
    waiter: Waiter,
    /// The newest version that the client has.
    sent: i32,
    heartbeat_at: Instant,
    /// The payment as it was read last, if that is not decided on yet.
    found: Option<Payment>,
}

impl Following {
    fn events(self) -> impl Stream<Item = Event> {
        stream::unfold(Some(self), |following| async move {
            let mut following = following?;
            let (event, is_last) = following.next().await?;
            Some((event, Some(following).filter(|_| !is_last)))
        })
    }

    /// The next event, and whether the stream ends with it; `None` when it ends at once.
    async fn next(&mut self) -> Option<(Event, bool)> {
        loop {
            if let Some(found) = self.found.take()
                && found.version > self.sent
            {
                self.sent = found.version;
                self.heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
                return Some((event_of(&found), found.is_terminal()));
            }
            let woken = tokio::select! {
                woken = self.waiter.changed(self.sent, self.heartbeat_at) => woken,
                () = self.leaving.cancelled() => return None,
            };
            if !woken {
                self.heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
                return Some((Event::default().comment(""), false));
            }
            // A failure ends the stream: the client comes again, and a request can be answered 503.
            self.found = Some(read(&self.reader, self.user_id, self.payment_id).await.ok()?);
        }
    }
}

fn event_of(payment: &Payment) -> Event {
    let document = String::from_utf8_lossy(&render::payment(payment)).into_owned();
    Event::default().id(payment.version.to_string()).event("payment").data(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_event_id_is_a_version() {
        let parse = |text: &'static str| version(&HeaderValue::from_static(text)).ok();
        assert_eq!([parse("0"), parse("3")], [Some(0), Some(3)]);
        for bad in ["", "-1", "+1", "-0", "x", "1000000000"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_id_beyond_the_present_version_hides_nothing() {
        assert_eq!(
            [newest_sent(0, 2), newest_sent(1, 2), newest_sent(2, 2), newest_sent(9, 2)],
            [0, 1, 2, 2]
        );
    }
}
