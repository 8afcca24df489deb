//! Is it ready? Each server is asked in its own language, with the least that proves it serves.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::layout::{Layout, Port};
use crate::link;

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether nobody listens on this loopback port.
pub fn port_is_free(port: u16) -> bool {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).is_ok()
}

/// Sends bytes and returns the first `count` bytes of the answer.
fn exchange(layout: &Layout, port: Port, question: &[u8], count: usize) -> Option<Vec<u8>> {
    let starttls = (port == Port::Postgres).then_some("postgres");
    let mut stream = link::open(layout, layout.port(port), starttls, PROBE_TIMEOUT).ok()?;
    stream.write_all(question).ok()?;
    let mut answer = vec![0; count];
    stream.read_exact(&mut answer).ok()?;
    Some(answer)
}

/// RabbitMQ opens its listener when it has booted, and answers the protocol header with a method frame.
pub fn amqp(layout: &Layout, port: Port) -> bool {
    exchange(layout, port, b"AMQP\x00\x00\x09\x01", 1).is_some_and(|answer| answer == [1])
}

pub fn redis(layout: &Layout, user: &str, password: &str) -> bool {
    let question = format!("AUTH {user} {password}\r\nPING\r\n");
    exchange(layout, Port::Redis, question.as_bytes(), 12).is_some_and(|answer| answer == b"+OK\r\n+PONG\r\n")
}

/// Whether Redis takes this password of a user, whatever else the user may do.
pub fn redis_login(layout: &Layout, user: &str, password: &str) -> bool {
    let question = format!("AUTH {user} {password}\r\n");
    exchange(layout, Port::Redis, question.as_bytes(), 5).is_some_and(|answer| answer == b"+OK\r\n")
}

/// It greets whoever connects.
pub fn smtp(layout: &Layout) -> bool {
    exchange(layout, Port::Smtp, b"", 4).is_some_and(|answer| answer == b"220 ")
}

/// An SSLRequest is answered by one byte as soon as the server takes connections, but also while it recovers;
/// so a start-up for no user follows: a server that is not ready refuses it with SQLSTATE 57P03.
pub fn postgres(layout: &Layout, port: Port) -> bool {
    let mut question = Vec::new();
    let body = b"user\0nobody\0database\0postgres\0\0";
    question.extend_from_slice(&u32::try_from(body.len() + 8).unwrap_or_default().to_be_bytes());
    question.extend_from_slice(&196_608_u32.to_be_bytes());
    question.extend_from_slice(body);
    let Some(head) = exchange(layout, port, &question, 5) else { return false };
    // 'R': it asks for a password. 'E' before that: starting up, shutting down or out of connections.
    head[0] == b'R'
}

/// A metadata request (version 1, no topics): the broker lists itself once it is unfenced.
pub fn kafka(layout: &Layout, port: Port) -> bool {
    let mut body: Vec<u8> = Vec::new();
    body.extend_from_slice(&3_i16.to_be_bytes());
    body.extend_from_slice(&1_i16.to_be_bytes());
    body.extend_from_slice(&7_i32.to_be_bytes());
    body.extend_from_slice(&(-1_i16).to_be_bytes());
    body.extend_from_slice(&0_i32.to_be_bytes());
    let mut question = u32::try_from(body.len()).unwrap_or_default().to_be_bytes().to_vec();
    question.extend_from_slice(&body);
    // Length, correlation id, number of brokers.
    let Some(answer) = exchange(layout, port, &question, 12) else { return false };
    answer[4..8] == 7_i32.to_be_bytes() && answer[8..12] != 0_i32.to_be_bytes()
}

/// An empty request is answered by a collector that takes traces.
pub fn otlp(layout: &Layout) -> bool {
    let question = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    exchange(layout, Port::Otlp, question, 12).is_some_and(|answer| answer == b"HTTP/1.1 200")
}

/// Whether a GET is answered by 2xx.
pub fn http(layout: &Layout, port: Port, path: &str) -> bool {
    let url = layout.http(port, path);
    if url.starts_with("https:") {
        let question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange(layout, port, question.as_bytes(), 10);
        return answer.is_some_and(|answer| answer == b"HTTP/1.1 2");
    }
    let config = ureq::Agent::config_builder().timeout_global(Some(PROBE_TIMEOUT)).build();
    ureq::Agent::from(config).get(url).call().is_ok()
}

/// The body of the answer to a GET, if it is 2xx and not longer than 64 KiB.
pub fn text(layout: &Layout, port: Port, path: &str) -> Option<String> {
    const BYTES_MAX: u64 = 64 * 1024;
    let mut stream = link::open(layout, layout.port(port), None, PROBE_TIMEOUT).ok()?;
    // HTTP/1.0: an answer in one piece, and then the end.
    let question = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(question.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.take(BYTES_MAX).read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?;
    status.starts_with('2').then(|| body.to_owned())
}

/// Asks until the answer is yes. Gives up at the limit, or when `alive` says there is nobody left to ask.
///
/// # Errors
/// When it gave up.
pub fn until(limit: Duration, ready: impl Fn() -> bool, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ready() {
        alive()?;
        if Instant::now() >= deadline {
            bail!("it was not ready after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
