//! Parses the query string of a request parameter by parameter.
//!
//! * One answer names every parameter that is wrong.
//! * Unknown parameters are refused, and so is one that is given twice, since two readers might use different values.
//! * A parameter that is not given is `None`; one that is given without a value is wrong.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::fields::{bounded_name, text_error};
use crate::problem::{FieldError, Problem};

/// The entries of a page: at most, and when the client does not say.
pub const PAGE_ENTRIES_MAX: u64 = 100;
pub const PAGE_ENTRIES_DEFAULT: u64 = 20;

/// The longest cursor that a service hands out, in characters.
const CURSOR_CHARS_MAX: usize = 128;

/// The parameters of one query string. Take each expected parameter, then [`Query::finish`].
/// A parameter that is wrong is recorded and counts as not given; `finish` then fails.
#[derive(Debug, Default)]
pub struct Query {
    parameters: BTreeMap<String, String>,
    errors: Vec<FieldError>,
}

impl Query {
    /// The parameters of `text`, the query string as it was sent; `None` for a request without one.
    pub fn of(text: Option<&str>) -> Self {
        let mut query = Self::default();
        let mut repeated = Vec::new();
        for (name, value) in form_urlencoded::parse(text.unwrap_or_default().as_bytes()) {
            if query.parameters.insert(name.to_string(), value.into_owned()).is_some() {
                repeated.push(name.into_owned());
            }
        }
        repeated.sort();
        repeated.dedup();
        for name in repeated {
            query.parameters.remove(&name);
            query.refuse(&name, "is given more than once");
        }
        query
    }

    /// Text of 1 to `chars_max` visible characters.
    pub fn text(&mut self, name: &str, chars_max: usize) -> Option<String> {
        let text = self.parameters.remove(name)?;
        // The decoder puts U+FFFD for bytes that are no UTF-8. Nobody means that character.
        let error = if text.contains(char::REPLACEMENT_CHARACTER) {
            Some("must be UTF-8, percent-encoded".to_owned())
        } else {
            text_error(&text, chars_max)
        };
        match error {
            None => Some(text),
            Some(error) => {
                self.refuse(name, error);
                None
            }
        }
    }

    /// As [`Query::text`]; a parameter that is not given is wrong.
    pub fn required_text(&mut self, name: &str, chars_max: usize) -> String {
        let is_refused = self.errors.iter().any(|error| error.field == name);
        if !is_refused && !self.parameters.contains_key(name) {
            self.refuse(name, "is required");
        }
        self.text(name, chars_max).unwrap_or_default()
    }

    /// Decimal digits that make a number of `range`.
    pub fn number(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.parameters.remove(name)?;
        let (least, most) = range.into_inner();
        // `parse` would take a sign too.
        let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|number| is_digits && (least..=most).contains(number));
        if number.is_none() {
            self.refuse(name, format!("must be a whole number from {least} to {most}, in digits"));
        }
        number
    }

    /// A value that `parse` makes of text; `expected` completes the sentence "must be …".
    pub fn value<T>(
        &mut self,
        name: &str,
        chars_max: usize,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name, chars_max)?;
        let value = parse(&text);
        if value.is_none() {
            self.refuse(name, format!("must be {expected}"));
        }
        value
    }

    /// `limit`: the entries of a page, 1 to [`PAGE_ENTRIES_MAX`], [`PAGE_ENTRIES_DEFAULT`] when not given.
    pub fn limit(&mut self) -> u64 {
        self.number("limit", 1..=PAGE_ENTRIES_MAX).unwrap_or(PAGE_ENTRIES_DEFAULT)
    }

    /// `cursor`: the place in a list that an earlier page named as its `next_cursor`.
    pub fn cursor<T>(&mut self, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        self.value("cursor", CURSOR_CHARS_MAX, "the next_cursor of an earlier page, unchanged", parse)
    }

    /// Records that a parameter is wrong.
    pub fn refuse(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError { field: bounded_name(name), detail: detail.into() });
    }

    /// Ends the parsing.
    ///
    /// # Errors
    /// 400 with every recorded error, and one for each unknown parameter.
    pub fn finish(mut self) -> Result<(), Problem> {
        for name in std::mem::take(&mut self.parameters).into_keys() {
            self.refuse(&name, "is not a parameter of this request");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::validation(self.errors)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errors of a request that takes `status`, `limit` and `cursor`.
    fn errors(text: &str) -> Vec<String> {
        let mut query = Query::of(Some(text));
        query.text("status", 9);
        query.limit();
        query.cursor(|text| text.strip_prefix('c').map(str::to_owned));
        let problem = query.finish().err();
        problem.into_iter().flat_map(|p| p.errors).map(|e| format!("{} {}", e.field, e.detail)).collect()
    }

    #[test]
    fn a_request_without_a_query_has_no_parameters() {
        for text in [None, Some(""), Some("&"), Some("&&")] {
            let mut query = Query::of(text);
            assert_eq!(query.text("status", 9), None);
            assert_eq!(query.limit(), PAGE_ENTRIES_DEFAULT);
            assert_eq!(query.cursor(|text| Some(text.to_owned())), None);
            assert_eq!(query.finish(), Ok(()));
        }
    }

    #[test]
    fn parameters_are_decoded() {
        let mut query = Query::of(Some("status=%C3%A5+b%26c&limit=007&cursor=%63%3d1"));
        assert_eq!(query.text("status", 5).as_deref(), Some("\u{e5} b&c"));
        assert_eq!(query.limit(), 7);
        assert_eq!(query.cursor(|text| text.strip_prefix("c=").map(str::to_owned)).as_deref(), Some("1"));
        assert_eq!(query.finish(), Ok(()));
    }

    #[test]
    fn every_wrong_parameter_is_named_once() {
        let all = errors("limit=0&extra=1&status=too+long+by+far&cursor=x&LIMIT=1");
        let names: Vec<&str> = all.iter().filter_map(|error| error.split(' ').next()).collect();
        assert_eq!(names, ["status", "limit", "cursor", "LIMIT", "extra"], "{all:?}");
        assert_eq!(errors("extra=1&extra=2&extra=3"), ["extra is given more than once"]);
        assert_eq!(errors("limit=5&lim%69t=5"), ["limit is given more than once"]);
        assert_eq!(errors("=1"), [" is not a parameter of this request"]);
    }

    #[test]
    fn a_limit_is_decimal_digits_within_bounds() {
        for bad in [
            "",
            "0",
            "101",
            "-1",
            "%2B5",
            "1.0",
            "1e1",
            "%205",
            "5%20",
            "0x5",
            "99999999999999999999",
            "\u{663}",
        ] {
            let found = errors(&format!("limit={bad}"));
            assert_eq!(found, ["limit must be a whole number from 1 to 100, in digits"], "{bad:?}");
        }
        for good in ["1", "20", "100", "0100"] {
            assert_eq!(errors(&format!("limit={good}")), Vec::<String>::new(), "{good}");
        }
    }

    #[test]
    fn a_text_has_visible_characters_within_bounds() {
        for bad in ["", "+a", "a%0Ab", "a%00", "%FF", "a%E2%80%8Bb", "abcdefghij"] {
            assert_eq!(errors(&format!("status={bad}")).len(), 1, "{bad:?}");
        }
        assert_eq!(errors("status"), errors("status="), "a name alone has no value");
    }

    #[test]
    fn a_hostile_name_is_not_echoed_at_length() {
        let found = errors(&"x".repeat(5_000));
        assert!(found.len() == 1 && found[0].len() < 128, "{found:?}");
    }
}
