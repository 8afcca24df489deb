//! Renders errors as RFC 9457 `application/problem+json`.
//!
//! * 429 and 503 carry `Retry-After`, 401 a challenge.

use listener::{Reason, Refusal};
use serde_json::{Value, json};
use warp::Rejection;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use warp::reply::{Reply, Response};

/// The answer to a request that was refused before any route ran.
pub fn refuse(refusal: &Refusal) -> Response {
    let mut response = problem(refusal.reason.status().as_u16(), refusal.reason.as_str(), &refusal.detail);
    if refusal.reason == Reason::Unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A problem document (RFC 9457).
pub fn problem_document(status: u16, kind: &str, detail: &str) -> Value {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let kind = format!("urn:gateway-sim:problem:{kind}");
    json!({"type": kind, "title": title.unwrap_or("Error"), "status": status, "detail": detail})
}

/// The answer with a problem document.
pub fn problem(status: u16, kind: &str, detail: &str) -> Response {
    problem_response(status, &problem_document(status, kind, detail))
}

pub fn problem_response(status: u16, document: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = warp::reply::json(document).into_response();
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}

/// Turns a rejection by warp into a problem document.
pub async fn recover(rejection: Rejection) -> Result<Response, Rejection> {
    use warp::reject::{LengthRequired, PayloadTooLarge};
    if let Some(refusal) = listener::refusal(&rejection) {
        return Ok(refuse(&refusal));
    }
    Ok(if rejection.find::<PayloadTooLarge>().is_some() {
        problem(413, "too-large", "The body is too large.")
    } else if rejection.find::<LengthRequired>().is_some() {
        problem(411, "length-required", "A body with a Content-Length is required.")
    } else if rejection.is_not_found() {
        problem(404, "not-found", "There is no such resource.")
    } else {
        problem(400, "bad-request", "The request could not be read.")
    })
}
