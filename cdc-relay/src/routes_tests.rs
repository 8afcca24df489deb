use super::*;

const SMALL: &str = r#"
[[topics]]
name = "T"
partitions = 1

[[queues]]
name = "Q"

[[sources]]
name = "s"
url = "${URL}"
slot = "slot"
publication = "p"
event_source = "/s"

[[sources.tables]]
name = "t"
key = "{id}"

[[sources.tables.routes]]
topic = "T"
type = "t.v1"
"#;

fn env(name: &str) -> Option<String> {
    (name == "URL").then(|| "postgres://x".to_owned())
}

fn error(text: &str) -> String {
    format!("{:#}", Routes::parse(text, env).unwrap_err())
}

fn changed(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from}");
    error(&SMALL.replacen(from, to, 1))
}

#[test]
fn the_routes_of_this_product_are_valid() {
    let text = include_str!("../relay.toml");
    let all = |name: &str| name.ends_with("_RELAY_URL").then(|| format!("postgres://{name}"));
    let routes = Routes::parse(text, all).unwrap();
    let names: Vec<_> = routes.sources.iter().map(|source| source.name.get_ref().as_str()).collect();
    assert_eq!(names, ["payments", "balance", "processor"]);
    assert!(routes.topic_index("PaymentTopic").is_some());
    let prefixed = |name: &str| if name == "TOPIC_PREFIX" { Some("x-".to_owned()) } else { all(name) };
    let routes = Routes::parse(text, prefixed).unwrap();
    assert!(routes.topic_index("x-PaymentTopic").is_some());
    assert_eq!(routes.relay.state_topic.get_ref(), "x-cdc-relay.state");
}

#[test]
fn variables_are_filled_in() {
    let routes = Routes::parse(SMALL, env).unwrap();
    assert_eq!(routes.sources[0].url.get_ref(), "postgres://x");
    let defaulted = SMALL.replace("${URL}", "a${NONE:-b}c${NONE:-}");
    assert_eq!(Routes::parse(&defaulted, env).unwrap().sources[0].url.get_ref(), "abc");
}

#[test]
fn an_error_names_line_and_key() {
    assert_eq!(
        changed("${URL}", "${MISSING}"),
        "line 11, `url`: the environment variable MISSING is not set"
    );
    assert_eq!(changed("${URL}", "${URL"), "line 11, `url`: `${` without `}`");
    assert_eq!(changed("\"{id}\"", "\"{id\""), "line 18, `key`: `{id` has a `{` without `}`");
    assert_eq!(changed("\"{id}\"", "\"id\""), "line 18, `key`: names no column");
    assert_eq!(changed("topic = \"T\"", "topic = \"X\""), "line 21, `topic`: `X` is not one of [[topics]]");
    assert_eq!(changed("topic = \"T\"", "queue = \"X\""), "line 21, `queue`: `X` is not one of [[queues]]");
    assert_eq!(changed("partitions = 1", "partitions = 0"), "line 3, `partitions`: must be at least 1");
    assert_eq!(
        changed("topic = \"T\"", "topic = \"T\"\nqueue = \"Q\""),
        "line 23, `topic`: a route has either `topic` or `queue`"
    );
}

#[test]
fn unknown_keys_are_refused_with_their_line() {
    let text = changed("slot = \"slot\"", "slott = \"slot\"");
    assert!(text.contains("line 12") && text.contains("unknown field `slott`"), "{text}");
    let text = changed("type = \"t.v1\"", "type = \"t.v1\"\ncast = { id = \"int\" }");
    assert!(text.contains("line 23") && text.contains("unknown variant `int`"), "{text}");
}

#[test]
fn what_order_and_safety_rest_on_cannot_be_changed() {
    for property in FIXED_PROPERTIES {
        let text = format!("[kafka]\n\"{property}\" = \"1\"\n{SMALL}");
        assert!(error(&text).contains("line 2"), "{property}");
    }
}

#[test]
fn a_body_excludes_the_options_of_the_flat_object() {
    let with_body = "type = \"t.v1\"\nomit = [\"a\"]\n[sources.tables.routes.body]\nx = \"{id}\"";
    assert!(changed("type = \"t.v1\"", with_body).contains("excludes `omit`"));
    let bad_leaf = "type = \"t.v1\"\n[sources.tables.routes.body]\nx = [1]";
    assert!(
        changed("type = \"t.v1\"", bad_leaf).contains("`x` is a array"),
        "{}",
        changed("type = \"t.v1\"", bad_leaf)
    );
}
