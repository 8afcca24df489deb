//! Renders inserted rows: keys, ids, types, headers, bodies, destinations.

use super::*;
use crate::postgres::decode::pgoutput::{Message, Scratch, decode};
use crate::postgres::decode::relation::{Column, Relation};
use crate::routes::Routes;

const ROUTES: &str = r#"
[[topics]]
name = "T"
partitions = 1
[[topics]]
name = "T.parked"
partitions = 1
[[queues]]
name = "Q"

[[sources]]
name = "s"
url = "u"
slot = "slot"
publication = "p"
event_source = "/s"

[[sources.tables]]
name = "payments"
key = "{user_id}"
id = "s/payments/{payment_id}/{version}"
subject = "{payment_id}"
headers = { traceparent = "{trace}" }
names = { event = { authorized = "approved" } }

[[sources.tables.routes]]
topic = "T"
type = "payment.{event}.v1"
omit = ["trace"]
rename = { amount = "minor_units" }
cast = { version = "text" }

[[sources.tables.routes]]
queue = "Q"
type = "work"
when = { event = ["authorized"] }
headers = { at = "{at}" }

[sources.tables.routes.body.payload]
user = "{user_id}"
amount = "{amount}"
raw = "{amount:json}"
trace = "{trace}"
kind = "fixed"

[[sources.tables]]
name = "parked"
key = "{id}"

[[sources.tables.routes]]
topic = "{source}.parked"
type = "parked"
"#;

fn relation(name: &str, columns: &[(&str, u32)]) -> Relation {
    let column = |&(name, type_oid): &(&str, u32)| Column { name: name.to_owned(), type_oid, key: false };
    let columns = columns.iter().map(column).collect();
    Relation { id: 1, schema: "public".to_owned(), name: name.to_owned(), identity: b'd', columns }
}

fn payments() -> Relation {
    let columns = [
        ("user_id", 2950),
        ("payment_id", 2950),
        ("amount", 20),
        ("event", 25),
        ("version", 23),
        ("trace", 25),
        ("at", 1184),
    ];
    relation("payments", &columns)
}

/// An insert of these texts.
pub(super) fn insert(cells: &[Option<&str>]) -> Vec<u8> {
    let mut body = vec![b'I', 0, 0, 0, 1, b'N'];
    body.extend_from_slice(&(cells.len() as u16).to_be_bytes());
    for cell in cells {
        match cell {
            None => body.push(b'n'),
            Some(text) => {
                body.push(b't');
                body.extend_from_slice(&(text.len() as u32).to_be_bytes());
                body.extend_from_slice(text.as_bytes());
            }
        }
    }
    body
}

const AUTHORIZED: [Option<&str>; 7] = [
    Some("u1"),
    Some("p1"),
    Some("15000"),
    Some("authorized"),
    Some("2"),
    Some("00-ab-cd-01"),
    Some("2026-11-23 01:02:03.5+00"),
];

/// The records of the row, by route.
fn rendered(relation: &Relation, cells: &[Option<&str>]) -> Vec<Result<(Destination, Record), Problem>> {
    rendered_with(ROUTES, relation, cells)
}

fn rendered_with(
    text: &str,
    relation: &Relation,
    cells: &[Option<&str>],
) -> Vec<Result<(Destination, Record), Problem>> {
    let routes = Routes::parse(text, |_| None).unwrap();
    let topics = Topics::new(&routes, vec![1_000_000; routes.topics.len()]);
    let plan = Plan::compile(&routes, &routes.sources[0], relation);
    let (body, mut scratch) = (insert(cells), Scratch::default());
    let Ok(Message::Insert { new, .. }) = decode(&body, &mut scratch) else { panic!("not an insert") };
    let row = Row::insert(new);
    let transaction =
        Transaction { cluster: "7/1".to_owned(), commit_lsn: Lsn(0x1F), rows: 3, ..Transaction::default() };
    let mut all = Vec::new();
    for route in &plan.routes {
        match route.matches(&row) {
            Ok(false) => {}
            Ok(true) => {
                let mut record = Record::default();
                all.push(route.render(&row, &transaction, &topics, &mut record).map(|to| (to, record)));
            }
            Err(problem) => all.push(Err(problem)),
        }
    }
    all
}

pub(super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_row_is_emitted_once_for_every_route_it_matches() {
    let all = rendered(&payments(), &AUTHORIZED);
    let [Ok((to_topic, event)), Ok((to_queue, work))] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((*to_topic, *to_queue), (Destination::Topic(0), Destination::Queue(0)));
    assert_eq!(text(&event.key), "u1");
    assert_eq!(text(&event.id), "s/payments/p1/2");
    assert_eq!(text(&event.kind), "payment.approved.v1");
    assert_eq!(text(&event.subject), "p1");
    assert_eq!(text(&event.header_values), "00-ab-cd-01");
    assert_eq!(
        text(&event.value),
        r#"{"user_id":"u1","payment_id":"p1","minor_units":15000,"event":"authorized","version":"2","at":"2026-11-23T01:02:03.500000Z"}"#
    );
    assert_eq!(
        text(&work.value),
        r#"{"payload":{"user":"u1","amount":"15000","raw":15000,"trace":"00-ab-cd-01","kind":"fixed"}}"#
    );
    assert_eq!(text(&work.header_values), "00-ab-cd-012026-11-23T01:02:03.500000Z");
}

#[test]
fn a_row_that_a_route_does_not_name_is_not_emitted_there() {
    let mut initiated = AUTHORIZED;
    initiated[3] = Some("initiated");
    // The first route matches, and its template has no name for the value.
    let all = rendered(&payments(), &initiated);
    assert!(matches!(all.as_slice(), [Err(problem)] if problem.0.contains("initiated")), "{all:?}");
}

#[test]
fn nulls_leave_headers_out_and_stay_null_in_bodies() {
    let mut row = AUTHORIZED;
    row[5] = None;
    let all = rendered(&payments(), &row);
    let [Ok((_, event)), Ok((_, work))] = all.as_slice() else { panic!("{all:?}") };
    assert!(event.headers.is_empty());
    assert!(text(&work.value).contains(r#""trace":null"#));
}

#[test]
fn a_null_key_cannot_be_emitted() {
    let mut row = AUTHORIZED;
    row[0] = None;
    assert!(rendered(&payments(), &row).iter().all(Result::is_err));
}

#[test]
fn a_topic_can_depend_on_the_row_and_must_exist() {
    let parked = relation("parked", &[("id", 25), ("source", 25)]);
    let all = rendered(&parked, &[Some("T/0/1"), Some("T")]);
    assert!(matches!(all.as_slice(), [Ok((Destination::Topic(1), _))]), "{all:?}");
    let all = rendered(&parked, &[Some("x"), Some("Nowhere")]);
    assert!(matches!(all.as_slice(), [Err(problem)] if problem.0.contains("Nowhere.parked")), "{all:?}");
}

#[test]
fn a_table_without_a_version_has_ids_by_position() {
    let parked = relation("parked", &[("id", 25), ("source", 25)]);
    let all = rendered(&parked, &[Some("1"), Some("T")]);
    let [Ok((_, record))] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(text(&record.id), "7/1/0/1F/3");
}

#[test]
fn an_id_by_position_of_a_row_from_a_snapshot_is_not_that_of_a_commit_at_the_same_position() {
    let snapshot = Transaction { rows: 3, ..Transaction::of_existing("7/1".to_owned(), Lsn(0x1F)) };
    let mut id = Vec::new();
    fallback_id(&snapshot, &mut id);
    assert_eq!(text(&id), "7/1/0/1F/r3");
    assert!(snapshot.re_emitted, "without a position");
}

#[test]
fn a_dropped_column_is_a_problem_for_every_row() {
    let without_version = relation("payments", &[("user_id", 2950), ("payment_id", 2950), ("event", 25)]);
    let all = rendered(&without_version, &[Some("u1"), Some("p1"), Some("authorized")]);
    assert_eq!(all.len(), 2);
    for rendered in all {
        let problem = rendered.unwrap_err();
        assert!(problem.0.contains("is not published"), "{}", problem.0);
    }
}

#[test]
fn a_record_larger_than_its_topic_takes_is_refused_before_it_is_produced() {
    let small = format!("[relay]\nmax_record_bytes = 500\n{ROUTES}");
    let long = "x".repeat(400);
    let mut row = AUTHORIZED;
    row[1] = Some(&long);
    let routes = Routes::parse(&small, |_| None).unwrap();
    assert_eq!(routes.relay.max_record_bytes, 500);
    let all = rendered_with(&small, &payments(), &row);
    // The queue's limit is the file's; the topic's was given as larger.
    assert!(all[0].is_ok());
    assert!(matches!(&all[1], Err(problem) if problem.0.contains("500 are allowed")), "{all:?}");
}

#[test]
fn a_published_table_that_the_routes_do_not_know_is_marked() {
    let routes = Routes::parse(ROUTES, |_| None).unwrap();
    assert!(Plan::compile(&routes, &routes.sources[0], &relation("other", &[])).unknown);
    let ignoring = ROUTES.replace("event_source = \"/s\"", "event_source = \"/s\"\nignore = [\"other\"]");
    let routes = Routes::parse(&ignoring, |_| None).unwrap();
    assert!(!Plan::compile(&routes, &routes.sources[0], &relation("other", &[])).unknown);
}
