//! Admits operators to admin listeners, and nobody who can only make a browser send a request.
//!
//! * The name in `Host` is a loopback name or a configured one. A name that an attacker points at the loopback address is
//!   neither.
//! * A request of a web page (`Origin`) comes from a page of this listener.
//! * A call that writes carries a token and the type of its body. Without a configured token nobody writes.
//! * While the token is changed, the new one and the old one both hold. A token of a file is the one that the file has now; writing calls are
//!   rare enough to read a file for each.
//! * A token may be one operator's, `alice:TOKEN`. Routes know then who calls ([`Operator`]), whatever the caller says.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use secret_files::Live;
use subtle::ConstantTimeEq;
use warp::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use warp::http::request::Parts;
use warp::http::uri::Authority;
use warp::http::{Method, Uri};

use crate::head::authority;
use crate::origins::{Grant, Origins};
use crate::{Reason, Refusal};

/// Shorter ones can be guessed.
const TOKEN_CHARS_MIN: usize = 16;

/// The configuration of an admin listener.
#[derive(Args, Clone, Debug, Default)]
pub struct Operators {
    /// Token of calls that write on the admin listener (`Authorization: Bearer …`). Without a token nobody writes. Several, with
    /// commas between, all hold: for as long as it is being changed, or one for each operator, `alice:TOKEN,bob:TOKEN`.
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<Token>,
    /// Names by which the admin listener may be called, besides those of the loopback: `payments.internal` with any port,
    /// `10.0.0.7:9600` with that one.
    #[arg(long, env = "ADMIN_HOSTS", value_name = "HOST,…", value_delimiter = ',')]
    pub admin_hosts: Vec<Name>,
}

/// The callers that a listener admits.
#[derive(Clone, Debug)]
pub enum Audience {
    /// Anyone. The routes decide who may do what.
    Anyone,
    /// Anyone, and web pages of these origins.
    Public(Arc<Origins>),
    /// Operators, by the rules of this module.
    Operators(Arc<Operators>),
}

impl Audience {
    pub fn operators(operators: Operators) -> Self {
        Self::Operators(Arc::new(operators))
    }

    pub fn public(origins: Origins) -> Self {
        Self::Public(Arc::new(origins))
    }

    /// What is allowed to the web page that makes a request with this head.
    pub(crate) fn grant(&self, parts: &Parts) -> Grant {
        match self {
            Self::Public(origins) => origins.grant(parts),
            Self::Anyone | Self::Operators(_) => Grant::default(),
        }
    }

    /// Whether a request with this head is admitted.
    pub(crate) fn admit(&self, parts: &Parts) -> Result<(), Refusal> {
        match self {
            Self::Anyone | Self::Public(_) => Ok(()),
            Self::Operators(operators) => operators.admit(parts),
        }
    }

    /// Whether its caller may write; with the operator whose token the request carries, if it is somebody's own.
    pub(crate) fn may_write(&self, parts: &Parts) -> Result<Option<Operator>, Refusal> {
        match self {
            Self::Anyone | Self::Public(_) => Ok(None),
            Self::Operators(operators) => operators.may_write(parts),
        }
    }
}

/// The name of an operator who showed a token of their own: an extension of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator(pub String);

/// Length limit of an operator's name, in characters.
pub const OPERATOR_CHARS_MAX: usize = 64;

/// Whether a text names an operator: lower-case letters, digits and `._@-`, beginning with a letter or digit. Two names that differ
/// only in case would not be two people.
pub fn is_operator_name(text: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = text.bytes();
    text.len() <= OPERATOR_CHARS_MAX
        && bytes.next().is_some_and(is_alphanumeric)
        && bytes.all(|byte| is_alphanumeric(byte) || b"._@-".contains(&byte))
}

impl Operators {
    fn admit(&self, parts: &Parts) -> Result<(), Refusal> {
        let host = parts.headers.get(HOST).and_then(authority);
        // A request to a proxy has the whole URI; then both names count.
        let called = host.iter().chain(parts.uri.authority());
        let mut called = called.peekable();
        if called.peek().is_none() {
            return Err(Refusal::new(
                Reason::Misdirected,
                "The request has no Host. Call the admin listener by one of its names.",
            ));
        }
        if let Some(other) = called.find(|called| !self.answers_to(called)) {
            let detail = format!(
                "{:.100} is no name of this listener. Add it to ADMIN_HOSTS, or call the listener by a known name.",
                other.as_str()
            );
            return Err(Refusal::new(Reason::Misdirected, detail));
        }
        match parts.headers.get(ORIGIN) {
            Some(origin) if !is_own(origin, host.as_ref()) => {
                let detail = "A web page of another origin made the request. Use a page of this listener, or a client that sends no Origin.";
                Err(Refusal::new(Reason::ForeignOrigin, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn answers_to(&self, called: &Authority) -> bool {
        is_loopback(called.host()) || self.admin_hosts.iter().any(|name| name.is(called))
    }

    fn may_write(&self, parts: &Parts) -> Result<Option<Operator>, Refusal> {
        let Some(token) = self.admin_token.as_ref() else {
            let detail = "No ADMIN_TOKEN is configured, so nobody may write. Configure one to write.";
            return Err(Refusal::new(Reason::Forbidden, detail));
        };
        let Some(holder) = parts.headers.get(AUTHORIZATION).and_then(|given| token.holder(given)) else {
            let detail = "The token is missing or wrong. Send `Authorization: Bearer` and the ADMIN_TOKEN.";
            return Err(Refusal::new(Reason::Unauthorized, detail));
        };
        if parts.method != Method::DELETE && !parts.headers.contains_key(CONTENT_TYPE) {
            let detail = "The request has no Content-Type. Send the type of its body.";
            return Err(Refusal::new(Reason::MediaType, detail));
        }
        Ok(holder.map(Operator))
    }
}

/// `localhost`, or an address of the loopback: no name that somebody else could point elsewhere.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether `Origin` is the listener itself, as the request calls it.
fn is_own(origin: &HeaderValue, host: Option<&Authority>) -> bool {
    let origin = Uri::try_from(origin.as_bytes()).ok();
    let is_web = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    let origin = origin.filter(|uri| is_web(uri)).and_then(|uri| uri.authority().cloned());
    origin.is_some_and(|origin| host.is_some_and(|host| *host == origin))
}

/// A name of a listener: of a host at any port, or at one.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(Authority);

impl Name {
    fn is(&self, called: &Authority) -> bool {
        let same_port = self.0.port_u16().is_none() || self.0.port_u16() == called.port_u16();
        self.0.host().eq_ignore_ascii_case(called.host()) && same_port
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = HeaderValue::from_str(text.trim()).ok();
        let name = value.as_ref().and_then(authority);
        name.map(Self).ok_or_else(|| {
            format!("{text:?} is no host; give one such as payments.internal or 10.0.0.7:9600")
        })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// Secrets that a header can carry (RFC 6750, section 2.1), any of which is good.
#[derive(Clone)]
pub struct Token(Live<Secrets>);

struct Secrets(Vec<Secret>);

struct Secret {
    text: String,
    /// The operator's whose it is; none: it is for all.
    holder: Option<String>,
}

impl Token {
    /// Whose token a header has; `None` when it has none that is good. Compares in a time that does not depend on how much of the
    /// token is right.
    fn holder(&self, authorization: &HeaderValue) -> Option<Option<String>> {
        let given = authorization.as_bytes();
        let (scheme, rest) = given.split_at_checked("Bearer ".len())?;
        let given = rest.trim_ascii();
        let mut holder = None;
        for secret in &self.0.current().0 {
            if bool::from(given.ct_eq(secret.text.as_bytes())) {
                holder = Some(secret.holder.clone());
            }
        }
        holder.filter(|_| scheme.eq_ignore_ascii_case(b"Bearer "))
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Live::new(text).map(Self)
    }
}

impl FromStr for Secrets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = text.split(',').map(str::parse).collect::<Result<Vec<Secret>, _>>()?;
        let repeated = |secret: &Secret| all.iter().filter(|other| other.text == secret.text).count() > 1;
        if all.iter().any(repeated) {
            return Err("a token is given twice; two operators have two tokens".to_owned());
        }
        Ok(Self(all))
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (holder, text) = text.split_once(':').map_or((None, text), |(holder, text)| (Some(holder), text));
        if let Some(holder) = holder.filter(|holder| !is_operator_name(holder)) {
            return Err(format!(
                "{holder:.64?} names no operator; give lower-case letters, digits and ._@- before the colon"
            ));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if text.len() < TOKEN_CHARS_MIN || !text.bytes().all(plain) {
            return Err(format!(
                "the token is too short or has other characters; give at least {TOKEN_CHARS_MIN} letters, digits or -._~+/="
            ));
        }
        Ok(Self { text: text.to_owned(), holder: holder.map(str::to_owned) })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a token)")
    }
}

#[cfg(test)]
#[path = "operators_tests.rs"]
mod tests;
