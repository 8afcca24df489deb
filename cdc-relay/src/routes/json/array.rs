//! Writes Postgres' text form of arrays (`{1,NULL,"a b",{…}}`) as JSON arrays.
//!
//! * An element is quoted if it has a brace, a delimiter, a quote, a backslash or white space, or looks like null.
//! * Bounds other than 1 precede the array (`[0:1]={1,2}`). JSON has no such thing, so they are dropped.

use crate::routes::problem::Problem;

/// The token that may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    /// After an opening brace.
    ValueOrEnd,
    DelimiterOrEnd,
}

/// Appends the array as JSON; `element` writes one element. `scratch` holds an element that has to be unescaped.
pub fn write(
    text: &[u8],
    delimiter: u8,
    element: impl Fn(&[u8], &mut Vec<u8>) -> Result<(), Problem>,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), Problem> {
    let bad = || Problem::not_a("an array", text);
    let mut rest = match text {
        [b'[', ..] => {
            text.iter().position(|&b| b == b'=').and_then(|at| text.get(at + 1..)).ok_or_else(bad)?
        }
        _ => text,
    };
    let (mut depth, mut next) = (0usize, Next::Value);
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match (byte, next) {
            (b'{', Next::Value | Next::ValueOrEnd) => {
                depth += 1;
                next = Next::ValueOrEnd;
                out.push(b'[');
                tail
            }
            (b'}', Next::ValueOrEnd | Next::DelimiterOrEnd) => {
                depth -= 1;
                out.push(b']');
                if depth == 0 {
                    return if tail.is_empty() { Ok(()) } else { Err(bad()) };
                }
                next = Next::DelimiterOrEnd;
                tail
            }
            (byte, Next::DelimiterOrEnd) if byte == delimiter => {
                next = Next::Value;
                out.push(b',');
                tail
            }
            (_, Next::Value | Next::ValueOrEnd) if depth > 0 => {
                next = Next::DelimiterOrEnd;
                if byte == b'"' {
                    let (value, tail) = quoted(tail, scratch).ok_or_else(bad)?;
                    element(value, out)?;
                    tail
                } else {
                    let end = rest.iter().position(|&b| b == delimiter || b == b'}').ok_or_else(bad)?;
                    match rest.split_at(end) {
                        ([], _) => return Err(bad()),
                        (b"NULL", tail) => {
                            out.extend_from_slice(b"null");
                            tail
                        }
                        (value, tail) => {
                            element(value, out)?;
                            tail
                        }
                    }
                }
            }
            _ => return Err(bad()),
        };
    }
    Err(bad())
}

/// The element behind an opening quote, and the text behind its closing quote. An element without escapes is not copied.
fn quoted<'t: 's, 's>(text: &'t [u8], scratch: &'s mut Vec<u8>) -> Option<(&'s [u8], &'t [u8])> {
    let end = text.iter().position(|&b| b == b'"' || b == b'\\')?;
    let (clean, mut rest) = text.split_at(end);
    if let Some(tail) = rest.strip_prefix(b"\"") {
        return Some((clean, tail));
    }
    scratch.clear();
    scratch.extend_from_slice(clean);
    loop {
        match rest {
            [b'"', tail @ ..] => return Some((scratch, tail)),
            [b'\\', escaped, tail @ ..] => {
                scratch.push(*escaped);
                rest = tail;
            }
            [byte, tail @ ..] => {
                scratch.push(*byte);
                rest = tail;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::routes::json::Form;

    fn written(form: Form, text: &str) -> Result<String, Problem> {
        let Form::Array { element, delimiter } = form else { panic!("{form:?} is no array") };
        let mut out = Vec::new();
        let element = |value: &[u8], out: &mut Vec<u8>| element.write_scalar(value, out);
        write(text.as_bytes(), delimiter, element, &mut Vec::new(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn elements_have_the_form_of_their_type() {
        let of = |oid, text| written(Form::natural(oid), text).unwrap();
        assert_eq!(of(1007, "{}"), "[]");
        assert_eq!(of(1007, "{1,NULL,-3}"), "[1,null,-3]");
        assert_eq!(of(1007, "{{1,2},{3,4}}"), "[[1,2],[3,4]]");
        assert_eq!(of(1007, "[0:1][2:2]={{1},{2}}"), "[[1],[2]]");
        assert_eq!(of(1000, "{t,f,NULL}"), "[true,false,null]");
        assert_eq!(
            of(1231, "{1.50,NaN,123456789012345678901234567890.5}"),
            r#"[1.50,"NaN",123456789012345678901234567890.5]"#
        );
        assert_eq!(
            of(1185, r#"{"2026-11-23 01:02:03+00",infinity}"#),
            r#"["2026-11-23T01:02:03.000000Z","infinity"]"#
        );
        assert_eq!(of(3807, r#"{"{\"a\": [1, \"x\\\"\"]}",NULL,2}"#), r#"[{"a": [1, "x\""]},null,2]"#);
        assert_eq!(
            of(1009, r#"{a,"a b","","NULL","q\"\\","{,}"}"#),
            r#"["a","a b","","NULL","q\"\\","{,}"]"#
        );
        assert_eq!(of(1001, r#"{"\\x00ff10","\\x"}"#), r#"["AP8Q",""]"#);
        assert_eq!(of(1020, "{(1,1),(0,0);(2,2),(1,1)}"), r#"["(1,1),(0,0)","(2,2),(1,1)"]"#);
    }

    #[test]
    fn a_malformed_array_is_refused() {
        for bad in
            ["", "1", "{", "}", "{1", "{1}x", "{,}", "{1,}", "{\"a}", "{\"a\"b}", "[0:1]{1}", "{{1}", "{1}}"]
        {
            assert!(written(Form::natural(1009), bad).is_err(), "{bad}");
        }
    }

    /// As `array_out` prints, without its shortcuts: everything is quoted, except null.
    fn printed(array: &[Vec<Option<String>>]) -> String {
        let element = |text: &Option<String>| match text {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        };
        let row = |row: &Vec<Option<String>>| {
            format!("{{{}}}", row.iter().map(element).collect::<Vec<_>>().join(","))
        };
        format!("{{{}}}", array.iter().map(row).collect::<Vec<_>>().join(","))
    }

    proptest! {
        #[test]
        fn any_array_of_texts_comes_back(array in prop::collection::vec(prop::collection::vec(any::<Option<String>>(), 1..4), 0..4)) {
            let json: Value = serde_json::from_str(&written(Form::natural(1009), &printed(&array)).unwrap()).unwrap();
            prop_assert_eq!(json, serde_json::to_value(&array).unwrap());
        }

        #[test]
        fn plain_elements_need_no_quotes(array in prop::collection::vec(any::<Option<i64>>(), 1..9)) {
            let elements = array.iter().map(|n| n.map_or("NULL".to_owned(), |n| n.to_string())).collect::<Vec<_>>();
            let json: Value = serde_json::from_str(&written(Form::natural(1016), &format!("{{{}}}", elements.join(","))).unwrap()).unwrap();
            prop_assert_eq!(json, serde_json::to_value(&array).unwrap());
        }

        /// Whatever comes: a value or an error, and what is written is JSON.
        #[test]
        fn nothing_panics_and_all_that_is_written_is_json(text in r#"[{}",\\aN\[\]=]{0,24}"#) {
            if let Ok(json) = written(Form::natural(1009), &text) {
                prop_assert!(serde_json::from_str::<Value>(&json).is_ok(), "{} -> {}", text, json);
            }
        }
    }
}
