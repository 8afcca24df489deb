//! Lets web pages of configured origins use a listener (CORS, as the Fetch standard has it).
//!
//! * Without a configured origin nothing is allowed, and answers say nothing about it.
//! * An origin is compared as a whole. There are no patterns, and `null`, which any page can have, is none.
//! * `*` lets pages of every origin read, without credentials. Credentials are for origins that are named for them.
//! * Every answer carries the permission, refusals too, so that a page can read why it was refused.
//! * Every answer says that it depends on the origin (`Vary`), so that no cache gives it to another one.
//!
//! This is no access control: who calls is decided by identity, and a caller that is no browser ignores all of it.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use warp::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ALLOW, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use warp::http::request::Parts;
use warp::http::{Method, StatusCode, Uri};
use warp::reply::Response;

/// What a page may read of an answer besides its body. Browsers hide every other field.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Location, Request-Id, Retry-After, Idempotent-Replayed, RateLimit, RateLimit-Policy, WWW-Authenticate",
);
/// What a page may send. Browsers send every other field only if it is harmless by itself.
const ALLOWED: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-User-ID, traceparent, tracestate",
);
/// Seconds for which a browser need not ask again. A change of the configuration reaches pages after that.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// The origins whose web pages may use a listener.
#[derive(Args, Clone, Debug, Default)]
pub struct Origins {
    /// Origins whose web pages may call the public listener, such as https://app.example; `*` is every origin. Without any,
    /// browsers keep pages of other origins away.
    #[arg(long, env = "CORS_ORIGINS", value_name = "ORIGIN,…", value_delimiter = ',')]
    pub cors_origins: Vec<AllowedOrigin>,
    /// Origins whose web pages may also send credentials, such as the cookie of a gateway in front.
    #[arg(long, env = "CORS_CREDENTIALS_ORIGINS", value_name = "ORIGIN,…", value_delimiter = ',')]
    pub cors_credentials_origins: Vec<Origin>,
}

impl Origins {
    /// What is allowed to the page that makes a request with this head.
    pub(crate) fn grant(&self, head: &Parts) -> Grant {
        if self.cors_origins.is_empty() && self.cors_credentials_origins.is_empty() {
            return Grant::default();
        }
        let origin = head.headers.get(ORIGIN);
        let is_one = |known: &Origin| origin.is_some_and(|origin| origin.as_bytes() == known.0.as_bytes());
        let credentials = self.cors_credentials_origins.iter().any(is_one);
        let named = self.cors_origins.iter().any(|allowed| match allowed {
            AllowedOrigin::Any => false,
            AllowedOrigin::One(known) => is_one(known),
        });
        let any = origin.is_some() && self.cors_origins.contains(&AllowedOrigin::Any);
        let asks = head.method == Method::OPTIONS && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        Grant {
            varies: true,
            origin: if credentials || named { origin.cloned() } else { any.then_some(ANY) },
            credentials,
            asks,
        }
    }
}

/// What is allowed to one page.
#[derive(Debug, Default)]
pub(crate) struct Grant {
    varies: bool,
    /// The value of `Access-Control-Allow-Origin`.
    origin: Option<HeaderValue>,
    credentials: bool,
    /// The browser asks before it sends the page's request (a preflight).
    asks: bool,
}

impl Grant {
    /// Writes it into the answer.
    pub(crate) fn write(self, answer: &mut Response) {
        let status = answer.status();
        let headers = answer.headers_mut();
        if self.varies {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = self.origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if self.asks && status == StatusCode::NO_CONTENT {
            preflight(headers);
        } else {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

fn preflight(headers: &mut HeaderMap) {
    if let Some(methods) = headers.get(ALLOW).cloned() {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    }
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
}

/// One origin, or every one.
#[derive(Clone, PartialEq, Eq)]
pub enum AllowedOrigin {
    Any,
    One(Origin),
}

impl FromStr for AllowedOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "*" { Ok(Self::Any) } else { text.parse().map(Self::One) }
    }
}

impl fmt::Debug for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::One(origin) => origin.fmt(f),
        }
    }
}

/// An origin as browsers write it (RFC 6454, section 6.2): scheme, host, and the port unless it is the scheme's own.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin(String);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let refuse = |why: &str| {
            Err(format!(
                "{text:?} {why}; give an origin such as https://app.example or http://localhost:3000"
            ))
        };
        let Ok(uri) = text.parse::<Uri>() else { return refuse("is no origin") };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return refuse("is no origin");
        };
        let is_default = matches!((scheme, authority.port_u16()), ("https", Some(443)) | ("http", Some(80)));
        if is_default {
            return refuse("names the port that browsers leave out");
        }
        // The same text again: no path, no slash at its end, no user, and lower case.
        let written = format!("{scheme}://{authority}").to_ascii_lowercase();
        if written != text || authority.as_str().contains('@') || authority.host().contains('*') {
            return refuse("is not written as browsers write an origin");
        }
        Ok(Self(written))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[path = "origins_tests.rs"]
mod tests;
