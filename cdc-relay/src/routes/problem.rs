//! Why a row cannot be emitted, or why a route does not fit its table.

/// The text is for the operator, and becomes the reason of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(pub String);

impl Problem {
    /// The value is not of the expected form. Shows at most its first 64 characters.
    pub fn not_a(form: &str, value: &[u8]) -> Problem {
        let shown: String = String::from_utf8_lossy(value).chars().take(64).collect();
        Problem(format!("the value `{shown}` is not {form}"))
    }
}
