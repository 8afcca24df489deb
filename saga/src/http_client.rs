//! The client of HTTP servers that the configuration names: the gateway, the search index, and our own listeners.
//!
//! * A request goes to the server that is named, and nowhere else: no proxy of the environment, no redirect.
//! * Nothing is sent twice unless the caller does it.
//! * A connection that was idle for longer than servers wait is not used again: a POST that meets its end has an outcome that
//!   nobody knows.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect, retry};

use crate::http::install_provider;

/// Less than the shortest time after which a server in wide use closes an idle connection (Node.js: 5 s; our edge: 10 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// A client that lacks its time-outs yet.
pub fn builder() -> ClientBuilder {
    install_provider();
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .pool_idle_timeout(IDLE_TIMEOUT)
}
