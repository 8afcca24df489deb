//! The settings of identity, checked together before any port is bound.
//!
//! * `AUTH=jwt` needs an issuer and an audience: without either, tokens made for others would do.
//! * `AUTH=header` with a setting of tokens is refused: whoever made it believes that tokens are verified.
//! * Keys come over TLS. Over plain HTTP they come from this host only.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, ValueEnum};
use warp::http::Uri;

const USER_CLAIM_DEFAULT: &str = "sub";
const LEEWAY_SECONDS_DEFAULT: u32 = 60;

/// How clients are identified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// By `X-User-ID`, which a gateway sets.
    Header,
    /// By the token of an issuer.
    Jwt(JwtSettings),
}

/// The tokens that are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// The `iss` of every token.
    pub issuer: String,
    /// The `aud` of every token, or one of them.
    pub audience: String,
    pub jwks_url: JwksUrl,
    /// The claim that names the user.
    pub user_claim: String,
    pub typ: Typ,
    /// The clocks of issuer and service may differ by this much.
    pub leeway_seconds: u32,
}

/// The kind of token, as its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Typ {
    /// `JWT`, or nothing (RFC 7519, section 5.1).
    #[value(name = "JWT")]
    Jwt,
    /// An access token by RFC 9068, section 2.1.
    #[value(name = "at+jwt")]
    AccessToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Auth {
    Header,
    Jwt,
}

/// The flags and variables behind [`Settings`].
#[derive(Args)]
struct IdentityFlags {
    /// How clients are identified: `header` trusts the X-User-ID that a gateway sets, `jwt` verifies tokens of an issuer.
    #[arg(long, env = "AUTH", value_enum, default_value_t = Auth::Header)]
    auth: Auth,
    /// The issuer of the tokens, exactly as `iss` has it, such as `https://TENANT.eu.auth0.com/`.
    #[arg(long, env = "AUTH_ISSUER", value_name = "ISSUER")]
    auth_issuer: Option<String>,
    /// The issuer's public keys, if they are not at `/.well-known/jwks.json` below the issuer.
    #[arg(long, env = "AUTH_JWKS_URL", value_name = "URL")]
    auth_jwks_url: Option<String>,
    /// The audience of the tokens: the name by which the issuer knows this API.
    #[arg(long, env = "AUTH_AUDIENCE", value_name = "AUDIENCE")]
    auth_audience: Option<String>,
    /// The claim that names the user [default: sub]. A UUID is the user id; any other text becomes a UUIDv5.
    #[arg(long, env = "AUTH_USER_CLAIM", value_name = "CLAIM")]
    auth_user_claim: Option<String>,
    /// The `typ` of the tokens [default: JWT].
    #[arg(long, env = "AUTH_TYP", value_enum, ignore_case = true)]
    auth_typ: Option<Typ>,
    /// Seconds by which the clocks of issuer and service may differ [default: 60].
    #[arg(long, env = "AUTH_LEEWAY_SECONDS", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=300))]
    auth_leeway_seconds: Option<u32>,
}

impl IdentityFlags {
    fn settings(self) -> Result<Settings, Error> {
        match (self.auth, self.first_of_tokens()) {
            (Auth::Header, None) => Ok(Settings::Header),
            (Auth::Header, Some(name)) => Err(refuse(
                ErrorKind::ArgumentConflict,
                format!("{name} is set, but AUTH=header verifies no tokens; set AUTH=jwt, or remove {name}"),
            )),
            (Auth::Jwt, _) => self.jwt().map(Settings::Jwt),
        }
    }

    /// The first setting that only tokens need.
    fn first_of_tokens(&self) -> Option<&'static str> {
        let all = [
            ("AUTH_ISSUER", is_given(self.auth_issuer.as_ref())),
            ("AUTH_JWKS_URL", is_given(self.auth_jwks_url.as_ref())),
            ("AUTH_AUDIENCE", is_given(self.auth_audience.as_ref())),
            ("AUTH_USER_CLAIM", is_given(self.auth_user_claim.as_ref())),
            ("AUTH_TYP", self.auth_typ.is_some()),
            ("AUTH_LEEWAY_SECONDS", self.auth_leeway_seconds.is_some()),
        ];
        all.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    fn jwt(self) -> Result<JwtSettings, Error> {
        let issuer =
            required("AUTH_ISSUER", self.auth_issuer, "the `iss` of the tokens, exactly as they have it")?;
        let audience =
            required("AUTH_AUDIENCE", self.auth_audience, "the name by which the issuer knows this API")?;
        let url = self.auth_jwks_url.filter(|text| !text.is_empty());
        let url = url.unwrap_or_else(|| format!("{}/.well-known/jwks.json", issuer.trim_end_matches('/')));
        // The URL is not repeated: it may hold a password.
        let jwks_url = url.parse::<JwksUrl>().map_err(|why: String| {
            let by_default = "AUTH_JWKS_URL, by default AUTH_ISSUER and /.well-known/jwks.json,";
            refuse(ErrorKind::ValueValidation, format!("{by_default} {why}"))
        })?;
        Ok(JwtSettings {
            issuer,
            audience,
            jwks_url,
            user_claim: self
                .auth_user_claim
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| USER_CLAIM_DEFAULT.to_owned()),
            typ: self.auth_typ.unwrap_or(Typ::Jwt),
            leeway_seconds: self.auth_leeway_seconds.unwrap_or(LEEWAY_SECONDS_DEFAULT),
        })
    }
}

/// An empty variable is none: a deployment's file may name a variable that nobody sets.
fn is_given(text: Option<&String>) -> bool {
    text.is_some_and(|text| !text.is_empty())
}

fn required(name: &str, text: Option<String>, meaning: &str) -> Result<String, Error> {
    text.filter(|text| !text.is_empty()).ok_or_else(|| {
        refuse(ErrorKind::MissingRequiredArgument, format!("AUTH=jwt needs {name}: {meaning}"))
    })
}

fn refuse(kind: ErrorKind, why: String) -> Error {
    Error::raw(kind, why)
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        IdentityFlags::from_arg_matches(matches)?.settings()
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        IdentityFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        IdentityFlags::augment_args_for_update(command)
    }
}

/// Where the issuer's keys are.
#[derive(Clone, PartialEq, Eq)]
pub struct JwksUrl {
    is_tls: bool,
    authority: String,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    path: String,
}

impl JwksUrl {
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for JwksUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "give a URL such as https://TENANT.eu.auth0.com/.well-known/jwks.json";
        let uri: Uri = text.parse().map_err(|_| format!("is no URL; {example}"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("is no absolute URL; {example}"));
        };
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(format!("names a user, or no host; {example}"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = match scheme {
            "https" => true,
            "http" if is_loopback(&host) => false,
            _ => {
                return Err(format!(
                    "is not https, so that anyone on the way could replace the keys; {example} (http only of this host)"
                ));
            }
        };
        Ok(Self {
            is_tls,
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            host,
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl fmt::Debug for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
