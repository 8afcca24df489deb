use super::*;

#[test]
fn a_template_without_columns_is_constant() {
    assert_eq!(Template::parse("a{{b}}").unwrap().constant(), Some("a{b}"));
    assert_eq!(Template::parse("").unwrap().constant(), Some(""));
    assert_eq!(Template::parse("{a}").unwrap().constant(), None);
}

#[test]
fn only_a_lone_json_column_keeps_its_form() {
    assert_eq!(Template::parse("{a:json}").unwrap().json_column(), Some("a"));
    assert_eq!(Template::parse("x{a:json}").unwrap().json_column(), None);
    assert_eq!(Template::parse("{a}").unwrap().json_column(), None);
}

#[test]
fn a_name_in_quotes_is_taken_as_it_is() {
    let column = |name: &str, json, default: Option<&str>| Segment::Column {
        name: name.to_owned(),
        json,
        default: default.map(str::to_owned),
    };
    for (text, expected) in [
        (r#"{"a:b"}"#, column("a:b", false, None)),
        (r#"{"a|b"|none}"#, column("a|b", false, Some("none"))),
        (r#"{"a}b":json}"#, column("a}b", true, None)),
        (r#"{"a""b"}"#, column("a\"b", false, None)),
        (r#"{"@op"}"#, column("@op", false, None)),
        (r#"{"a"|}"#, column("a", false, Some(""))),
    ] {
        assert_eq!(Template::parse(text).unwrap().segments, [expected], "{text}");
    }
    let between = Template::parse(r#"x{"}"}{{y}}"#).unwrap();
    let text = |text: &str| Segment::Text(text.to_owned());
    assert_eq!(between.segments, [text("x"), column("}", false, None), text("{y}")]);
}

#[test]
fn broken_templates_say_why() {
    for bad in
        ["{", "}", "{}", "a}b", "{a", "{a:int}", "{|x}", "{@ops}", "{@op|x}", "{@op:json}", "{a:json|x}"]
    {
        assert!(Template::parse(bad).is_err(), "{bad}");
    }
    for bad in [r#"{""}"#, r#"{"a}"#, r#"{"a"b}"#, r#"{"a":int}"#, r#"{"a":json|x}"#, r#"{"a""#] {
        assert!(Template::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_text_that_depends_on_the_table_alone_is_known_early() {
    let of = |text: &str| {
        Template::parse(text).unwrap().of_table(TableOfSource { source: "s", schema: "public", table: "t" })
    };
    assert_eq!(of("{@source}.{@schema}.{@table}").as_deref(), Some("s.public.t"));
    assert_eq!(of("a").as_deref(), Some("a"));
    assert_eq!(of("{@table}.{@op}"), None);
    assert_eq!(of("{a}"), None);
}
