//! The client of HTTP servers that the configuration names: the gateway and the search index.
//!
//! * A request goes to the server that is named, and nowhere else: no proxy of the environment, no redirect.
//! * Nothing is sent twice unless the caller does it.

use reqwest::{Client, ClientBuilder, redirect, retry};

use crate::http::install_provider;

/// A client that lacks its time-outs yet.
pub fn builder() -> ClientBuilder {
    install_provider();
    Client::builder().no_proxy().redirect(redirect::Policy::none()).retry(retry::never())
}
