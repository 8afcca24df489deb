//! Verifies an access token: its header, its signature, its claims (RFC 7519, RFC 8725, RFC 9068).
//!
//! * The algorithm is RS256 or ES256. The key is one that the issuer's set holds for that algorithm, never one that the
//!   token brings or points at: `jwk`, `jku`, `x5c` and `x5u` are not looked at.
//! * A token with `crit` is refused: no extension is understood here (RFC 7515, section 4.1.11).
//! * `iss`, `aud` and `exp` are required; `nbf` counts where it is given.
//! * A scope is granted if `scope`, `scp` or `permissions` has it, as words of a text or as items of an array.
//! * A user claim that is a UUID is the user id. Any other text becomes the UUIDv5 of issuer and text, for ever the same.

use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::keys::KeyName;
use super::settings::{JwtSettings, Typ};
use super::{Caller, Scope};
use crate::fields::parse_uuid;
use crate::problem::{Kind, Problem};

/// Longer texts are not looked at. Tokens with many claims have some kilobytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Where issuers put scopes: OAuth's own (RFC 8693), Okta's and Entra's, and Auth0's for roles.
const SCOPE_CLAIMS: [&str; 3] = ["scope", "scp", "permissions"];

pub type Claims = Map<String, Value>;

/// Why a caller is not identified, or may not do this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no token; the call needs this scope.
    Missing(Scope),
    Unreadable,
    Algorithm,
    Critical,
    Typ,
    UnknownKey,
    Signature,
    Expired,
    NotYetValid,
    Issuer,
    Audience,
    Claims,
    User,
    /// The token is valid, but does not have this scope.
    Scope(Scope),
    /// The keys of the issuer cannot be had now.
    KeysUnavailable,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let invalid = |detail: &str| Problem::new(Kind::InvalidToken, detail);
        match refusal {
            Refusal::Missing(scope) => Problem::token_missing(scope.as_str()),
            Refusal::Unreadable => invalid("The token is no signed JWT that can be read."),
            Refusal::Algorithm => invalid("The token is signed by another algorithm than RS256 and ES256."),
            Refusal::Critical => {
                invalid("The token has critical extensions (`crit`), which are not understood here.")
            }
            Refusal::Typ => invalid("The token is of another type (`typ`) than is accepted here."),
            Refusal::UnknownKey => invalid("The issuer has no such key for tokens (`kid`, `alg`)."),
            Refusal::Signature => invalid("The signature is not the issuer's."),
            Refusal::Expired => invalid("The token has expired. Get a new one."),
            Refusal::NotYetValid => invalid("The token is not valid yet (`nbf`)."),
            Refusal::Issuer => invalid("The token is of another issuer (`iss`)."),
            Refusal::Audience => invalid("The token is for another audience (`aud`)."),
            Refusal::Claims => {
                invalid("The token lacks `iss`, `aud` or `exp`, or a time in it is no number.")
            }
            Refusal::User => invalid("The claim that names the user is missing, or no text."),
            Refusal::Scope(scope) => Problem::insufficient_scope(scope.as_str()),
            Refusal::KeysUnavailable => Problem::new(
                Kind::Unavailable,
                "Tokens cannot be verified now. Nothing is lost; send the same request again, with the same idempotency key.",
            ),
        }
    }
}

impl From<&ErrorKind> for Refusal {
    fn from(kind: &ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYetValid,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => Self::Claims,
            _ => Self::Unreadable,
        }
    }
}

/// The rules of [`JwtSettings`], ready for use.
pub struct Rules {
    rs256: Validation,
    es256: Validation,
    typ: Typ,
    user_claim: String,
    leeway_seconds: u32,
    /// The namespace of user ids that are not UUIDs at the issuer.
    users: Uuid,
}

impl Rules {
    pub fn new(settings: &JwtSettings) -> Self {
        // The library wants all algorithms of one validation to be of one family.
        let validation = |algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            validation.set_issuer(&[&settings.issuer]);
            validation.set_audience(&[&settings.audience]);
            validation.validate_nbf = true;
            validation.leeway = settings.leeway_seconds.into();
            validation
        };
        Self {
            rs256: validation(Algorithm::RS256),
            es256: validation(Algorithm::ES256),
            typ: settings.typ,
            user_claim: settings.user_claim.clone(),
            leeway_seconds: settings.leeway_seconds,
            users: Uuid::new_v5(&Uuid::NAMESPACE_URL, settings.issuer.as_bytes()),
        }
    }

    /// The key that must have signed `token`, by its header alone.
    pub fn key_name(&self, token: &str) -> Result<KeyName, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Unreadable);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| Refusal::from(error.kind()))?;
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        if !self.accepts(header.typ.as_deref()) {
            return Err(Refusal::Typ);
        }
        match header.alg {
            Algorithm::RS256 | Algorithm::ES256 => Ok(KeyName { algorithm: header.alg, id: header.kid }),
            _ => Err(Refusal::Algorithm),
        }
    }

    /// Media types are compared without case, and `application/` may be left out (RFC 7515, section 4.1.9).
    fn accepts(&self, typ: Option<&str>) -> bool {
        let is = |wanted: &str| {
            typ.is_some_and(|typ| {
                let typ = typ.to_ascii_lowercase();
                typ.strip_prefix("application/").unwrap_or(&typ) == wanted
            })
        };
        match self.typ {
            Typ::Jwt => typ.is_none() || is("jwt"),
            Typ::AccessToken => is("at+jwt"),
        }
    }

    /// The claims of `token`, which `key` has signed, and which is of our issuer, for us, and valid now.
    pub fn claims(&self, token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<Claims, Refusal> {
        let validation = match algorithm {
            Algorithm::ES256 => &self.es256,
            // The validation refuses a header with any other.
            _ => &self.rs256,
        };
        let decoded = jsonwebtoken::decode::<Claims>(token, key, validation);
        decoded.map(|token| token.claims).map_err(|error| Refusal::from(error.kind()))
    }

    /// The caller whom these verified claims name, if `scope` is granted.
    pub fn caller(&self, claims: &Claims, scope: Scope) -> Result<Caller, Refusal> {
        let user = claims.get(&self.user_claim).and_then(Value::as_str).filter(|text| !text.is_empty());
        let user = user.ok_or(Refusal::User)?;
        let user_id = parse_uuid(user).unwrap_or_else(|| Uuid::new_v5(&self.users, user.as_bytes()));
        if !grants(claims, scope.as_str()) {
            return Err(Refusal::Scope(scope));
        }
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or(Refusal::Claims)?;
        let expires = expires + f64::from(self.leeway_seconds);
        // A time beyond the calendar is as good as never.
        let expires_at = Timestamp::from_second(expires as i64).unwrap_or(Timestamp::MAX);
        Ok(Caller { user_id, expires_at: Some(expires_at) })
    }
}

fn grants(claims: &Claims, scope: &str) -> bool {
    SCOPE_CLAIMS.iter().filter_map(|name| claims.get(*name)).any(|granted| match granted {
        Value::String(words) => words.split(' ').any(|word| word == scope),
        Value::Array(items) => items.iter().any(|item| item.as_str() == Some(scope)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    })
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
