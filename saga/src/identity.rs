//! Identifies the client of a public listener: who calls, and what the caller may do.
//!
//! * `AUTH=header` trusts `X-User-ID`: a gateway in front of the service signs clients in and sets it.
//! * `AUTH=jwt` verifies the access token of a third-party issuer, and ignores `X-User-ID`.
//! * A token comes in `Authorization: Bearer` and nowhere else (RFC 6750, section 2.1).
//! * No log and no problem document shows a token or a key.

mod jwks_client;
mod key_cache;
mod keys;
mod ring_provider;
pub mod settings;
mod token;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus::Registry;
use uuid::Uuid;
use warp::http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use warp::{Filter, Rejection};

pub use self::key_cache::Limits;
pub use self::settings::Settings;

use self::key_cache::KeyCache;
use self::token::{Refusal, Rules};
use crate::problem::Problem;
use crate::{fields, http};

const X_USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// The permission that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// GET.
    Read,
    /// POST.
    Write,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "payments:read",
            Self::Write => "payments:write",
        }
    }
}

/// The client of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub user_id: Uuid,
    /// From then on the token is refused: its `exp` and the leeway. `None` with `AUTH=header`.
    pub expires_at: Option<Timestamp>,
}

impl Caller {
    /// Waits until the token of this request has expired. An answer that goes on for long ends then.
    pub async fn expiry(self) {
        match self.expires_at {
            Some(at) => {
                let left = at.duration_since(Timestamp::now());
                tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
            }
            None => std::future::pending().await,
        }
    }
}

/// How clients are identified. Clones share the keys of the issuer.
#[derive(Clone)]
pub struct Identity(Method);

#[derive(Clone)]
enum Method {
    Header,
    Token(Arc<Verifier>),
}

struct Verifier {
    rules: Rules,
    keys: Arc<KeyCache>,
}

impl Identity {
    /// Identifies clients by `settings`. With tokens the first fetch of the issuer's keys begins now; until it has ended,
    /// requests wait for it.
    ///
    /// # Errors
    /// When the system's certificate authorities cannot be read, or the metrics cannot be registered.
    pub fn start(settings: Settings, registry: &Registry) -> anyhow::Result<Self> {
        Self::start_within(Limits::default(), settings, registry)
    }

    /// The same, with other limits of the key cache.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_within(limits: Limits, settings: Settings, registry: &Registry) -> anyhow::Result<Self> {
        match settings {
            Settings::Header => Ok(Self(Method::Header)),
            Settings::Jwt(settings) => {
                ring_provider::install();
                let rules = Rules::new(&settings);
                let keys = KeyCache::start(limits, settings.jwks_url, registry)?;
                Ok(Self(Method::Token(Arc::new(Verifier { rules, keys }))))
            }
        }
    }

    /// Extracts the caller, who has `scope`. A route has it right after its method.
    pub fn user(&self, scope: Scope) -> impl Filter<Extract = (Caller,), Error = Rejection> + Clone + use<> {
        let name = match self.0 {
            Method::Header => X_USER_ID,
            Method::Token(_) => AUTHORIZATION,
        };
        let identity = self.clone();
        http::header(name).and_then(move |value: Option<HeaderValue>| {
            let identity = identity.clone();
            async move { identity.caller(value.as_ref(), scope).await.map_err(warp::reject::custom) }
        })
    }

    async fn caller(&self, value: Option<&HeaderValue>, scope: Scope) -> Result<Caller, Problem> {
        match &self.0 {
            Method::Header => Ok(Caller { user_id: parse_user_id(value)?, expires_at: None }),
            Method::Token(verifier) => Ok(verifier.caller(value, scope).await?),
        }
    }
}

impl Verifier {
    async fn caller(&self, authorization: Option<&HeaderValue>, scope: Scope) -> Result<Caller, Refusal> {
        let token = bearer(authorization).ok_or(Refusal::Missing(scope))?;
        let name = self.rules.key_name(token)?;
        let key = self.keys.key(&name).await?;
        let claims = self.rules.claims(token, &key, name.algorithm)?;
        let caller = self.rules.caller(&claims, scope)?;
        // The library counts in whole seconds, so that a token would outlive the streams that end with it.
        if caller.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(Refusal::Expired);
        }
        Ok(caller)
    }
}

/// The token of an `Authorization` header; nothing if it has another scheme.
fn bearer(authorization: Option<&HeaderValue>) -> Option<&str> {
    let (scheme, token) = authorization?.to_str().ok()?.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("Bearer") && !token.is_empty()).then_some(token)
}

fn parse_user_id(value: Option<&HeaderValue>) -> Result<Uuid, Problem> {
    let value = value.ok_or_else(|| Problem::no_user("is required"))?;
    value
        .to_str()
        .ok()
        .and_then(fields::parse_uuid)
        .ok_or_else(|| Problem::no_user("must be a UUID, such as 0198c0de-0000-7000-8000-000000000001"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hyphenated_uuid_is_a_user() {
        let id = "0198c0de-0000-7000-8000-000000000001";
        let parse = |text: &str| parse_user_id(Some(&HeaderValue::from_bytes(text.as_bytes()).unwrap()));
        assert_eq!(parse(id).unwrap().to_string(), id);
        assert_eq!(parse(&id.to_uppercase()).unwrap().to_string(), id, "rendered in lower case");
        let (simple, urn, braced) = (id.replace('-', ""), format!("urn:uuid:{id}"), format!("{{{id}}}"));
        for bad in ["", "bob", "b\u{f6}b", &simple, &urn, &braced, &format!("{id}, {id}")] {
            assert_eq!(parse(bad).unwrap_err().errors[0].field, "X-User-ID");
        }
        assert_eq!(parse_user_id(None).unwrap_err().errors[0].detail, "is required");
    }

    #[test]
    fn a_token_follows_the_scheme_bearer() {
        for (text, token) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("bEARER  a.b.c ", Some("a.b.c")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Bearera.b.c", None),
            ("Basic a.b.c", None),
            ("a.b.c", None),
            ("", None),
        ] {
            assert_eq!(bearer(Some(&HeaderValue::from_str(text).unwrap())), token, "{text:?}");
        }
        assert_eq!(bearer(Some(&HeaderValue::from_bytes(b"Bearer \xff").unwrap())), None);
        assert_eq!(bearer(None), None);
    }

    #[tokio::test]
    async fn a_header_names_the_caller_who_never_expires() {
        let identity = Identity::start(Settings::Header, &Registry::new()).unwrap();
        let id = "0198c0de-0000-7000-8000-000000000001";
        let request = warp::test::request().header("x-user-id", id).header("authorization", "Bearer x");
        let caller = request.filter(&identity.user(Scope::Write)).await.unwrap();
        assert_eq!(caller, Caller { user_id: id.parse().unwrap(), expires_at: None });
        let waited = tokio::time::timeout(Duration::from_millis(10), caller.expiry()).await;
        assert!(waited.is_err());
        assert!(warp::test::request().filter(&identity.user(Scope::Read)).await.is_err(), "no header");
    }

    #[tokio::test]
    async fn a_caller_expires() {
        let user_id = Uuid::nil();
        for expires_at in [Timestamp::now(), Timestamp::MIN] {
            Caller { user_id, expires_at: Some(expires_at) }.expiry().await;
        }
        let later = Caller { user_id, expires_at: Some(Timestamp::MAX) };
        assert!(tokio::time::timeout(Duration::from_millis(10), later.expiry()).await.is_err());
    }
}
