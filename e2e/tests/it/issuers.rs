//! Issuers of tokens that others have made: `oidc-provider`, and Keycloak. Each runs for one test, on a port of its own.
//!
//! * `oidc-provider` is installed into the build folder first, as `e2e/issuers` pins it. A tool that is missing fails the test.
//! * Both give a token for client credentials; the client is the user.

mod keycloak;
mod oidc_provider;

use std::net::TcpListener;

use serde_json::Value;

use crate::harness::http;

pub use keycloak::Keycloak;
pub use oidc_provider::OidcProvider;

/// The name by which both know this API.
pub const AUDIENCE: &str = "https://pay.example";
const CLIENT_ID: &str = "app";
const CLIENT_SECRET: &str = "0123456789abcdef0123456789abcdef";

/// An issuer as its clients and the services know it.
pub struct Issuer {
    /// The `iss` of its tokens.
    pub url: String,
    /// The settings of a service that accepts its tokens.
    pub settings: Vec<(&'static str, String)>,
    token_url: String,
    http: reqwest::Client,
}

impl Issuer {
    fn new(url: String, jwks_url: String, token_url: String, typ: &str) -> Self {
        saga::http::install_provider();
        let settings = vec![
            ("AUTH", "jwt".to_owned()),
            ("AUTH_ISSUER", url.clone()),
            ("AUTH_AUDIENCE", AUDIENCE.to_owned()),
            ("AUTH_JWKS_URL", jwks_url),
            ("AUTH_TYP", typ.to_owned()),
            // A stream ends with its token; nobody waits for more.
            ("AUTH_LEEWAY_SECONDS", "0".to_owned()),
        ];
        Self { url, settings, token_url, http: http() }
    }

    /// A token of the client that has this scope.
    pub async fn token(&self, scope: &str) -> String {
        self.grant(&format!("scope={}", scope.replace(' ', "+"))).await
    }

    /// The same for a resource of this API.
    pub async fn token_for(&self, resource: &str, scope: &str) -> String {
        self.grant(&format!("scope={}&resource={resource}", scope.replace(' ', "+"))).await
    }

    async fn grant(&self, parameters: &str) -> String {
        let body = format!("grant_type=client_credentials&{parameters}");
        let request = self.http.post(&self.token_url).basic_auth(CLIENT_ID, Some(CLIENT_SECRET)).body(body);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{}: {answer}", self.url)).to_owned()
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
