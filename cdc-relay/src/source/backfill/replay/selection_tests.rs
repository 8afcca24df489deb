use super::*;
use crate::postgres::decode::relation::{Column, Relation};
use crate::routes::Routes;

fn table(columns: &[(&str, u32)]) -> Table {
    let column = |&(name, type_oid): &(&str, u32)| Column { name: name.to_owned(), type_oid, key: false };
    let columns = columns.iter().map(column).collect();
    let relation = Relation { schema: "public".into(), name: "t".into(), columns, ..Relation::default() };
    Table { relation, ..Table::default() }
}

fn routed(key: &str) -> Routed {
    let text = format!(
        r#"
        [[topics]]
        name = "T"
        partitions = 1
        [[sources]]
        name = "s"
        url = "postgres://localhost/d"
        slot = "s"
        publication = "p"
        event_source = "/s"
        [[sources.tables]]
        name = "t"
        key = "{key}"
        id = "t/{{id}}"
        names.kind = {{ a = "b" }}
        [[sources.tables.routes]]
        topic = "T"
        type = "x"
        "#
    );
    let routes = Routes::parse(&text, |_| None).unwrap();
    routes.sources[0].tables[0].clone()
}

const COLUMNS: [(&str, u32); 4] = [("id", 20), ("kind", 25), ("at", 1184), ("note", 25)];
const ALL: &str = "select id, kind, at, note from only public.t where ";

#[test]
fn a_key_that_is_a_column_is_looked_up_and_any_other_is_compared() {
    let cases = [
        ("{note}", "(note = 'it''s')"),
        // Columns that the key shows in another form, and several of them.
        ("{kind}", "(true)"),
        ("{at}", "(true)"),
        ("{id}/{note}", "(true)"),
        ("x{id}", "(true)"),
    ];
    for (key, condition) in cases {
        let rows = Rows::Key("it's".to_owned());
        let (sql, compared) = query(&table(&COLUMNS), &routed(key), &rows, None).unwrap();
        assert_eq!(sql.strip_prefix(ALL).map(str::trim_end), Some(condition), "{key}");
        assert_eq!(compared.as_deref(), Some("it's"), "{key}");
    }
}

#[test]
fn a_limit_is_the_querys_unless_the_key_is_compared() {
    let sql = |rows: &Rows, key: &str| query(&table(&COLUMNS), &routed(key), rows, Some(3)).unwrap().0;
    let condition = Rows::Where("a or b".to_owned());
    assert!(sql(&condition, "{id}").ends_with("where (a or b)  limit 3"));
    assert!(sql(&Rows::Key("1".into()), "{id}").ends_with("limit 3"));
    assert!(!sql(&Rows::Key("1".into()), "{id}/x").contains("limit"));
    let at = "2026-01-02T03:04:05Z".parse().unwrap();
    let since = sql(&Rows::Since { at, column: None }, "{id}");
    assert!(since.ends_with("(at >= '2026-01-02T03:04:05Z') order by at limit 3"), "{since}");
}

#[test]
fn the_column_of_a_time_is_the_only_one_or_the_named_one() {
    let two = table(&[("a", 1184), ("b", 1114), ("c", 25)]);
    assert_eq!(since_column(&table(&COLUMNS), None).unwrap(), "at");
    assert_eq!(since_column(&two, Some("b")).unwrap(), "b");
    for (table, named, why) in [
        (&two, None, "which of a, b?"),
        (&two, Some("x"), "no column x"),
        (&table(&[("a", 25)]), None, "--where"),
    ] {
        let error = since_column(table, named).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
