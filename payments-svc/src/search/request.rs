//! Builds the queries of a search: pure.
//!
//! * A word of the text is always the value of a `match`, which knows no operators.
//! * The filter on the user is part of every query for payments, and nothing of the text can reach it.

use saga::search_index::{KIND, Kind};
use serde_json::{Value, json};
use uuid::Uuid;

use super::SearchQuery;
use super::answer::Services;

/// Services that one search considers at most.
const SERVICES_MAX: u64 = 1000;

/// A word of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub text: String,
    /// It has digits, and besides only what people put between digits.
    pub is_number: bool,
}

/// The words of a text, by blanks. What has neither letter nor digit is none: nothing could match it.
pub(super) fn words(text: &str) -> Vec<Word> {
    let words = text.split_whitespace().filter(|word| word.contains(char::is_alphanumeric));
    words.map(|word| Word { text: word.to_owned(), is_number: is_number(word) }).collect()
}

fn is_number(text: &str) -> bool {
    let is_separator = |c: char| c.is_ascii_punctuation() || c == ' ';
    text.contains(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || is_separator(c))
}

/// All parts of `text` begin words of the field.
fn begins(field: &str, text: &str) -> Value {
    json!({"match": {field: {"query": text, "operator": "and"}}})
}

/// One of these holds.
fn any(clauses: &[Value]) -> Value {
    json!({"bool": {"should": clauses, "minimum_should_match": 1}})
}

/// The services that a word names; each hit says which words do, by their numbers.
pub(super) fn services(words: &[Word]) -> Value {
    let named = |(number, word): (usize, &Word)| {
        let mut clause = any(&[begins("name", &word.text), begins("service_id.words", &word.text)]);
        clause["bool"]["_name"] = json!(number.to_string());
        clause
    };
    let named: Vec<Value> = words.iter().enumerate().map(named).collect();
    json!({
        "size": SERVICES_MAX,
        "track_total_hits": false,
        "_source": ["service_id", "name"],
        "query": {"bool": {
            "filter": [{"term": {KIND: Kind::Service.as_str()}}],
            "should": named,
            "minimum_should_match": 1,
        }},
        "highlight": highlighted(&json!({"name": {}})),
    })
}

/// The payments of the user that match, newest first; one more than the page has, to know whether another follows.
pub(super) fn payments(user_id: Uuid, search: &SearchQuery, words: &[Word], services: &Services) -> Value {
    let mut filter = vec![
        json!({"term": {KIND: Kind::Payment.as_str()}}),
        json!({"term": {"user_id": user_id.to_string()}}),
        matching(search, words, services),
    ];
    if let Some(status) = search.status {
        filter.push(json!({"term": {"status": status.as_str()}}));
    }
    if let Some(service_id) = &search.service_id {
        filter.push(json!({"term": {"service_id": service_id}}));
    }
    let bounds = [("gte", search.from), ("lt", search.to)].into_iter();
    let bounds: serde_json::Map<String, Value> =
        bounds.filter_map(|(name, id)| Some((name.to_owned(), json!(id?.to_string())))).collect();
    if !bounds.is_empty() {
        filter.push(json!({"range": {"payment_id": bounds}}));
    }
    let numbers =
        |field: &str| any(&texts(search, words).map(|text| begins(field, text)).collect::<Vec<_>>());
    let mut query = json!({
        "size": search.limit + 1,
        "track_total_hits": false,
        "sort": [{"payment_id": "desc"}],
        "query": {"bool": {"filter": filter}},
        "highlight": highlighted(&json!({
            "client_number": {"highlight_query": numbers("client_number")},
            "client_number.digits": {"highlight_query": numbers("client_number.digits")},
        })),
    });
    if let Some(after) = search.after {
        query["search_after"] = json!([after.to_string()]);
    }
    query
}

/// The words, and the whole text where it is one number with blanks in it.
fn texts<'a>(search: &'a SearchQuery, words: &'a [Word]) -> impl Iterator<Item = &'a str> {
    let whole = (words.len() > 1 && is_number(&search.text)).then_some(search.text.as_str());
    words.iter().map(|word| word.text.as_str()).chain(whole)
}

/// Every word matches; or the text is a number with blanks in it, and the client number begins so.
fn matching(search: &SearchQuery, words: &[Word], services: &Services) -> Value {
    let of_word = |(number, word): (usize, &Word)| {
        let mut clauses = vec![begins("client_number", &word.text)];
        if word.is_number {
            clauses.push(begins("client_number.digits", &word.text));
        }
        let ids = services.named_by(number);
        if !ids.is_empty() {
            clauses.push(json!({"terms": {"service_id": ids}}));
        }
        any(&clauses)
    };
    let all: Vec<Value> = words.iter().enumerate().map(of_word).collect();
    let mut ways = vec![json!({"bool": {"filter": all}})];
    if words.len() > 1 && is_number(&search.text) {
        ways.push(begins("client_number.digits", &search.text));
    }
    any(&ways)
}

/// Whole fields, as HTML.
fn highlighted(fields: &Value) -> Value {
    json!({
        "encoder": "html",
        "number_of_fragments": 0,
        "pre_tags": ["<em>"],
        "post_tags": ["</em>"],
        "fields": fields,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::saga::Status;

    const USER: Uuid = Uuid::from_u128(0xa);

    pub fn search(text: &str) -> SearchQuery {
        SearchQuery {
            text: text.to_owned(),
            status: None,
            service_id: None,
            from: None,
            to: None,
            after: None,
            limit: 20,
        }
    }

    fn query(search: &SearchQuery) -> Value {
        payments(USER, search, &words(&search.text), &Services::default())
    }

    fn filters(query: &Value) -> &[Value] {
        query["query"]["bool"]["filter"].as_array().unwrap()
    }

    #[test]
    fn every_query_for_payments_is_limited_to_the_user_whatever_the_text() {
        for text in ["a", "user_id:*", "* OR 1", "\"x", "}]}x", "<b>", "0812 99", "\\u0000", "AND NOT", "((x"]
        {
            let query = query(&search(text));
            let filters = filters(&query);
            assert_eq!(filters[1], json!({"term": {"user_id": USER.to_string()}}), "{text}");
            assert_eq!(filters.len(), 3, "{text}");
            assert_eq!(query["query"].as_object().unwrap().len(), 1, "{text}: nothing beside the filters");
            let kinds = query.to_string();
            for parsed in ["query_string", "regexp", "wildcard", "script"] {
                assert!(!kinds.contains(parsed), "{text}: {parsed}");
            }
        }
    }

    #[test]
    fn a_text_is_words_and_words_with_digits_are_numbers() {
        let found: Vec<(String, bool)> = words("  Café 0812-34 (021) a1 -- ")
            .into_iter()
            .map(|word| (word.text, word.is_number))
            .collect();
        let expected = [("Café", false), ("0812-34", true), ("(021)", true), ("a1", false)];
        assert_eq!(found, expected.map(|(text, number)| (text.to_owned(), number)));
        assert_eq!((words("  "), words("* -- ?")), (Vec::new(), Vec::new()));
    }

    #[test]
    fn filters_and_bounds_are_added_when_they_are_asked_for() {
        let plain = query(&search("a"));
        assert!(plain.get("search_after").is_none());
        assert_eq!((&plain["size"], &plain["sort"]), (&json!(21), &json!([{"payment_id": "desc"}])));
        let (from, to, after) = (Uuid::from_u128(1), Uuid::from_u128(9), Uuid::from_u128(5));
        let all = SearchQuery {
            status: Some(Status::Failed),
            service_id: Some("gas".to_owned()),
            from: Some(from),
            to: Some(to),
            after: Some(after),
            ..search("a")
        };
        let full = query(&all);
        let bounds = json!({"gte": from.to_string(), "lt": to.to_string()});
        assert_eq!(
            filters(&full)[3..],
            [
                json!({"term": {"status": "failed"}}),
                json!({"term": {"service_id": "gas"}}),
                json!({"range": {"payment_id": bounds}}),
            ]
        );
        assert_eq!(full["search_after"], json!([after.to_string()]));
    }

    #[test]
    fn each_word_matches_the_number_or_a_service_that_it_names() {
        let found = json!({"timed_out": false, "hits": {"hits": [
            {"_source": {"service_id": "gas", "name": "Gas"}, "matched_queries": ["1"]},
            {"_source": {"service_id": "mobile", "name": "Gasoline"}, "matched_queries": ["1"]},
        ]}});
        let services = super::super::answer::services(&found, 2).unwrap();
        let asked = search("0812 ga");
        let clause = matching(&asked, &words(&asked.text), &services);
        let begins = |field: &str, text: &str| json!({"match": {field: {"query": text, "operator": "and"}}});
        let any = |clauses: Value| json!({"bool": {"should": clauses, "minimum_should_match": 1}});
        let number = any(json!([begins("client_number", "0812"), begins("client_number.digits", "0812")]));
        let name = any(json!([begins("client_number", "ga"), {"terms": {"service_id": ["gas", "mobile"]}}]));
        assert_eq!(clause, any(json!([{"bool": {"filter": [number, name]}}])));
    }

    #[test]
    fn a_number_may_be_written_with_blanks() {
        let ways = |text: &str| {
            let asked = search(text);
            let clause = matching(&asked, &words(text), &Services::default());
            clause["bool"]["should"].as_array().unwrap().len()
        };
        assert_eq!((ways("0812 3456"), ways("0812"), ways("0812 gas")), (2, 1, 1));
    }
}
