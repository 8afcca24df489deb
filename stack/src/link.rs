//! Connections of this program to the servers and services of a stack.
//!
//! * Where the stack is encrypted, `openssl s_client` speaks TLS and verifies the server: this program stays without
//!   cryptography.
//! * Every connection ends by itself after a few seconds.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::layout::Layout;

/// A connection, encrypted or not.
pub trait Link: Read + Write {}

impl<T: Read + Write> Link for T {}

/// Connects to a port of the stack. `starttls` names the protocol that begins in plain text, in the words of `openssl`.
///
/// # Errors
/// When nobody answers there.
pub fn open(
    layout: &Layout,
    port: u16,
    starttls: Option<&str>,
    timeout: Duration,
) -> io::Result<Box<dyn Link>> {
    if layout.is_encrypted() {
        return Ok(Box::new(Encrypted::open(layout, port, starttls, timeout)?));
    }
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    Ok(Box::new(stream))
}

/// A connection by `openssl s_client`, which ends when its input does.
struct Encrypted {
    process: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Encrypted {
    fn open(layout: &Layout, port: u16, starttls: Option<&str>, timeout: Duration) -> io::Result<Self> {
        let mut command = Command::new("timeout");
        command.arg(timeout.as_secs().max(1).to_string()).args([
            "openssl",
            "s_client",
            "-quiet",
            "-no_ign_eof",
        ]);
        command.args(["-verify_return_error", "-verify_ip", "127.0.0.1", "-CAfile"]);
        command.arg(layout.authority()).args(["-connect", &format!("127.0.0.1:{port}")]);
        if let Some(protocol) = starttls {
            command.args(["-starttls", protocol]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn()?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self { process, input: Some(input), output }),
            _ => Err(io::Error::other("openssl has no streams")),
        }
    }
}

impl Read for Encrypted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.output.read(buffer)
    }
}

impl Write for Encrypted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.flush()
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ended = self.process.wait();
    }
}
