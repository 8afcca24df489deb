//! Compares media types as RFC 9110 (section 8.3.1) says.
//!
//! * Case does not matter, and parameters are apart.
//! * The `mime` crate refuses the blank before a `;` that the RFC allows, so it is not used.

use warp::http::HeaderValue;

/// Whether this `Content-Type` is JSON in UTF-8, which is the only JSON there is (RFC 8259, section 8.1).
pub fn is_json(content_type: &HeaderValue) -> bool {
    is(content_type, "application/json")
}

/// Whether this `Content-Type` is `essence` (in lower case) in UTF-8, whatever its other parameters.
pub fn is(content_type: &HeaderValue, essence: &str) -> bool {
    let Ok(text) = content_type.to_str() else { return false };
    let mut parts = split_parameters(text).into_iter();
    parts.next().is_some_and(|found| blank_trimmed(found).eq_ignore_ascii_case(essence))
        && parts.all(|parameter| acceptable(blank_trimmed(parameter)))
}

/// At each `;` that is not within a quoted string.
fn split_parameters(text: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let separates = |c: char| {
        if escaped {
            escaped = false;
        } else if quoted && c == '\\' {
            escaped = true;
        } else if c == '"' {
            quoted = !quoted;
        }
        c == ';' && !quoted
    };
    text.split(separates).collect()
}

/// Nothing, or a name and a value, which is UTF-8 if the name is `charset`.
fn acceptable(parameter: &str) -> bool {
    if parameter.is_empty() {
        return true;
    }
    let Some((name, value)) = parameter.split_once('=') else { return false };
    let value = match value.strip_prefix('"') {
        Some(rest) => match rest.strip_suffix('"') {
            Some(inner) => inner,
            None => return false,
        },
        None if is_token(value) => value,
        None => return false,
    };
    is_token(name) && (!name.eq_ignore_ascii_case("charset") || value.eq_ignore_ascii_case("utf-8"))
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

fn blank_trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        for (text, verdict) in [
            ("application/json", true),
            ("Application/JSON", true),
            ("application/json; charset=utf-8", true),
            ("application/json;charset=\"UTF-8\"", true),
            ("application/json ;\tCharset=Utf-8", true),
            ("application/json;", true),
            ("application/json;;", true),
            ("application/json; profile=\"a;b\\\";c\"; v=1", true),
            ("application/jsonx", false),
            ("application/json-patch+json", false),
            ("application/problem+json", false),
            ("application /json", false),
            ("application/json, text/plain", false),
            ("application/json; charset=iso-8859-1", false),
            ("application/json; charset=utf-8; charset=latin1", false),
            ("application/json; charset", false),
            ("application/json; charset=", false),
            ("application/json; charset =utf-8", false),
            ("application/json; profile=\"open", false),
            ("text/json", false),
            ("application", false),
            ("", false),
        ] {
            assert_eq!(is_json(&HeaderValue::from_str(text).unwrap()), verdict, "{text}");
        }
        assert!(!is_json(&HeaderValue::from_bytes(b"application/json\xff").unwrap()));
    }
}
