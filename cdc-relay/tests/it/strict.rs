//! Tests values that strict readers refuse.
//!
//! * serde_json (numbers that fit a double, 127 levels) and jq read each record and each dead letter, whatever a json, jsonb
//!   or numeric column holds.
//! * Each value keeps what these readers can hold.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Harness, eventually};
use crate::kafka::{Event, read};

/// Type, value in SQL, and the value for a reader.
const VALUES: &[(&str, &str, &str)] = &[
    // As it stands.
    ("json", r#"'{"a":"\ud83d\ude00","b":[1.50,-0,1E5]}'"#, r#"{"a":"😀","b":[1.5,-0.0,100000.0]}"#),
    ("json", r#"'{"a":"\u0000\u001f\\ud800"}'"#, r#"{"a":"\u0000\u001f\\ud800"}"#),
    // Half of a surrogate pair, in values and names.
    ("json", r#"'{"a":"x\ud800y"}'"#, r#"{"a":"x\ufffdy"}"#),
    ("json", r#"'["\udc00\ud800","\ud800\ud800\udc00"]'"#, r#"["\ufffd\ufffd","\ufffd\ud800\udc00"]"#),
    ("json", r#"'{"\uDFFF":1}'"#, r#"{"\ufffd":1}"#),
    ("json[]", r#"array['"\ud800"'::json]"#, r#"["\ufffd"]"#),
    // Numbers that no double holds.
    ("json", "'[1e400, -1e400, 1e-400]'", r#"["1e400","-1e400",0.0]"#),
    ("json", "('[' || repeat('9', 309) || ']')::json", "[\"9*309\"]"),
    ("jsonb", "('{\"n\":' || repeat('9', 400) || '.5}')::jsonb", "{\"n\":\"9*400.5\"}"),
    ("numeric", "repeat('9', 309)::numeric", "\"9*309\""),
    ("numeric", "(repeat('9', 309) || '.5')::numeric", "\"9*309.5\""),
    ("numeric[]", "array[repeat('9', 400)::numeric, 1]", "[\"9*400\",1]"),
    // Longer than Jackson reads a number.
    ("numeric", "('0.' || repeat('3', 1200))::numeric", "\"0.3*1200\""),
    ("json", "('0.' || repeat('3', 1200))::json", "\"0.3*1200\""),
    ("json", "'1e99999999999'", "\"1e99999999999\""),
    ("json", "'0e99999999999'", "\"0e99999999999\""),
    // A name longer than Jackson takes.
    ("jsonb", "('{\"' || repeat('n', 50001) || '\":1}')::jsonb", "\"{\\\"n*50001\\\": 1}\""),
    // Deeper than serde_json reads.
    ("json", "(repeat('[', 200) || repeat(']', 200))::json", "\"[*200]*200\""),
    ("jsonb", "(repeat('[', 200) || repeat(']', 200))::jsonb", "\"[*200]*200\""),
    (
        "json",
        "'\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"'",
        "\"[*127\"",
    ),
];

/// `9*3` stands for 999.
fn expanded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if rest.peek() == Some(&'*') {
            rest.next();
            let mut count = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                count.push(digit);
            }
            out.extend(std::iter::repeat_n(c, count.parse().expect("a count")));
        } else {
            out.push(c);
        }
    }
    out
}

/// The value as jq reads it, where jq is installed.
fn by_jq(values: &[&str]) -> Option<String> {
    let child = Command::new("jq").args(["-c", "."]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.ok()?;
    let mut input = child.stdin.take().expect("stdin");
    let text = values.join("\n");
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("jq");
    writer.join().expect("thread").expect("written");
    assert!(output.status.success(), "jq refuses a record");
    Some(String::from_utf8(output.stdout).expect("UTF-8"))
}

#[tokio::test]
async fn every_record_is_read_by_strict_readers_and_keeps_what_it_can() {
    let mut harness = Harness::bare("strict").await;
    let columns: Vec<String> =
        VALUES.iter().enumerate().map(|(n, (kind, _, _))| format!("c{n} {kind}")).collect();
    let values: Vec<&str> = VALUES.iter().map(|(_, value, _)| *value).collect();
    let schema = format!(
        "create table items (id bigint primary key, {});
         create publication events for table items with (publish = 'insert, update')",
        columns.join(", ")
    );
    harness.sql.batch_execute(&schema).await.expect("schema");
    let routes = harness.default_routes();
    let (head, _) = routes.split_once("key = ").expect("routes");
    harness.routes(&format!(
        "{head}\n[[sources.tables.routes]]\ntopic = \"{0}.items\"\ntype = \"item\"\n\n\
         [[sources.tables.routes]]\ntopic = \"{0}.items\"\ntype = \"whole\"\n\
         [sources.tables.routes.body.payload]\nvalue = \"{{c2:json}}\"\n",
        harness.name
    ));
    let relay = harness.streaming().await;
    let insert = format!("insert into items values (1, {})", values.join(", "));
    harness.sql.batch_execute(&insert).await.expect("a row");
    let topic = harness.topic();
    let events: Vec<Event> = eventually("both records", || async {
        let events = read(&topic);
        (events.len() >= 2).then_some(events)
    })
    .await;
    let values: Vec<&str> = events.iter().map(|event| event.value.as_str()).collect();
    for value in &values {
        serde_json::from_str::<serde_json::Value>(value).unwrap_or_else(|error| panic!("{error}: {value}"));
    }
    let record = events.iter().find(|event| event.header("ce_type") == "item").expect("the row").json();
    for (n, (kind, value, expected)) in VALUES.iter().enumerate() {
        let expected: serde_json::Value = serde_json::from_str(&expanded(expected)).expect("JSON");
        assert_eq!(record[format!("c{n}")], expected, "{kind} {value}");
    }
    if let Some(read) = by_jq(&values) {
        assert_eq!(read.lines().count(), values.len());
    }
    drop(relay);
}
