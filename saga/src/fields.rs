//! Parses the body of a request field by field.
//!
//! * One answer names every field that is wrong.
//! * Unknown fields are refused.
//! * A text contains visible characters only, so that two texts that look alike are equal.

use serde_json::{Map, Value};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use uuid::Uuid;

use crate::contract::AMOUNT_MAX;
use crate::problem::{FieldError, Problem};

/// The fields of one JSON object. Take each expected field, then [`Fields::finish`].
/// A field that is wrong is recorded and replaced by a harmless value; `finish` then fails.
pub struct Fields {
    object: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// The fields of `body`.
    ///
    /// # Errors
    /// 400 when the body is not a JSON object.
    pub fn of(body: Value) -> Result<Self, Problem> {
        match body {
            Value::Object(object) => Ok(Self { object, errors: Vec::new() }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(Problem::malformed("The body must be a JSON object."))
            }
        }
    }

    /// Text of 1 to `chars_max` visible characters.
    pub fn text(&mut self, name: &str, chars_max: usize) -> String {
        self.optional_text(name, chars_max).unwrap_or_else(|| {
            self.refuse(name, "is required");
            String::new()
        })
    }

    /// As [`Fields::text`]; `None` when the field is missing.
    pub fn optional_text(&mut self, name: &str, chars_max: usize) -> Option<String> {
        match self.object.remove(name)? {
            Value::String(text) => {
                if let Some(detail) = text_error(&text, chars_max) {
                    self.refuse(name, detail);
                }
                Some(text)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                self.refuse(name, "must be a string");
                Some(String::new())
            }
        }
    }

    /// Minor units: a JSON integer from 1 to 2^53 - 1. Never a float, never a string.
    pub fn amount(&mut self, name: &str) -> i64 {
        let value = self.object.remove(name);
        let integer = value.as_ref().filter(|v| !v.is_f64()).and_then(Value::as_i64);
        match (integer, value) {
            (Some(amount @ 1..=AMOUNT_MAX), _) => amount,
            (Some(_), _) | (None, Some(Value::Number(_))) => {
                self.refuse(
                    name,
                    format!("must be a whole number of minor units from 1 to {AMOUNT_MAX}, written without point or exponent"),
                );
                1
            }
            (None, other) => {
                self.refuse_type(name, other.as_ref(), "an integer");
                1
            }
        }
    }

    /// A hyphenated UUID.
    pub fn uuid(&mut self, name: &str) -> Uuid {
        match self.object.remove(name) {
            Some(Value::String(text)) => parse_uuid(&text).unwrap_or_else(|| {
                self.refuse(name, "must be a hyphenated UUID");
                Uuid::nil()
            }),
            other => {
                self.refuse_type(name, other.as_ref(), "a UUID");
                Uuid::nil()
            }
        }
    }

    /// A value that `parse` makes of text; `expected` completes the sentence "must be …".
    pub fn value<T: Default>(
        &mut self,
        name: &str,
        chars_max: usize,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        let errors = self.errors.len();
        let text = self.text(name, chars_max);
        let value = if self.errors.len() == errors { parse(&text) } else { return T::default() };
        value.unwrap_or_else(|| {
            self.refuse(name, format!("must be {expected}"));
            T::default()
        })
    }

    /// Ends the parsing.
    ///
    /// # Errors
    /// 400 with every recorded error, and one for each unknown field.
    pub fn finish(mut self) -> Result<(), Problem> {
        for name in self.object.keys() {
            let field = bounded_name(name);
            self.errors.push(FieldError { field, detail: "is not a field of this request".into() });
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::validation(self.errors)) }
    }

    /// Records that a field, or a header, is wrong.
    pub fn refuse(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError { field: name.to_owned(), detail: detail.into() });
    }

    fn refuse_type(&mut self, name: &str, found: Option<&Value>, expected: &str) {
        match found {
            None => self.refuse(name, "is required"),
            Some(_) => self.refuse(name, format!("must be {expected}")),
        }
    }
}

/// The error of a text that is not 1 to `chars_max` visible characters without a blank at its ends.
pub fn text_error(text: &str, chars_max: usize) -> Option<String> {
    if text.is_empty() || text.chars().count() > chars_max {
        Some(format!("must have 1 to {chars_max} characters"))
    } else if !text.chars().all(is_visible) {
        Some("must not contain control characters, or others that cannot be seen".into())
    } else if text.trim() != text {
        Some("must not begin or end with a blank".into())
    } else {
        None
    }
}

/// A name that the client chose, for an answer: a hostile one must not be echoed at length.
pub(crate) fn bounded_name(name: &str) -> String {
    name.chars().take(64).collect()
}

/// A hyphenated UUID, in either case (RFC 9562, section 4). Other spellings are refused, so that a user or payment has
/// one name.
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|_| text.len() == 36 && !text.starts_with('{'))
}

/// Letters, digits, marks, punctuation, symbols and the blank, except those that Unicode draws as nothing, and the one
/// that decoders put where they could not read (nobody means it). docs/openapi.yaml has the same rule as a pattern.
fn is_visible(c: char) -> bool {
    use GeneralCategory as Category;
    match c.general_category() {
        Category::Control
        | Category::Format
        | Category::Surrogate
        | Category::PrivateUse
        | Category::Unassigned
        | Category::LineSeparator
        | Category::ParagraphSeparator => false,
        Category::SpaceSeparator => c == ' ',
        _ => c != char::REPLACEMENT_CHARACTER && !is_drawn_as_nothing(c),
    }
}

/// Letters, marks and symbols without a shape: those of `Default_Ignorable_Code_Point` that are not format characters
/// (Unicode, DerivedCoreProperties), and the empty Braille pattern.
fn is_drawn_as_nothing(c: char) -> bool {
    matches!(c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2800}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(body: &str) -> Vec<String> {
        let mut fields = Fields::of(serde_json::from_str(body).unwrap()).unwrap();
        fields.text("name", 5);
        fields.amount("amount");
        let problem = fields.finish().err();
        problem.into_iter().flat_map(|p| p.errors).map(|e| format!("{} {}", e.field, e.detail)).collect()
    }

    #[test]
    fn a_good_body_has_no_errors() {
        assert_eq!(errors(r#"{"name":"åäö","amount":9007199254740991}"#), Vec::<String>::new());
    }

    #[test]
    fn a_value_is_named_once_whatever_is_wrong_with_it() {
        let errors = |body: &str| {
            let mut fields = Fields::of(serde_json::from_str(body).unwrap()).unwrap();
            let number = fields.value("number", 3, "a number", |text| text.parse::<u16>().ok());
            let problem = fields.finish().err();
            (number, problem.into_iter().flat_map(|p| p.errors).map(|e| e.detail).collect::<Vec<_>>())
        };
        assert_eq!(errors(r#"{"number":"12"}"#), (12, vec![]));
        assert_eq!(errors(r#"{"number":"x"}"#), (0, vec!["must be a number".to_owned()]));
        assert_eq!(errors(r#"{"number":"1234"}"#), (0, vec!["must have 1 to 3 characters".to_owned()]));
        assert_eq!(errors("{}"), (0, vec!["is required".to_owned()]));
    }

    #[test]
    fn every_wrong_field_is_named_once() {
        let all = errors(r#"{"name":"too long","amount":1.5,"extra":1}"#);
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!(errors("{}"), ["name is required", "amount is required"]);
    }

    #[test]
    fn an_amount_is_a_positive_json_integer_that_stays_exact() {
        for bad in [
            "0",
            "-1",
            "1.0",
            "1e3",
            "\"1\"",
            "null",
            "true",
            "9007199254740992",
            "1e400",
            "99999999999999999999",
        ] {
            let Ok(body) = serde_json::from_str::<Value>(&format!(r#"{{"name":"n","amount":{bad}}}"#)) else {
                continue; // 1e400 is no JSON number at all: refused before the fields are read
            };
            let mut fields = Fields::of(body).unwrap();
            fields.text("name", 5);
            fields.amount("amount");
            let problem = fields.finish().expect_err(bad);
            assert_eq!(problem.errors[0].field, "amount", "{bad}");
        }
    }

    #[test]
    fn a_text_can_be_seen() {
        for bad in [
            "",
            " ",
            " a",
            "a ",
            "a\tb",
            "\u{a0}a",
            "a\u{3000}b",
            "a\u{200b}",
            "\u{feff}a",
            "a\u{202e}",
            "a\u{ad}b",
            "a\u{7f}",
            "a\u{85}",
            "a\u{2028}b",
            "a\u{34f}b",
            "\u{3164}",
            "\u{2800}",
            "a\u{fe0f}",
            "a\u{e000}",
            "a\u{e0041}",
            "a\u{378}",
            "a\u{fffd}",
        ] {
            assert_eq!(
                errors(&serde_json::json!({"name": bad, "amount": 1}).to_string()).len(),
                1,
                "{bad:?}"
            );
        }
        for good in ["a", "a b", "\u{e5}", "e\u{301}", "\u{5ba2}", "\u{1f50c}", "a-/#"] {
            assert!(
                errors(&serde_json::json!({"name": good, "amount": 1}).to_string()).is_empty(),
                "{good:?}"
            );
        }
    }

    #[test]
    fn a_uuid_has_one_form() {
        let id = "0198c0de-0000-7000-8000-00000000000a";
        assert_eq!(parse_uuid(id), parse_uuid(&id.to_uppercase()));
        assert_eq!(parse_uuid(id).unwrap().to_string(), id);
        let simple = id.replace('-', "");
        for bad in [
            "",
            &simple,
            &format!("{{{id}}}"),
            &format!("urn:uuid:{id}"),
            &format!(" {id}"),
            &format!("{{{simple}}}  "),
        ] {
            assert_eq!(parse_uuid(bad), None, "{bad}");
        }
    }

    #[test]
    fn control_characters_and_nul_are_refused() {
        assert_eq!(errors(r#"{"name":"a\u0000b","amount":1}"#).len(), 1);
        assert_eq!(errors(r#"{"name":"a\nb","amount":1}"#).len(), 1);
        assert_eq!(errors(r#"{"name":"","amount":1}"#).len(), 1);
    }
}
