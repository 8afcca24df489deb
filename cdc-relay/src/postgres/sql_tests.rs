use proptest::prelude::*;

use super::*;

#[test]
fn a_name_is_quoted_where_quote_ident_would_quote_it() {
    for (name, written) in [
        ("orders", "orders"),
        ("_private2", "_private2"),
        ("order", "\"order\""),
        ("user", "\"user\""),
        ("between", "\"between\""),
        ("left", "\"left\""),
        ("name", "name"),
        ("Order Items", "\"Order Items\""),
        ("2nd", "\"2nd\""),
        ("a$b", "\"a$b\""),
        ("día", "\"día\""),
        ("say \"hi\"", "\"say \"\"hi\"\"\""),
        ("", "\"\""),
    ] {
        assert_eq!(identifier(name), written);
    }
    assert_eq!(table("order", "Order Items"), "\"order\".\"Order Items\"");
}

#[test]
fn a_value_means_the_same_whatever_standard_conforming_strings_is() {
    for (text, written) in
        [("", "''"), ("it's", "'it''s'"), (r"C:\dir", r"E'C:\\dir'"), (r"\'", r"E'\\'''"), ("E", "'E'")]
    {
        assert_eq!(literal(text), written);
    }
}

#[test]
fn replication_commands_have_a_grammar_of_their_own() {
    assert_eq!(replication_identifier("slot"), "\"slot\"");
    assert_eq!(replication_names(&["it's", "a\"b", r"c\d"]), r#"'"it''s","a""b","c\d"'"#);
}

#[test]
fn keywords_are_sorted_so_that_they_are_found() {
    assert!(KEYWORDS.is_sorted());
}

/// As the server's scanner reads a quoted name or text.
fn read(written: &str, quote: char) -> Option<String> {
    let inner = written.strip_prefix(quote)?.strip_suffix(quote)?;
    let doubled: String = [quote, quote].iter().collect();
    (!inner.replace(&doubled, "").contains(quote)).then(|| inner.replace(&doubled, &quote.to_string()))
}

proptest! {
    #[test]
    fn a_name_is_read_back_as_it_was(name in "\\PC{0,12}") {
        let written = identifier(&name);
        prop_assert!(written == name || read(&written, '"') == Some(name));
    }

    #[test]
    fn a_value_is_read_back_as_it_was(text in r#"[a'\\"é\n]{0,12}"#) {
        let written = literal(&text);
        let read = match written.strip_prefix('E') {
            // Backslashes stand in pairs, and nothing is escaped by one.
            Some(rest) => read(rest, '\'').map(|text| text.replace(r"\\", r"\")),
            None => read(&written, '\''),
        };
        prop_assert_eq!(read, Some(text));
    }
}
