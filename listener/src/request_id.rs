//! Gives each request an id, by which a client's report finds its log lines.
//!
//! * The edge names the request in `Request-Id`. A request that did not pass an edge gets an id here.
//! * The answer carries the id in the same header, and a problem document names it.
//! * An id that is no short visible ASCII is replaced: it ends up in logs.

use warp::http::header::{HeaderMap, HeaderName, HeaderValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Twice the length of a UUID, for those who name their requests otherwise.
const CHARS_MAX: usize = 72;

tokio::task_local! {
    static CURRENT: HeaderValue;
}

/// The id that the head of a request gives, or a new one.
pub(crate) fn of(headers: &HeaderMap) -> HeaderValue {
    let mut given = headers.get_all(REQUEST_ID).iter();
    match (given.next(), given.next()) {
        (Some(id), None) if is_acceptable(id) => id.clone(),
        _ => new(),
    }
}

fn is_acceptable(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=CHARS_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

fn new() -> HeaderValue {
    let id = uuid::Uuid::now_v7().to_string();
    HeaderValue::try_from(id).unwrap_or_else(|_| unreachable!("a UUID is a valid header value"))
}

/// Runs the answer to the request with this id.
pub(crate) async fn scope<F: Future>(id: HeaderValue, answer: F) -> F::Output {
    CURRENT.scope(id, answer).await
}

/// The id of the request that is being answered; `None` elsewhere.
pub fn current() -> Option<String> {
    CURRENT.try_with(|id| id.to_str().ok().map(str::to_owned)).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (REQUEST_ID, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn one_short_visible_id_is_kept_and_anything_else_is_replaced() {
        assert_eq!(of(&given(&["a-1"])), "a-1");
        let long = "x".repeat(CHARS_MAX + 1).leak();
        for bad in [&[][..], &[""], &["a b"], &["a", "a"], &[long]] {
            let id = of(&given(bad));
            assert_eq!(id.len(), 36, "{bad:?}: {id:?}");
        }
    }

    #[tokio::test]
    async fn the_id_is_known_while_the_request_is_answered() {
        assert_eq!(current(), None);
        let seen = scope(HeaderValue::from_static("a-1"), async { current() }).await;
        assert_eq!(seen.as_deref(), Some("a-1"));
    }
}
