//! HTTP listeners: what every one of ours refuses before a route is asked, who may write, and how it is served.
//!
//! * [`head`]: a request's head says one thing only (RFC 9110, RFC 9112).
//! * [`operators`]: admin listeners answer to known names, to no foreign web page, and write for a token only.
//! * [`methods`]: routes say which methods they have, so that `Allow`, HEAD and OPTIONS follow from them.
//! * [`media`], [`json`]: media types compared as RFC 9110 says; JSON in which no member is given twice.
//! * [`command_line`]: a process's configuration is read before its listeners are bound, and no secret is shown.
//! * [`serve`]: the accept loop, with the limits that warp does not set.

pub mod command_line;
pub mod head;
pub mod json;
pub mod media;
pub mod methods;
pub mod operators;
pub mod serve;

pub use methods::{delete, get, post, put, refusal, unguarded_post};
pub use operators::{Audience, Operators};
pub use serve::serve;

use warp::http::StatusCode;

/// Why a request is refused here. Callers say it in the form of their own answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not HTTP as RFC 9112 has it.
    Malformed,
    /// One field is not acceptable; [`Refused::field`] names it.
    Validation,
    /// Writing needs a token, and there is none or another one.
    Unauthorized,
    /// Nobody may write here, since no token is configured.
    Forbidden,
    /// A web page of somebody else is asking.
    ForeignOrigin,
    NotFound,
    MethodNotAllowed,
    UriTooLong,
    MediaType,
    /// The name in `Host` is none of this listener's.
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
        match self {
            Self::Malformed => "malformed",
            Self::Validation => "validation",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::ForeignOrigin => "foreign-origin",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::UriTooLong => "uri-too-long",
            Self::MediaType => "media-type",
            Self::Misdirected => "misdirected",
        }
    }
}

/// A refusal, before it has the form of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reason,
    /// The header that is not acceptable, as its specification spells it.
    pub field: Option<&'static str>,
    pub detail: String,
}

impl Refused {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, field: None, detail: detail.into() }
    }

    pub(crate) fn field(name: &'static str, detail: impl Into<String>) -> Self {
        Self { reason: Reason::Validation, field: Some(name), detail: detail.into() }
    }
}

impl warp::reject::Reject for Refused {}
