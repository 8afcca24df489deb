//! Posts a webhook as Standard Webhooks has it: `webhook-id`, `webhook-timestamp`, `webhook-signature` (v1).
//!
//! * The name is resolved once, its addresses are checked ([`networks`]), and one of those is connected to: an answer
//!   of DNS that changes between check and use has no effect. The spelling of an address (decimal, octal, mapped) has
//!   none either. At most eight addresses are tried, each for three seconds.
//! * One POST on a connection of its own. Redirects are not followed, no proxy is used, and no body of an answer is
//!   read.
//! * The head of an answer has at most 16 KiB. The caller bounds the time.
//! * While a secret is being rotated, a message has a signature of the new one and of the old one.
//! * TLS trusts whom the system trusts; `SSL_CERT_FILE` names others.

pub mod networks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use jiff::Timestamp;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::networks::Networks;

const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A name may have any number of addresses, and an address may be one that nothing answers from.
const ADDRESSES_MAX: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const SECRET_BYTES: usize = 32;

/// A message. Id and body are the same at every attempt.
pub struct Message<'a> {
    /// It must not contain a dot, which separates what is signed.
    pub id: &'a str,
    /// `whsec_…`, each of which signs: a receiver accepts any signature that it can verify.
    pub secrets: &'a [String],
    pub body: Vec<u8>,
}

/// A secret that nobody knows yet: of 256 bits, more than the 192 that Standard Webhooks asks for.
pub fn new_secret() -> String {
    format!("whsec_{}", STANDARD.encode(rand::random::<[u8; SECRET_BYTES]>()))
}

/// The head of an answer, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The pause that the receiver asks for in seconds; the form with a date is ignored.
    pub retry_after: Option<Duration>,
}

/// Why there is no answer.
pub type NoAnswer = &'static str;

#[derive(Clone)]
pub struct WebhookClient {
    tls: TlsConnector,
    networks: Arc<Networks>,
}

/// A URL that may be posted to, as far as can be said without DNS: http or https, a host, a port that exists, and no
/// password.
fn parse_url(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let after_host = authority.as_str().strip_prefix(authority.host())?;
    let port_exists = after_host.is_empty() || authority.port_u16().is_some_and(|port| port > 0);
    let fits =
        matches!(uri.scheme_str(), Some("http" | "https")) && !authority.host().is_empty() && port_exists;
    fits.then_some(uri)
}

impl WebhookClient {
    /// A client that posts to public addresses, and to `allowed` networks.
    ///
    /// # Errors
    /// When there is no certificate authority to trust, or ring offers no version of TLS.
    pub fn new(allowed: Vec<IpNet>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        anyhow::ensure!(
            !roots.is_empty(),
            "there is no certificate authority to trust, so no webhook could be sent over TLS: install the package \
             ca-certificates, or set SSL_CERT_FILE (errors: {:?})",
            found.errors
        );
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("ring offers no version of TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let networks = Arc::new(Networks::new(allowed)?);
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), networks })
    }

    /// Whether this URL can be posted to, as far as can be said without DNS. Without TLS only allowed networks are.
    pub fn accepts(&self, url: &str) -> bool {
        let uri = parse_url(url);
        uri.is_some_and(|uri| uri.scheme_str() == Some("https") || self.networks.allows_some())
    }

    /// Posts the message. Dropping the future closes the connection.
    ///
    /// # Errors
    /// When there was no answer. The receiver may have handled the message all the same.
    pub async fn post(&self, url: &str, message: &Message<'_>) -> Result<Answer, NoAnswer> {
        let uri = parse_url(url).ok_or("invalid URL")?;
        let request = request(&uri, message).map_err(|_| "invalid URL or secret")?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let admitted = self.resolve(host, port, tls).await?;
        let stream = connect(&admitted).await?;
        if !tls {
            return send(stream, request).await;
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| "invalid URL")?;
        let stream = self.tls.connect(name, stream).await.map_err(|_| "TLS failed")?;
        send(stream, request).await
    }

    /// The addresses of the host that may be connected to.
    async fn resolve(&self, host: &str, port: u16, tls: bool) -> Result<Vec<SocketAddr>, NoAnswer> {
        let found = tokio::net::lookup_host((host, port)).await.map_err(|_| "name not resolved")?;
        self.admitted(found, tls)
    }

    /// Those of a name's addresses that may be connected to. One that may be is no excuse for another.
    fn admitted(
        &self,
        found: impl Iterator<Item = SocketAddr>,
        tls: bool,
    ) -> Result<Vec<SocketAddr>, NoAnswer> {
        let admitted = found.filter(|address| self.networks.admits(address.ip(), tls));
        let admitted: Vec<SocketAddr> = admitted.take(ADDRESSES_MAX).collect();
        if admitted.is_empty() { Err("forbidden address") } else { Ok(admitted) }
    }
}

/// Connects to the first address that answers.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, NoAnswer> {
    for address in addresses {
        if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            return Ok(stream);
        }
    }
    Err("not connected")
}

fn request(uri: &Uri, message: &Message<'_>) -> anyhow::Result<Request<Full<Bytes>>> {
    let timestamp = Timestamp::now().as_second();
    let sign = |secret: &String| Webhook::new(secret)?.sign(message.id, timestamp, &message.body);
    let signatures = message.secrets.iter().map(sign).collect::<Result<Vec<String>, _>>()?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok(Request::post(path)
        .header(HOST, uri.authority().context("the URL has no host")?.as_str())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("coro-webhook/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .header(HEADER_WEBHOOK_ID, message.id)
        .header(HEADER_WEBHOOK_TIMESTAMP, timestamp)
        .header(HEADER_WEBHOOK_SIGNATURE, signatures.join(" "))
        .body(Full::from(message.body.clone()))?)
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|_| "not connected")?;
    // Its end aborts the connection, whatever became of the answer.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await.map_err(|_| "no answer")?;
    Ok(Answer { status: response.status().as_u16(), retry_after: retry_after(response.headers()) })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[test]
    fn a_url_that_can_never_work_is_none() {
        for good in
            ["https://example.org", "http://example.org:80/a?b=c", "https://[::1]:8443/", "https://[::1]/"]
        {
            assert!(parse_url(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "/path",
            "https://",
            "ftp://example.org/",
            "https://user:password@example.org/",
            "https://user@example.org/",
            "https://example.org:/",
            "https://example.org:0/",
            "https://example.org:65536/",
            "https://[::1]:/",
            "https://:443/",
        ] {
            assert!(parse_url(bad).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_address_that_nothing_answers_from_does_not_use_up_the_attempt() {
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(1).unwrap();
        let address = silent.local_addr().unwrap();
        // Nobody accepts: once the queue is full, the next one who connects is not answered.
        let mut queue = Vec::new();
        while let Ok(stream) = timeout(CONNECT_TIMEOUT / 3, TcpStream::connect(address)).await {
            queue.push(stream.unwrap());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let works = listener.local_addr().unwrap();
        let connected = timeout(3 * CONNECT_TIMEOUT, connect(&[address, works])).await;
        assert_eq!(connected.unwrap().unwrap().peer_addr().unwrap(), works);
    }

    /// As a name that an attacker chooses may have them: public ones, so that it looks well, and one of this machine.
    #[test]
    fn each_address_of_a_name_is_admitted_by_itself() {
        let client = WebhookClient::new(vec!["10.1.0.0/16".parse().unwrap()]).unwrap();
        let admitted = |addresses: &[&str], tls| {
            let found = addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 443));
            let admitted = client.admitted(found, tls);
            admitted.map(|all| all.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>())
        };
        let mixed = ["1.1.1.1", "127.0.0.1", "::1", "10.1.2.3", "169.254.169.254"];
        assert_eq!(admitted(&mixed, true).unwrap(), ["1.1.1.1", "10.1.2.3"]);
        assert_eq!(admitted(&mixed, false).unwrap(), ["10.1.2.3"]);
        assert_eq!(admitted(&["127.0.0.1", "::1"], true), Err("forbidden address"));
        assert_eq!(admitted(&["1.1.1.1"; 20], true).unwrap().len(), ADDRESSES_MAX);
    }

    #[test]
    fn a_message_is_signed_by_each_secret() {
        let uri = parse_url("https://example.org/").unwrap();
        let secrets = [new_secret(), new_secret()];
        assert_ne!(secrets[0], secrets[1]);
        let message = Message { id: "x", secrets: &secrets, body: b"{}".to_vec() };
        let request = request(&uri, &message).unwrap();
        for secret in secrets {
            Webhook::new(&secret).unwrap().verify(b"{}", request.headers()).unwrap();
        }
    }
}
