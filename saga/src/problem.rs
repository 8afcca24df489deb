//! Renders errors as RFC 9457 `application/problem+json`.
//!
//! * Types are stable, so that a client may branch on them.
//! * `docs/problems.md` explains each type.

use listener::{Reason, Refusal};
use serde::Serialize;
use strum::VariantArray;
use uuid::Uuid;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use warp::reject::{self, Reject, Rejection};
use warp::reply::{Reply, Response};

/// The error of one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Name of the field or header as the client wrote it.
    pub field: String,
    /// The expected form of the field.
    pub detail: String,
}

/// The kind of a problem. Its `type`, status and title never change once released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum Kind {
    Malformed,
    Validation,
    Unauthorized,
    NoUser,
    InvalidToken,
    Signature,
    Forbidden,
    InsufficientScope,
    ForeignOrigin,
    NotFound,
    MethodNotAllowed,
    Timeout,
    PaymentEnded,
    TooManyEndpoints,
    ActRefused,
    TooLarge,
    UriTooLong,
    MediaType,
    Misdirected,
    IdempotencyKeyReused,
    ServiceNotEnabled,
    BalanceLimit,
    TooManyRequests,
    Overloaded,
    Internal,
    Unavailable,
    NotReady,
}

impl Kind {
    pub const ALL: &[Self] = Self::VARIANTS;

    /// The last segment of `type`, the status, and the title.
    fn parts(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::Malformed => ("malformed", S::BAD_REQUEST, "The request cannot be read."),
            Self::Validation => ("validation", S::BAD_REQUEST, "The request is not valid."),
            Self::Unauthorized => ("unauthorized", S::UNAUTHORIZED, "The call needs a token."),
            Self::NoUser => ("no-user", S::UNAUTHORIZED, "The call names no user."),
            Self::InvalidToken => ("invalid-token", S::UNAUTHORIZED, "The token is not accepted."),
            Self::Signature => {
                ("signature", S::UNAUTHORIZED, "The webhook is not signed by the gateway, or not now.")
            }
            Self::Forbidden => ("forbidden", S::FORBIDDEN, "Nobody may do this here."),
            Self::InsufficientScope => {
                ("insufficient-scope", S::FORBIDDEN, "The token does not allow this call.")
            }
            Self::ForeignOrigin => {
                ("foreign-origin", S::FORBIDDEN, "Web pages of other origins are not answered.")
            }
            Self::NotFound => ("not-found", S::NOT_FOUND, "There is no such resource."),
            Self::MethodNotAllowed => {
                ("method-not-allowed", S::METHOD_NOT_ALLOWED, "This method is not offered here.")
            }
            Self::Timeout => ("timeout", S::REQUEST_TIMEOUT, "The request did not arrive in time."),
            Self::PaymentEnded => {
                ("payment-ended", S::CONFLICT, "The payment has ended and cannot be cancelled.")
            }
            Self::TooManyEndpoints => {
                ("too-many-endpoints", S::CONFLICT, "There are as many endpoints as there may be.")
            }
            Self::ActRefused => ("act-refused", S::CONFLICT, "The act is refused."),
            Self::TooLarge => ("too-large", S::PAYLOAD_TOO_LARGE, "The body is too large."),
            Self::UriTooLong => ("uri-too-long", S::URI_TOO_LONG, "The path is too long."),
            Self::MediaType => {
                ("media-type", S::UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")
            }
            Self::Misdirected => ("misdirected", S::MISDIRECTED_REQUEST, "The host is not this one."),
            Self::IdempotencyKeyReused => (
                "idempotency-key-reused",
                S::UNPROCESSABLE_ENTITY,
                "The idempotency key was used for another request.",
            ),
            Self::ServiceNotEnabled => {
                ("service-not-enabled", S::UNPROCESSABLE_ENTITY, "The service cannot be paid.")
            }
            Self::BalanceLimit => {
                ("balance-limit", S::UNPROCESSABLE_ENTITY, "The account cannot hold that much.")
            }
            Self::TooManyRequests => {
                ("too-many-requests", S::TOO_MANY_REQUESTS, "There are too many requests.")
            }
            Self::Overloaded => {
                ("overloaded", S::SERVICE_UNAVAILABLE, "New payments are not accepted for the moment.")
            }
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR, "The request could not be served."),
            Self::Unavailable => ("unavailable", S::SERVICE_UNAVAILABLE, "The service cannot answer now."),
            Self::NotReady => ("not-ready", S::SERVICE_UNAVAILABLE, "Not ready."),
        }
    }

    pub fn as_str(self) -> &'static str {
        self.parts().0
    }

    pub fn status(self) -> StatusCode {
        self.parts().1
    }

    pub fn title(self) -> &'static str {
        self.parts().2
    }
}

impl From<Reason> for Kind {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Malformed => Self::Malformed,
            Reason::Validation => Self::Validation,
            Reason::Unauthorized => Self::Unauthorized,
            Reason::Forbidden => Self::Forbidden,
            Reason::ForeignOrigin => Self::ForeignOrigin,
            Reason::NotFound => Self::NotFound,
            Reason::MethodNotAllowed => Self::MethodNotAllowed,
            Reason::UriTooLong => Self::UriTooLong,
            Reason::MediaType => Self::MediaType,
            Reason::Misdirected => Self::Misdirected,
        }
    }
}

/// One problem document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: Kind,
    pub detail: String,
    pub errors: Vec<FieldError>,
    /// The payment that the problem is about, for a client that does not know its id.
    pub payment_id: Option<Uuid>,
    /// The scope that a token for the call needs.
    pub scope: Option<&'static str>,
    /// Every later try has the same answer: a 503 then says no time to come back.
    pub is_lasting: bool,
}

impl Reject for Problem {}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            payment_id: None,
            scope: None,
            is_lasting: false,
        }
    }

    /// A problem whose title says all there is to say.
    pub fn of(kind: Kind) -> Self {
        Self::new(kind, kind.title())
    }

    /// 400, with one entry per field. The request was not understood and nothing was changed.
    pub fn validation(errors: Vec<FieldError>) -> Self {
        let detail = format!("{} field(s) are not acceptable.", errors.len());
        Self { errors, ..Self::new(Kind::Validation, detail) }
    }

    /// 400, because of one field or header.
    pub fn field(name: &str, detail: impl Into<String>) -> Self {
        Self::validation(vec![FieldError { field: name.to_owned(), detail: detail.into() }])
    }

    /// 400: the body is not JSON, or says one thing twice.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, detail)
    }

    /// 404. Also the answer for what belongs to somebody else.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, detail)
    }

    /// 401: `X-User-ID` names no user. With `AUTH=header` that header is the credential.
    pub fn no_user(detail: impl Into<String>) -> Self {
        let errors = vec![FieldError { field: "X-User-ID".to_owned(), detail: detail.into() }];
        Self { errors, ..Self::new(Kind::NoUser, "X-User-ID must be the id of the user who calls.") }
    }

    /// 401: there is no token. The call needs one with `scope`.
    pub fn token_missing(scope: &'static str) -> Self {
        let detail = "Send `Authorization: Bearer` and an access token of the issuer.";
        Self { scope: Some(scope), ..Self::new(Kind::Unauthorized, detail) }
    }

    /// 403: the token is valid, but does not have `scope`.
    pub fn insufficient_scope(scope: &'static str) -> Self {
        let detail = format!("The call needs the scope {scope}. Ask the issuer for a token that has it.");
        Self { scope: Some(scope), ..Self::new(Kind::InsufficientScope, detail) }
    }

    /// 503: this installation lacks what the call needs, so it is of no use to try again.
    pub fn not_installed(detail: impl Into<String>) -> Self {
        Self { is_lasting: true, ..Self::new(Kind::Unavailable, detail) }
    }

    /// 503: try again, unchanged. The cause goes to the log, not to the client.
    pub fn unavailable() -> Self {
        let detail = "Nothing is lost; send the same request again, with the same idempotency key.";
        Self::new(Kind::Unavailable, detail)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal.field {
            Some(name) => Self::field(name, refusal.detail),
            None => Self::new(refusal.reason.into(), refusal.detail),
        }
    }
}

/// The document on the wire (RFC 9457, section 3.1), with extension members: `errors`, `payment_id` and `request_id`.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl Reply for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: format!("urn:coro:problem:{}", self.kind.as_str()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            errors: &self.errors,
            payment_id: self.payment_id,
            request_id: listener::request_id::current(),
        };
        let mut response = warp::reply::json(&document).into_response();
        *response.status_mut() = self.kind.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let retry_after = retry_after(self.kind).filter(|_| !self.is_lasting);
        headers.extend(retry_after.map(|seconds| (RETRY_AFTER, HeaderValue::from_static(seconds))));
        headers.extend(challenge(self.kind, self.scope).map(|challenge| (WWW_AUTHENTICATE, challenge)));
        response
    }
}

/// After how many seconds the request may be sent again. Of a 429 its limit says that.
fn retry_after(kind: Kind) -> Option<&'static str> {
    match kind {
        // What is overloaded needs longer than what is missing.
        Kind::Overloaded => Some("5"),
        kind => (kind.status() == StatusCode::SERVICE_UNAVAILABLE).then_some("1"),
    }
}

/// How one may sign in: of each 401 (RFC 9110, section 15.5.2), and with what scope (RFC 6750, section 3.1).
fn challenge(kind: Kind, scope: Option<&str>) -> Option<HeaderValue> {
    let text = match (kind, scope) {
        (Kind::Unauthorized, None) => "Bearer".to_owned(),
        // Without a token there is no error of it to name.
        (Kind::Unauthorized, Some(scope)) => format!("Bearer scope=\"{scope}\""),
        (Kind::InvalidToken, _) => "Bearer error=\"invalid_token\"".to_owned(),
        (Kind::InsufficientScope, None) => "Bearer error=\"insufficient_scope\"".to_owned(),
        (Kind::InsufficientScope, Some(scope)) => {
            format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"")
        }
        (Kind::NoUser, _) => "X-User-ID".to_owned(),
        (Kind::Signature, _) => "Webhook-Signature".to_owned(),
        _ => return None,
    };
    HeaderValue::try_from(text).ok()
}

/// Turns a rejection by warp into a problem document.
pub async fn recover(rejection: Rejection) -> Result<Problem, Rejection> {
    if let Some(problem) = rejection.find::<Problem>() {
        return Ok(problem.clone());
    }
    if let Some(refusal) = listener::refusal(&rejection) {
        return Ok(refusal.into());
    }
    let kind = if rejection.find::<reject::InvalidQuery>().is_some()
        || rejection.find::<reject::InvalidHeader>().is_some()
        || rejection.find::<reject::MissingHeader>().is_some()
    {
        Kind::Validation
    } else if rejection.is_not_found() {
        Kind::NotFound
    } else {
        tracing::error!(
            ?rejection,
            "a request was rejected for a reason that has no problem type; it is answered 500"
        );
        Kind::Internal
    };
    Ok(Problem::of(kind))
}

#[cfg(test)]
#[path = "problem_tests.rs"]
mod tests;
