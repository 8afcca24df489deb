//! Fetches the issuer's key set over HTTP, within limits.
//!
//! * One GET on a connection of its own: there is one every few minutes.
//! * Only 200 is an answer. A redirect is not followed, since it could lead anywhere.
//! * A set has at most 128 KiB. The caller bounds the time.
//! * TLS trusts whom the system trusts; `SSL_CERT_FILE` names others. No proxy is used.

use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use warp::http::header::{ACCEPT, CONNECTION, HOST};
use warp::http::{Request, StatusCode};

use super::keys::Keys;
use super::settings::JwksUrl;

/// Issuers with certificates in their sets, such as Entra, need some ten kilobytes.
const SET_BYTES_MAX: usize = 128 * 1024;

pub struct JwksClient {
    url: JwksUrl,
    tls: Option<TlsConnector>,
}

impl JwksClient {
    /// # Errors
    /// When the URL needs TLS and the system trusts no authority.
    pub fn new(url: JwksUrl) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        if url.is_tls() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            ensure!(
                !roots.is_empty(),
                "the system trusts no certificate authority, so {url} cannot be trusted; install ca-certificates, or set SSL_CERT_FILE"
            );
        }
        Self::trusting(roots, url)
    }

    fn trusting(roots: RootCertStore, url: JwksUrl) -> anyhow::Result<Self> {
        let tls = if url.is_tls() { Some(connector(roots)?) } else { None };
        Ok(Self { url, tls })
    }

    pub fn url(&self) -> &JwksUrl {
        &self.url
    }

    /// # Errors
    /// When there is no answer of 200, or it is no key set of at most 128 KiB.
    pub async fn fetch(&self) -> anyhow::Result<Keys> {
        let target = (self.url.host(), self.url.port());
        let stream = TcpStream::connect(target).await.context("the issuer cannot be reached")?;
        let set = match &self.tls {
            Some(tls) => {
                let name = ServerName::try_from(self.url.host().to_owned())
                    .context("no certificate can be for the host of the URL")?;
                let stream = tls.connect(name, stream).await.context("the issuer's TLS is not accepted")?;
                self.get(stream).await?
            }
            None => self.get(stream).await?,
        };
        Keys::read(&set)
    }

    async fn get<S>(&self, stream: S) -> anyhow::Result<Bytes>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.context("no HTTP connection")?;
        // Its end aborts the connection, whatever became of the answer.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let request = Request::get(self.url.path())
            .header(HOST, self.url.authority())
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await.context("the issuer gave no answer")?;
        let status = answer.status();
        ensure!(
            status == StatusCode::OK,
            "the issuer answered {status}, not 200; redirects are not followed"
        );
        let body = Limited::new(answer.into_body(), SET_BYTES_MAX).collect().await;
        let body =
            body.map_err(|error| anyhow!("no whole answer of at most {SET_BYTES_MAX} bytes: {error}"))?;
        Ok(body.to_bytes())
    }
}

fn connector(roots: RootCertStore) -> anyhow::Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("ring offers no version of TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    /// A server that answers one connection with an empty set, under a certificate for `host`.
    async fn issuer(host: &str) -> (u16, CertificateDer<'static>) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([host.to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = socket.accept().await.unwrap();
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else { return };
            let mut head = [0; 1024];
            let read = stream.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /set?v=1 HTTP/1.1\r\n"));
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"keys\":[]}";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        (port, cert.der().clone())
    }

    async fn fetch(host: &str, trusted: Option<&CertificateDer<'static>>, port: u16) -> anyhow::Result<Keys> {
        let mut roots = RootCertStore::empty();
        if let Some(certificate) = trusted {
            roots.add(certificate.clone()).unwrap();
        }
        let url = format!("https://{host}:{port}/set?v=1").parse().unwrap();
        JwksClient::trusting(roots, url).unwrap().fetch().await
    }

    #[tokio::test]
    async fn an_issuer_proves_who_it_is() {
        let (port, own) = issuer("localhost").await;
        assert_eq!(fetch("localhost", Some(&own), port).await.unwrap().len(), 0);
        let (port, own) = issuer("127.0.0.1").await;
        assert_eq!(fetch("127.0.0.1", Some(&own), port).await.unwrap().len(), 0);
        let (port, _) = issuer("localhost").await;
        let error = fetch("localhost", None, port).await.err().unwrap();
        assert_eq!(error.to_string(), "the issuer's TLS is not accepted", "a certificate that nobody trusts");
        let (port, own) = issuer("issuer.example").await;
        let error = fetch("localhost", Some(&own), port).await.err().unwrap();
        assert_eq!(error.to_string(), "the issuer's TLS is not accepted", "a certificate for another host");
    }
}
