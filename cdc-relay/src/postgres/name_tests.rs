use proptest::prelude::*;

use super::*;

#[test]
fn a_name_is_read_as_it_is_written_in_sql_but_keeps_its_case() {
    for (text, schema, name) in [
        ("orders", "public", "orders"),
        ("audit.log", "audit", "log"),
        ("Order Items", "public", "Order Items"),
        ("order.Order Items", "order", "Order Items"),
        ("\"my.schema\".orders", "my.schema", "orders"),
        ("\"my.schema\".\"a \"\"b\"\"\"", "my.schema", "a \"b\""),
        ("\"a*\"", "public", "a*"),
        ("a:b|c}", "public", "a:b|c}"),
    ] {
        assert_eq!(text.parse(), Ok(TableName::new(schema, name)), "{text}");
    }
}

#[test]
fn a_malformed_name_is_explained() {
    for (text, why) in [
        ("", "is no name"),
        (".", "is no name"),
        ("a.", "is no name"),
        (".a", "is no name"),
        ("\"\"", "is no name"),
        ("a.b.c", "more than one dot"),
        ("\"a", "without its pair"),
        ("\"a\"b", "comes a dot"),
        ("a\"b\"", "inside a name"),
    ] {
        let problem = text.parse::<TablePattern>().expect_err(text);
        assert!(problem.contains(why), "{text}: {problem}");
    }
    assert!("audit.*".parse::<TableName>().expect_err("a pattern").contains("is a pattern"));
}

#[test]
fn a_star_stands_for_any_characters_of_its_part() {
    for (pattern, matched, others) in [
        ("audit.*", vec!["audit.log", "audit.\"a.b\""], vec!["public.log", "audits.log"]),
        ("*_tmp", vec!["orders_tmp", "_tmp"], vec!["audit.orders_tmp", "orders_tmp2"]),
        ("*.*", vec!["orders", "audit.log"], vec![]),
        ("*.log", vec!["audit.log", "public.log"], vec!["audit.log2"]),
        ("a*b*c", vec!["abc", "axbxc", "abbc"], vec!["ac", "acb", "ab"]),
        ("a*a", vec!["aa", "aba"], vec!["a"]),
        ("**", vec!["orders"], vec!["audit.log"]),
        ("\"a*\"", vec!["\"a*\""], vec!["ab"]),
    ] {
        let parsed: TablePattern = pattern.parse().expect(pattern);
        let matches = |name: &str| parsed.matches(&name.parse().expect(name));
        assert!(matched.iter().all(|name| matches(name)), "{pattern}");
        assert!(!others.iter().any(|name| matches(name)), "{pattern}");
    }
}

/// As the definition says it, slowly.
fn matches(pattern: &[char], text: &[char]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), _) => {
            matches(rest, text) || text.split_first().is_some_and(|(_, text)| matches(pattern, text))
        }
        (Some((p, rest)), Some((t, text))) => p == t && matches(rest, text),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

proptest! {
    #[test]
    fn a_name_that_is_printed_is_read_back(schema in r#"[a.*" Ü]{1,6}"#, name in "\\PC{1,8}") {
        let table = TableName { schema, name };
        prop_assert_eq!(table.to_string().parse(), Ok(table));
    }

    #[test]
    fn a_pattern_matches_by_its_definition(pattern in "[ab*]{1,6}", text in "[ab]{1,8}") {
        let parsed: TablePattern = pattern.parse().expect("a pattern");
        let chars = |text: &str| text.chars().collect::<Vec<char>>();
        let expected = matches(&chars(&pattern), &chars(&text));
        prop_assert_eq!(parsed.matches(&TableName::new("public", &text)), expected);
    }
}
