//! Tests literals in `when` and `names` that Postgres prints differently: such a condition never holds.

use crate::harness::Harness;
use crate::kafka::distinct;
use crate::release::{cdc_relay, text};

const SCHEMA: &str = "
    create type mood as enum ('fine', 'so so');
    create domain code as char(4);
    create domain flag as boolean;
    create table orders (
        id bigint primary key, version int not null default 1, status char(10), price numeric(10,2), at timestamptz,
        ok boolean, feeling mood, ref uuid, span interval, share real, doc jsonb, raw bytea, place inet, code code,
        short varchar(3), amount int, bits bit(5), noon timestamp(0), days interval day, several varchar(3)[],
        codes code[], flag flag, moods mood[], kin regclass);
    create publication events for table orders with (publish = 'insert, update');";

/// Column, literal of the routes, and the server's text for it: `None` where the server never prints that literal.
const WRITTEN: &[(&str, &str, Option<&str>)] = &[
    ("status", "paid", Some("paid      ")),
    ("price", "1", Some("1.00")),
    ("at", "2026-11-23T01:02:03Z", Some("2026-11-23 01:02:03+00")),
    ("feeling", "sad", None),
    ("ref", "0196F1D2-0000-7000-8000-000000000001", Some("0196f1d2-0000-7000-8000-000000000001")),
    ("span", "1 day", Some("P1D")),
    ("share", "0.10", Some("0.1")),
    ("doc", "{'a':1}", Some("{\"a\": 1}")),
    ("raw", "\\xAB", Some("\\xab")),
    ("place", "10.0.0.1/32", Some("10.0.0.1")),
    ("code", "x", Some("x   ")),
    ("amount", "many", None),
    ("amount", "007", Some("7")),
];

/// Column, its type, and a literal that it cannot hold without losing a part.
const CUT: &[(&str, &str, &str)] = &[
    ("status", "character(10)", "much longer than"),
    ("short", "character varying(3)", "longer"),
    ("code", "public.code", "longer"),
    ("bits", "bit(5)", "101"),
    ("price", "numeric(10,2)", "1.005"),
    ("noon", "timestamp(0) without time zone", "2026-11-23 01:02:03.5"),
    ("days", "interval day", "1 day 3 hours"),
    ("several", "character varying(3)[]", "{longer}"),
];

/// A string in TOML.
fn toml(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// One route for each, with its own event type.
fn routes(harness: &Harness, values: &[(&str, String)], names: &str) {
    let topic = harness.topic();
    let mut tables = format!("[[sources.tables]]\nname = \"orders\"\n{names}\n");
    for (n, (column, value)) in values.iter().enumerate() {
        let not =
            if n % 2 == 1 { format!("{{ not = [{}] }}", toml(value)) } else { format!("[{}]", toml(value)) };
        tables += &format!(
            "[[sources.tables.routes]]\ntopic = \"{topic}\"\ntype = \"by-{n}\"\nwhen = {{ {column} = {not} }}\n"
        );
    }
    harness.routes_of("", &tables);
}

#[tokio::test]
async fn a_literal_that_is_never_printed_is_refused_with_the_form_to_write() {
    let mut harness = Harness::bare("literals").await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    let written = |text: &str| text.replace('\'', "\"");
    let values: Vec<(&str, String)> =
        WRITTEN.iter().map(|(column, text, _)| (*column, written(text))).collect();
    routes(&harness, &values, "names = { status = { open = \"offen\" } }");
    let relay = harness.start();
    let report = relay.state("refused").await;
    let report = report.replace("\\\"", "\"").replace("\\\\", "\\");
    let doctor =
        text(&cdc_relay(&harness, &["doctor", "--json"])).replace("\\\"", "\"").replace("\\\\", "\\");
    for (column, text, printed) in WRITTEN {
        let found = match printed {
            Some(printed) => {
                format!("{column} with `{}`, which Postgres prints as `{printed}`", written(text))
            }
            None => format!("{column} with `{text}`, which the column never holds"),
        };
        assert!(report.contains(&found), "{found}: {report}");
        assert!(doctor.contains(&found), "{found}: {doctor}");
    }
    assert!(report.contains("`names` of public.orders"), "{report}");
    assert!(report.contains("`open`, which Postgres prints as `open      `"), "{report}");
    drop(relay);
}

/// The condition it prevents: one on the part of the literal that a cast leaves, which nobody wrote.
#[tokio::test]
async fn a_literal_that_does_not_fit_the_column_is_refused_and_its_beginning_is_no_advice() {
    let mut harness = Harness::bare("cut").await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    let mut values: Vec<(&str, String)> =
        CUT.iter().map(|(column, _, text)| (*column, (*text).to_owned())).collect();
    values.extend([("codes", "{longer}".to_owned()), ("moods", "{sad}".to_owned())]);
    values.extend([("feeling", "finne".to_owned()), ("kin", "nobody".to_owned())]);
    routes(&harness, &values, "");
    let relay = harness.start();
    let report = relay.state("refused").await;
    let doctor = text(&cdc_relay(&harness, &["doctor", "--json"]));
    for (column, kind, text) in CUT {
        let found = format!(
            "{column} with `{text}`, which the column never holds: {column} is {kind}, and `{text}` can never be stored"
        );
        assert!(report.contains(&found), "{found}: {report}");
        assert!(doctor.contains(&found), "{found}: {doctor}");
    }
    assert!(!report.contains("write `"), "{report}");
    for part in [
        "codes with `{longer}`, which the column never holds",
        "`fine`, `so so`",
        "mean `fine`?",
        "kin with `nobody`",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
}

/// Values that are equal in SQL may be printed in several ways, and only one of them is the literal.
#[tokio::test]
async fn a_literal_that_equal_values_may_be_printed_otherwise_than_is_pointed_out() {
    let mut harness = Harness::bare("spelling").await;
    let schema = SCHEMA.replace("numeric(10,2)", "numeric");
    harness.sql.batch_execute(&schema).await.expect("schema");
    let values = [("price", "1"), ("span", "P1D"), ("short", "abc"), ("amount", "7")];
    let values: Vec<(&str, String)> = values.iter().map(|(c, text)| (*c, (*text).to_owned())).collect();
    routes(&harness, &values, "");
    let doctor = text(&cdc_relay(&harness, &["doctor", "--json"]));
    for part in ["compares price with `1`", "compares span with `P1D`", "routes.literal_spelling"] {
        assert!(doctor.contains(part), "{part}: {doctor}");
    }
    for part in ["compares short", "compares amount"] {
        assert!(!doctor.contains(part), "{part}: {doctor}");
    }
    let relay = harness.streaming().await;
    drop(relay);
}

#[tokio::test]
async fn the_form_that_is_named_matches() {
    let mut harness = Harness::bare("forms").await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    let mut values: Vec<(&str, String)> = Vec::new();
    for (column, _, printed) in WRITTEN {
        // Conditions of inclusion only: those at odd positions exclude.
        values.extend(printed.map(|printed| (*column, printed.to_owned())));
        values.extend(printed.map(|_| ("flag", "true".to_owned())));
    }
    let names = "names = { status = { \"paid      \" = \"bezahlt\" }, ok = { true = \"ja\", false = \"nein\" } }\n\
                 subject = \"{status}-{ok}\"";
    routes(&harness, &values, names);
    let relay = harness.streaming().await;
    harness.sql
        .batch_execute(
            "insert into orders values (1, 1, 'paid', 1, '2026-11-23 01:02:03+00', false, 'fine',
               '0196f1d2-0000-7000-8000-000000000001', '24 hours'::interval, 0.1, '{\"a\":1}', '\\xab', '10.0.0.1', 'x',
               'lon', 7, '10100', null, null, null, null, false, null);
             update orders set span = '1 day', version = 2",
        )
        .await
        .expect("a row");
    let emitted = distinct(&harness.topic(), 2).await;
    let mut kinds: Vec<&str> = emitted.iter().map(|event| event.header("ce_type")).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), values.len(), "{kinds:?}");
    assert!(emitted.iter().all(|event| event.header("ce_subject") == "bezahlt-nein"));
    drop(relay);
}
