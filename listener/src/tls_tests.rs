//! Tests which certificate a listener shows, and that nothing but TLS is answered.

use clap::Parser;
use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::reply::Reply;

use super::*;
use crate::operators::Audience;

/// A folder with the files of one certificate after the other.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("listener-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn files(&self) -> Files {
        Files { certificate: self.0.join("cert.pem"), key: self.0.join("key.pem") }
    }

    /// Writes a new certificate; returns it.
    fn renew(&self) -> CertificateDer<'static> {
        let Generated { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(self.files().certificate, cert.pem()).unwrap();
        std::fs::write(self.files().key, signing_key.serialize_pem()).unwrap();
        cert.der().clone()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_certificate_is_read_again_when_its_files_change() {
    let folder = Folder::new("again");
    let first = folder.renew();
    let resolver = CertificateFiles::read(folder.files(), Arc::new(ring::default_provider())).unwrap();
    let began = Instant::now();
    let shown = |after: Duration| resolver.key(began + after).cert[0].clone();
    let second = folder.renew();
    assert_eq!(shown(Duration::ZERO), first, "the files are not looked at for every client");
    assert_eq!(shown(LOOK_INTERVAL * 2), second);
    std::fs::write(folder.files().key, "no key").unwrap();
    assert_eq!(shown(LOOK_INTERVAL * 4), second, "files that cannot be used change nothing");
    std::fs::remove_file(folder.files().key).unwrap();
    assert_eq!(shown(LOOK_INTERVAL * 6), second);
    let third = folder.renew();
    assert_eq!(shown(LOOK_INTERVAL * 8), third);
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    #[derive(Debug, Parser)]
    struct Config {
        #[command(flatten)]
        tls: Tls,
    }
    let (folder, other) = (Folder::new("settings"), Folder::new("other"));
    folder.renew();
    other.renew();
    let Files { certificate, key } = folder.files();
    let (certificate, key) = (certificate.display(), key.display());
    let parse = |arguments: &[String]| {
        let arguments = std::iter::once("program".to_owned()).chain(arguments.iter().cloned());
        Config::try_parse_from(arguments)
            .map(|config| config.tls.0.is_some())
            .map_err(|error| error.to_string())
    };
    let (cert_flag, key_flag) = (format!("--tls-cert-file={certificate}"), format!("--tls-key-file={key}"));
    assert_eq!(parse(&[]), Ok(false));
    assert_eq!(parse(&["--tls-cert-file=".to_owned()]), Ok(false));
    assert_eq!(parse(&[cert_flag.clone(), key_flag.clone()]), Ok(true));
    let not_its_key = format!("--tls-key-file={}", other.files().key.display());
    for (arguments, why) in [
        (vec![cert_flag.clone()], "go together"),
        (vec![key_flag.clone()], "go together"),
        (vec![cert_flag.clone(), not_its_key], "is not the key of"),
        (vec!["--tls-cert-file=/nowhere".to_owned(), key_flag], "/nowhere"),
        (vec![cert_flag, "--tls-key-file=/nowhere".to_owned()], "/nowhere"),
    ] {
        let error = parse(&arguments).unwrap_err();
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn a_listener_with_tls_answers_nothing_else() {
    let folder = Folder::new("listener");
    let certificate = folder.renew();
    let Files { certificate: file, key } = folder.files();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let route = warp::path!("hello").map(|| "hello");
    let render = |refusal: crate::Refusal| refusal.reason.status().into_response();
    let shutdown = CancellationToken::new();
    let socket = Tls::of(file, key).unwrap().socket(listener);
    let served = tokio::spawn(crate::serve(socket, route, Audience::Anyone, render, shutdown.clone()));

    let request = b"GET /hello HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));

    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut encrypted = connector.connect(name, stream).await.unwrap();
    encrypted.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = encrypted.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    shutdown.cancel();
    served.await.unwrap().unwrap();
}
