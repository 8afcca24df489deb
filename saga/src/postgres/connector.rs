//! Opens the connections of a pool.
//!
//! * Where the URL names several hosts, a connection to a former primary is not used, and the next host is tried (`leader`).
//! * The first connection begins the watch of its host (`watch`).

use std::sync::Arc;

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use postgres_tls::hosts::Opened;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};

use super::leader::Former;
use super::login::{Inner, Login};
use super::watch;

impl Connect for Login {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        Box::pin(open(Arc::clone(&self.0)))
    }
}

async fn open(login: Arc<Inner>) -> Result<(Client, JoinHandle<()>), Error> {
    let mut tries = login.hosts();
    loop {
        let Opened { client, connection, host } = login.connect().await?;
        let driven = tokio::spawn(Arc::clone(&login).drive(connection, host));
        if !login.has_other_hosts() {
            return Ok((client, driven));
        }
        let timeline = watch::timeline(&client).await?;
        match login.leader.opened(host, timeline, driven.abort_handle()) {
            Ok(is_first) => {
                if is_first {
                    watch::begin(&login);
                }
                return Ok((client, driven));
            }
            Err(Former { leader }) => {
                login.prefer(leader);
                tries -= 1;
                if tries == 0 {
                    // The library's error for a connection that was not made in time; it has no public name.
                    return Err(Error::__private_api_timeout());
                }
            }
        }
    }
}
