use super::*;
use crate::postgres::decode::pgoutput::{Column, Message, Scratch, decode};

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
fn insert(cells: &[Option<&str>]) -> Vec<u8> {
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

/// What each route of the table says of the row.
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

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_row_is_told_once_for_every_route_it_matches() {
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
fn a_row_that_a_route_does_not_name_is_not_told_there() {
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
fn a_null_key_cannot_be_told() {
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
fn an_id_by_position_of_a_row_from_a_snapshot_is_not_that_of_a_commit_at_the_same_place() {
    let snapshot = Transaction { rows: 3, ..Transaction::of_existing("7/1".to_owned(), Lsn(0x1F)) };
    let mut id = Vec::new();
    fallback_id(&snapshot, &mut id);
    assert_eq!(text(&id), "7/1/0/1F/r3");
    assert!(snapshot.re_emitted, "without a position");
}

#[test]
fn a_column_that_is_gone_is_said_for_every_row() {
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

/// A table that emits its deletes, and what the WAL has of its rows.
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

/// Everything that the route's table says of a change: key, id, type, and value or nothing.
type Said = (String, String, String, Option<String>);

fn said(route: &str, relation: &Relation, body: &[u8]) -> Result<Vec<Said>, Problem> {
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
                    route.render_as(emission, row, (&transaction, &topics), &mut record)?;
                    let owned = |bytes: &[u8]| text(bytes).to_owned();
                    let value = (!record.tombstone).then(|| owned(&record.value));
                    all.push((owned(&record.key), owned(&record.id), owned(&record.kind), value));
                }
            }
        }
    }
    Ok(all)
}

fn say(key: &str, id: &str, kind: &str, value: Option<&str>) -> Said {
    (key.to_owned(), id.to_owned(), kind.to_owned(), value.map(str::to_owned))
}

const KEY: [Option<&str>; 3] = [Some("7"), None, None];
const NEW: [Option<&str>; 3] = [Some("7"), Some("1"), Some("new")];
const PAID: [Option<&str>; 3] = [Some("7"), Some("2"), Some("paid")];

#[test]
fn a_deleted_row_is_told_as_its_route_says() {
    let delete = message(b'D', &[tuple(b'K', &KEY)]);
    // The WAL has only the key: the id falls back to the position, and no column is invented.
    let event = say("7", "7/1/0/1F/3/delete", "orders.gone", Some(r#"{"id":7}"#));
    let tombstone = say("7", "7/1/0/1F/3/tombstone", "orders.gone", None);
    let rendered = |route: &str| said(route, &orders(b'd'), &delete).unwrap();
    assert_eq!(rendered("deletes = \"event\""), std::slice::from_ref(&event));
    assert_eq!(rendered("deletes = \"tombstone\""), std::slice::from_ref(&tombstone));
    assert_eq!(rendered("deletes = \"both\""), [event, tombstone]);
    assert_eq!(rendered("deletes = \"ignore\""), []);
    assert_eq!(rendered("op = [\"insert\"]"), []);
    assert_eq!(rendered(""), []);
}

#[test]
fn under_identity_full_a_deleted_row_is_told_whole_and_with_its_own_id() {
    let delete = message(b'D', &[tuple(b'O', &PAID)]);
    let rendered = said("deletes = \"both\"", &orders(b'f'), &delete).unwrap();
    let event = Some(r#"{"id":7,"version":2,"status":"paid"}"#);
    let expected = [
        say("7", "orders/7/2/delete", "orders.gone", event),
        say("7", "orders/7/2/tombstone", "orders.gone", None),
    ];
    assert_eq!(rendered, expected);
}

#[test]
fn what_a_deleted_row_lacks_is_refused_with_the_fix() {
    let insert = insert(&NEW);
    for route in [
        "deletes = \"event\"\nkey = \"{status}\"",
        "deletes = \"event\"\ntype = \"{status}.{@op}\"",
        "deletes = \"tombstone\"\nwhen = { status = [\"paid\"] }",
        "before = true",
        "changed = [\"status\"]",
    ] {
        let problem = said(route, &orders(b'd'), &insert).unwrap_err();
        assert!(problem.0.contains("public.orders replica identity full"), "{route}: {}", problem.0);
        assert!(said(route, &orders(b'f'), &insert).is_ok(), "{route}");
    }
}

#[test]
fn an_update_of_the_key_ends_the_old_one() {
    let update = message(b'U', &[tuple(b'K', &[Some("6"), None, None]), tuple(b'N', &PAID)]);
    let rendered = said("deletes = \"tombstone\"", &orders(b'd'), &update).unwrap();
    let after = Some(r#"{"id":7,"version":2,"status":"paid"}"#);
    let changed = say("7", "orders/7/2", "orders.changed", after);
    assert_eq!(rendered, [say("6", "7/1/0/1F/3/tombstone", "orders.gone", None), changed.clone()]);
    // Only where deletes are emitted, and only if the key is another.
    assert_eq!(said("deletes = \"ignore\"", &orders(b'd'), &update).unwrap(), std::slice::from_ref(&changed));
    let same = message(b'U', &[tuple(b'O', &NEW), tuple(b'N', &PAID)]);
    assert_eq!(said("deletes = \"tombstone\"", &orders(b'f'), &same).unwrap(), [changed]);
}

#[test]
fn the_row_before_stands_under_before() {
    let value = |body: &[u8]| {
        let rendered =
            said("before = true\ndeletes = \"event\"\nomit = [\"version\"]", &orders(b'f'), body).unwrap();
        rendered[0].3.clone().unwrap()
    };
    assert_eq!(value(&insert(&NEW)), r#"{"id":7,"status":"new","before":null}"#);
    let update = message(b'U', &[tuple(b'O', &NEW), tuple(b'N', &PAID)]);
    assert_eq!(value(&update), r#"{"id":7,"status":"paid","before":{"id":7,"status":"new"}}"#);
    let delete = message(b'D', &[tuple(b'O', &PAID)]);
    assert_eq!(value(&delete), r#"{"before":{"id":7,"status":"paid"}}"#);
    let omit =
        |omit: &str| said(&format!("before = true\nomit = {omit}"), &orders(b'f'), &insert(&NEW)).unwrap();
    assert_eq!(omit(r#"["id", "version", "status"]"#)[0].3.as_deref(), Some(r#"{"before":null}"#));
}

#[test]
fn conditions_decide_which_rows_are_told() {
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
        let said = said(route, &orders(b'f'), body).unwrap();
        assert_eq!(said.len(), usize::from(*rendered), "{route} {body:?}");
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
        assert_eq!(said(route, &relation, &row).unwrap().len(), 1, "{route}");
    }
    assert!(said("when = { status = [\"yes\"] }", &relation, &row).is_err());
}

#[test]
fn a_large_value_that_the_log_left_out_is_a_dead_letter_or_left_out() {
    // `u`: unchanged, and not in the WAL.
    let mut new = tuple(b'N', &[Some("7"), Some("2"), None]);
    *new.last_mut().unwrap() = b'u';
    let update = message(b'U', &[new]);
    let problem = said("", &orders(b'd'), &update).unwrap_err();
    assert!(problem.0.contains("replica identity full"), "{}", problem.0);
    // Its header needs it too, so that leaving it out of the object alone would not do.
    let route = "toast = \"omit\"";
    assert!(said(route, &orders(b'd'), &update).is_err());
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
    let rendered = said("", &relation, &insert(&[Some("7"), Some("1"), Some("a\"b/c")])).unwrap();
    assert_eq!(rendered[0].0, r#"["7","a\"b/c"]"#);
    relation.columns.iter_mut().for_each(|column| column.key = false);
    let problem = said("", &relation, &insert(&NEW)).unwrap_err();
    assert!(problem.0.contains("no primary key"), "{}", problem.0);
}

#[test]
fn a_route_may_have_a_key_of_its_own() {
    let route = "key = \"{version}\"\n[[sources.tables.routes]]\nkey = \"{status}\"\n[[sources.tables.routes]]\ntopic = \"o\"";
    let rendered = said(route, &orders(b'd'), &insert(&NEW)).unwrap();
    assert_eq!([rendered[0].0.as_str(), rendered[1].0.as_str()], ["new", "1"]);
}

#[test]
fn two_members_never_have_one_name() {
    let problem = said("rename = { id = \"status\" }", &orders(b'd'), &insert(&NEW)).unwrap_err();
    assert!(problem.0.contains("would be `status`"), "{}", problem.0);
    let problem = said("omit = [\"statu\"]", &orders(b'd'), &insert(&NEW)).unwrap_err();
    assert!(problem.0.contains("did you mean `status`"), "{}", problem.0);
}
