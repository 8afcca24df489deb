//! Renders a user's statement as JSON, and the cursors of its pages.
//!
//! * A golden test keeps the document the same over releases.
//! * Every movement has every member; what it does not have is null.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::store::{Movement, Page};

#[derive(Serialize)]
struct StatementDocument<'a> {
    movements: Vec<MovementDocument<'a>>,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct MovementDocument<'a> {
    entry_no: i64,
    kind: &'a str,
    amount: i64,
    payment_id: Option<Uuid>,
    deposit_id: Option<Uuid>,
    service_id: Option<&'a str>,
    reason: Option<&'a str>,
    at: String,
    available_after: i64,
    held_after: i64,
}

/// The body of `GET /balance/movements`.
pub fn statement(page: &Page) -> Vec<u8> {
    let document = StatementDocument {
        movements: page.movements.iter().map(movement).collect(),
        next_cursor: page.next.map(cursor),
    };
    serde_json::to_vec(&document)
        .unwrap_or_else(|_| unreachable!("plain structs with text keys always serialize"))
}

fn movement(movement: &Movement) -> MovementDocument<'_> {
    let is_deposit = movement.kind == "deposit";
    MovementDocument {
        entry_no: movement.entry_no,
        kind: &movement.kind,
        amount: movement.amount,
        payment_id: (!is_deposit).then_some(movement.payment_id),
        deposit_id: is_deposit.then_some(movement.payment_id),
        service_id: movement.service_id.as_deref(),
        reason: movement.reason.as_deref(),
        at: rfc3339(movement.at),
        available_after: movement.available_after,
        held_after: movement.held_after,
    }
}

/// RFC 3339 with six decimals: the precision of the database, and one width for every reader.
fn rfc3339(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// Length of a cursor, in characters.
const CURSOR_CHARS: usize = 16;

/// The cursor of the page that ends before `entry_no`. Clients take it as opaque, so its form may change.
fn cursor(entry_no: i64) -> String {
    format!("{entry_no:0CURSOR_CHARS$x}")
}

/// The entry_no in a cursor. Every other text is `None`, another spelling of the same number included.
pub fn parse_cursor(text: &str) -> Option<i64> {
    let is_ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = Some(text).filter(|text| text.len() == CURSOR_CHARS && text.bytes().all(is_ours))?;
    i64::from_str_radix(digits, 16).ok().filter(|entry_no| *entry_no > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Page {
        let deposit = Movement {
            entry_no: 1,
            kind: "deposit".into(),
            amount: 100_000,
            payment_id: "0198c0de-0000-7000-8000-000000000003".parse().unwrap(),
            service_id: None,
            reason: None,
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            available_after: 100_000,
            held_after: 0,
        };
        let release = Movement {
            entry_no: 3,
            kind: "release".into(),
            amount: 15_000,
            payment_id: "0198c0de-0000-7000-8000-000000000002".parse().unwrap(),
            service_id: Some("electricity".into()),
            reason: Some("declined:do_not_honor".into()),
            at: "2026-01-02T03:04:06.12Z".parse().unwrap(),
            ..deposit.clone()
        };
        Page { movements: vec![release, deposit], next: Some(26) }
    }

    #[test]
    fn the_statement_is_golden() {
        let golden = r#"{"movements":[{"entry_no":3,"kind":"release","amount":15000,"payment_id":"0198c0de-0000-7000-8000-000000000002","deposit_id":null,"service_id":"electricity","reason":"declined:do_not_honor","at":"2026-01-02T03:04:06.120000Z","available_after":100000,"held_after":0},{"entry_no":1,"kind":"deposit","amount":100000,"payment_id":null,"deposit_id":"0198c0de-0000-7000-8000-000000000003","service_id":null,"reason":null,"at":"2026-01-02T03:04:05.000000Z","available_after":100000,"held_after":0}],"next_cursor":"000000000000001a"}"#;
        assert_eq!(String::from_utf8(statement(&example())).unwrap(), golden);
    }

    #[test]
    fn an_empty_statement_ends() {
        let empty = Page { movements: Vec::new(), next: None };
        assert_eq!(statement(&empty), br#"{"movements":[],"next_cursor":null}"#);
    }

    #[test]
    fn a_cursor_has_one_spelling() {
        for entry_no in [1, 15, 16, 4_711, i64::MAX] {
            assert_eq!(parse_cursor(&cursor(entry_no)), Some(entry_no));
        }
        for bad in [
            "",
            "1",
            "0000000000000000",
            "00000000000000001",
            "000000000000001A",
            "+00000000000001a",
            "8000000000000000",
            "ffffffffffffffff",
            "\u{e9}00000000000001",
            "00000000000000000000000000000001",
        ] {
            assert_eq!(parse_cursor(bad), None, "{bad}");
        }
    }
}
