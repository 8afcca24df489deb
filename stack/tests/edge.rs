//! Tests the edge as HAProxy runs it.
//!
//! * With limits for each source address set, one address does not hold up the others.
//! * Where no service answers, the edge says so in a problem document.
//! * Pages of configured origins may read what the edge says.
//! * No log shows what a client made up.
//! * The page to pay by hand is there where a setting says so.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

const CONNECTIONS: usize = 40;
const REQUESTS: usize = 20;
const ORIGINS: &str = "https://app.example https://bank.example";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// HAProxy on ports of its own.
struct Edge {
    address: SocketAddrV4,
    process: Child,
    /// The folder of its configuration.
    folder: PathBuf,
}

impl Edge {
    /// Starts an edge whose services do not run.
    fn start() -> Edge {
        let nobody = free();
        Edge::before(nobody, nobody.port())
    }

    /// Starts an edge whose services share one address, and one port that answers whether they are ready.
    fn before(service: SocketAddrV4, ready: u16) -> Edge {
        Edge::with(service, ready, "")
    }

    /// The same, with this value of EDGE_PAY_PAGE.
    fn with(service: SocketAddrV4, ready: u16, pay_page: &str) -> Edge {
        let address = free();
        let folder = configuration(address.port());
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
        command.env("EDGE_ADDR", address.to_string()).env("EDGE_ADMIN_ADDR", free().to_string());
        command.env("EDGE_ADMIN_HOST", "localhost").env("EDGE_ORIGINS", ORIGINS);
        command.env("SERVICES_INSTANCES", "listed");
        for name in ["PAYMENTS_1", "PAYMENTS_2", "BALANCE"] {
            command.env(format!("{name}_ADDR"), service.to_string());
            command.env(format!("{name}_ADMIN_PORT"), ready.to_string());
        }
        command.env("EDGE_CONNECTIONS", "1000").env("EDGE_CONNECTIONS_PER_SOURCE", CONNECTIONS.to_string());
        command.env("EDGE_REQUESTS_PER_SOURCE", REQUESTS.to_string()).env("EDGE_PAY_PAGE", pay_page);
        if pay_page == "on" {
            std::fs::copy(original().join("pay.html"), folder.join("pay.html")).unwrap();
        }
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let process = process.expect("haproxy: `cargo stack up --servers` installs it");
        let edge = Edge { address, process, folder };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < ANSWER_TIMEOUT, "HAProxy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        edge
    }

    /// A connection from 127.0.0.`host`.
    fn connect(&self, host: u8) -> TcpStream {
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0));
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &from).unwrap();
        connect(&socket, &SocketAddr::V4(self.address)).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        stream
    }

    /// The status of an answer to a request from there; none if the connection was closed.
    fn ask(&self, host: u8) -> Option<String> {
        self.request(host, "GET /health").map(|answer| answer[9..12].to_owned())
    }

    /// The whole answer to a request from there; none if the connection was closed.
    fn request(&self, host: u8, line: &str) -> Option<String> {
        self.request_with(host, line, "")
    }

    /// The same for a request with further header lines.
    fn request_with(&self, host: u8, line: &str, fields: &str) -> Option<String> {
        let mut stream = self.connect(host);
        let request = format!("{line} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n{fields}\r\n");
        let mut answer = String::new();
        let exchange = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        exchange.ok().filter(|read| *read > 0).map(|_| answer)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn original() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/haproxy")
}

/// Copies the edge's configuration, with a shorter time-out for services.
fn configuration(port: u16) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("edge-{port}"));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["not-http.lua", "weight.lua"] {
        std::fs::copy(original().join(name), folder.join(name)).unwrap();
    }
    let text = std::fs::read_to_string(original().join("haproxy.cfg")).unwrap();
    let (long, short) = ("timeout server 35s", "timeout server 300ms");
    assert!(text.contains(long), "the edge waits another time for services");
    std::fs::write(folder.join("haproxy.cfg"), text.replace(long, short)).unwrap();
    folder
}

/// A service that is ready, and answers everything else with these bytes and the end of the connection; without any it
/// stays silent. Returns its address and the counter of its requests.
fn service(answer: Option<&'static str>) -> (SocketAddrV4, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("it is IPv4") };
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let counter = counter.clone();
            std::thread::spawn(move || serve(stream.unwrap(), answer, &counter));
        }
    });
    (address, requests)
}

fn serve(mut stream: TcpStream, answer: Option<&str>, requests: &AtomicUsize) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    if head.starts_with(b"GET /ready") {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    }
    requests.fetch_add(1, Ordering::Relaxed);
    match answer {
        Some(bytes) => drop(stream.write_all(bytes.as_bytes())),
        // Until the edge gives up.
        None => drop(stream.read(&mut byte)),
    }
}

/// A port that was free a moment ago.
fn free() -> SocketAddrV4 {
    match TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("it was bound to an IPv4 address"),
    }
}

/// Whether the edge has left the connection open until now.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0]) {
        Ok(read) => read > 0,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn silent_connections_of_one_address_leave_room_for_the_others() {
    let edge = Edge::start();
    let mut silent: Vec<TcpStream> = (0..CONNECTIONS + 20).map(|_| edge.connect(2)).collect();
    let begun = Instant::now();
    assert_eq!(edge.ask(2), None, "this address has all it may have");
    // Those that came too late are closed within a moment.
    std::thread::sleep(Duration::from_millis(50));
    let open = silent.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count();
    assert!((1..=CONNECTIONS).contains(&open), "{open} are open");
    assert!(edge.ask(3).is_some(), "another one is answered");
    // The edge closes silent connections, and there is room again.
    while edge.ask(2).is_none() {
        assert!(begun.elapsed() < ANSWER_TIMEOUT, "silent connections stay");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn one_address_has_so_many_requests_and_the_others_theirs() {
    let edge = Edge::start();
    let statuses: Vec<String> = (0..REQUESTS + 10).map(|_| edge.ask(2).unwrap()).collect();
    let refused = statuses.iter().filter(|status| *status == "429").count();
    assert_eq!(refused, 10, "{statuses:?}");
    assert_ne!(edge.ask(3).unwrap(), "429");
    let refusal = edge.request(2, "GET /services").unwrap();
    let (head, _) = refusal.split_once("\r\n\r\n").unwrap();
    for field in [
        "content-type: application/problem+json",
        "retry-after: 10",
        "ratelimit-policy: \"address\";q=20;w=10",
        "ratelimit: \"address\";r=0;t=10",
    ] {
        assert!(head.lines().any(|line| line == field), "{field} is missing: {refusal}");
    }
    assert_eq!(problem(&refusal)["type"], "urn:coro:problem:too-many-requests");
}

/// The problem document of an answer, which names the request as the answer's head does.
fn problem(answer: &str) -> serde_json::Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let field = |name: &str| {
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        let value = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        value.collect::<Vec<_>>()
    };
    assert_eq!(field("content-type"), ["application/problem+json"], "{answer}");
    assert_eq!(field("cache-control"), ["no-store"], "{answer}");
    let problem: serde_json::Value =
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(field("request-id"), [problem["request_id"].as_str().unwrap()], "{answer}");
    let status = head.split(' ').nth(1).unwrap();
    assert_eq!(problem["status"].to_string(), status, "{answer}");
    problem
}

#[test]
fn every_problem_of_the_edge_names_the_request() {
    let edge = Edge::start();
    let mut ids = std::collections::BTreeSet::new();
    for (host, line, kind) in [
        (2, "GET /nothing", "not-found"),
        (3, "DELETE /health", "method-not-allowed"),
        (4, "GET /services", "unavailable"),
        (5, "POST /payments", "unavailable"),
        (6, "this is no HTTP", "malformed"),
    ] {
        let problem = problem(&edge.request(host, line).unwrap_or_else(|| panic!("{line}: no answer")));
        assert_eq!(problem["type"], format!("urn:coro:problem:{kind}"), "{line}");
        assert!(ids.insert(problem["request_id"].to_string()), "{line}: the id of another request");
    }
    let bad = problem(&edge.request_with(7, "GET /services", "bad name: x\r\n").unwrap());
    assert_eq!(bad["type"], "urn:coro:problem:malformed");
}

#[test]
fn pages_of_known_origins_read_what_the_edge_says() {
    let edge = Edge::start();
    let allowed = |origin: &str| {
        let fields = format!("origin: {origin}\r\n");
        let answer = edge.request_with(2, "GET /services", &fields).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let line = answer.lines().find_map(|line| line.strip_prefix("access-control-allow-origin: "));
        line.map(str::to_owned)
    };
    for known in ORIGINS.split(' ') {
        assert_eq!(allowed(known).as_deref(), Some(known));
    }
    for other in ["https://other.example", "https://app.example.evil", "null", "*", ORIGINS] {
        assert_eq!(allowed(other), None, "{other}");
    }
}

#[test]
fn no_log_shows_what_a_client_made_up() {
    let edge = Edge::start();
    let canary = "7d1f3canary";
    let lines = [
        format!("GET /payments?idempotency_key={canary}"),
        format!("GET /payments/{canary}"),
        format!("GET /balance/{canary}?{canary}"),
        format!("POST /payments/0195d2a0-0000-7000-8000-000000000000/cancel?{canary}"),
    ];
    for line in &lines {
        edge.request_with(2, line, &format!("x-user-id: {canary}\r\nauthorization: Bearer {canary}\r\n"))
            .unwrap();
    }
    edge.request_with(2, "GET /services", &format!("bad name {canary}: x\r\n")).unwrap();
    let begun = Instant::now();
    let log = loop {
        let log = std::fs::read_to_string(edge.folder.join("log")).unwrap();
        if log.matches(" 503 ").count() >= lines.len() {
            break log;
        }
        assert!(begun.elapsed() < ANSWER_TIMEOUT, "the edge logs no failures: {log}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(!log.contains(canary), "{log}");
    assert!(log.contains("GET /payments "), "a path of ours is logged: {log}");
    assert!(log.contains("POST /payments/0195d2a0-0000-7000-8000-000000000000/cancel "), "{log}");
}

/// A request of each kind to each service.
const REQUESTS_TO_SERVICES: [&str; 7] = [
    "GET /services",
    "HEAD /services",
    "POST /payments",
    "POST /payments/0195d2a0-0000-7000-8000-000000000000/cancel",
    "GET /balance",
    "HEAD /balance",
    "GET /balance/movements",
];

/// Fails unless the edge answers each request with this status, as unavailable, and with the time to come back.
fn expect_unavailable(edge: &Edge, status: u16) {
    for line in REQUESTS_TO_SERVICES {
        let answer = edge.request(2, line).unwrap_or_else(|| panic!("{line}: no answer"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
        for field in ["content-type: application/problem+json", "retry-after: 1"] {
            let mut fields = head.lines().map(str::to_lowercase);
            assert!(fields.any(|line| line == field), "{line}: {field} is missing: {answer}");
        }
        if line.starts_with("HEAD") {
            assert_eq!(body, "", "{line}");
        } else {
            assert_eq!(problem(&answer)["type"], "urn:coro:problem:unavailable", "{line}");
        }
    }
}

/// The service takes the request, and then dies or answers something that is no HTTP.
#[test]
fn where_a_service_breaks_off_the_edge_says_502() {
    // The edge sends a request again while it has no whole head of an answer.
    for (answer, times) in [("", 3), ("HTTP/1.1 200 OK\r\ncontent-le", 3), ("nonsense\r\n\r\n", 1)] {
        let (address, requests) = service(Some(answer));
        let edge = Edge::before(address, address.port());
        expect_unavailable(&edge, 502);
        assert_eq!(requests.load(Ordering::Relaxed), times * REQUESTS_TO_SERVICES.len(), "{answer:?}");
    }
}

#[test]
fn where_no_service_is_the_edge_says_503() {
    let (ready, _) = service(None);
    for edge in [Edge::before(free(), ready.port()), Edge::before(ready, free().port())] {
        expect_unavailable(&edge, 503);
    }
}

/// A slow answer is no reason to send the request again.
#[test]
fn where_a_service_is_silent_the_edge_says_504() {
    let (address, requests) = service(None);
    let edge = Edge::before(address, address.port());
    expect_unavailable(&edge, 504);
    assert_eq!(requests.load(Ordering::Relaxed), REQUESTS_TO_SERVICES.len());
}

/// Without the setting not even the file has to be there.
#[test]
fn the_page_to_pay_by_hand_is_there_where_a_setting_says_so() {
    let nobody = free();
    for other in ["", "off", "yes"] {
        let edge = Edge::with(nobody, nobody.port(), other);
        assert!(edge.request(2, "GET /pay").unwrap().starts_with("HTTP/1.1 404 "), "{other:?}");
    }
    let edge = Edge::with(nobody, nobody.port(), "on");
    let page = edge.request(2, "GET /pay").unwrap();
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(body, std::fs::read_to_string(original().join("pay.html")).unwrap());
    for field in [
        "content-type: text/html; charset=utf-8",
        "cache-control: no-cache",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(head.lines().any(|line| line.to_lowercase() == field), "{field} is missing: {head}");
    }
    for directive in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(head.contains(directive), "{directive} is missing: {head}");
    }
    assert!(edge.request(2, "HEAD /pay").unwrap().ends_with("\r\n\r\n"), "HEAD has no body");
    assert!(edge.request(2, "POST /pay").unwrap().starts_with("HTTP/1.1 405 "));
    assert!(edge.request(2, "GET /pay/").unwrap().starts_with("HTTP/1.1 404 "), "one spelling");
}

/// What pods of the edge are given, but for their certificates: HAProxy takes it.
#[test]
fn the_configuration_fits_the_variables_of_pods() {
    let pods = original().join("../kubernetes/core");
    let manifests = std::fs::read_to_string(pods.join("edge.yaml")).unwrap();
    let manifests: Vec<serde_json::Value> = serde_saphyr::from_multiple(&manifests).unwrap();
    let container = &manifests[0]["spec"]["template"]["spec"]["containers"][0];
    let mut command = Command::new("haproxy");
    command.arg("-c").arg("-f").arg(original().join("haproxy.cfg"));
    command.arg("-f").arg(pods.join("haproxy-resolvers.cfg"));
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        // The address of the pod.
        let given = variable["value"].as_str().unwrap_or("127.0.0.1");
        let value = match name {
            "EDGE_TLS" => String::new(),
            "SERVICES_TLS" => given.replace("verify required ca-file /run/tls/ca.crt", "verify none"),
            _ => given.to_owned(),
        };
        command.env(name, value);
    }
    let output = command.output().expect("haproxy: `cargo stack up --servers` installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
