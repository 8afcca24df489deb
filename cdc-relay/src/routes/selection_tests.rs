use super::*;

fn source(entries: &str) -> Source {
    let text = format!("[[sources]]\nname = \"s\"\nurl = \"u\"\npublication = \"p\"\n{entries}");
    Routes::parse(&text, |_| None).expect(entries).sources.remove(0)
}

fn names(names: &[&str]) -> Vec<TableName> {
    names.iter().map(|name| name.parse().expect(name)).collect()
}

fn shop() -> DatabaseTables {
    DatabaseTables {
        published: names(&["orders", "orders_tmp", "audit.log", "audit.\"a.b\""]),
        existing: names(&["orders", "orders_tmp", "audit.log", "audit.\"a.b\"", "secret"]),
        schemas: ["audit", "public", "empty"].map(str::to_owned).to_vec(),
    }
}

#[test]
fn a_name_goes_before_ignore_and_that_before_a_pattern() {
    let source = source(
        "tables = [{ name = \"orders\" }, { name = \"*\" }]\nignore = [\"*_tmp\", \"o*\", \"audit.log\"]",
    );
    for (table, expected) in [
        ("orders", "named orders"),
        ("orders_tmp", "ignored"),
        ("others", "ignored"),
        ("items", "pattern *"),
        ("audit.log", "ignored"),
        ("audit.other", "unknown"),
    ] {
        let found = match source.routing(&table.parse().expect(table)) {
            Routing::Named(table) => format!("named {}", table.name.get_ref()),
            Routing::Pattern(pattern) => format!("pattern {}", pattern.table.name.get_ref()),
            Routing::Ignored => "ignored".to_owned(),
            Routing::Unknown => "unknown".to_owned(),
        };
        assert_eq!(found, expected, "{table}");
    }
}

#[test]
fn an_entry_without_a_table_is_reported_with_the_nearest_name() {
    for (entries, expected) in [
        (
            "tables = [{ name = \"adit.*\" }]",
            Some("`adit.*` matches no published table (did you mean `audit`?)"),
        ),
        ("tables = [{ name = \"order*s\" }]", None),
        (
            "tables = [{ name = \"oders*\" }]",
            Some("`oders*` matches no published table (did you mean `orders`?)"),
        ),
        (
            "tables = [{ name = \"secret*\" }]",
            Some("`secret*` matches no published table (did you mean `secret`?)"),
        ),
        (
            "tables = [{ name = \"audit.*\" }, { name = \"*.log\" }]",
            Some("audit.log matches two patterns, `audit.*` and `*.log`"),
        ),
        (
            "tables = [{ name = \"audit.*\" }, { name = \"*.log\" }, { name = \"audit.log\" }]",
            Some("`*.log` routes no table"),
        ),
        ("tables = [{ name = \"audit.*\" }]\nignore = [\"*.*\"]", Some("`audit.*` routes no table")),
        ("tables = [{ name = \"orders\" }]\nignore = [\"*\", \"empty.*\", \"gone\"]", None),
        ("tables = [{ name = \"*\" }]\nignore = [\"*_old\"]", None),
        (
            "tables = [{ name = \"*\" }]\nignore = [\"secrte\"]",
            Some("`ignore` has `secrte`, and there is no such table (did you mean `secret`?)"),
        ),
        ("tables = [{ name = \"*\" }]\nignore = [\"secret\"]", None),
        (
            "tables = [{ name = \"orders\" }]\nignore = [\"adit.log\"]",
            Some("there is no schema `adit` (did you mean `audit`?)"),
        ),
    ] {
        let problems = shop().problems(&source(entries));
        match expected {
            None => assert!(problems.is_empty(), "{entries}: {problems:?}"),
            Some(expected) => {
                assert!(problems.len() == 1 && problems[0].contains(expected), "{entries}: {problems:?}");
            }
        }
    }
}

#[test]
fn tables_of_a_pattern_have_topics_of_their_own() {
    let text = "[[sources]]\nname = \"My shop\"\nurl = \"u\"\npublication = \"p\"\ntables = [{ name = \"audit.*\" }, { name = \"*\" }, { name = \"x.*\", topic = \"all\" }]";
    let routes = Routes::parse(text, |_| None).expect(text);
    let published = names(&["Order Items", "audit.log", "x.y"]);
    let further = names(&["audit.new"]).into_iter().collect();
    let resolved = routes.resolved(&routes.sources[0], &published, &further);
    let topics: Vec<&str> = resolved.topics.iter().map(|topic| topic.name.get_ref().as_str()).collect();
    assert_eq!(topics, ["all", "My_shop.Order_Items", "My_shop.audit.log", "My_shop.audit.new"]);
    let tables: Vec<String> =
        resolved.sources[0].tables.iter().map(|table| table.table_name.to_string()).collect();
    assert_eq!(tables, ["public.Order Items", "audit.log", "x.y"]);
}

#[test]
fn a_pattern_that_leads_to_an_unlisted_topic_is_refused() {
    let text = "[[topics]]\nname = \"audit.log\"\n[[sources]]\nname = \"s\"\nurl = \"u\"\npublication = \"p\"\ntables = [{ name = \"audit.*\", topic = \"{@schema}.{@table}\" }]";
    let routes = Routes::parse(text, |_| None).expect(text);
    let problem = shop().resolve(&routes, &routes.sources[0], &BTreeSet::new()).expect_err("unlisted");
    assert_eq!(problem, "a pattern leads to topic `audit.a.b`, which is not one of [[topics]]");
}
