//! Values of the routes file in the text form that Postgres prints.
//!
//! * A boolean may be written as in TOML and JSON.
//! * Any other value is written as Postgres prints it; `source::contract::literals` checks that before.

use crate::routes::json;
use crate::routes::problem::Problem;

/// The value in the text form of its column's type.
pub fn text_form(value: &str, type_oid: u32, column: &str) -> Result<Box<[u8]>, Problem> {
    let text = boolean(value, type_oid == json::BOOL);
    if type_oid == json::BOOL && !matches!(text, "t" | "f") {
        return Err(Problem(format!("column {column} is a boolean, and never `{value}`")));
    }
    Ok(text.as_bytes().into())
}

/// The value, or Postgres' form of it if it is a boolean.
pub fn boolean(value: &str, is_boolean: bool) -> &str {
    match value {
        "true" if is_boolean => "t",
        "false" if is_boolean => "f",
        _ => value,
    }
}
