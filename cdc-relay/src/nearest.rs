//! Suggests the known name that is nearest to an unknown one ("did you mean").

/// ` (did you mean `x`?)`, or nothing if none is near.
pub fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(near) => format!(" (did you mean `{near}`?)"),
        None => String::new(),
    }
}

/// At most a third of the characters may differ; two swapped ones count once.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase();
    let distance = |known: &str| strsim::damerau_levenshtein(&folded, &known.to_lowercase());
    let near = known.into_iter().map(|known| (distance(known), known)).min()?;
    let length = name.chars().count();
    (near.0 < length && near.0 * 3 <= length.max(3)).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let keys = ["slot", "publication", "event_source"];
        assert_eq!(nearest("slott", keys), Some("slot"));
        assert_eq!(nearest("solt", keys), Some("slot"));
        assert_eq!(nearest("Publicatoin", keys), Some("publication"));
        assert_eq!(nearest("eventsource", keys), Some("event_source"));
        assert_eq!(nearest("partitions", keys), None);
        assert_eq!(nearest("x", []), None);
        assert_eq!(nearest("x", ["y"]), None);
    }
}
