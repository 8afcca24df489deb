//! A request byte by byte, and its answer: what no HTTP client of today would send.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer takes longer than the edge waits for a head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case; of several with one name the last.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    /// Fails unless this is a problem document of the kind, with the status of the answer.
    pub fn expect_problem(&self, status: u16, kind: &str, what: &str) -> Value {
        assert_eq!(self.status, status, "{what}: {self:?}");
        let content_type = self.headers.get("content-type").map(String::as_str);
        assert_eq!(content_type, Some("application/problem+json"), "{what}: {self:?}");
        let problem: Value = serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{what}: {self:?}"));
        assert_eq!(problem["type"], format!("urn:coro:problem:{kind}"), "{what}: {problem}");
        assert_eq!(problem["status"], status, "{what}: {problem}");
        problem
    }

    /// The methods that `Allow` names, sorted.
    pub fn allow(&self) -> Vec<&str> {
        let listed = self.headers.get("allow").map_or("", String::as_str);
        let mut methods: Vec<&str> = listed.split(',').map(str::trim).filter(|m| !m.is_empty()).collect();
        methods.sort_unstable();
        methods
    }
}

/// Sends `bytes` as they are and reads until the connection is closed.
pub async fn send(door: &str, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(door.trim_start_matches("http://")).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is a way of closing, too.
    let read = tokio::time::timeout(ANSWER_TIMEOUT, stream.read_to_end(&mut answer)).await;
    let _reset = read.expect("the connection stays open");
    parse(&String::from_utf8_lossy(&answer))
}

/// A request with these header lines (a `Host` is one of them or is not sent), and `connection: close`.
pub async fn request(door: &str, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut text = format!("{line}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    send(door, format!("{text}\r\n{body}").as_bytes()).await
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
    let fields = lines.filter_map(|line| line.split_once(':'));
    let headers = fields.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
    Answer { status, headers, body: body.to_owned() }
}
