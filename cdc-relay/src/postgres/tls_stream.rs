//! A TCP connection with TLS on it, read as its plain sibling is: what a read does not fill, is not there yet.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

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

use crate::postgres::tls::PROTOCOL;

#[derive(Debug)]
pub struct Encrypted {
    tls: ClientConnection,
    tcp: TcpStream,
    /// Whether a read waits for the first bytes. It never waits for more.
    waits: bool,
}

impl Encrypted {
    /// Shakes hands, within the socket's time-outs.
    ///
    /// # Errors
    /// When the server is not trusted, or the other way round.
    pub fn begin(mut tcp: TcpStream, config: Arc<ClientConfig>, host: &str) -> io::Result<Encrypted> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        Ok(Encrypted { tls, tcp, waits: true })
    }

    /// Whether both sides have agreed that this is Postgres' protocol, as they must without being asked first.
    pub fn speaks_postgres(&self) -> bool {
        self.tls.alpn_protocol() == Some(PROTOCOL)
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub fn set_nonblocking(&mut self, on: bool) -> io::Result<()> {
        self.waits = !on;
        self.tcp.set_nonblocking(on)
    }

    /// What ties a sign-in to this very server (RFC 5929, `tls-server-end-point`): the hash of its certificate, by the
    /// hash it is signed with, SHA-256 at least. None: it is signed without one.
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

    /// Whether a read would bring something without the socket: decrypted bytes, the other side's farewell, or what is
    /// wrong with what it sent.
    pub fn holds(&mut self) -> bool {
        let state = self.tls.process_new_packets();
        state.map_or(true, |state| state.plaintext_bytes_to_read() > 0 || state.peer_has_closed())
    }

    /// Whether something encrypted waits for the socket to take it.
    pub fn owes(&self) -> bool {
        self.tls.wants_write()
    }

    /// One read of the socket. `false`: it has ended.
    fn receive(&mut self) -> io::Result<bool> {
        // What we owe, such as an answer to a change of keys, goes when it can.
        match self.send() {
            Err(error) if self.waits || error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        // A read that brought something kept to itself what was wrong with the rest.
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

/// The database of object identifiers lacks it.
const ECDSA_WITH_SHA_512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");

impl Read for Encrypted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.tls.reader().read(buf.get_mut(filled..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if filled > 0 && self.waits {
                        break;
                    }
                    match self.receive() {
                        Ok(true) => {}
                        Ok(false) => break,
                        // It comes again at the next read.
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

impl Write for Encrypted {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send()?;
        let taken = self.tls.writer().write(buf)?;
        match self.send() {
            // It is taken, and leaves before whatever comes next is read or written.
            Err(error) if !self.waits && error.kind() == ErrorKind::WouldBlock => Ok(taken),
            sent => sent.map(|()| taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
