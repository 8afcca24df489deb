//! Searches a user's payments in the read model, which search-indexer fills.
//!
//! * Each word of the text must begin a word of the client number, or of the service's name or id. The words become parts of
//!   a query that code builds ([`request`]): nothing in them is an operator.
//! * Every query is limited to the user by a filter of its own. A hit of somebody else is an error, never an answer
//!   ([`answer`]).
//! * The services that the words name are asked for first, and payments then by their ids: a service that is renamed is one
//!   document, however many payments it has.
//! * The index is behind the database by the time that an event takes, and may be away. Then searches fail, within
//!   [`SEARCH_TIMEOUT`] for each of the two requests; and nothing else does.

mod answer;
mod request;

use std::sync::Arc;

use saga::search_index::{Body, Method, SEARCH_TIMEOUT, SERVICE_ROUTING, SearchIndex, Settings};
use serde_json::Value;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::saga::Status;
use crate::store::Payment;

/// Searches under way in one instance. Further ones are refused: an index that is slow must not fill the memory.
const SEARCHES_MAX: usize = 16;

/// What a user searches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchQuery {
    pub text: String,
    pub status: Option<Status>,
    pub service_id: Option<String>,
    /// Inclusive bound.
    pub from: Option<Uuid>,
    /// Exclusive bound.
    pub to: Option<Uuid>,
    /// The last payment of the page before.
    pub after: Option<Uuid>,
    /// Payments of a page.
    pub limit: u64,
}

/// A payment that was found, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    pub payment: Payment,
    pub highlight: Highlight,
}

/// The texts that match, as HTML: the matching parts stand in `<em>`, everything else is escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Highlight {
    pub client_number: Option<String>,
    pub service_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub hits: Vec<Hit>,
    /// [`SearchQuery::after`] of the next page; `None` at the end.
    pub next: Option<Uuid>,
}

/// Why a search has no answer.
#[derive(Debug)]
pub enum SearchFailure {
    /// This installation has no search index.
    NotConfigured,
    /// Too many searches are under way.
    Busy,
    Unavailable(anyhow::Error),
}

#[derive(Clone)]
pub struct Search {
    index: Option<SearchIndex>,
    permits: Arc<Semaphore>,
}

impl Search {
    /// # Errors
    /// When the client cannot be created.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let url = settings.search_url.as_deref().filter(|url| !url.is_empty());
        let index =
            url.map(|url| SearchIndex::new(url, &settings.search_alias, SEARCH_TIMEOUT)).transpose()?;
        Ok(Self { index, permits: Arc::new(Semaphore::new(SEARCHES_MAX)) })
    }

    /// The newest payments of a user that match.
    ///
    /// # Errors
    /// When there is no index, or none that answers, or too many searches are under way.
    pub async fn find(&self, user_id: Uuid, query: &SearchQuery) -> Result<Page, SearchFailure> {
        let index = self.index.as_ref().ok_or(SearchFailure::NotConfigured)?;
        let _permit = self.permits.try_acquire().map_err(|_| SearchFailure::Busy)?;
        self::find(index, user_id, query).await.map_err(SearchFailure::Unavailable)
    }
}

async fn find(index: &SearchIndex, user_id: Uuid, query: &SearchQuery) -> anyhow::Result<Page> {
    let words = request::words(&query.text);
    if words.is_empty() {
        return Ok(Page { hits: Vec::new(), next: None });
    }
    let asked = request::services(&words);
    let services = answer::services(&ask(index, SERVICE_ROUTING, asked).await?, words.len())?;
    let asked = request::payments(user_id, query, &words, &services);
    let found = ask(index, &user_id.to_string(), asked).await?;
    answer::page(&found, user_id, query.limit, &services)
}

async fn ask(index: &SearchIndex, routing: &str, request: Value) -> anyhow::Result<Value> {
    let path = format!("/{}/_search?routing={routing}&allow_partial_search_results=false", index.alias);
    Ok(index.send(Method::POST, &path, Body::Json(request)).await?)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An index that finds nothing; it sends the first line of each request.
    async fn index() -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (lines, asked) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    assert!(connection.read_buf(&mut request).await.unwrap() > 0, "half a request");
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                lines.send(text.lines().next().unwrap_or_default().to_owned()).unwrap();
                let body = r#"{"timed_out":false,"hits":{"hits":[]}}"#;
                let head =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        });
        (url, asked)
    }

    /// The shard of the user alone is asked, and an answer without one of its shards would leave payments out.
    #[tokio::test]
    async fn the_index_is_asked_where_the_user_is_and_for_nothing_but_the_whole() {
        let (url, mut asked) = index().await;
        let search = Search::new(&Settings { search_url: Some(url), ..Settings::default() }).unwrap();
        let user = Uuid::from_u128(7);
        let page = search.find(user, &request::tests::search("0812")).await.unwrap();
        assert_eq!(page, Page { hits: Vec::new(), next: None });
        for routing in [SERVICE_ROUTING.to_owned(), user.to_string()] {
            let line =
                format!("POST /coro/_search?routing={routing}&allow_partial_search_results=false HTTP/1.1");
            assert_eq!(asked.recv().await, Some(line));
        }
    }
}
