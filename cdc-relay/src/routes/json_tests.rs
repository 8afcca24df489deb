use proptest::prelude::*;

use super::*;

fn written(form: Form, text: &str) -> String {
    let mut out = Vec::new();
    form.write(text.as_bytes(), &mut Vec::new(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn escaped(text: &str) -> String {
    let mut out = Vec::new();
    string(text.as_bytes(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn each_type_has_its_json_form() {
    let of = |oid, text| written(Form::natural(oid), text);
    assert_eq!(of(16, "t"), "true");
    assert_eq!(of(16, "f"), "false");
    assert_eq!(of(20, "-9007199254740991"), "-9007199254740991");
    assert_eq!(of(1700, "1.50"), "1.50");
    assert_eq!(of(1700, "NaN"), "\"NaN\"");
    assert_eq!(of(701, "-Infinity"), "\"-Infinity\"");
    assert_eq!(of(701, "1e+20"), "1e+20");
    assert_eq!(of(3802, r#"{"a": [1, null]}"#), r#"{"a": [1, null]}"#);
    assert_eq!(of(17, r"\x00ff10"), "\"AP8Q\"");
    assert_eq!(of(17, r"\x"), "\"\"");
    assert_eq!(of(2950, "0196f1d2-0000-7000-8000-000000000001"), "\"0196f1d2-0000-7000-8000-000000000001\"");
    assert_eq!(of(25, "a\"b\\c\nd\u{1}é"), "\"a\\\"b\\\\c\\nd\\u0001é\"");
    assert_eq!(of(1082, "2026-11-23"), "\"2026-11-23\"");
}

#[test]
fn timestamps_are_rfc_3339_with_microseconds() {
    let of = |text| written(Form::Instant, text);
    assert_eq!(of("2026-11-23 00:00:00+00"), "\"2026-11-23T00:00:00.000000Z\"");
    assert_eq!(of("2026-11-23 01:02:03.4+00"), "\"2026-11-23T01:02:03.400000Z\"");
    assert_eq!(of("2026-11-23 01:02:03.456789+00"), "\"2026-11-23T01:02:03.456789Z\"");
    // A time that RFC 3339 cannot express stays as Postgres prints it.
    assert_eq!(of("infinity"), "\"infinity\"");
    assert_eq!(of("12026-11-23 01:02:03+00"), "\"12026-11-23 01:02:03+00\"");
    assert_eq!(of("0044-03-15 00:00:00+00 BC"), "\"0044-03-15 00:00:00+00 BC\"");
    assert_eq!(written(Form::Local, "2026-11-23 01:02:03.5"), "\"2026-11-23T01:02:03.500000\"");
}

#[test]
fn casts_change_the_form_or_fail() {
    let of = |oid, cast, text: &str| written(Form::of(oid, Some(cast)).unwrap(), text);
    assert_eq!(of(20, Cast::Text, "15000"), "\"15000\"");
    assert_eq!(of(25, Cast::Number, "15.5"), "15.5");
    assert_eq!(of(25, Cast::Json, "[1,2]"), "[1,2]");
    assert_eq!(of(1007, Cast::Text, "{1,2}"), "\"{1,2}\"");
    assert_eq!(of(17, Cast::Hex, r"\x00ff10"), "\"00ff10\"");
    let form = |cast| Form::of(25, Some(cast)).unwrap();
    let fails = |cast, text: &str| form(cast).write_scalar(text.as_bytes(), &mut Vec::new()).is_err();
    for bad in ["", "x", "01", "+1", "1,5", "NaN", "0x10", "1e"] {
        assert!(fails(Cast::Number, bad), "{bad}");
    }
    assert!(fails(Cast::Json, "{"));
    assert!(Form::Bytea.write_scalar(br"\xf", &mut Vec::new()).is_err());
    assert!(Form::Bytea.write_scalar(b"abc", &mut Vec::new()).is_err());
    for (oid, cast) in [(25, Cast::EpochMs), (20, Cast::EpochUs), (1083, Cast::EpochMs), (25, Cast::Hex)] {
        assert!(Form::of(oid, Some(cast)).is_err(), "{oid} {cast:?}");
    }
}

#[test]
fn times_can_be_counted() {
    let of = |oid, cast, text: &str| written(Form::of(oid, Some(cast)).unwrap(), text);
    assert_eq!(of(TIMESTAMPTZ, Cast::EpochMs, "1970-01-01 00:00:00+00"), "0");
    assert_eq!(of(TIMESTAMPTZ, Cast::EpochUs, "2026-11-23 01:02:03.4+00"), "1795395723400000");
    assert_eq!(of(TIMESTAMPTZ, Cast::EpochMs, "1969-12-31 23:59:59.9999+00"), "-1");
    assert_eq!(of(1114, Cast::EpochMs, "2000-01-01 00:00:00"), "946684800000");
    assert_eq!(of(1082, Cast::EpochMs, "1970-01-02"), "86400000");
    let form = Form::of(TIMESTAMPTZ, Some(Cast::EpochMs)).unwrap();
    for uncountable in ["infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "12026-11-23 01:02:03+00"] {
        assert!(form.write_scalar(uncountable.as_bytes(), &mut Vec::new()).is_err(), "{uncountable}");
    }
}

#[test]
fn a_char_that_is_no_utf_8_stays_json() {
    assert_eq!(written(Form::natural(18), "x"), "\"x\"");
    let mut out = Vec::new();
    Form::natural(18).write_scalar(&[0xFF], &mut out).unwrap();
    assert_eq!(out, br#""\\377""#);
    // Other texts with such bytes: parts of composite types, of arrays, of types of extensions.
    let mut out = Vec::new();
    string(b"(\xE9,\xC3\xA9\"\xC3)", &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), r#""(\\351,é\"\\303)""#);
}

/// Whatever a column of type json holds: nested, with any escapes, and numbers of any size.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,3})?([eE][-+]?[0-9]{1,8})?",
        "[1-9][0-9]{300,320}",
        Just("null".to_owned()),
        r#""([ a\[{é0-9]|\\u(d8|d[cD]|DB|dF|00)[0-9a-f]{2}|\\[nt"\\/])*""#,
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        let name = r#""(\\ud8[0-9a-f]{2}|b)*""#;
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|all| format!("[{}]", all.join(", "))),
            prop::collection::vec((name, inner), 0..5).prop_map(|all| {
                let members: Vec<String> = all.into_iter().map(|(k, v)| format!("{k} :{v}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

/// As deep as an array of that, in an array.
fn nested(levels: usize) -> String {
    format!("{}7{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn a_value_deeper_than_strict_readers_go_is_text() {
    let of = |levels| written(Form::natural(114), &nested(levels));
    assert_eq!(of(100), nested(100));
    assert_eq!(of(101), format!("\"{}\"", nested(101)));
}

#[test]
fn a_value_with_a_name_longer_than_strict_readers_accept_is_text() {
    for form in [Form::natural(114), Form::natural(3802)] {
        let object = |bytes: usize, space: &str| format!("[{{\"{}\"{space}:1}}]", "n".repeat(bytes));
        assert_eq!(written(form, &object(50_000, "")), object(50_000, ""));
        for space in ["", " \n"] {
            let text = object(50_001, space);
            assert_eq!(written(form, &text), serde_json::to_string(&text).unwrap());
        }
        // A string may be longer, and its end is found behind an escape.
        let string = format!("{{\"a\":\"{}\\\"\"}}", "s".repeat(60_000));
        assert_eq!(written(form, &string), string);
    }
}

#[test]
fn a_number_that_strict_readers_refuse_is_text() {
    let of = |oid, text: &str| written(Form::natural(oid), text);
    let nines = |digits| "9".repeat(digits);
    for number in [nines(308), format!("-{}.5", nines(308)), format!("0.{}", nines(998))] {
        assert_eq!(of(1700, &number), number);
        assert_eq!(of(114, &number), number);
    }
    for text in [nines(309), format!("-{}.5", nines(309)), format!("0.{}", nines(999))] {
        assert_eq!(of(1700, &text), format!("\"{text}\""));
        assert_eq!(of(3802, &format!("[{text}]")), format!("[\"{text}\"]"));
    }
    // The largest double, and what is beyond it.
    assert_eq!(of(114, "1.7976931348623157e308"), "1.7976931348623157e308");
    assert_eq!(of(114, "1.8E308"), "\"1.8E308\"");
    let form = Form::of(TEXT, Some(Cast::Number)).unwrap();
    assert!(form.write_scalar(b"1e999", &mut Vec::new()).is_err(), "a cast promises a number");
}

proptest! {
    #[test]
    fn strict_readers_read_whatever_a_json_column_holds(text in any_json()) {
        for form in [Form::natural(114), Form::of(TEXT, Some(Cast::Json)).unwrap()] {
            let out = written(form, &text);
            let read = serde_json::from_str::<serde_json::Value>(&out);
            prop_assert!(read.is_ok(), "{} -> {}", text, out);
            // JSON that they accept stays byte for byte.
            if let Ok(before) = serde_json::from_str::<serde_json::Value>(&text) {
                prop_assert_eq!(read.unwrap(), before);
            }
        }
    }

    #[test]
    fn any_bytes_are_a_json_string(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut out = Vec::new();
        string(&bytes, &mut out);
        let read: String = serde_json::from_slice(&out).unwrap();
        prop_assert!(std::str::from_utf8(&bytes).map_or(true, |text| read == text));
    }

    /// Against an independent reader: whatever the text, it comes back.
    #[test]
    fn any_text_survives_json(text in any::<String>()) {
        let read: String = serde_json::from_str(&escaped(&text)).unwrap();
        prop_assert_eq!(read, text);
    }

    /// Long clean runs with a few specials: the search by eight bytes must find each of them.
    #[test]
    fn specials_are_found_wherever_they_stand(text in "[a-zé\"\\\\\n\t\u{0}-\u{1f}]{0,64}") {
        let read: String = serde_json::from_str(&escaped(&text)).unwrap();
        prop_assert_eq!(read, text);
    }

    #[test]
    fn bytes_survive_base64(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let json = written(Form::Bytea, &format!("\\x{hex}"));
        let decoded = STANDARD.decode(json.trim_matches('"')).unwrap();
        prop_assert_eq!(decoded, bytes);
    }

    #[test]
    fn is_number_accepts_only_numbers(text in "[-+0-9.eE]{0,12}") {
        let ours = is_number(text.as_bytes());
        let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        prop_assert!(!ours || theirs, "{}", text);
    }
}
