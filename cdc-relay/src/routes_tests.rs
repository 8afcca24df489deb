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
fn an_error_names_its_place_and_key() {
    let table = [
        ("${URL}", "${MISSING}", "routes:11:7: url: the environment variable MISSING is not set"),
        ("${URL}", "${URL", "routes:11:7: url: `${` without `}`"),
        ("\"{id}\"", "\"{id\"", "routes:18:7: key: `{id` has a `{` without `}`"),
        ("\"{id}\"", "\"id\"", "routes:18:7: key: names no column"),
        ("\"{id}\"", "\"{@op}\"", "routes:18:7: key: names no column"),
        ("\"{id}\"", "\"{@tabel}\"", "routes:18:7: key: `{@tabel}` is not known (did you mean `@table`?)"),
        ("topic = \"T\"", "topic = \"X\"", "routes:21:9: topic: `X` is not one of [[topics]]"),
        (
            "topic = \"T\"",
            "queue = \"q\"",
            "routes:21:9: queue: `q` is not one of [[queues]] (did you mean `Q`?)",
        ),
        ("partitions = 1", "partitions = 0", "routes:4:14: partitions: must be at least 1"),
        (
            "partitions = 1",
            "partitions = \"1\"",
            "routes:4:14: partitions: must be a whole number, and is text",
        ),
        (
            "name = \"T\"",
            "name = \"a b\"",
            "routes:3:8: name: `a b` is no topic name: up to 249 letters, digits, `.`, `_` and `-`",
        ),
        (
            "slot = \"slot\"",
            "slot = \"Slot\"",
            "routes:12:8: slot: `Slot` is no slot name: up to 63 lower-case letters, digits and `_`",
        ),
        (
            "slot = \"slot\"",
            "slott = \"slot\"",
            "routes:12:1: slott: there is no such key in [sources] (did you mean `slot`?)",
        ),
        ("url = \"${URL}\"", "", "routes:9:1: url: is missing"),
        (
            "event_source = \"/s\"",
            "ignore = [\"public.t\"]",
            "routes:14:11: ignore: `public.t` is also emitted, under `tables`",
        ),
        (
            "name = \"T\"",
            "name = \"cdc-relay.state\"",
            "routes:3:8: name: `cdc-relay.state` is the relay's own state_topic",
        ),
        (
            "key = \"{id}\"",
            "key = \"{id}\"\nheaders = { CE_id = \"{id}\" }",
            "routes:19:21: CE_id: is a header that the relay writes itself",
        ),
    ];
    for (from, to, expected) in table {
        let found = changed(from, to);
        assert!(found.lines().any(|line| line == expected), "{to}:\n{found}\nrather than\n{expected}");
    }
}

#[test]
fn a_pattern_needs_a_publication_that_grows() {
    let pattern = SMALL.replacen("name = \"t\"", "name = \"audit.*\"", 1);
    assert!(Routes::parse(&pattern, env).is_ok());
    let found = error(&pattern.replacen("publication = \"p\"\n", "", 1));
    assert!(found.contains("is a pattern, and the relay's own publication has only the tables"), "{found}");
}

/// Adds keys to the route.
fn route(keys: &str) -> String {
    changed("type = \"t.v1\"", &format!("type = \"t.v1\"\n{keys}"))
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let table = [
        ("queue = \"Q\"", "23:9: queue: a route has either `topic` or `queue`"),
        ("omit = [\"a\"]\nrename = { a = \"b\" }", "24:16: rename: column `a` is omitted"),
        ("omit = [\"a\"]\ncast = { a = \"text\" }", "24:14: cast: column `a` is omitted"),
        ("rename = { a = \"c\", b = \"c\" }", "23:25: rename: `c` is there twice"),
        ("cast = { id = \"nubmer\" }", "23:15: id: `nubmer` is not one of"),
        ("when = { a = [] }", "23:14: when.a: is an empty list"),
        ("when = { a = \"x\" }", "23:14: when.a: must be a list of values"),
        ("when = { a = [1.5] }", "23:15: when.a: must be text, and is a number"),
        (
            "when = { a = { nott = [\"x\"] } }",
            "23:16: nott: there is no such key in [when.column] (did you mean `not`?)",
        ),
        ("when = { a = { not = [\"x\"], null = true } }", "23:23: when.a: a value that is null is never"),
        ("op = []", "23:6: op: is empty"),
        ("op = [\"upsert\"]", "23:7: op: `upsert` is not one of `insert`, `update`, `delete`"),
        ("op = [\"delete\"]", "23:7: op: lists `delete`: say how it is emitted"),
        ("op = [\"insert\"]\ndeletes = \"tombstone\"", "deletes: emits deletes, which `op` leaves out"),
        ("op = [\"insert\"]\nchanged = [\"a\"]", "24:12: changed: is about updates"),
        ("deletes = \"event\"", "22:8: type: a deleted row could not be distinguished from a new one"),
        ("omit = [\"a\"]\n[sources.tables.routes.body]\nx = \"{id}\"", "omit: is about the flat object"),
        ("before = true\n[sources.tables.routes.body]\nx = \"{id}\"", "before: is about the flat object"),
        ("toast = \"omit\"\n[sources.tables.routes.body]\nx = \"{id}\"", "toast: is about the flat object"),
        ("[sources.tables.routes.body]\nx = [1]", "24:5: x: must be a template or a table, and is a list"),
        ("[sources.tables.routes.body]\nx = \"{\"", "24:5: x: `{` has a `{` without `}`"),
    ];
    for (keys, expected) in table {
        let found = route(keys);
        assert!(found.contains(expected), "{keys}:\n{found}\nrather than\n{expected}");
    }
    let to_queue = changed("topic = \"T\"\ntype = \"t.v1\"", "queue = \"Q\"\ndeletes = \"tombstone\"");
    assert!(to_queue.contains("21:9: deletes: a tombstone is for a compacted topic"), "{to_queue}");
    let twice = changed("topic = \"T\"", "topic = \"T\"\n[[sources.tables]]\nname = \"public.t\"");
    assert!(twice.contains("name: `public.t` is there twice"), "{twice}");
    let both = changed("key = \"{id}\"", "key = \"{id}\"\nbefore = true");
    assert!(both.contains("19:1: before: the table has `routes`"), "{both}");
}

#[test]
fn all_mistakes_are_reported_at_once_and_in_order() {
    let text = SMALL
        .replace("partitions = 1", "partitions = 0")
        .replace("url = ", "uri = ")
        .replace("\"{id}\"", "\"{id\"")
        .replace("topic = \"T\"", "topic = \"TT\"\nwhen = 1");
    let error = error(&text);
    let places: Vec<&str> = error.lines().filter_map(|line| line.split(':').nth(1)).collect();
    assert_eq!(places, ["4", "9", "11", "18", "21", "22"], "{error}");
    // A mistake that only follows from another one is not reported.
    assert!(!error.contains("slot name"), "{error}");
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_every_line() {
    let error = error("[relay\nx = \n[[sources]]\nname = \"a");
    assert!(error.contains("routes:1:") && error.contains("syntax"), "{error}");
    assert!(error.lines().count() > 1, "{error}");
}

#[test]
fn properties_that_order_and_safety_rest_on_cannot_be_changed() {
    for property in FIXED_PROPERTIES {
        let text = format!("[kafka]\n\"{property}\" = \"1\"\n{SMALL}");
        assert!(error(&text).contains("routes:2:"), "{property}");
    }
}

#[test]
fn the_shortest_file_has_sound_defaults() {
    let text = "[[sources]]\nname = \"My-Shop\"\nurl = \"postgres://x\"\ntables = [{ name = \"orders\" }, { name = \"billing.bills\", topic = \"{@table}\" }]";
    let routes = Routes::parse(text, env).unwrap();
    let source = &routes.sources[0];
    assert_eq!(source.slot.get_ref(), "cdc_relay_my_shop");
    assert_eq!(source.publication.get_ref(), "cdc_relay_my_shop");
    assert!(source.own_publication);
    assert_eq!(source.event_source.get_ref(), "/My-Shop");
    let topics: Vec<_> =
        routes.topics.iter().map(|topic| (topic.name.get_ref().as_str(), topic.partitions)).collect();
    assert_eq!(topics, [("My-Shop.orders", -1), ("bills", -1)]);
    let route = &source.tables[0].routes[0];
    assert_eq!(route.kind.get_ref(), "{@table}.{@op}");
    assert!(route.deletes.is_none() && route.key.is_none() && source.tables[0].key.is_none());
}

#[test]
fn topics_are_guarded_against_slips_once_they_are_listed() {
    let listed = SMALL.replace("topic = \"T\"\n", "");
    assert!(error(&listed).contains("topic: `s.t` is not one of [[topics]]"));
    let free = "[[sources]]\nname = \"s\"\nurl = \"u\"\ntables = [{ name = \"t\", topic = \"a.{id}\" }]";
    assert!(error(free).contains("4:33: topic: depends on the row"), "{}", error(free));
    let bad = free.replace("{id}", " b");
    assert!(error(&bad).contains("is no topic name"), "{}", error(&bad));
}

/// A release that reads the same file otherwise would begin every chain again: these change with the tables of the file alone.
#[test]
fn fingerprints_of_existing_files_stay_as_they_are() {
    let all = |name: &str| name.ends_with("_RELAY_URL").then(|| "postgres://x".to_owned());
    let routes = Routes::parse(include_str!("../relay.toml"), all).unwrap();
    let prints: Vec<String> = routes.sources.iter().map(Source::fingerprint).collect();
    assert_eq!(prints, FINGERPRINTS);
}

const FINGERPRINTS: [&str; 3] = ["99b0a71268c484e3", "ce334bc02aef69a8", "1bd51c7b4bc1e249"];

#[test]
fn only_keys_that_decide_which_rows_are_emitted_begin_a_new_chain() {
    let print = |keys: &str| {
        let text = SMALL.replace("type = \"t.v1\"", &format!("type = \"t.{{@op}}\"\n{keys}"));
        Routes::parse(&text, env).unwrap().sources[0].fingerprint()
    };
    let plain = print("");
    for same in ["omit = [\"a\"]", "before = true", "toast = \"omit\"", "key = \"{a}\""] {
        assert_eq!(print(same), plain, "{same}");
    }
    let others = [
        "when = { a = [\"x\"] }",
        "when = { a = { not = [\"x\"] } }",
        "when = { a = { null = true } }",
        "when = { a = { null = false } }",
        "op = [\"insert\"]",
        "changed = [\"a\"]",
        "deletes = \"event\"",
        "deletes = \"both\"",
        "deletes = \"ignore\"",
    ];
    let mut all: Vec<String> = others.iter().map(|keys| print(keys)).chain([plain]).collect();
    let without_copies = SMALL.replace("slot = \"slot\"", "slot = \"slot\"\norigin = \"none\"");
    all.push(Routes::parse(&without_copies, env).unwrap().sources[0].fingerprint());
    // Records on a compacted topic are no links.
    let compacted =
        SMALL.replace("partitions = 1", "partitions = 1\nconfig = { \"cleanup.policy\" = \"compact\" }");
    all.push(Routes::parse(&compacted, env).unwrap().sources[0].fingerprint());
    let kinds = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), kinds);
}

/// `SMALL` with its tables in a kind, and two sources of it.
fn of_a_kind() -> String {
    let (head, source) = SMALL.split_once("[[sources]]").unwrap();
    let (of_source, tables) = source.split_once("[[sources.tables]]").unwrap();
    let own = |line: &&str| ["name", "url", "slot"].iter().any(|key| line.starts_with(key));
    let (own, shared): (Vec<&str>, Vec<&str>) = of_source.lines().partition(own);
    let kind = format!("[[kinds]]\nname = \"k\"\n{}\n[[kinds.tables]]{tables}", shared.join("\n"));
    let kind = kind.replace("[[sources.", "[[kinds.").replace("[sources.", "[kinds.");
    let first = own.join("\n");
    let second = first.replace("\"s\"", "\"s-1\"").replace("\"slot\"", "\"slot_1\"");
    format!("{head}{kind}\n[[sources]]\nkind = \"k\"\n{first}\n[[sources]]\nkind = \"k\"\n{second}\n")
}

/// The fault it prevents: a shard that emits an event under another id, type, source or topic.
#[test]
fn sources_of_a_kind_emit_the_same_events() {
    let text = of_a_kind().replace("type = \"t.v1\"", "type = \"{@source}.v1\"");
    let routes = Routes::parse(&text, env).unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    let [first, second] = routes.sources.as_slice() else { panic!("{text}") };
    assert_eq!((first.name.get_ref().as_str(), second.name.get_ref().as_str()), ("s", "s-1"));
    assert_eq!((first.kind.get_ref().as_str(), second.kind.get_ref().as_str()), ("k", "k"));
    assert_eq!(first.event_source.get_ref(), second.event_source.get_ref());
    assert_eq!(first.publication.get_ref(), "p");
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_ne!(first.checkpoint_key(), second.checkpoint_key(), "each has its own checkpoint");
    assert_eq!((first.tables.len(), second.tables.len()), (1, 1));
    // Their own settings go before the kind's.
    let text = of_a_kind().replace("slot = \"slot_1\"", "slot = \"slot_1\"\norigin = \"none\"");
    let routes = Routes::parse(&text, env).unwrap();
    let origins: Vec<OriginRule> = routes.sources.iter().map(|source| source.origin).collect();
    assert_eq!(origins, [OriginRule::Any, OriginRule::None]);
}

#[test]
fn a_kind_is_refused_where_it_leads_nowhere() {
    let table = [
        ("kind = \"k\"", "kind = \"kk\"", "kind: `kk` is not one of [[kinds]] (did you mean `k`?)"),
        ("name = \"k\"", "name = \"other\"", "name: no source is of the kind `other`"),
        ("slot = \"slot_1\"", "slot = \"slot\"", "slot: source `s` reads slot `slot` of the same url"),
        ("slot = \"slot_1\"", "slot = \"slot_1\"\nignore = [\"x\"]", "ignore: the source has a kind"),
        ("slot = \"slot_1\"", "slot = \"slot_1\"\npublication = \"x\"", "publication: the source has a kind"),
        (
            "[[kinds.tables]]\n",
            "[[kinds.tables]]\nkeyy = \"{id}\"\n",
            "there is no such key in [kinds.tables]",
        ),
    ];
    for (from, to, expected) in table {
        let text = of_a_kind();
        assert!(text.contains(from), "{from} is not in\n{text}");
        let found = error(&text.replace(from, to));
        assert!(found.contains(expected), "{to}:\n{found}\nrather than\n{expected}");
    }
}
