//! `GET /payments/search`: a user's payments by client number and service name, newest first, in pages.
//!
//! * `q` is required; status, service_id, from, to, limit and cursor are as in `GET /payments`.
//! * The answer comes from the read model: it is as current as the last event that the index has. `version` says how current.
//! * Without an index that answers it is 503: without `Retry-After` where no index is configured. Nothing else depends on it.

use saga::http::log_unavailable;
use saga::problem::{Kind, Problem};
use saga::query::Query;
use uuid::Uuid;
use warp::http::StatusCode;
use warp::reply::Response;

use super::json_response;
use super::list::{STATUS_CHARS_MAX, TIME, TIME_CHARS_MAX, bound, parse_cursor};
use super::pay::SERVICE_ID_CHARS_MAX;
use crate::metrics::Metrics;
use crate::render;
use crate::saga::Status;
use crate::search::{Search, SearchFailure, SearchQuery};

/// Longer than any client number.
const TEXT_CHARS_MAX: usize = 100;

pub(super) async fn search(
    search: &Search,
    metrics: &Metrics,
    user_id: Uuid,
    query: Query,
) -> Result<Response, Problem> {
    let query = parse(query)?;
    let (outcome, answer) = match search.find(user_id, &query).await {
        Ok(page) => {
            let next_cursor = page.next.map(|payment_id| payment_id.simple().to_string());
            let body = render::search_page(&page.hits, next_cursor.as_deref());
            ("answered", Ok(json_response(StatusCode::OK, body)))
        }
        Err(SearchFailure::NotConfigured) => {
            ("not_configured", Err(Problem::not_installed("This installation has no search.")))
        }
        Err(SearchFailure::Busy) => ("busy", Err(not_now("Too many searches are under way."))),
        Err(SearchFailure::Unavailable(error)) => {
            log_unavailable("search index", &error);
            (
                "unavailable",
                Err(not_now("Search cannot answer now. GET /payments lists the payments meanwhile.")),
            )
        }
    };
    metrics.searches.with_label_values(&[outcome]).inc();
    answer
}

fn not_now(detail: &str) -> Problem {
    Problem::new(Kind::Unavailable, detail)
}

fn parse(mut query: Query) -> Result<SearchQuery, Problem> {
    let text = query.required_text("q", TEXT_CHARS_MAX);
    let status = query.value("status", STATUS_CHARS_MAX, "a status of a payment", Status::parse);
    let service_id = query.text("service_id", SERVICE_ID_CHARS_MAX);
    let from = query.value("from", TIME_CHARS_MAX, TIME, bound);
    let to = query.value("to", TIME_CHARS_MAX, TIME, bound);
    let after = query.cursor(parse_cursor);
    let limit = query.limit();
    query.finish()?;
    Ok(SearchQuery { text, status, service_id, from, to, after, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<SearchQuery, Vec<String>> {
        let named =
            |problem: Problem| problem.errors.into_iter().map(|e| format!("{} {}", e.field, e.detail));
        parse(Query::of(Some(text))).map_err(|problem| named(problem).collect())
    }

    #[test]
    fn a_text_is_required_and_taken_as_it_is() {
        for text in ["0812", "a b", "user_id:*", "\" OR 1=1 --", "{}", "caf\u{e9}"] {
            let query: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            assert_eq!(parsed(&format!("q={query}")).unwrap().text, text);
        }
        assert_eq!(parsed(""), Err(vec!["q is required".to_owned()]));
        for (query, expected) in [
            ("q=", "q must have 1 to 100 characters"),
            ("q=%20", "q must not begin or end with a blank"),
            ("q=a&q=b", "q is given more than once"),
            ("q=a%00b", "q must not contain control characters, or others that cannot be seen"),
            ("q=%ff", "q must be UTF-8, percent-encoded"),
        ] {
            assert_eq!(parsed(query), Err(vec![expected.to_owned()]), "{query}");
        }
        let long = "x".repeat(7_000);
        assert_eq!(parsed(&format!("q={long}")), Err(vec!["q must have 1 to 100 characters".to_owned()]));
    }

    #[test]
    fn the_filters_are_those_of_the_list() {
        let id = Uuid::from_u128(7);
        let found =
            parsed(&format!("q=a&status=failed&service_id=gas&limit=3&cursor={}", id.simple())).unwrap();
        let expected = SearchQuery {
            text: "a".to_owned(),
            status: Some(Status::Failed),
            service_id: Some("gas".to_owned()),
            from: None,
            to: None,
            after: Some(id),
            limit: 3,
        };
        assert_eq!(found, expected);
        let wrong = parsed("q=a&status=done&from=yesterday&to=1&cursor=x&limit=0&user_id=1").unwrap_err();
        let fields: Vec<&str> = wrong.iter().filter_map(|error| error.split(' ').next()).collect();
        assert_eq!(fields, ["status", "from", "to", "cursor", "limit", "user_id"]);
    }
}
