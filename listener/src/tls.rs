//! TLS of listeners, by the files of a certificate and its key.
//!
//! * Without the files a listener speaks plain HTTP; with them nothing else than TLS 1.2 and 1.3.
//! * Files that change are read again within ten seconds, without a restart. Files that cannot be used are logged, and the
//!   certificate before stays.
//! * A handshake has a time-out.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

pub use tokio_rustls::server::TlsStream;

/// The files are looked at this often, when somebody connects.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// A handshake must be complete within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes ring the cryptography of the process, for clients that choose none themselves. Again: nothing.
pub fn install_provider() {
    // It may be installed already.
    let _ = ring::default_provider().install_default();
}

#[derive(Args)]
struct TlsFlags {
    /// The certificate of the listeners, with those between it and its authority: a file in PEM. Without it they speak plain
    /// HTTP.
    #[arg(long, env = "TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: Option<String>,
    /// Its key: a file in PEM.
    #[arg(long, env = "TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<String>,
}

/// The TLS of a process's listeners, or none.
#[derive(Clone, Default)]
pub struct Tls(Option<TlsAcceptor>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Tls" } else { "no TLS" })
    }
}

impl Tls {
    /// TLS by these files.
    ///
    /// # Errors
    /// When a file cannot be read, or the key does not belong to the certificate.
    pub fn of(certificate: PathBuf, key: PathBuf) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let resolver = CertificateFiles::read(Files { certificate, key }, provider.clone())?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("ring offers no version of TLS")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        Ok(Self(Some(TlsAcceptor::from(Arc::new(config)))))
    }

    /// The listener, with this TLS.
    pub fn socket(&self, listener: TcpListener) -> Socket {
        Socket { listener, tls: self.clone() }
    }

    /// The stream of a connection that was accepted.
    ///
    /// # Errors
    /// When the handshake fails, takes too long, or is not done at `shutdown`: nothing was asked on it yet.
    pub async fn accept(&self, stream: TcpStream, shutdown: &CancellationToken) -> io::Result<Stream> {
        let Some(acceptor) = &self.0 else { return Ok(Stream::Plain(stream)) };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Err(io::Error::other("the listener stops")),
            accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => accepted,
        };
        let late = io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long");
        Ok(Stream::Encrypted(Box::new(accepted.map_err(|_| late)??)))
    }
}

/// A connection, as TLS leaves it.
pub enum Stream {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// A listener and its TLS.
pub struct Socket {
    pub listener: TcpListener,
    pub tls: Tls,
}

/// One without TLS.
impl From<TcpListener> for Socket {
    fn from(listener: TcpListener) -> Self {
        Self { listener, tls: Tls::default() }
    }
}

impl FromArgMatches for Tls {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let TlsFlags { tls_cert_file, tls_key_file } = TlsFlags::from_arg_matches(matches)?;
        // An empty variable is none.
        let given = |file: Option<String>| file.filter(|path| !path.is_empty()).map(PathBuf::from);
        match (given(tls_cert_file), given(tls_key_file)) {
            (None, None) => Ok(Self::default()),
            (Some(certificate), Some(key)) => Self::of(certificate, key)
                .map_err(|why| clap::Error::raw(ErrorKind::ValueValidation, format!("{why:#}\n"))),
            _ => Err(clap::Error::raw(
                ErrorKind::MissingRequiredArgument,
                "TLS_CERT_FILE and TLS_KEY_FILE go together; give both, or neither for plain HTTP\n",
            )),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Tls {
    fn augment_args(command: Command) -> Command {
        TlsFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        TlsFlags::augment_args_for_update(command)
    }
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    /// What tells one version of the files from another: one that replaces a file within a tick of the clock has another
    /// inode or length.
    fn stamps(&self) -> Option<[Stamp; 2]> {
        let stamp = |path: &PathBuf| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.modified().ok()?, file.len(), file.ino()))
        };
        Some([stamp(&self.certificate)?, stamp(&self.key)?])
    }

    fn read(&self, provider: &CryptoProvider) -> Result<CertifiedKey> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let chain = CertificateDer::pem_file_iter(&self.certificate).and_then(Iterator::collect);
        let chain: Vec<_> = chain.with_context(|| format!("TLS_CERT_FILE {certificate} cannot be read"))?;
        ensure!(!chain.is_empty(), "TLS_CERT_FILE {certificate} has no certificate");
        let secret = PrivateKeyDer::from_pem_file(&self.key);
        let secret = secret.with_context(|| format!("TLS_KEY_FILE {key} cannot be read"))?;
        CertifiedKey::from_der(chain, secret, provider)
            .with_context(|| format!("TLS_KEY_FILE {key} is not the key of {certificate}"))
    }
}

/// When a file was written, its length, and its inode.
type Stamp = (SystemTime, u64, u64);

/// The certificate as its files have it now.
#[derive(Debug)]
struct CertificateFiles {
    files: Files,
    provider: Arc<CryptoProvider>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    stamps: Option<[Stamp; 2]>,
    looked_at: Instant,
}

impl CertificateFiles {
    fn read(files: Files, provider: Arc<CryptoProvider>) -> Result<Self> {
        // Before they are read: a change in between is found at the next look.
        let stamps = files.stamps();
        let key = Arc::new(files.read(&provider)?);
        let current = Mutex::new(Current { key, stamps, looked_at: Instant::now() });
        Ok(Self { files, provider, current })
    }

    fn key(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(current.looked_at) < LOOK_INTERVAL {
            return current.key.clone();
        }
        current.looked_at = now;
        let stamps = self.files.stamps();
        if stamps.is_some() && stamps != current.stamps {
            match self.files.read(&self.provider) {
                Ok(key) => {
                    tracing::info!("the certificate of the listeners was read again");
                    current.key = Arc::new(key);
                    current.stamps = stamps;
                }
                // The two files may be half replaced.
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the certificate before stays in use");
                }
            }
        }
        current.key.clone()
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key(Instant::now()))
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
