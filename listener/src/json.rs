//! Parses JSON whose members are unique.
//!
//! * A member that is given twice is refused at any depth, since two readers might use different values (RFC 8259,
//!   section 4).

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Error, Map, Number, Value};

/// Characters of a member's name that an error repeats.
const NAME_CHARS_MAX: usize = 64;

/// Reads one JSON text.
///
/// # Errors
/// When the text is no JSON, or a member is given twice.
pub fn parse(text: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice::<Once>(text).map(|once| once.0)
}

/// Reads one JSON text as a `T`.
///
/// # Errors
/// As [`parse`], and when it is no `T`.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    serde_json::from_value(parse(text)?)
}

struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Once)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                let name: String = name.chars().take(NAME_CHARS_MAX).collect();
                return Err(A::Error::custom(format!("the member {name:?} is given twice")));
            }
            let Once(value) = members.next_value()?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_but_a_repeated_member_is_read_as_ever() {
        let text =
            br#"{"a":[1,-2,3.5,"x\u00e9",null,true,{"a":{}}],"b":18446744073709551615,"":"\ud83d\ude00"}"#;
        assert_eq!(parse(text).unwrap(), serde_json::from_slice::<Value>(text).unwrap());
        assert_eq!(parse(b" 1 ").unwrap(), json!(1));
        for bad in ["", "{", "{}x", "\u{feff}{}", r#""\ud800""#, "1e400", "[1,]", "'a'", "NaN"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err(), "deeper than any stack");
    }

    #[test]
    fn a_member_is_given_once_at_every_depth() {
        for twice in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"b":{"a":1,"a":2}}"#,
            r#"[{"a":1},{"c":1,"a":null,"a":1}]"#,
        ] {
            let error = parse(twice.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("\"a\" is given twice"), "{twice}: {error}");
        }
        assert!(parse(br#"[{"a":1},{"a":1}]"#).is_ok());
        assert!(read::<std::collections::BTreeMap<String, i64>>(br#"{"a":1,"a":1}"#).is_err());
    }
}
