//! Tests the slots of the edge as HAProxy runs it: instances come and go, and slow ones get less.
//!
//! * A slot without an instance gets nothing, and nobody is asked there.
//! * One that is used from now on gets its part, in the backend of streams too. One that drains gets nothing more.
//! * An instance that says that it is slow gets less, until it says something else. No client sees what it said.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SLOTS: usize = 8;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at the same time: with fewer, leastconn finds an instance without any.
const CLIENTS: usize = 24;
/// Of each client.
const REQUESTS: usize = 10;
/// What every request takes, so that those of the same time are under way together.
const WORK_TIME: Duration = Duration::from_millis(20);

/// An instance that is ready, and the weight that it reports.
struct Instance {
    address: SocketAddr,
    weight: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
}

impl Instance {
    fn start(weight: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counters = [weight, 0, 0].map(|start| Arc::new(AtomicUsize::new(start)));
        let [weight, requests, checks] = counters.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let counters = counters.clone();
                std::thread::spawn(move || serve(stream.unwrap(), &counters));
            }
        });
        Self { address, weight, requests, checks }
    }

    /// The requests since it was asked last.
    fn served(&self) -> usize {
        self.requests.swap(0, Ordering::Relaxed)
    }
}

fn serve(mut stream: TcpStream, [weight, requests, checks]: &[Arc<AtomicUsize>; 3]) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    if head.starts_with(b"GET /ready") {
        checks.fetch_add(1, Ordering::Relaxed);
    } else {
        requests.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(WORK_TIME);
    }
    let weight = weight.load(Ordering::Relaxed);
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncoro-weight: {weight}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes());
}

/// HAProxy with these instances in the first slots of payments-svc, of which so many are used.
struct Edge {
    address: SocketAddr,
    process: Child,
    folder: PathBuf,
}

impl Edge {
    fn before(instances: &[&Instance], used: usize) -> Self {
        let [address, admin, nobody] = [free(), free(), free()];
        let folder = std::env::temp_dir().join(format!("edge-slots-{}", address.port()));
        std::fs::create_dir_all(&folder).unwrap();
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/haproxy");
        for name in ["haproxy.cfg", "not-http.lua", "weight.lua"] {
            std::fs::copy(original.join(name), folder.join(name)).unwrap();
        }
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
        command.env("EDGE_ADDR", address.to_string()).env("EDGE_ADMIN_ADDR", admin.to_string());
        command.env("EDGE_ADMIN_HOST", "localhost").env("EDGE_ORIGINS", "none").env("EDGE_PAY_PAGE", "off");
        command.env("EDGE_CONNECTIONS", "1000").env("EDGE_CONNECTIONS_PER_SOURCE", "1000");
        command.env("EDGE_REQUESTS_PER_SOURCE", "1000000");
        command.env("SERVICES_TLS", "no-ssl");
        command.env("SERVICES_INSTANCES", "slots").env("EDGE_SOCKET", folder.join("edge.sock"));
        for number in 1..=SLOTS {
            let instance = instances.get(number - 1).map_or(nobody, |instance| instance.address);
            let slot = |service: &str| format!("{service}_SLOT_{number}");
            for service in ["PAYMENTS", "BALANCE"] {
                command.env(slot(service), format!("{instance} port {}", instance.port()));
                let is_used = service == "PAYMENTS" && number <= used;
                command.env(format!("{}_STATE", slot(service)), if is_used { "enabled" } else { "disabled" });
            }
        }
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let process = process.expect("haproxy: `cargo stack up --servers` installs it");
        let edge = Self { address, process, folder };
        edge.until("HAProxy to listen", || TcpStream::connect(address).is_ok());
        edge.until("the first slots to be up", || edge.up() == used);
        edge
    }

    fn until(&self, what: &str, is_met: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_met() {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap();
            assert!(begun.elapsed() < ANSWER_TIMEOUT, "waited in vain for {what}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A command of the runtime API; none while there is no socket.
    fn ask(&self, command: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.join("edge.sock")).ok()?;
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        Some(answer)
    }

    fn set(&self, number: usize, state: &str) {
        let command = format!("set server payments-svc/payments-svc-{number} state {state}");
        assert_eq!(self.ask(&command).unwrap().trim(), "");
    }

    /// The column of each server of a backend.
    fn column(&self, backend: &str, name: &str) -> Vec<String> {
        let table = self.ask("show stat -1 4 -1").unwrap_or_default();
        let columns: Vec<&str> = table.lines().next().unwrap_or_default().split(',').collect();
        let Some(at) = columns.iter().position(|column| *column == name) else { return Vec::new() };
        let lines = table.lines().filter(|line| line.starts_with(&format!("{backend},")));
        lines.map(|line| line.split(',').nth(at).unwrap().to_owned()).collect()
    }

    /// The slots that are up, in both backends.
    fn up(&self) -> usize {
        let [first, second] = ["payments-svc", "payments-svc-events"]
            .map(|backend| self.column(backend, "status").iter().filter(|status| *status == "UP").count());
        if first == second { first } else { usize::MAX }
    }

    /// Waits until a slot has its whole part again: a number beyond 100 parts is none.
    fn weighs(&self, number: usize, weight: &str) {
        let is_met = || self.column("payments-svc", "weight").get(number - 1).is_some_and(|it| it == weight);
        self.until(&format!("slot {number} to weigh {weight}"), is_met);
    }

    /// Sends many requests at the same time; every one of them is answered by 200.
    fn load(&self) {
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| (0..REQUESTS).for_each(|_| self.request()));
            }
        });
    }

    fn request(&self) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        stream.write_all(b"GET /services HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(!answer.to_lowercase().contains("coro-weight"), "a client sees it: {answer}");
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_slot_gets_requests_from_when_it_is_used_until_it_drains() {
    let [one, two, three] = [100; 3].map(Instance::start);
    let edge = Edge::before(&[&one, &two, &three], 2);
    edge.load();
    assert_eq!(three.served() + three.checks.load(Ordering::Relaxed), 0, "nobody is asked there");
    assert_eq!(one.served() + two.served(), CLIENTS * REQUESTS);

    edge.set(3, "ready");
    edge.until("three slots to be up", || edge.up() == 3);
    edge.load();
    let (further, before) = (three.served(), one.served() + two.served());
    assert!(further > 0 && further < before / 2, "it starts slowly: {further} beside {before}");
    edge.weighs(3, "100");
    edge.load();
    assert!(three.served() > CLIENTS * REQUESTS / 5, "it has its part");

    // In both backends at once: who follows a payment is no exception.
    edge.set(3, "drain");
    let state = |backend| edge.column(backend, "status")[2].clone();
    assert_eq!(["payments-svc", "payments-svc-events"].map(state), ["DRAIN", "DRAIN"]);
    let _before = three.served();
    edge.load();
    assert_eq!(three.served(), 0, "it gets nothing more");

    edge.set(3, "maint");
    assert_eq!(edge.up(), 2);
    let checks = three.checks.load(Ordering::Relaxed);
    edge.load();
    // One may have been under way.
    assert!(three.checks.load(Ordering::Relaxed) <= checks + 1, "nobody is asked there any more");
}

#[test]
fn an_instance_that_says_that_it_is_slow_gets_less_until_it_says_something_else() {
    let [quick, slow] = [100, 20].map(Instance::start);
    let edge = Edge::before(&[&quick, &slow], 2);
    // Its first answer says so.
    edge.load();
    edge.weighs(2, "20");
    let _before = (quick.served(), slow.served());
    edge.load();
    let (more, less) = (quick.served(), slow.served());
    assert!(less > 0 && less * 3 < more, "{less} beside {more}");

    slow.weight.store(100, Ordering::Relaxed);
    edge.load();
    edge.weighs(2, "100");
    let _before = (quick.served(), slow.served());
    edge.load();
    let (one, other) = (quick.served(), slow.served());
    assert!(other * 2 > one, "{other} beside {one}");

    // What is no weight changes nothing.
    for wrong in [0, 101, 1000] {
        slow.weight.store(wrong, Ordering::Relaxed);
        edge.load();
        assert_eq!(edge.column("payments-svc", "weight")[..2], ["100", "100"], "{wrong}");
    }
}
