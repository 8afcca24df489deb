use proptest::prelude::*;

use super::*;

fn written(form: Form, text: &str) -> String {
    let mut out = Vec::new();
    form.write(text.as_bytes(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn escaped(text: &str) -> String {
    let mut out = Vec::new();
    string(text.as_bytes(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn each_type_has_its_json_form() {
    let of = |oid, text| written(Form::of(oid, None), text);
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
    // What RFC 3339 cannot say stays as Postgres says it.
    assert_eq!(of("infinity"), "\"infinity\"");
    assert_eq!(of("12026-11-23 01:02:03+00"), "\"12026-11-23 01:02:03+00\"");
    assert_eq!(of("0044-03-15 00:00:00+00 BC"), "\"0044-03-15 00:00:00+00 BC\"");
    assert_eq!(written(Form::Local, "2026-11-23 01:02:03.5"), "\"2026-11-23T01:02:03.500000\"");
}

#[test]
fn casts_change_the_form_or_fail() {
    assert_eq!(written(Form::of(20, Some(Cast::Text)), "15000"), "\"15000\"");
    assert_eq!(written(Form::of(25, Some(Cast::Number)), "15.5"), "15.5");
    assert_eq!(written(Form::of(25, Some(Cast::Json)), "[1,2]"), "[1,2]");
    let fails = |cast, text: &str| Form::of(25, Some(cast)).write(text.as_bytes(), &mut Vec::new()).is_err();
    for bad in ["", "x", "01", "+1", "1,5", "NaN", "0x10", "1e"] {
        assert!(fails(Cast::Number, bad), "{bad}");
    }
    assert!(fails(Cast::Json, "{"));
    assert!(Form::Bytea.write(br"\xf", &mut Vec::new()).is_err());
    assert!(Form::Bytea.write(b"abc", &mut Vec::new()).is_err());
}

proptest! {
    /// Against an independent reader: whatever the text, it comes back.
    #[test]
    fn any_text_survives_json(text in any::<String>()) {
        let read: String = serde_json::from_str(&escaped(&text)).unwrap();
        prop_assert_eq!(read, text);
    }

    /// Long clean runs with a few specials: the word-wise search must find each of them.
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
    fn what_is_called_a_number_is_one(text in "[-+0-9.eE]{0,12}") {
        let ours = is_number(text.as_bytes());
        let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        prop_assert!(!ours || theirs, "{}", text);
    }
}
