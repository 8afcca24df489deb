//! `GET /payments`: a user's payments, newest first, in pages.
//!
//! * A page ends before its cursor, so a payment that is made meanwhile moves no other onto or off a page.
//! * `from` (inclusive) and `to` (exclusive) bound the time in `payment_id`, by the millisecond.
//! * With `status` or `service_id` a page examines at most [`store::SCANNED_MAX`] payments. It may then be short, even
//!   empty, and still have a `next_cursor`: the list ends where `next_cursor` is null.
//! * `idempotency_key` finds the one payment of a key. As with every parameter, the others hold too.

use jiff::civil::{self, DateTime};
use jiff::fmt::temporal::Pieces;
use saga::http::unavailable;
use saga::problem::Problem;
use saga::query::Query;
use saga::shards::{Ownership, Router};
use uuid::Uuid;
use warp::http::StatusCode;
use warp::reply::Response;

use super::json_response;
use super::pay::{KEY_CHARS_MAX, SERVICE_ID_CHARS_MAX};
use crate::render;
use crate::saga::Status;
use crate::store::{self, Filter, Payment};

/// Length limit of a time in RFC 3339, in characters.
pub(super) const TIME_CHARS_MAX: usize = 40;
pub(super) const STATUS_CHARS_MAX: usize = 20;

/// What a request asks for.
#[derive(Debug, PartialEq)]
struct ListQuery {
    key: Option<String>,
    filter: Filter,
    limit: u64,
}

pub(super) async fn list(router: &Router, user_id: Uuid, query: Query) -> Result<Response, Problem> {
    let asked = &parse(query)?;
    let read = |owned| async move { page(&owned, user_id, asked).await };
    let page = router.repeat(user_id, read).await.map_err(|error| unavailable(&error))?;
    let next_cursor = page.next.map(|payment_id| payment_id.simple().to_string());
    Ok(json_response(StatusCode::OK, render::page(&page.payments, next_cursor.as_deref())))
}

async fn page(owned: &Ownership, user_id: Uuid, asked: &ListQuery) -> anyhow::Result<store::Page> {
    let Some(key) = &asked.key else { return store::page(owned, user_id, &asked.filter, asked.limit).await };
    let found = store::payment_by_key(owned, user_id, key).await?;
    let payments = found.into_iter().filter(|payment| is_within(&asked.filter, payment)).collect();
    Ok(store::Page { payments, next: None })
}

fn parse(mut query: Query) -> Result<ListQuery, Problem> {
    let key = query.text("idempotency_key", KEY_CHARS_MAX);
    let status = query.value("status", STATUS_CHARS_MAX, "a status of a payment", Status::parse);
    let service_id = query.text("service_id", SERVICE_ID_CHARS_MAX);
    let from = query.value("from", TIME_CHARS_MAX, TIME, bound);
    let to = query.value("to", TIME_CHARS_MAX, TIME, bound);
    let cursor = query.cursor(parse_cursor);
    let limit = query.limit();
    query.finish()?;
    let before = [to, cursor].into_iter().flatten().min().unwrap_or(Uuid::max());
    let filter = Filter { status, service_id, from: from.unwrap_or(Uuid::nil()), before };
    Ok(ListQuery { key, filter, limit })
}

/// Whether a list with this filter shows the payment.
fn is_within(filter: &Filter, payment: &Payment) -> bool {
    let accepted = &payment.accepted;
    filter.status.is_none_or(|status| status.as_str() == payment.status)
        && filter.service_id.as_ref().is_none_or(|service_id| *service_id == accepted.service_id)
        && (filter.from..filter.before).contains(&accepted.payment_id)
}

/// The payment that a cursor names. Every other text is `None`, another spelling of the same one included.
pub(super) fn parse_cursor(text: &str) -> Option<Uuid> {
    let is_ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    Uuid::try_parse(text).ok().filter(|_| text.len() == 32 && text.bytes().all(is_ours))
}

pub(super) const TIME: &str = "a time in RFC 3339, such as 2026-01-02T03:04:05Z";

/// The id below which no payment of this millisecond or a later one lies: a UUIDv7 begins with its milliseconds.
///
/// Every time of RFC 3339 is taken, so it is not read as a `Timestamp`, which ends some hours before the year 9999 does.
pub(super) fn bound(text: &str) -> Option<Uuid> {
    let pieces = Pieces::parse(text).ok()?;
    let offset = pieces.to_numeric_offset()?;
    let local = DateTime::from_parts(pieces.date(), pieces.time()?);
    let since_1970 = local.duration_since(civil::date(1970, 1, 1).at(0, 0, 0, 0)).as_millis();
    // A part of a millisecond counts as none: ids do not have it. No payment is older than 1970.
    let milliseconds = u128::try_from(since_1970 - i128::from(offset.seconds()) * 1000).unwrap_or(0);
    (milliseconds < 1 << 48).then(|| Uuid::from_u128(milliseconds << 80))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<ListQuery, Vec<String>> {
        parse(Query::of(Some(text))).map_err(|problem| problem.errors.into_iter().map(|e| e.field).collect())
    }

    fn all() -> Filter {
        Filter { status: None, service_id: None, from: Uuid::nil(), before: Uuid::max() }
    }

    #[test]
    fn parameters_make_a_page_or_are_all_named() {
        let page = |filter, limit| Ok(ListQuery { key: None, filter, limit });
        let failed = Filter { status: Some(Status::Failed), service_id: Some("gas".into()), ..all() };
        assert_eq!(parsed(""), page(all(), 20));
        assert_eq!(parsed("status=failed&service_id=gas&limit=3"), page(failed, 3));
        let key = Some("a b".to_owned());
        assert_eq!(parsed("idempotency_key=a+b"), Ok(ListQuery { key, filter: all(), limit: 20 }));
        let cursor = Uuid::from_u128(7);
        let next = page(Filter { before: cursor, ..all() }, 20);
        assert_eq!(parsed(&format!("cursor={}", cursor.simple())), next);
        for (text, fields) in [
            ("idempotency_key=+a&limit=0", vec!["idempotency_key", "limit"]),
            (
                "status=done&from=yesterday&to=1&cursor=x&limit=0",
                vec!["status", "from", "to", "cursor", "limit"],
            ),
            ("from=2026-01-02", vec!["from"]),
            ("from=2026-01-02T03:04:05", vec!["from"]),
            ("cursor=0198C0DE000070008000000000000001", vec!["cursor"]),
            ("user_id=1", vec!["user_id"]),
        ] {
            assert_eq!(parsed(text), Err(fields.into_iter().map(str::to_owned).collect()), "{text}");
        }
    }

    #[test]
    fn times_bound_the_ids_of_their_millisecond() {
        let time = "2026-01-02T03:04:05.678Z";
        let milliseconds = u64::try_from(time.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap();
        let id = |milliseconds: u64, rest: [u8; 10]| {
            uuid::Builder::from_unix_timestamp_millis(milliseconds, &rest).into_uuid()
        };
        let bound = bound(time).unwrap();
        assert!(id(milliseconds, [0; 10]) >= bound, "the first id of the millisecond is in");
        assert!(id(milliseconds - 1, [255; 10]) < bound, "the last id of the one before is not");
        assert_eq!(super::bound("2026-01-02T04:04:05.6789+01:00"), Some(bound), "a zone, and finer digits");
        assert_eq!(super::bound("2026-01-02t03:04:05.678z"), Some(bound), "RFC 3339 has small letters too");
    }

    #[test]
    fn every_time_of_rfc_3339_bounds_ids() {
        for old in ["1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "0000-01-01T00:00:00+23:59"] {
            assert_eq!(bound(old), Some(Uuid::nil()), "{old}");
        }
        let (last, leap) =
            (bound("9999-12-31T23:59:59-23:59").unwrap(), bound("2016-12-31T23:59:60Z").unwrap());
        assert!(bound("9999-12-31T23:59:58Z").unwrap() < last);
        assert!(bound("2017-01-01T00:00:00Z").unwrap() >= leap);
    }

    #[test]
    fn a_key_finds_its_payment_if_the_other_parameters_hold_too() {
        let (id, at) = (Uuid::from_u128(7), jiff::Timestamp::UNIX_EPOCH);
        let accepted = store::AcceptedPayment {
            user_id: Uuid::nil(),
            payment_id: id,
            client_number: "0812".into(),
            service_id: "electricity".into(),
            amount: 1,
            initiated_at: at,
            expires_at: at,
        };
        let payment = Payment {
            accepted,
            status: "failed".into(),
            reason: None,
            version: 3,
            authorized_at: Some(at),
            completed_at: None,
            rejected_at: None,
            failed_at: Some(at),
            cancelled_at: None,
            cancel_requested_at: None,
        };
        let shown = |filter: Filter| is_within(&filter, &payment);
        assert!(shown(all()));
        assert!(shown(Filter {
            status: Some(Status::Failed),
            service_id: Some("electricity".into()),
            ..all()
        }));
        assert!(!shown(Filter { status: Some(Status::Completed), ..all() }));
        assert!(!shown(Filter { service_id: Some("gas".into()), ..all() }));
        assert!(shown(Filter { from: id, ..all() }) && !shown(Filter { before: id, ..all() }));
    }

    #[test]
    fn the_earlier_of_cursor_and_to_ends_a_page() {
        let cursor = Uuid::from_u128(u128::MAX >> 8).simple().to_string();
        let wanted = parsed(&format!("to=2026-01-02T03:04:05Z&cursor={cursor}")).unwrap();
        assert_eq!(wanted.filter.before.simple().to_string(), cursor);
    }
}
