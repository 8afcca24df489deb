//! Runs one relay process: its admin listener, its log and its end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use super::eventually;

/// Waits for a process to end by itself.
pub async fn ended(child: &mut Child) -> ExitStatus {
    eventually("a process to end", || {
        let ended = child.try_wait().expect("wait");
        async move { ended }
    })
    .await
}

/// A running relay; killed when dropped.
pub struct Relay {
    pub(super) child: Child,
    pub admin: SocketAddr,
    pub(super) log: PathBuf,
}

impl Relay {
    /// The answer of the admin listener.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut socket = TcpStream::connect(self.admin).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(socket, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The body of `/health`; null while the relay does not answer.
    pub fn health(&self) -> serde_json::Value {
        let answer = self.get("/health").unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    /// Waits until the source is in this state; returns the report.
    pub async fn state(&self, state: &str) -> String {
        let wanted = format!("\"state\":\"{state}\"");
        eventually(&format!("state {state}; now {:?}", self.get("/health")), || async {
            self.get("/health").filter(|report| report.contains(&wanted))
        })
        .await
    }

    pub async fn streams(&self) {
        self.state("streaming").await;
    }

    /// The value of a metric, by the beginning of its line.
    pub fn metric(&self, start: &str) -> f64 {
        let text = self.get("/metrics").unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(start));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no metric {start}"))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The highest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        let kilobytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
        kilobytes * 1024
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signal");
    }

    /// `None` while it runs; then the signal that ended it.
    pub fn ended(&mut self) -> Option<Option<i32>> {
        use std::os::unix::process::ExitStatusExt;
        self.child.try_wait().expect("wait").map(|status| status.signal())
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// SIGTERM; returns the exit code.
    pub async fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        for _ in 0..1500 {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the relay does not stop:\n{}", self.log());
    }

    /// Waits for it to end by itself.
    pub async fn exit_code(&mut self) -> Option<i32> {
        for _ in 0..1500 {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the relay does not end:\n{}", self.log());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the relay ---\n{}", self.log());
        }
    }
}
