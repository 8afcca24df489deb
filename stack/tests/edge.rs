//! The edge as HAProxy runs it, with limits for each source address set: one address does not hold up the others.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

const CONNECTIONS: usize = 40;
const REQUESTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// HAProxy with nothing behind it, on ports of its own.
struct Edge {
    address: SocketAddrV4,
    process: Child,
}

impl Edge {
    fn start() -> Edge {
        let address = free();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/haproxy");
        let nobody = free();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
        command.env("EDGE_ADDR", address.to_string()).env("EDGE_ADMIN_ADDR", free().to_string());
        for name in ["PAYMENTS_1", "PAYMENTS_2", "BALANCE"] {
            command.env(format!("{name}_ADDR"), nobody.to_string());
            command.env(format!("{name}_ADMIN_PORT"), nobody.port().to_string());
        }
        command.env("EDGE_CONNECTIONS_PER_SOURCE", CONNECTIONS.to_string());
        command.env("EDGE_REQUESTS_PER_SOURCE", REQUESTS.to_string());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let edge =
            Edge { address, process: process.expect("haproxy: `cargo stack up --servers` installs it") };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "HAProxy does not listen");
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
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The status of an answer to a request from there; none if the connection was closed.
    fn ask(&self, host: u8) -> Option<String> {
        let mut stream = self.connect(host);
        let request = b"GET /health HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n";
        let mut answer = String::new();
        let asked = stream.write_all(request).and_then(|()| stream.read_to_string(&mut answer));
        asked.ok().filter(|read| *read > 0).map(|_| answer[9..12].to_owned())
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago.
fn free() -> SocketAddrV4 {
    match TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("it was bound to an IPv4 address"),
    }
}

/// Whether it is still open a moment after it was made.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
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
    let open = silent.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count();
    assert!((1..=CONNECTIONS).contains(&open), "{open} are open");
    assert_eq!(edge.ask(2), None, "this address has all it may have");
    assert!(edge.ask(3).is_some(), "another one is answered");
    // Those that say nothing are closed, and there is room again.
    while edge.ask(2).is_none() {
        assert!(begun.elapsed() < PATIENCE, "silent connections stay");
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
}
