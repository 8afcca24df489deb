//! A TCP connection with TLS.
//!
//! * A short read means that the socket is drained, as with plain TCP.
//! * A blocking read waits for the first bytes and never for more.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use postgres_tls::ALPN_PROTOCOL;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, SHA_1_WITH_RSA_ENCRYPTION, SHA_256_WITH_RSA_ENCRYPTION,
    SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};

#[derive(Debug)]
pub struct TlsStream {
    tls: ClientConnection,
    tcp: TcpStream,
    /// Whether a read waits for the first bytes.
    blocking: bool,
}

impl TlsStream {
    /// Completes the handshake within the socket's time-outs.
    ///
    /// # Errors
    /// When one side does not trust the other.
    pub fn handshake(mut tcp: TcpStream, config: Arc<ClientConfig>, host: &str) -> io::Result<TlsStream> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        Ok(TlsStream { tls, tcp, blocking: true })
    }

    /// Whether both sides agreed on Postgres' protocol (ALPN). `sslnegotiation=direct` requires it.
    pub fn has_postgres_alpn(&self) -> bool {
        self.tls.alpn_protocol() == Some(ALPN_PROTOCOL)
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub fn set_nonblocking(&mut self, on: bool) -> io::Result<()> {
        self.blocking = !on;
        self.tcp.set_nonblocking(on)
    }

    /// The data of channel binding `tls-server-end-point` (RFC 5929): the hash of the server's certificate, by the hash
    /// function of its signature, SHA-256 at least. None: the signature has no hash function.
    pub fn end_point(&self) -> Option<Vec<u8>> {
        let server = self.tls.peer_certificates()?.first()?;
        Some(match Certificate::from_der(server).ok()?.signature_algorithm.oid {
            SHA_1_WITH_RSA_ENCRYPTION | SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => {
                Sha256::digest(server).to_vec()
            }
            SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => Sha384::digest(server).to_vec(),
            SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => Sha512::digest(server).to_vec(),
            _ => return None,
        })
    }

    /// Whether a read returns something without touching the socket: decrypted bytes, the peer's close, or an error.
    pub fn has_buffered_input(&mut self) -> bool {
        let state = self.tls.process_new_packets();
        state.map_or(true, |state| state.plaintext_bytes_to_read() > 0 || state.peer_has_closed())
    }

    /// Whether encrypted bytes wait for the socket.
    pub fn has_pending_output(&self) -> bool {
        self.tls.wants_write()
    }

    /// Reads the socket once. `false`: end of file.
    fn receive(&mut self) -> io::Result<bool> {
        // Pending output, such as the answer to a key update, goes first if the socket takes it.
        match self.send() {
            Err(error) if self.blocking || error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        // An earlier read that returned bytes has deferred the error behind them.
        self.process()?;
        if self.tls.read_tls(&mut self.tcp)? == 0 {
            return Ok(false);
        }
        self.process()?;
        Ok(true)
    }

    fn process(&mut self) -> io::Result<()> {
        let processed = self.tls.process_new_packets();
        processed.map(drop).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.tcp) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The crate's list of object identifiers lacks this one.
const ECDSA_WITH_SHA_512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");

impl Read for TlsStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.tls.reader().read(buf.get_mut(filled..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if filled > 0 && self.blocking {
                        break;
                    }
                    match self.receive() {
                        Ok(true) => {}
                        Ok(false) => break,
                        // The next read returns the same error.
                        Err(_) if filled > 0 => break,
                        Err(error) => return Err(error),
                    }
                }
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl Write for TlsStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send()?;
        let taken = self.tls.writer().write(buf)?;
        match self.send() {
            // The bytes are buffered; the next read or write sends them first.
            Err(error) if !self.blocking && error.kind() == ErrorKind::WouldBlock => Ok(taken),
            sent => sent.map(|()| taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
