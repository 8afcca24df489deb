//! `GET /payments`: a user's payments, newest first, in pages.
//!
//! * A page ends before its cursor, so a payment that is made meanwhile moves no other onto or off a page.
//! * `from` (inclusive) and `to` (exclusive) bound the time in `payment_id`, by the millisecond.
//! * With `status` or `service_id` a page examines at most [`store::SCANNED_MAX`] payments. It may then be short, even
//!   empty, and still have a `next_cursor`: the list ends where `next_cursor` is null.
//! * `idempotency_key` finds the one payment of a key; no other parameter goes with it.

use jiff::Timestamp;
use saga::postgres::Pool;
use saga::problem::Problem;
use saga::query::Query;
use uuid::Uuid;
use warp::http::StatusCode;
use warp::reply::Response;

use super::pay::{KEY_CHARS_MAX, SERVICE_ID_CHARS_MAX};
use super::{json_response, unavailable};
use crate::render;
use crate::saga::Status;
use crate::store::{self, Filter};

/// Length limit of a time in RFC 3339, in characters.
pub(super) const TIME_CHARS_MAX: usize = 40;
pub(super) const STATUS_CHARS_MAX: usize = 20;

/// What a request asks for.
#[derive(Debug, PartialEq)]
enum Wanted {
    Key(String),
    Page { filter: Filter, limit: u64 },
}

pub(super) async fn list(pool: &Pool, user_id: Uuid, query: Query) -> Result<Response, Problem> {
    let page = match parse(query)? {
        Wanted::Key(key) => store::payment_by_key(pool, user_id, &key)
            .await
            .map(|found| store::Page { payments: found.into_iter().collect(), next: None }),
        Wanted::Page { filter, limit } => store::page(pool, user_id, &filter, limit).await,
    };
    let page = page.map_err(|error| unavailable(&error))?;
    let next_cursor = page.next.map(|payment_id| payment_id.simple().to_string());
    Ok(json_response(StatusCode::OK, render::page(&page.payments, next_cursor.as_deref())))
}

fn parse(mut query: Query) -> Result<Wanted, Problem> {
    if let Some(key) = query.text("idempotency_key", KEY_CHARS_MAX) {
        query.finish()?;
        return Ok(Wanted::Key(key));
    }
    let status = query.value("status", STATUS_CHARS_MAX, "a status of a payment", Status::parse);
    let service_id = query.text("service_id", SERVICE_ID_CHARS_MAX);
    let from = query.value("from", TIME_CHARS_MAX, TIME, bound);
    let to = query.value("to", TIME_CHARS_MAX, TIME, bound);
    let cursor = query.cursor(cursor);
    let limit = query.limit();
    query.finish()?;
    let before = [to, cursor].into_iter().flatten().min().unwrap_or(Uuid::max());
    Ok(Wanted::Page {
        filter: Filter { status, service_id, from: from.unwrap_or(Uuid::nil()), before },
        limit,
    })
}

pub(super) const TIME: &str = "a time in RFC 3339, such as 2026-01-02T03:04:05Z";

/// The payment after which a page goes on: a UUID without hyphens.
pub(super) fn cursor(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|_| text.len() == 32)
}

/// The id below which no payment of this millisecond or a later one lies: a UUIDv7 begins with its milliseconds.
pub(super) fn bound(text: &str) -> Option<Uuid> {
    let time: Timestamp = text.parse().ok()?;
    // A part of a millisecond counts as none: ids do not have it.
    let milliseconds = u128::try_from(time.as_millisecond()).ok()?;
    (milliseconds < 1 << 48).then(|| Uuid::from_u128(milliseconds << 80))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Wanted, Vec<String>> {
        parse(Query::of(Some(text))).map_err(|problem| problem.errors.into_iter().map(|e| e.field).collect())
    }

    fn all() -> Filter {
        Filter { status: None, service_id: None, from: Uuid::nil(), before: Uuid::max() }
    }

    #[test]
    fn parameters_make_a_page_or_are_all_named() {
        let page = |filter, limit| Ok(Wanted::Page { filter, limit });
        let failed = Filter { status: Some(Status::Failed), service_id: Some("gas".into()), ..all() };
        assert_eq!(parsed(""), page(all(), 20));
        assert_eq!(parsed("status=failed&service_id=gas&limit=3"), page(failed, 3));
        assert_eq!(parsed("idempotency_key=a+b"), Ok(Wanted::Key("a b".into())));
        let cursor = Uuid::from_u128(7);
        let next = page(Filter { before: cursor, ..all() }, 20);
        assert_eq!(parsed(&format!("cursor={}", cursor.simple())), next);
        for (text, fields) in [
            ("idempotency_key=a&limit=1", vec!["limit"]),
            (
                "status=done&from=yesterday&to=1&cursor=x&limit=0",
                vec!["status", "from", "to", "cursor", "limit"],
            ),
            ("from=2026-01-02", vec!["from"]),
            ("from=1969-12-31T23:59:59Z", vec!["from"]),
            ("user_id=1", vec!["user_id"]),
        ] {
            assert_eq!(parsed(text), Err(fields.into_iter().map(str::to_owned).collect()), "{text}");
        }
    }

    #[test]
    fn times_bound_the_ids_of_their_millisecond() {
        let time = "2026-01-02T03:04:05.678Z";
        let milliseconds = u64::try_from(time.parse::<Timestamp>().unwrap().as_millisecond()).unwrap();
        let id = |milliseconds: u64, rest: [u8; 10]| {
            uuid::Builder::from_unix_timestamp_millis(milliseconds, &rest).into_uuid()
        };
        let bound = bound(time).unwrap();
        assert!(id(milliseconds, [0; 10]) >= bound, "the first id of the millisecond is in");
        assert!(id(milliseconds - 1, [255; 10]) < bound, "the last id of the one before is not");
        assert_eq!(super::bound("2026-01-02T04:04:05.6789+01:00"), Some(bound), "a zone, and finer digits");
    }

    #[test]
    fn the_earlier_of_cursor_and_to_ends_a_page() {
        let cursor = Uuid::from_u128(u128::MAX >> 8).simple().to_string();
        let Ok(Wanted::Page { filter, .. }) = parsed(&format!("to=2026-01-02T03:04:05Z&cursor={cursor}"))
        else {
            panic!("a page");
        };
        assert_eq!(filter.before.simple().to_string(), cursor);
    }
}
