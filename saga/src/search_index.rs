//! The client of the search index (OpenSearch), and the form of its documents.
//!
//! * One index has the payments and the names of services, behind an alias. search-indexer writes it, payments-svc reads it.
//!   [`Index`] is which one it is.
//! * A document is the body of an event with [`Kind`] and [`RECORD`]. Its external version is the event's.
//! * Requests are JSON that code builds: no text of a client is ever parsed as a query.
//! * No error has a request, a document or a password in it: they hold personal data and secrets.

mod identity;

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
pub use reqwest::Method;
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use strum::IntoStaticStr;

pub use self::identity::{GROUP, Index, write_alias};
use crate::http_client;

/// A server that is there accepts a connection at once.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A search takes tens of milliseconds. One that has no answer by then is given up.
pub const SEARCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The alias where nobody names another.
const DEFAULT_ALIAS: &str = "coro";

/// Where the index is.
// No Debug: the URL may have a password.
#[derive(Clone, Args)]
pub struct Settings {
    /// OpenSearch, or another server with Elasticsearch's API. User and password may stand in it.
    #[arg(long, env = "SEARCH_URL", hide_env_values = true)]
    pub search_url: Option<String>,
    /// The alias of the index; the name of each index begins with it.
    #[arg(long, env = "SEARCH_ALIAS", default_value = DEFAULT_ALIAS)]
    pub search_alias: String,
}

impl Default for Settings {
    /// No index.
    fn default() -> Self {
        Self { search_url: None, search_alias: DEFAULT_ALIAS.to_owned() }
    }
}

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    Payment,
    Service,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The field that says what a document is about.
pub const KIND: &str = "kind";
/// The field with the place of the event on Kafka: topic/partition/offset.
pub const RECORD: &str = "record";
/// The documents of services lie together; those of payments lie by user.
pub const SERVICE_ROUTING: &str = "services";

/// Why a request has no result.
#[derive(Debug)]
pub enum SearchError {
    /// No answer, or not in time.
    Away(anyhow::Error),
    /// The server refused the request. `kind` is its name of the error.
    Refused { status: StatusCode, kind: String },
}

impl fmt::Display for SearchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) => write!(f, "the search index does not answer: {why:#}"),
            Self::Refused { status, kind } => {
                write!(f, "the search index refused the request with {}: {kind}", status.as_u16())
            }
        }
    }
}

impl std::error::Error for SearchError {}

impl SearchError {
    /// Whether the server says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    /// Whether the server refused with this name of an error.
    pub fn is_refusal(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { kind, .. } if kind == wanted)
    }
}

/// The body of a request.
pub enum Body {
    None,
    Json(Value),
    /// JSON documents, each on a line.
    Lines(String),
}

/// The server of the index, and the alias.
#[derive(Clone)]
pub struct SearchIndex {
    http: reqwest::Client,
    timeout: Duration,
    url: String,
    pub alias: String,
}

impl SearchIndex {
    /// A client whose requests have `timeout` for their whole answer.
    ///
    /// # Errors
    /// When the client cannot be created.
    pub fn new(url: &str, alias: &str, timeout: Duration) -> anyhow::Result<Self> {
        let http = http_client::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .build()
            .context("cannot create the client of the search index")?;
        Ok(Self { http, timeout, url: url.trim_end_matches('/').to_owned(), alias: alias.to_owned() })
    }

    /// The same client, with another time-out.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Sends a request; `path` begins with a slash.
    ///
    /// # Errors
    /// When there is no answer, or another one than success.
    pub async fn send(&self, method: Method, path: &str, body: Body) -> Result<Value, SearchError> {
        let request = self.http.request(method, format!("{}{path}", self.url)).timeout(self.timeout);
        let request = match body {
            Body::None => request,
            Body::Json(value) => request.header(CONTENT_TYPE, "application/json").body(value.to_string()),
            Body::Lines(lines) => request.header(CONTENT_TYPE, "application/x-ndjson").body(lines),
        };
        // The URL may have a password in it.
        let away = |error: reqwest::Error| SearchError::Away(error.without_url().into());
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        let answer = response.bytes().await.map_err(away)?;
        let answer: Option<Value> = serde_json::from_slice(&answer).ok();
        if !status.is_success() {
            let kind = answer.as_ref().and_then(|answer| answer.pointer("/error/type")?.as_str());
            return Err(SearchError::Refused { status, kind: kind.unwrap_or("no error named").to_owned() });
        }
        answer.ok_or_else(|| SearchError::Away(anyhow::anyhow!("its answer is no JSON")))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// A server that answers its first request with this, and takes no other.
    async fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(connection.read(&mut request).await.unwrap() > 0);
            connection.write_all(answer.as_bytes()).await.unwrap();
        });
        url
    }

    #[tokio::test]
    async fn a_redirect_is_a_refusal_and_is_not_followed() {
        let url = answering(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        let index = SearchIndex::new(&url, "coro", TIMEOUT).unwrap();
        let body = Body::Json(serde_json::json!({"q": "0812"}));
        let error = index.send(Method::POST, "/coro/_search", body).await.unwrap_err();
        let refused = matches!(&error, SearchError::Refused { status, .. } if status.as_u16() == 307);
        assert!(refused, "{error:?}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_away_in_time() {
        // Nobody accepts: the kernel does, and no answer comes.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let index = SearchIndex::new(&url, "coro", Duration::from_secs(600)).unwrap();
        let asked = index.within(Duration::from_millis(200));
        let answer = tokio::time::timeout(TIMEOUT, asked.live()).await.expect("it gives up");
        assert!(answer.is_err_and(|error| error.to_string().contains("does not answer")));
    }

    #[tokio::test]
    async fn an_error_has_neither_the_request_nor_a_password_in_it() {
        let index =
            SearchIndex::new("http://user:secret@127.0.0.1:9/", "coro", Duration::from_secs(1)).unwrap();
        let body = Body::Json(serde_json::json!({"q": "0812"}));
        let error = index.send(Method::POST, "/coro/_search", body).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("does not answer"), "{text}");
        assert!(!text.contains("secret") && !text.contains("0812"), "{text}");
    }
}
