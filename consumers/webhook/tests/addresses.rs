//! Addresses that no webhook may be sent to, however they are written. Needs no server.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use webhook::{Answer, Message, NoAnswer, WebhookClient};

async fn post(client: &WebhookClient, url: &str) -> Result<Answer, NoAnswer> {
    client.post(url, &Message { id: "x", secrets: &[webhook::new_secret()], body: b"{}".to_vec() }).await
}

const PRIVATE: [&str; 25] = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "127.0.0.2",
    "0.0.0.0",
    "0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
];

#[tokio::test]
async fn a_private_address_is_not_connected_to_in_any_spelling() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let guarded = WebhookClient::new(Vec::new()).unwrap();
    for host in PRIVATE {
        for scheme in ["http", "https"] {
            let answer = post(&guarded, &format!("{scheme}://{host}:{port}/")).await;
            // What the resolver does not know, nobody connects to.
            let refused = answer == Err("forbidden address") || answer == Err("name not resolved");
            assert!(refused, "{scheme}://{host}: {answer:?}");
        }
    }
    for host in ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]"] {
        let answer = post(&guarded, &format!("https://{host}:{port}/")).await;
        assert_eq!(answer, Err("forbidden address"), "{host} is resolved, and then refused");
    }
    assert_eq!(post(&guarded, "http://1.1.1.1/").await, Err("forbidden address"), "without TLS");

    // The setting is what makes the difference: the first who connects is this one.
    let allowing = WebhookClient::new(vec!["127.0.0.1/32".parse().unwrap()]).unwrap();
    let receiver = tokio::spawn(async move {
        let (mut stream, _) = socket.accept().await.unwrap();
        let mut head = [0; 512];
        let read = stream.read(&mut head).await.unwrap();
        stream.write_all(b"HTTP/1.1 204 No Content\r\nretry-after: 7\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    let answer = post(&allowing, &format!("http://127.0.0.1:{port}/allowed")).await.unwrap();
    assert_eq!((answer.status, answer.retry_after.unwrap().as_secs()), (204, 7));
    assert!(receiver.await.unwrap().starts_with("POST /allowed HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_url_that_is_none_is_not_sent_to() {
    let client = WebhookClient::new(vec!["0.0.0.0/0".parse().unwrap()]).unwrap();
    for url in ["", "x", "/path", "ftp://127.0.0.1/", "http://user:password@127.0.0.1/", "http://"] {
        assert_eq!(post(&client, url).await, Err("invalid URL"), "{url}");
        assert!(!client.accepts(url), "{url}");
    }
}
