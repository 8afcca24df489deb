//! TLS to Postgres, by libpq's parameters `sslmode`, `sslrootcert`, `sslcert` and `sslkey`, with libpq's meaning.
//!
//! | `sslmode` | encrypted | the server is |
//! |---|---|---|
//! | `disable` | never | whoever answers |
//! | `prefer` (default) | if the server can | whoever answers |
//! | `require` | always | whoever answers; with `sslrootcert`, as `verify-ca` |
//! | `verify-ca` | always | one that `sslrootcert` vouches for |
//! | `verify-full` | always | that, and of this name; without `sslrootcert` the system's authorities vouch |
//!
//! * `sslrootcert=system` names the system's authorities. It requires `verify-full`: anybody can have a certificate of theirs.
//! * A certificate in the file `sslrootcert` itself is trusted even if it has expired.
//! * The server's name must be in `subjectAltName`; the common name does not count.
//!
//! One library, rustls with ring, serves every TLS of ours; librdkafka alone has the system's OpenSSL, since it knows no
//! other.

mod connection;
pub mod hosts;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

pub use self::connection::{Connection, Stream};

/// The values of a connection string by name, decoded.
pub type Parameters = BTreeMap<String, String>;

/// Postgres' protocol in the handshake (ALPN).
pub const ALPN_PROTOCOL: &[u8] = b"postgresql";

/// The values of `sslmode`, by strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    fn parse(text: &str) -> Result<Mode> {
        Ok(match text {
            "disable" => Mode::Disable,
            // `prefer` is the stronger of the two.
            "prefer" | "allow" => Mode::Prefer,
            "require" => Mode::Require,
            "verify-ca" => Mode::VerifyCa,
            "verify-full" => Mode::VerifyFull,
            _ => bail!("sslmode is disable, prefer, require, verify-ca or verify-full, not `{text}`"),
        })
    }
}

/// The TLS parameters. `tokio-postgres` knows only some of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TlsParameters {
    /// None: not given.
    mode: Option<Mode>,
    root_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl TlsParameters {
    /// Removes the TLS parameters from `parameters`.
    ///
    /// # Errors
    /// When a value is unknown.
    pub fn take(parameters: &mut Parameters) -> Result<TlsParameters> {
        Ok(TlsParameters {
            mode: parameters.remove("sslmode").map(|text| Mode::parse(&text)).transpose()?,
            root_cert: parameters.remove("sslrootcert"),
            cert: parameters.remove("sslcert"),
            key: parameters.remove("sslkey"),
        })
    }

    /// The mode that all parameters together mean.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn mode(&self) -> Result<Mode> {
        Ok(match (self.mode, self.root_cert.as_deref()) {
            (None, Some("system")) | (Some(Mode::VerifyFull), _) => Mode::VerifyFull,
            (_, Some("system")) => bail!("sslrootcert=system goes with sslmode=verify-full and nothing less"),
            (Some(Mode::VerifyCa), None) => {
                bail!("sslmode=verify-ca needs sslrootcert; with the system's authorities it is verify-full")
            }
            (Some(Mode::Require), Some(_)) => Mode::VerifyCa,
            (mode, _) => mode.unwrap_or(Mode::Prefer),
        })
    }
}

/// The client's configuration for a mode.
///
/// # Errors
/// When a certificate or key cannot be read.
pub fn client(mode: Mode, parameters: &TlsParameters) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => Trust::Anyone,
        Mode::VerifyCa => Trust::Chain(authorities(parameters)?),
        Mode::VerifyFull => Trust::ChainAndName(authorities(parameters)?),
    };
    let verifier = Arc::new(Verifier { trust, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut client = match (&parameters.cert, &parameters.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("sslkey {key}"))?;
            builder.with_client_auth_cert(chain, key).context("sslcert and sslkey")?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => bail!("sslcert and sslkey go together: give both or neither"),
    };
    // `sslnegotiation=direct` needs it; other servers ignore it.
    client.alpn_protocols = vec![ALPN_PROTOCOL.to_vec()];
    Ok(client)
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let all: Vec<_> = all.with_context(|| format!("certificates in {file}"))?;
    if all.is_empty() {
        bail!("there is no certificate in {file}");
    }
    Ok(all)
}

/// The authorities that may have signed a certificate.
#[derive(Debug)]
struct Authorities {
    roots: RootCertStore,
    /// Their certificates. A server's own may be among them, which `roots` would reject because it is no authority.
    listed: Vec<CertificateDer<'static>>,
}

fn authorities(parameters: &TlsParameters) -> Result<Authorities> {
    let mut roots = RootCertStore::empty();
    let listed = match parameters.root_cert.as_deref() {
        None | Some("system") => {
            // Unreadable ones are skipped.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Vec::new()
        }
        Some(file) => {
            let listed = certificates(file).context("sslrootcert")?;
            roots.add_parsable_certificates(listed.iter().cloned());
            listed
        }
    };
    if roots.is_empty() {
        bail!(
            "no authority can vouch for the server, because no certificate was found: name the authority's with sslrootcert"
        );
    }
    Ok(Authorities { roots, listed })
}

#[derive(Debug)]
enum Trust {
    Anyone,
    Chain(Authorities),
    ChainAndName(Authorities),
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn verify_chain(
        &self,
        authorities: &Authorities,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if authorities.listed.contains(server) {
            return Ok(());
        }
        let server = ParsedCertificate::try_from(server)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&server, &authorities.roots, intermediates, now, algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Anyone => {}
            Trust::Chain(authorities) => self.verify_chain(authorities, server, intermediates, now)?,
            Trust::ChainAndName(authorities) => {
                self.verify_chain(authorities, server, intermediates, now)?;
                verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, server, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, server, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
