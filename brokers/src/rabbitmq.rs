//! The connection to RabbitMQ: to one of the nodes that a URL names.
//!
//! * A URL may name several hosts with commas between, each with its port, as those of Postgres do:
//!   `amqp://user:password@one:5672,two:5672/%2f`. User, virtual host and parameters are the same for all of them.
//! * They are tried in a random order, as RabbitMQ's own clients do it, so that clients are spread over the nodes. None is waited
//!   for longer than the caller says.
//! * A URL holds a password. No error contains one.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use rand::seq::SliceRandom;
use tokio::time::timeout;

/// Connects to a node; `name` is what RabbitMQ shows of the connection.
///
/// # Errors
/// When no node takes the connection, each within `node_timeout`: what each of them said, in the order of the URL, whichever was tried
/// first.
pub async fn connect(url: &str, name: &str, node_timeout: Duration) -> Result<Connection> {
    let mut nodes: Vec<(usize, AMQPUri)> = nodes(url)?.into_iter().enumerate().collect();
    nodes.shuffle(&mut rand::rng());
    let mut failures = Vec::with_capacity(nodes.len());
    for (at, node) in nodes {
        let place = format!("{}:{}", node.authority.host, node.authority.port);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        match timeout(node_timeout, Connection::connect_uri(node, properties)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => failures.push((at, format!("{place}: {error}"))),
            Err(_) => failures.push((at, format!("{place} does not answer within {node_timeout:?}"))),
        }
    }
    failures.sort();
    let all: Vec<String> = failures.into_iter().map(|(_, failure)| failure).collect();
    bail!("cannot connect to RabbitMQ at {}", all.join("; "))
}

/// The URL, if it can be used: for clap.
///
/// # Errors
/// When it cannot. The error does not contain it.
pub fn url(text: &str) -> Result<String> {
    nodes(text).map(|_| text.to_owned())
}

/// A URL for each host.
fn nodes(url: &str) -> Result<Vec<AMQPUri>> {
    let (scheme, rest) =
        url.split_once("://").context("a URL of RabbitMQ begins with amqp:// or amqps://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    ensure!(
        user.matches('@').count() <= 1,
        "the URL of RabbitMQ has several `@`: a password writes it as %40"
    );
    hosts.split(',').map(|host| node(host, &format!("{scheme}://{user}{host}{path}"))).collect()
}

fn node(host: &str, url: &str) -> Result<AMQPUri> {
    ensure!(!host.is_empty(), "the URL of RabbitMQ has an empty host");
    // The parser takes such a host for `localhost`.
    ensure!(!host.starts_with('['), "the URL of RabbitMQ has an IPv6 address, which needs a name");
    // Its own error may quote what it cannot read.
    url.parse::<AMQPUri>().map_err(|_| anyhow!("the URL of RabbitMQ cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_the_user_the_virtual_host_and_the_parameters() {
        let read = |url: &str| {
            let all = nodes(url).unwrap().into_iter();
            all.map(|node| (node.authority.host, node.authority.port, node.vhost)).collect::<Vec<_>>()
        };
        let place = |host: &str, port, vhost: &str| (host.to_owned(), port, vhost.to_owned());
        assert_eq!(read("amqp://u:p@one:5/%2f"), [place("one", 5, "/")]);
        let three = "amqps://u:p%2C%40@one:5,two,127.0.0.1:7/coro?heartbeat=10";
        let ports = [place("one", 5, "coro"), place("two", 5671, "coro"), place("127.0.0.1", 7, "coro")];
        assert_eq!(read(three), ports);
        for node in nodes(three).unwrap() {
            assert_eq!(node.authority.userinfo.username, "u");
            assert_eq!(node.authority.userinfo.password, "p,@");
            assert_eq!(node.query.heartbeat, Some(10));
        }
        assert_eq!(read("amqp://one,two").len(), 2);
    }

    #[test]
    fn a_url_that_cannot_be_used_is_not_quoted() {
        for bad in [
            "",
            "secret",
            "http://u:secret@x/",
            "amqp://u:secret@one,,two/",
            "amqp://u:secret@one:secret/",
            "amqp://u:secret@one,u:secret@two/",
            "amqp://u:secret@one,[::1]/",
        ] {
            let error = format!("{:#}", url(bad).unwrap_err());
            assert!(error.contains("URL of RabbitMQ") && !error.contains("secret"), "{bad}: {error}");
        }
    }

    #[tokio::test]
    async fn each_node_that_does_not_take_the_connection_is_named_in_the_order_of_the_url() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (silent_at, closed_at) = (silent.local_addr().unwrap(), "127.0.0.1:1");
        let url = format!("amqp://u:secret@{silent_at},{closed_at}/%2f");
        for _ in 0..4 {
            let error = connect(&url, "test", Duration::from_millis(100)).await.unwrap_err().to_string();
            let (silent, closed) = error.split_once("; ").unwrap();
            let expected = format!("cannot connect to RabbitMQ at {silent_at} does not answer within 100ms");
            assert_eq!(silent, expected);
            assert!(closed.starts_with(closed_at) && !error.contains("secret"), "{error}");
        }
    }
}
