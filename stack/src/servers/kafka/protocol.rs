//! As much of Kafka's protocol as is needed here: signing in, and asking.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{ADMIN, BROKER, sasl_port, secret};
use crate::layout::Layout;
use crate::link::{self, Link};
use crate::servers::Node;

const TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: i32 = 1 << 20;
/// The API's number, and its version without tagged fields.
const SASL_HANDSHAKE: (i16, i16) = (17, 1);
const SASL_AUTHENTICATE: (i16, i16) = (36, 1);

/// A connection to Kafka.
pub struct Broker {
    stream: Box<dyn Link>,
}

impl Broker {
    /// Signed in at this node as the broker itself, whose password is in its settings, so that it knows it before it knows any user.
    ///
    /// # Errors
    /// When Kafka does not answer, or refuses.
    pub fn as_itself(layout: &Layout, node: Node) -> Result<Self> {
        let port = layout.port(sasl_port(node));
        let stream =
            link::open(layout, port, None, TIMEOUT).with_context(|| format!("cannot reach port {port}"))?;
        let mut broker = Self { stream };
        broker.sign_in(BROKER, &secret(layout, BROKER)?)?;
        Ok(broker)
    }

    /// Signed in as the administrator with this password, on the Kafka at this address (HOST:PORT).
    ///
    /// # Errors
    /// When Kafka does not answer, or refuses.
    pub fn as_administrator(address: &str, password: &str, timeout: Duration) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
        stream.set_read_timeout(Some(timeout))?;
        let mut broker = Self { stream: Box::new(stream) };
        broker.sign_in(ADMIN, password)?;
        Ok(broker)
    }

    fn sign_in(&mut self, user: &str, password: &str) -> Result<()> {
        let mut mechanism = Vec::new();
        put(&mut mechanism, "PLAIN");
        self.ask(SASL_HANDSHAKE, &mechanism)?.no_error("the handshake")?;
        let token = format!("\0{user}\0{password}");
        let mut body = i32::try_from(token.len())?.to_be_bytes().to_vec();
        body.extend_from_slice(token.as_bytes());
        self.ask(SASL_AUTHENTICATE, &body)?.no_error("the password")
    }

    /// Asks by the API of this number and version.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn ask(&mut self, (api, version): (i16, i16), body: &[u8]) -> Result<Answer> {
        // Correlation 1, no name of a client.
        let header = [api.to_be_bytes(), version.to_be_bytes(), [0, 0], [0, 1], [0xff, 0xff]].concat();
        let length = i32::try_from(header.len() + body.len())?;
        self.stream.write_all(&[&length.to_be_bytes()[..], &header, body].concat())?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = i32::from_be_bytes(length);
        ensure!((4..=ANSWER_BYTES_MAX).contains(&length), "an answer of {length} bytes");
        let mut answer = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut answer)?;
        Ok(Answer { rest: answer.split_off(4) })
    }
}

/// A text, with its length before it.
pub fn put(body: &mut Vec<u8>, text: &str) {
    // Names here are short.
    body.extend_from_slice(&i16::try_from(text.len()).unwrap_or(i16::MAX).to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}

/// What is left of an answer to be read.
pub struct Answer {
    rest: Vec<u8>,
}

impl Answer {
    /// An answer of these bytes.
    #[cfg(test)]
    pub fn of(rest: Vec<u8>) -> Self {
        Self { rest }
    }

    /// Reads a text with its length before it; without a text it is empty.
    ///
    /// # Errors
    /// When it is cut off, or no UTF-8.
    pub fn text(&mut self) -> Result<String> {
        let length = i16::from_be_bytes(self.array()?);
        let length = usize::try_from(length).unwrap_or(0);
        ensure!(self.rest.len() >= length, "Kafka's answer is cut off");
        let bytes = self.rest.drain(..length).collect();
        String::from_utf8(bytes).context("Kafka's answer has a text that is no UTF-8")
    }

    /// # Errors
    /// When there are not so many bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = *self.rest.first_chunk::<N>().context("Kafka's answer is cut off")?;
        self.skip(N)?;
        Ok(bytes)
    }

    /// # Errors
    /// When there are not so many bytes.
    pub fn skip(&mut self, bytes: usize) -> Result<()> {
        ensure!(self.rest.len() >= bytes, "Kafka's answer is cut off");
        self.rest.drain(..bytes);
        Ok(())
    }

    /// Reads an error code.
    ///
    /// # Errors
    /// When it is one.
    pub fn no_error(&mut self, what: &str) -> Result<()> {
        match i16::from_be_bytes(self.array()?) {
            0 => Ok(()),
            code => bail!("Kafka refused {what}: error {code} of its protocol"),
        }
    }
}
