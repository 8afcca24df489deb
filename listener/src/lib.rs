//! HTTP listeners: refuse bad requests before any route runs, admit operators, and serve with limits.
//!
//! * [`head`]: the head of a request is unambiguous (RFC 9110, RFC 9112).
//! * [`operators`]: admin listeners answer to known names and to no foreign web page; writing needs a token.
//! * [`methods`]: routes declare their methods; `Allow`, HEAD and OPTIONS follow from that.
//! * [`media`], [`json`]: media types are compared as RFC 9110 says; JSON members are unique.
//! * [`command_line`]: a process reads its configuration before it binds listeners, and shows no secret.
//! * [`request_id`]: each request has an id, which its answer and its log lines carry.
//! * [`answer_headers`]: a filter gives header fields to the answer of its request.
//! * [`origins`]: web pages of configured origins may use a listener (CORS).
//! * [`tls`]: TLS by the files of a certificate, which are read again when they change.
//! * [`serve`]: the accept loop, with the limits that warp does not set.

pub mod answer_headers;
pub mod command_line;
pub mod head;
pub mod json;
pub mod media;
pub mod methods;
pub mod operators;
pub mod origins;
pub mod request_id;
pub mod serve;
pub mod tls;

pub use methods::{delete, get, post, put, refusal, unguarded_post};
pub use operators::{Audience, Operators};
pub use origins::Origins;
pub use serve::serve;
pub use tls::{Socket, Tls};

use strum::IntoStaticStr;
use warp::http::StatusCode;

/// The reason of a refusal. Callers render it in the form of their own answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Reason {
    /// The request is no valid HTTP (RFC 9112).
    Malformed,
    /// One field is wrong; [`Refusal::field`] names it.
    Validation,
    /// Writing needs a token, which is missing or wrong.
    Unauthorized,
    /// Nobody may write here, since no token is configured.
    Forbidden,
    /// A web page of another origin made the request.
    ForeignOrigin,
    NotFound,
    MethodNotAllowed,
    UriTooLong,
    MediaType,
    /// The name in `Host` is no name of this listener.
    Misdirected,
}

impl Reason {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Validation => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        }
    }

    /// The last segment of a problem's `type`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A refusal, before it is rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// The header that is wrong, as its specification spells it.
    pub field: Option<&'static str>,
    pub detail: String,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, field: None, detail: detail.into() }
    }

    pub(crate) fn field(name: &'static str, detail: impl Into<String>) -> Self {
        Self { reason: Reason::Validation, field: Some(name), detail: detail.into() }
    }
}

impl warp::reject::Reject for Refusal {}
