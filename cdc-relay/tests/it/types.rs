//! Tests the JSON form of every type, as a real server prints it.

use crate::harness::{Harness, eventually};
use crate::kafka::{distinct, read};

/// Name, type, value in SQL, JSON.
const GOLDEN: &[(&str, &str, &str, &str)] = &[
    ("bool", "boolean", "true", "true"),
    ("int2", "smallint", "-32768", "-32768"),
    ("int4", "integer", "2147483647", "2147483647"),
    ("int8", "bigint", "9223372036854775807", "9223372036854775807"),
    ("float4", "real", "0.1", "0.1"),
    ("float8", "double precision", "'-Infinity'", r#""-Infinity""#),
    ("float8_small", "double precision", "1e-7", "1e-07"),
    (
        "numeric",
        "numeric",
        "12345678901234567890.123456789012345678900",
        "12345678901234567890.123456789012345678900",
    ),
    ("numeric_nan", "numeric", "'NaN'", r#""NaN""#),
    ("timestamptz", "timestamptz", "'2026-11-23 01:02:03.4+02'", r#""2026-11-22T23:02:03.400000Z""#),
    ("timestamptz_inf", "timestamptz", "'infinity'", r#""infinity""#),
    ("timestamptz_bc", "timestamptz", "'0044-03-15 00:00:00+00 BC'", r#""0044-03-15 00:00:00+00 BC""#),
    ("timestamp", "timestamp", "'2026-11-23 01:02:03'", r#""2026-11-23T01:02:03.000000""#),
    ("date", "date", "'2026-11-23'", r#""2026-11-23""#),
    ("time", "time", "'01:02:03.4'", r#""01:02:03.4""#),
    ("timetz", "timetz", "'01:02:03+02'", r#""01:02:03+02""#),
    ("interval", "interval", "'1 year 2 mons -3 days 04:05:06.7'", r#""P1Y2M-3DT4H5M6.7S""#),
    ("uuid", "uuid", "'0196F1D2-0000-7000-8000-000000000001'", r#""0196f1d2-0000-7000-8000-000000000001""#),
    ("json", "json", r#"'{"b":1, "b":[null]}'"#, r#"{"b":1, "b":[null]}"#),
    ("jsonb", "jsonb", r#"'{"b":1.50,"a":"\"é"}'"#, r#"{"a": "\"é", "b": 1.50}"#),
    ("bytea", "bytea", r"'\x00ff10'", r#""AP8Q""#),
    ("text", "text", r#"E'"\\\n\u0001é'"#, r#""\"\\\n\u0001é""#),
    ("bpchar", "char(3)", "'a'", r#""a  ""#),
    ("varchar", "varchar(9)", "''", r#""""#),
    ("name", "name", "'n'", r#""n""#),
    ("one_char", r#""char""#, "'c'", r#""c""#),
    ("enum", "mood", "'so so'", r#""so so""#),
    ("domain_int", "positive", "7", "7"),
    ("domain_of_domain", "very_positive", "8", "8"),
    ("domain_jsonb", "document", "'[1]'", "[1]"),
    ("money", "money", "'1234.5'", r#""$1,234.50""#),
    ("inet", "inet", "'10.0.0.1/8'", r#""10.0.0.1/8""#),
    ("cidr", "cidr", "'10.0.0.0/8'", r#""10.0.0.0/8""#),
    ("macaddr", "macaddr", "'08:00:2b:01:02:03'", r#""08:00:2b:01:02:03""#),
    ("bit", "bit(3)", "B'101'", r#""101""#),
    ("varbit", "varbit", "B'01'", r#""01""#),
    ("xml", "xml", "'<a b=\"c\"/>'", r#""<a b=\"c\"/>""#),
    ("oid", "oid", "4294967295", "4294967295"),
    ("xid8", "xid8", "'18446744073709551615'", "18446744073709551615"),
    ("pg_lsn", "pg_lsn", "'0/16B3748'", r#""0/16B3748""#),
    ("point", "point", "'(1,2)'", r#""(1,2)""#),
    ("tsvector", "tsvector", "'a:1 b:2'", r#""'a':1 'b':2""#),
    ("int4range", "int4range", "'[1,3)'", r#""[1,3)""#),
    ("tstzrange", "tstzrange", "'[2026-11-23 00:00+00,)'", r#""[\"2026-11-23 00:00:00+00\",)""#),
    ("composite", "pair", r#"row(1, 'a"b')"#, r#""(1,\"a\"\"b\")""#),
    ("int2vector", "int2vector", "'1 2'", r#""1 2""#),
    ("nothing", "text", "null", "null"),
    ("int_array", "int[]", "'{1,NULL,-3}'", "[1,null,-3]"),
    ("empty_array", "int[]", "'{}'", "[]"),
    ("nested_array", "bigint[]", "'{{1,2},{3,9223372036854775807}}'", "[[1,2],[3,9223372036854775807]]"),
    ("bounded_array", "int[]", "'[0:1]={1,2}'", "[1,2]"),
    ("numeric_array", "numeric[]", "'{1.50,NaN}'", r#"[1.50,"NaN"]"#),
    ("bool_array", "bool[]", "'{t,f}'", "[true,false]"),
    (
        "timestamptz_array",
        "timestamptz[]",
        "'{2026-11-23 01:02:03+00,infinity}'",
        r#"["2026-11-23T01:02:03.000000Z","infinity"]"#,
    ),
    ("date_array", "date[]", "'{2026-11-23}'", r#"["2026-11-23"]"#),
    ("interval_array", "interval[]", "'{1 day}'", r#"["P1D"]"#),
    (
        "uuid_array",
        "uuid[]",
        "'{0196f1d2-0000-7000-8000-000000000001}'",
        r#"["0196f1d2-0000-7000-8000-000000000001"]"#,
    ),
    (
        "jsonb_array",
        "jsonb[]",
        r#"array['{"a":"x\"y"}', 'null', null]::jsonb[]"#,
        r#"[{"a": "x\"y"},null,null]"#,
    ),
    ("bytea_array", "bytea[]", r"array['\x00ff10', '\x']::bytea[]", r#"["AP8Q",""]"#),
    (
        "text_array",
        "text[]",
        r#"array['a b', '', 'NULL', null, 'q"\', '{,}']"#,
        r#"["a b","","NULL",null,"q\"\\","{,}"]"#,
    ),
    ("varchar_array", "varchar(9)[]", "'{a,b}'", r#"["a","b"]"#),
    ("inet_array", "inet[]", "'{10.0.0.1}'", r#"["10.0.0.1"]"#),
    ("box_array", "box[]", "'{(1,1),(0,0);(2,2),(1,1)}'", r#"["(1,1),(0,0)","(2,2),(1,1)"]"#),
    ("enum_array", "mood[]", "'{good,\"so so\"}'", r#"["good","so so"]"#),
    ("domain_array", "positive[]", "'{1,2}'", "[1,2]"),
    ("composite_array", "pair[]", "array[row(1, 'x')::pair]", r#"["(1,x)"]"#),
    ("range_array", "int4range[]", "array['[1,3)'::int4range]", r#"["[1,3)"]"#),
];

const TYPES: &str = "
    create type mood as enum ('good', 'so so');
    create domain positive as bigint check (value > 0);
    create domain very_positive as positive check (value > 5);
    create domain document as jsonb;
    create type pair as (a int, b text);";

fn create_table() -> String {
    let columns: Vec<String> = GOLDEN.iter().map(|(name, kind, _, _)| format!("\"{name}\" {kind}")).collect();
    format!("create table all_types (id int primary key, {})", columns.join(", "))
}

fn insert(id: u32) -> String {
    let values: Vec<&str> = GOLDEN.iter().map(|(_, _, value, _)| *value).collect();
    format!("insert into all_types values ({id}, {})", values.join(", "))
}

fn golden(id: u32) -> String {
    let members: Vec<String> = GOLDEN.iter().map(|(name, _, _, json)| format!("\"{name}\":{json}")).collect();
    format!("{{\"id\":{id},{}}}", members.join(","))
}

/// The shortest routes file there is; topics, slot and publication are the relay's own.
fn shortest(harness: &Harness, table: &str) -> String {
    let name = &harness.name;
    format!(
        "[relay]\nstate_topic = \"{name}.state\"\ndead_letter_topic = \"{name}.dead\"\n\n\
         [[sources]]\nname = \"{name}\"\nslot = \"{name}\"\nurl = \"${{IT_URL}}\"\ntables = [{table}]\n"
    )
}

#[tokio::test]
async fn every_type_is_emitted_in_its_json_form() {
    let mut harness = Harness::bare("types").await;
    harness.sql.batch_execute(TYPES).await.expect("types");
    harness.sql.batch_execute(&create_table()).await.expect("table");
    harness.routes(&shortest(&harness, "{ name = \"all_types\" }"));
    let relay = harness.streaming().await;
    harness.sql.batch_execute(&insert(1)).await.expect("insert");
    let events = distinct(&format!("{}.all_types", harness.name), 1).await;
    let event = &events[0];
    serde_json::from_str::<serde_json::Value>(&event.value).expect("JSON");
    // Member by member first, so that a difference is easy to read.
    for (emitted, expected) in event.value.split(",\"").zip(golden(1).split(",\"")) {
        assert_eq!(emitted, expected);
    }
    assert_eq!(event.value, golden(1));
    assert_eq!((event.key.as_str(), event.header("ce_type")), ("1", "all_types.insert"));
    assert_eq!(event.header("ce_source"), format!("/{}", harness.name));

    // A type that did not exist when the session began is looked up when its table is announced.
    harness
        .sql
        .batch_execute(
            "create domain later as int[]; alter table all_types add column later later;
             create type hue as enum ('red'); alter table all_types add column hues hue[];
             update all_types set later = '{1,2}', hues = '{red}' where id = 1",
        )
        .await
        .expect("a new column");
    let events = distinct(&format!("{}.all_types", harness.name), 2).await;
    let json =
        events.iter().find(|event| event.header("ce_type") == "all_types.update").expect("update").json();
    assert_eq!(
        (json["later"].to_string(), json["hues"].to_string()),
        ("[1,2]".to_owned(), "[\"red\"]".to_owned())
    );
    drop(relay);
}

const ORDERS: &str = "
    create table orders (id bigint primary key, status text not null, note text);
    alter table orders replica identity full;";

#[tokio::test]
async fn deletes_and_old_rows_are_emitted_and_counted() {
    let mut harness = Harness::bare("deletes").await;
    harness.sql.batch_execute(ORDERS).await.expect("table");
    harness.routes(&shortest(
        &harness,
        "{ name = \"orders\", id = \"o/{id}/{status}\", deletes = \"both\", before = true }",
    ));
    let relay = harness.streaming().await;
    for transaction in [
        "insert into orders values (1, 'new')",
        "update orders set status = 'paid'",
        "update orders set id = 2",
        "delete from orders; insert into orders values (2, 'again')",
    ] {
        harness.sql.batch_execute(transaction).await.expect("changes");
    }
    let topic = format!("{}.orders", harness.name);
    let events = distinct(&topic, 8).await;
    let mut emitted: Vec<(&str, &str, &str, &str)> = events
        .iter()
        .map(|event| {
            (event.key.as_str(), event.header("ce_id"), event.header("ce_type"), event.value.as_str())
        })
        .collect();
    let paid = r#"{"id":1,"status":"paid","note":null}"#;
    let moved = r#"{"id":2,"status":"paid","note":null}"#;
    let expected = [
        ("1", "o/1/new", "orders.insert", r#"{"id":1,"status":"new","note":null,"before":null}"#.to_owned()),
        (
            "1",
            "o/1/paid",
            "orders.update",
            format!("{},\"before\":{{\"id\":1,\"status\":\"new\",\"note\":null}}}}", &paid[..paid.len() - 1]),
        ),
        ("1", "o/1/paid/delete", "orders.delete", format!("{{\"before\":{paid}}}")),
        ("1", "o/1/paid/tombstone", "orders.delete", String::new()),
        ("2", "o/2/paid", "orders.update", format!("{},\"before\":{paid}}}", &moved[..moved.len() - 1])),
        ("2", "o/2/paid/delete", "orders.delete", format!("{{\"before\":{moved}}}")),
        ("2", "o/2/paid/tombstone", "orders.delete", String::new()),
        (
            "2",
            "o/2/again",
            "orders.insert",
            r#"{"id":2,"status":"again","note":null,"before":null}"#.to_owned(),
        ),
    ];
    let mut expected: Vec<(&str, &str, &str, &str)> =
        expected.iter().map(|(a, b, c, d)| (*a, *b, *c, d.as_str())).collect();
    emitted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(emitted, expected);
    // Deletes are part of the chain, and of what is confirmed.
    assert_eq!(crate::kafka::chain(&events), 4);
    harness.confirmed().await;
    drop(relay);
}

#[tokio::test]
async fn a_delete_that_cannot_be_emitted_becomes_a_dead_letter_with_the_known_columns() {
    let mut harness = Harness::bare("undeleted").await;
    harness
        .sql
        .batch_execute("create table orders (id bigint primary key, status text)")
        .await
        .expect("table");
    harness
        .sql
        .batch_execute("create publication events for table orders with (publish = 'insert, update, delete')")
        .await
        .expect("publication");
    let routes = shortest(
        &harness,
        "{ name = \"orders\", type = \"order.{@op}\", id = \"{id}/{status}\", deletes = \"event\" }",
    )
    .replace("tables =", "publication = \"events\"\ntables =")
    .replace("[relay]", "[relay]\nmax_record_bytes = 500");
    harness.routes(&routes);
    let relay = harness.streaming().await;
    let large = "insert into orders values (1, repeat('x', 400)); delete from orders; insert into orders values (2, 'x')";
    harness.sql.batch_execute(large).await.expect("rows");
    let dead = eventually("two dead letters", || async {
        let dead_letters = read(&harness.dead_letter_topic());
        (dead_letters.len() >= 2)
            .then(|| dead_letters.iter().map(crate::kafka::Event::json).collect::<Vec<_>>())
    })
    .await;
    assert_eq!(dead[0]["op"], "insert");
    // The delete follows the row of its key that could not be emitted.
    assert_eq!((&dead[1]["op"], &dead[1]["key"]), (&"delete".into(), &"1".into()));
    assert_eq!(dead[1]["row"], serde_json::json!({"id": "1"}));
    assert!(dead[1]["reason"].as_str().is_some_and(|reason| reason.contains("follows")), "{}", dead[1]);
    let topic = format!("{}.orders", harness.name);
    assert_eq!(distinct(&topic, 1).await[0].key, "2");
    harness.confirmed().await;
    // With room for the row, the key goes on: the row, then its end.
    relay.stop().await;
    harness.routes(&routes.replace("max_record_bytes = 500", ""));
    let relay = harness.streaming().await;
    let released = harness.command("release").arg("--all").output().expect("the program");
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    let of_the_key: Vec<String> = distinct(&topic, 3)
        .await
        .iter()
        .filter(|event| event.key == "1")
        .map(|event| event.header("ce_type").to_owned())
        .collect();
    assert_eq!(of_the_key, ["order.insert", "order.delete"]);
    drop(relay);
}

#[tokio::test]
async fn deletes_that_nobody_said_anything_about_are_refused_before_streaming() {
    let mut harness = Harness::new("unsaid").await;
    harness
        .sql
        .batch_execute("alter publication events set (publish = 'insert, update, delete')")
        .await
        .expect("alter");
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("publishes deletes or truncates, which the relay does not emit"), "{report}");
    assert!(report.contains("`deletes`): public.items"), "{report}");
    drop(relay);
    // With `deletes` or `op` on every route the source streams, and then the publication has to publish deletes.
    let routes = harness
        .default_routes()
        .replace("type = \"item.{kind}.v1\"", "type = \"item.{@op}.v1\"\ndeletes = \"event\"")
        .replace("type = \"item.work.v1\"", "type = \"item.work.v1\"\nop = [\"insert\", \"update\"]");
    harness.routes(&routes);
    let relay = harness.streaming().await;
    relay.kill();
    harness
        .sql
        .batch_execute("alter publication events set (publish = 'insert, update')")
        .await
        .expect("alter");
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("does not publish"), "{report}");
    drop(relay);
}

/// Domains, arrays of them, enums and what else only the catalog knows.
#[tokio::test]
async fn tail_prints_the_values_that_are_on_kafka() {
    let mut harness = crate::harness::Harness::bare("tail_types").await;
    let tables = "create type mood as enum ('calm', 'wild'); create domain score as numeric(6,2);
                  create domain scores as int[]; create type pair as (a int, b text);
                  create table values_of (id int primary key, m mood, ms mood[], s score, ss score[], d scores,
                      p pair, ps pair[], n numeric, f float8, j json, b jsonb, t timestamptz, l timestamp, y bytea,
                      i interval, c \"char\", r int4range, o oid, v int2vector)";
    harness.sql.batch_execute(tables).await.expect("tables");
    crate::names::routes(&harness, "tables = [{ name = \"values_of\" }]");
    let relay = harness.streaming().await;
    let mut tail = harness.command("tail");
    let tail = tail.args([&harness.url, "--json", "--limit", "1"]).stdout(std::process::Stdio::piped());
    let tail = tail.stderr(std::process::Stdio::piped()).spawn().expect("tail");
    crate::harness::eventually("a tail that reads", || async {
        let query = "select 1 from pg_replication_slots where slot_name like 'cdc_relay_tail%'
                     and active and confirmed_flush_lsn is not null and database = current_database()";
        (!harness.sql.query(query, &[]).await.expect("slots").is_empty()).then_some(())
    })
    .await;
    let insert = "insert into values_of values (1, 'calm', '{calm,wild}', 1.50, '{1.5,2}', '{1,2}', '(1,x)',
                  array[row(1,'x y')::pair], 'NaN', 'infinity', '{\"a\" : 1}', '[1]', '2026-01-02 03:04:05+00',
                  '2026-01-02 03:04:05', '\\x00ff', '1 day 2 hours', 'c', '[1,3)', 7, '1 2')";
    harness.sql.batch_execute(insert).await.expect("a row");
    let output = tail.wait_with_output().expect("tail");
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
    let emitted = crate::names::arrived(&format!("{}.values_of", harness.name), 1).await[0].json();
    assert_eq!(shown["after"], emitted);
    drop(relay);
}
