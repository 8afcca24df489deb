//! TLS to Postgres, by libpq's parameters and with their meaning: `sslmode`, `sslrootcert`, `sslcert`, `sslkey`.
//!
//! | `sslmode` | encrypted | the server is |
//! |---|---|---|
//! | `disable` | never | whoever answers |
//! | `prefer` (without a word) | if the server can | whoever answers |
//! | `require` | always | whoever answers; with `sslrootcert`, as `verify-ca` |
//! | `verify-ca` | always | one that `sslrootcert` vouches for |
//! | `verify-full` | always | that, and of this name; without `sslrootcert` the system's authorities vouch |
//!
//! `sslrootcert=system` names those, and goes with `verify-full` alone: anybody can have a certificate of theirs. A
//! certificate that stands in the file `sslrootcert` itself is trusted as it is, whatever it says of its time. Names are
//! looked for where they belong (`subjectAltName`), not in the common name.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::postgres::connection_url::Parameters;

/// Its name in the handshake (ALPN).
pub const PROTOCOL: &[u8] = b"postgresql";

/// What `sslmode` may say.
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
            // The one that has more of it.
            "prefer" | "allow" => Mode::Prefer,
            "require" => Mode::Require,
            "verify-ca" => Mode::VerifyCa,
            "verify-full" => Mode::VerifyFull,
            _ => bail!("sslmode is disable, prefer, require, verify-ca or verify-full, not `{text}`"),
        })
    }
}

/// The parameters about TLS, which the client library knows in part.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// None: nobody says.
    mode: Option<Mode>,
    root_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Wish {
    /// Takes them out.
    ///
    /// # Errors
    /// When one of them says what nobody understands.
    pub fn take(parameters: &mut Parameters) -> Result<Wish> {
        Ok(Wish {
            mode: parameters.remove("sslmode").map(|text| Mode::parse(&text)).transpose()?,
            root_cert: parameters.remove("sslrootcert"),
            cert: parameters.remove("sslcert"),
            key: parameters.remove("sslkey"),
        })
    }

    /// What all of them come to.
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

/// What a session is opened with.
///
/// # Errors
/// When a certificate or key cannot be read.
pub fn client(mode: Mode, wish: &Wish) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => Trust::Anyone,
        Mode::VerifyCa => Trust::Vouched(authorities(wish)?),
        Mode::VerifyFull => Trust::Named(authorities(wish)?),
    };
    let verifier = Arc::new(Verifier { trust, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut client = match (&wish.cert, &wish.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("sslkey {key}"))?;
            builder.with_client_auth_cert(chain, key).context("sslcert and sslkey")?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => bail!("sslcert and sslkey go together"),
    };
    // What `sslnegotiation=direct` needs, and others ignore.
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
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

/// Those whom a certificate may be signed by.
#[derive(Debug)]
struct Authorities {
    roots: RootCertStore,
    /// Their certificates: a server's own may be among them, of which `roots` would say that it is no authority.
    listed: Vec<CertificateDer<'static>>,
}

fn authorities(wish: &Wish) -> Result<Authorities> {
    let mut roots = RootCertStore::empty();
    let listed = match wish.root_cert.as_deref() {
        None | Some("system") => {
            // Some may be unreadable without any harm.
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
        bail!("there is nobody to vouch for the server: name the authority's certificate with sslrootcert");
    }
    Ok(Authorities { roots, listed })
}

#[derive(Debug)]
enum Trust {
    Anyone,
    Vouched(Authorities),
    Named(Authorities),
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn vouched(
        &self,
        authorities: &Authorities,
        (server, between): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
    ) -> Result<(), Error> {
        if authorities.listed.contains(server) {
            return Ok(());
        }
        let server = ParsedCertificate::try_from(server)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&server, &authorities.roots, between, now, algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Anyone => {}
            Trust::Vouched(authorities) => self.vouched(authorities, (server, between), now)?,
            Trust::Named(authorities) => {
                self.vouched(authorities, (server, between), now)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(url: &str) -> Result<Wish> {
        Wish::take(&mut crate::postgres::connection_url::parameters(url, &|_| None)?)
    }

    fn mode(url: &str) -> Option<Mode> {
        wish(url).expect("a URL").mode().ok()
    }

    #[test]
    fn what_the_modes_mean_with_and_without_authorities() {
        assert_eq!(mode("postgres://h/d"), Some(Mode::Prefer));
        assert_eq!(mode("postgres://h/d?sslmode=require"), Some(Mode::Require));
        assert_eq!(mode("postgres://h/d?sslmode=require&sslrootcert=ca.pem"), Some(Mode::VerifyCa));
        assert_eq!(mode("postgres://h/d?sslrootcert=system"), Some(Mode::VerifyFull));
        assert_eq!(mode("postgres://h/d?sslmode=verify-full&sslrootcert=system"), Some(Mode::VerifyFull));
        assert_eq!(mode("postgres://h/d?sslmode=verify-full"), Some(Mode::VerifyFull));
        for weak in ["prefer", "require", "verify-ca"] {
            assert_eq!(mode(&format!("postgres://h/d?sslmode={weak}&sslrootcert=system")), None, "{weak}");
        }
        assert_eq!(mode("postgres://h/d?sslmode=verify-ca"), None);
        assert_eq!(mode("postgres://u:p?w@h/d?ssl%6Dode=require&sslrootcert=ca.pem"), Some(Mode::VerifyCa));
        assert_eq!(mode("host=h sslmode=require sslrootcert=ca.pem"), Some(Mode::VerifyCa));
        assert_eq!(mode("postgres://h/d?sslmode=disable&sslrootcert=ca.pem"), Some(Mode::Disable));
        assert!(wish("postgres://h/d?sslmode=maybe").is_err());
    }
}
