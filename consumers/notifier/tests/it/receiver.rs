//! The receiving end of webhooks: an HTTP server whose behaviour a test chooses, and a real SMTP server.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rcgen::{CertifiedKey, KeyPair};
use standardwebhooks::Webhook;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use uuid::Uuid;
use warp::http::{HeaderMap, HeaderName};

use crate::harness::eventually;

/// What the receiver does with a request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Writes this, and closes.
    Answer(String),
    /// Never answers.
    Hang,
    /// Writes this line without end.
    Endless(&'static str),
    /// Answers this once it is allowed to.
    Later(Arc<Semaphore>, String),
}

impl Behaviour {
    pub fn status(status: &str) -> Self {
        Self::Answer(Self::head(status))
    }

    pub fn head(status: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }

    pub fn verify(&self, secret: &str) {
        Webhook::new(secret).unwrap().verify(self.body.as_bytes(), &self.headers).unwrap();
    }
}

#[derive(Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    behaviours: Arc<Mutex<HashMap<String, Behaviour>>>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    pub async fn start() -> Self {
        Self::with(None).await
    }

    /// A receiver of https, with this certificate and key.
    pub async fn with_tls(certificate: &CertifiedKey<KeyPair>) -> Self {
        let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        Self::with(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn with(tls: Option<TlsAcceptor>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let receiver = Self { address, behaviours: Arc::default(), received: Arc::default() };
        let server = receiver.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let (server, tls) = (server.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => server.serve(stream).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            server.serve(stream).await;
                        }
                    }
                });
            }
        });
        receiver
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on requests of this path are treated so; without a behaviour they are accepted.
    pub fn set(&self, path: &str, behaviour: Behaviour) {
        self.behaviours.lock().unwrap().insert(path.to_owned(), behaviour);
    }

    pub fn received(&self, path: &str) -> Vec<Received> {
        let received = self.received.lock().unwrap();
        received.iter().filter(|received| received.path == path).cloned().collect()
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        let Some(received) = read(&mut stream).await else { return };
        let behaviour = self.behaviours.lock().unwrap().get(&received.path).cloned();
        self.received.lock().unwrap().push(received);
        match behaviour.unwrap_or_else(|| Behaviour::status("204 No Content")) {
            Behaviour::Answer(answer) => drop(stream.write_all(answer.as_bytes()).await),
            Behaviour::Hang => drop(stream.read_to_end(&mut Vec::new()).await),
            Behaviour::Later(allowed, answer) => {
                let _permit = allowed.acquire().await.unwrap();
                drop(stream.write_all(answer.as_bytes()).await);
            }
            Behaviour::Endless(line) => {
                let _begun = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
                while stream.write_all(line.as_bytes()).await.is_ok() {}
            }
        }
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Received> {
    let mut bytes = Vec::new();
    let head = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.split("\r\n");
    let path = lines.next()?.strip_prefix("POST ")?.strip_suffix(" HTTP/1.1")?.to_owned();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
    while bytes.len() < head + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8(bytes[head + 4..].to_vec()).unwrap();
    Some(Received { path, headers, body })
}

/// A socket that has its port, where nobody listens: nobody else gets that port while it lives, except to listen there.
pub fn reserved() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket
}

/// aiosmtpd with a Maildir of its own.
pub struct Smtp {
    pub port: u16,
    folder: PathBuf,
    _reserved: TcpSocket,
    _child: Option<Child>,
}

impl Smtp {
    /// A port and a folder, at which nothing listens yet.
    pub fn away() -> Self {
        let reserved = reserved();
        let port = reserved.local_addr().unwrap().port();
        let folder = std::env::temp_dir().join(format!("notifier-mail-{}", Uuid::new_v4()));
        Self { port, folder, _reserved: reserved, _child: None }
    }

    pub async fn start() -> Self {
        let mut smtp = Self::away();
        smtp.begin();
        eventually("the SMTP server listens", async || {
            TcpStream::connect(("127.0.0.1", smtp.port)).await.ok()
        })
        .await;
        smtp
    }

    pub fn begin(&mut self) {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "aiosmtpd", "-n", "-l", &format!("127.0.0.1:{}", self.port)]);
        command.args(["-c", "refusing.Refusing", &self.folder.display().to_string()]);
        command.env("PYTHONPATH", here).env("PYTHONDONTWRITEBYTECODE", "1");
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self._child =
            Some(command.spawn().expect("python3-aiosmtpd is not installed: `cargo stack up --with notify`"));
    }

    pub fn url(&self) -> String {
        format!("smtp://127.0.0.1:{}", self.port)
    }

    /// The e-mails that have come.
    pub fn mails(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.join("new")).into_iter().flatten().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap()).collect()
    }
}

impl Drop for Smtp {
    fn drop(&mut self) {
        let _there = std::fs::remove_dir_all(&self.folder);
    }
}
