//! Errors as RFC 9457 `application/problem+json`, with stable `type`s a client may branch on.

use serde::Serialize;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::reject::{self, Reject, Rejection};
use warp::reply::{Reply, Response};

/// What one field of a request did wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Name of the field or header as the client wrote it.
    pub field: String,
    /// What is expected of it.
    pub detail: String,
}

/// One refusal. `kind` is the last segment of its `type` and never changes once released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub kind: &'static str,
    pub title: &'static str,
    pub detail: String,
    pub errors: Vec<FieldError>,
}

impl Reject for Problem {}

impl Problem {
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { status, kind, title, detail: detail.into(), errors: Vec::new() }
    }

    /// 400, with one entry per field. The request was not understood and nothing was changed.
    pub fn validation(errors: Vec<FieldError>) -> Self {
        let detail = format!("{} field(s) are not acceptable.", errors.len());
        let title = "The request is not valid.";
        Self { errors, ..Self::new(StatusCode::BAD_REQUEST, "validation", title, detail) }
    }

    /// 400: the body is not JSON at all.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "The body is not valid JSON.", detail)
    }

    /// 404. Also the answer for what belongs to somebody else.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such resource.", detail)
    }

    /// 503: try again, unchanged. The cause goes to the log, not to the client.
    pub fn unavailable() -> Self {
        let title = "The service cannot answer now.";
        let detail = "Nothing is lost; send the same request again, with the same idempotency key.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", title, detail)
    }
}

/// The document on the wire (RFC 9457, section 3.1), with `errors` as an extension member.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
}

impl Reply for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: format!("urn:coro:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            errors: &self.errors,
        };
        let mut response = warp::reply::json(&document).into_response();
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Turns every way in which warp refuses a request into a problem document.
pub async fn recover(rejection: Rejection) -> Result<Problem, Rejection> {
    if let Some(problem) = rejection.find::<Problem>() {
        return Ok(problem.clone());
    }
    let (status, kind, title) = if rejection.find::<reject::MethodNotAllowed>().is_some() {
        (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This method is not offered here.")
    } else if rejection.find::<reject::InvalidQuery>().is_some() {
        (StatusCode::BAD_REQUEST, "validation", "The query string is not valid.")
    } else if rejection.find::<reject::InvalidHeader>().is_some()
        || rejection.find::<reject::MissingHeader>().is_some()
    {
        (StatusCode::BAD_REQUEST, "validation", "A header is missing or not valid.")
    } else if rejection.is_not_found() {
        (StatusCode::NOT_FOUND, "not-found", "There is no such resource.")
    } else {
        tracing::error!(?rejection, "a rejection nobody named");
        (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The request could not be served.")
    };
    Ok(Problem::new(status, kind, title, title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_rendered_with_type_status_and_fields() {
        let field = FieldError { field: "amount".into(), detail: "must be a whole number".into() };
        let response = Problem::validation(vec![field]).into_response();
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let reply = warp::test::request()
            .reply(&warp::Filter::map(warp::any(), || Problem::malformed("expected value at line 1")))
            .await;
        assert_eq!(
            std::str::from_utf8(reply.body()).unwrap(),
            r#"{"type":"urn:coro:problem:malformed","title":"The body is not valid JSON.","status":400,"detail":"expected value at line 1"}"#
        );
    }

    #[test]
    fn unavailable_says_when_to_come_back() {
        assert_eq!(Problem::unavailable().into_response().headers()[RETRY_AFTER], "1");
    }
}
