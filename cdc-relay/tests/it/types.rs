//! Tests the JSON form of every type, as a real server prints it.

use crate::harness::Harness;
use crate::kafka::distinct;

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
pub fn shortest(harness: &Harness, table: &str) -> String {
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
    let mut tail = tail.stderr(std::process::Stdio::piped()).spawn().expect("tail");
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
    crate::harness::ended(&mut tail).await;
    let output = tail.wait_with_output().expect("tail");
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
    let emitted = crate::names::arrived(&format!("{}.values_of", harness.name), 1).await[0].json();
    assert_eq!(shown["after"], emitted);
    drop(relay);
}
