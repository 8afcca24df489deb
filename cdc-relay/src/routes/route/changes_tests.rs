//! Renders updates and deletes: events, tombstones, keys that end, the row before, conditions.

use super::tests::{insert, text};
use super::*;
use crate::postgres::decode::pgoutput::{Message, Scratch, decode};
use crate::postgres::decode::relation::{Column, Relation};
use crate::routes::Routes;

/// A table with one route, whose keys replace ROUTE.
const DELETES: &str = r#"
[[sources]]
name = "shop"
url = "u"

[[sources.tables]]
name = "orders"
id = "orders/{id}/{version}"
subject = "{id}"
headers = { status = "{status|none}", op = "{@op}" }
names = { "@op" = { insert = "made", update = "changed", delete = "gone" } }
ROUTE
"#;

fn orders(identity: u8) -> Relation {
    let column = |name: &str, type_oid, key| Column { name: name.to_owned(), type_oid, key };
    let columns = vec![column("id", 20, true), column("version", 23, false), column("status", 25, false)];
    Relation { id: 1, schema: "public".to_owned(), name: "orders".to_owned(), identity, columns }
}

fn tuple(kind: u8, cells: &[Option<&str>]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend_from_slice(&insert(cells)[6..]);
    body
}

/// An update or a delete, as the WAL has it: the tuples after the table's number.
fn message(tag: u8, tuples: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![tag, 0, 0, 0, 1];
    tuples.iter().for_each(|tuple| body.extend_from_slice(tuple));
    body
}

/// A record of a change: key, id, type, and the value unless it is a tombstone.
type Rendered = (String, String, String, Option<String>);

fn records(route: &str, relation: &Relation, body: &[u8]) -> Result<Vec<Rendered>, Problem> {
    let routes = Routes::parse(&DELETES.replace("ROUTE", route), |_| None).unwrap();
    let topics = Topics::new(&routes, vec![1_000_000; routes.topics.len()]);
    let plan = Plan::compile(&routes, &routes.sources[0], relation);
    if let Some(problem) = plan.problems().next() {
        return Err(problem.clone());
    }
    let mut scratch = Scratch::default();
    let row = match decode(body, &mut scratch) {
        Ok(Message::Insert { new, .. }) => Row::insert(new),
        Ok(Message::Update { old, new, .. }) => Row { op: Op::Update, new, old },
        Ok(Message::Delete { old, .. }) => Row::delete(old),
        other => panic!("{other:?}"),
    };
    let transaction =
        Transaction { cluster: "7/1".to_owned(), commit_lsn: Lsn(0x1F), rows: 3, ..Transaction::default() };
    let (mut all, mut record) = (Vec::new(), Record::default());
    for route in &plan.routes {
        let ended = route.ended(&row, &mut record)?;
        for row in ended.iter().chain([&row]) {
            for &emission in route.emissions(row.op) {
                if route.matches(row)? {
                    route.render_as(emission, row, &transaction, &topics, &mut record)?;
                    let owned = |bytes: &[u8]| text(bytes).to_owned();
                    let value = (!record.tombstone).then(|| owned(&record.value));
                    all.push((owned(&record.key), owned(&record.id), owned(&record.kind), value));
                }
            }
        }
    }
    Ok(all)
}

fn record(key: &str, id: &str, kind: &str, value: Option<&str>) -> Rendered {
    (key.to_owned(), id.to_owned(), kind.to_owned(), value.map(str::to_owned))
}

const KEY: [Option<&str>; 3] = [Some("7"), None, None];
const NEW: [Option<&str>; 3] = [Some("7"), Some("1"), Some("new")];
const PAID: [Option<&str>; 3] = [Some("7"), Some("2"), Some("paid")];

#[test]
fn a_deleted_row_is_emitted_as_its_route_says() {
    let delete = message(b'D', &[tuple(b'K', &KEY)]);
    // The WAL has only the key: the id falls back to the position, and no column is invented.
    let event = record("7", "7/1/0/1F/3/delete", "orders.gone", Some(r#"{"id":7}"#));
    let tombstone = record("7", "7/1/0/1F/3/tombstone", "orders.gone", None);
    let rendered = |route: &str| records(route, &orders(b'd'), &delete).unwrap();
    assert_eq!(rendered("deletes = \"event\""), std::slice::from_ref(&event));
    assert_eq!(rendered("deletes = \"tombstone\""), std::slice::from_ref(&tombstone));
    assert_eq!(rendered("deletes = \"both\""), [event, tombstone]);
    assert_eq!(rendered("deletes = \"ignore\""), []);
    assert_eq!(rendered("op = [\"insert\"]"), []);
    assert_eq!(rendered(""), []);
}

#[test]
fn under_identity_full_a_deleted_row_is_emitted_whole_and_with_its_own_id() {
    let delete = message(b'D', &[tuple(b'O', &PAID)]);
    let rendered = records("deletes = \"both\"", &orders(b'f'), &delete).unwrap();
    let event = Some(r#"{"id":7,"version":2,"status":"paid"}"#);
    let expected = [
        record("7", "orders/7/2/delete", "orders.gone", event),
        record("7", "orders/7/2/tombstone", "orders.gone", None),
    ];
    assert_eq!(rendered, expected);
}

#[test]
fn a_column_that_a_deleted_row_lacks_is_refused_with_the_fix() {
    let insert = insert(&NEW);
    for route in [
        "deletes = \"event\"\nkey = \"{status}\"",
        "deletes = \"event\"\ntype = \"{status}.{@op}\"",
        "deletes = \"tombstone\"\nwhen = { status = [\"paid\"] }",
        "before = true",
        "changed = [\"status\"]",
    ] {
        let problem = records(route, &orders(b'd'), &insert).unwrap_err();
        assert!(problem.0.contains("public.orders replica identity full"), "{route}: {}", problem.0);
        assert!(records(route, &orders(b'f'), &insert).is_ok(), "{route}");
    }
}

#[test]
fn an_update_of_the_key_ends_the_old_one() {
    let update = message(b'U', &[tuple(b'K', &[Some("6"), None, None]), tuple(b'N', &PAID)]);
    let rendered = records("deletes = \"tombstone\"", &orders(b'd'), &update).unwrap();
    let after = Some(r#"{"id":7,"version":2,"status":"paid"}"#);
    let changed = record("7", "orders/7/2", "orders.changed", after);
    assert_eq!(rendered, [record("6", "7/1/0/1F/3/tombstone", "orders.gone", None), changed.clone()]);
    // Only where deletes are emitted, and only if the key is another.
    assert_eq!(
        records("deletes = \"ignore\"", &orders(b'd'), &update).unwrap(),
        std::slice::from_ref(&changed)
    );
    let same = message(b'U', &[tuple(b'O', &NEW), tuple(b'N', &PAID)]);
    assert_eq!(records("deletes = \"tombstone\"", &orders(b'f'), &same).unwrap(), [changed]);
}

#[test]
fn the_row_before_stands_under_before() {
    let value = |body: &[u8]| {
        let rendered =
            records("before = true\ndeletes = \"event\"\nomit = [\"version\"]", &orders(b'f'), body).unwrap();
        rendered[0].3.clone().unwrap()
    };
    assert_eq!(value(&insert(&NEW)), r#"{"id":7,"status":"new","before":null}"#);
    let update = message(b'U', &[tuple(b'O', &NEW), tuple(b'N', &PAID)]);
    assert_eq!(value(&update), r#"{"id":7,"status":"paid","before":{"id":7,"status":"new"}}"#);
    let delete = message(b'D', &[tuple(b'O', &PAID)]);
    assert_eq!(value(&delete), r#"{"before":{"id":7,"status":"paid"}}"#);
    let omit =
        |omit: &str| records(&format!("before = true\nomit = {omit}"), &orders(b'f'), &insert(&NEW)).unwrap();
    assert_eq!(omit(r#"["id", "version", "status"]"#)[0].3.as_deref(), Some(r#"{"before":null}"#));
}

#[test]
fn conditions_decide_which_rows_are_emitted() {
    let inserted = |status: Option<&str>| insert(&[Some("7"), Some("1"), status]);
    let updated = message(b'U', &[tuple(b'O', &NEW), tuple(b'N', &PAID)]);
    let touched = message(b'U', &[tuple(b'O', &NEW), tuple(b'N', &[Some("7"), Some("2"), Some("new")])]);
    let table: &[(&str, &[u8], bool)] = &[
        ("when = { status = [\"new\", \"x\"] }", &inserted(Some("new")), true),
        ("when = { status = [\"x\"] }", &inserted(Some("new")), false),
        ("when = { status = [\"x\"] }", &inserted(None), false),
        ("when = { version = [1] }", &inserted(None), true),
        ("when = { status = { not = [\"new\"] } }", &inserted(Some("new")), false),
        ("when = { status = { not = [\"new\"] } }", &inserted(Some("x")), true),
        ("when = { status = { not = [\"new\"] } }", &inserted(None), true),
        ("when = { status = { not = [\"new\"], null = false } }", &inserted(None), false),
        ("when = { status = { null = true } }", &inserted(None), true),
        ("when = { status = { null = true } }", &inserted(Some("")), false),
        ("when = { status = { null = false } }", &inserted(Some("")), true),
        ("op = [\"insert\"]", &inserted(None), true),
        ("op = [\"insert\"]", &updated, false),
        ("op = [\"update\"]", &inserted(None), false),
        ("op = [\"insert\", \"update\"]", &updated, true),
        ("changed = [\"status\"]", &updated, true),
        ("changed = [\"status\"]", &touched, false),
        ("changed = [\"id\", \"version\"]", &touched, true),
        ("changed = [\"status\"]", &inserted(None), true),
        ("changed = [\"status\"]\nwhen = { status = [\"new\"] }", &updated, false),
    ];
    for (route, body, rendered) in table {
        let records = records(route, &orders(b'f'), body).unwrap();
        assert_eq!(records.len(), usize::from(*rendered), "{route} {body:?}");
    }
}

#[test]
fn a_boolean_is_compared_as_it_is_written() {
    let mut relation = orders(b'd');
    relation.columns[2].type_oid = 16;
    let row = insert(&[Some("7"), Some("1"), Some("t")]);
    for route in
        ["when = { status = [true] }", "when = { status = [\"true\"] }", "when = { status = [\"t\"] }"]
    {
        assert_eq!(records(route, &relation, &row).unwrap().len(), 1, "{route}");
    }
    assert!(records("when = { status = [\"yes\"] }", &relation, &row).is_err());
}

#[test]
fn a_large_value_that_the_wal_left_out_is_a_dead_letter_or_left_out() {
    // `u`: unchanged, and not in the WAL.
    let mut new = tuple(b'N', &[Some("7"), Some("2"), None]);
    *new.last_mut().unwrap() = b'u';
    let update = message(b'U', &[new]);
    let problem = records("", &orders(b'd'), &update).unwrap_err();
    assert!(problem.0.contains("replica identity full"), "{}", problem.0);
    // Its header needs it too, so that leaving it out of the object alone would not do.
    let route = "toast = \"omit\"";
    assert!(records(route, &orders(b'd'), &update).is_err());
    let routes = DELETES.replace("ROUTE", route).replace("status = \"{status|none}\", ", "");
    let routes = Routes::parse(&routes, |_| None).unwrap();
    let plan = Plan::compile(&routes, &routes.sources[0], &orders(b'd'));
    let (mut scratch, mut record) = (Scratch::default(), Record::default());
    let Ok(Message::Update { old, new, .. }) = decode(&update, &mut scratch) else { panic!("no update") };
    let row = Row { op: Op::Update, new, old };
    let topics = Topics::new(&routes, vec![1_000_000]);
    plan.routes[0].render(&row, &Transaction::default(), &topics, &mut record).unwrap();
    assert_eq!(text(&record.value), r#"{"id":7,"version":2}"#);
}

#[test]
fn a_key_of_several_columns_is_unambiguous() {
    let mut relation = orders(b'd');
    relation.columns[2].key = true;
    let rendered = records("", &relation, &insert(&[Some("7"), Some("1"), Some("a\"b/c")])).unwrap();
    assert_eq!(rendered[0].0, r#"["7","a\"b/c"]"#);
    relation.columns.iter_mut().for_each(|column| column.key = false);
    let problem = records("", &relation, &insert(&NEW)).unwrap_err();
    assert!(problem.0.contains("no primary key"), "{}", problem.0);
}

#[test]
fn a_route_may_have_a_key_of_its_own() {
    let route = "key = \"{version}\"\n[[sources.tables.routes]]\nkey = \"{status}\"\n[[sources.tables.routes]]\ntopic = \"o\"";
    let rendered = records(route, &orders(b'd'), &insert(&NEW)).unwrap();
    assert_eq!([rendered[0].0.as_str(), rendered[1].0.as_str()], ["new", "1"]);
}

#[test]
fn two_members_never_have_one_name() {
    let problem = records("rename = { id = \"status\" }", &orders(b'd'), &insert(&NEW)).unwrap_err();
    assert!(problem.0.contains("would be `status`"), "{}", problem.0);
    let problem = records("omit = [\"statu\"]", &orders(b'd'), &insert(&NEW)).unwrap_err();
    assert!(problem.0.contains("did you mean `status`"), "{}", problem.0);
}
