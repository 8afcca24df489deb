//! A search index behind TLS: who writes it and who reads it verify its server.
//!
//! OpenSearch has TLS by a plugin only, so the stack's own is reached through HAProxy, which ends the TLS.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;
use stack::certificates::{self, Certificate};
use stack::layout::{Layout, Port};
use stack::program::find_program;
use uuid::Uuid;

use super::{ids, search_at};
use crate::harness::{Harness, WAIT_TIMEOUT, get};
use crate::instance::FurtherInstance;

/// HAProxy before the stack's OpenSearch, with a certificate of an authority of its own.
struct TlsServer {
    process: Child,
    url: String,
    authority: String,
    folder: PathBuf,
}

/// A folder with an authority, and certificates that it has signed.
fn authority() -> Layout {
    let folder = std::env::temp_dir().join(format!("search-tls-{}", Uuid::now_v7()));
    let layout = Layout::new(Some(folder), 30_000).unwrap();
    certificates::make(&layout).unwrap();
    layout
}

impl TlsServer {
    fn start() -> Self {
        let made = authority();
        let Certificate { certificate, key } = certificates::of(&made, "haproxy");
        let [certificate, key] = [certificate, key].map(|path| fs::read_to_string(path).unwrap());
        let (pem, config) = (made.dir.join("server.pem"), made.dir.join("haproxy.cfg"));
        fs::write(&pem, format!("{key}{certificate}")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let search = Layout::from_env().unwrap().port(Port::Search);
        let text = format!(
            "defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend tls
    bind {address} ssl crt {}
    default_backend opensearch
backend opensearch
    server opensearch 127.0.0.1:{search}
",
            pem.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(find_program("haproxy").unwrap());
        command.arg("-db").arg("-f").arg(&config).stdin(Stdio::null());
        let authority = made.authority().display().to_string();
        let process = command.spawn().unwrap();
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < WAIT_TIMEOUT, "HAProxy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, url: format!("https://{address}"), authority, folder: made.dir }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Settings of a further search-indexer that reads the real topics, in a group of its own index.
fn indexer<'a>(settings: &[(&'a str, &'a str)], kafka: &'a str) -> Vec<(&'a str, &'a str)> {
    let own = [("GROUP_ID", "search-indexer"), ("TOPIC_PREFIX", ""), ("KAFKA_CONFIG", kafka)];
    own.into_iter().chain(settings.iter().copied()).collect()
}

/// Deletes the indices whose names begin with this alias.
async fn forget(harness: &Harness, alias: &str) {
    let (client, url) = (reqwest::Client::new(), harness.stack.search_url.clone().unwrap());
    let names = format!("{url}/_cat/indices/{alias}*?format=json&h=index");
    let names: Vec<Value> = client.get(names).send().await.unwrap().json().await.unwrap();
    assert!(!names.is_empty(), "the indexer has made no index {alias}");
    for name in names {
        let name = name["index"].as_str().unwrap();
        let deleted = client.delete(format!("{url}/{name}")).send().await.unwrap().status();
        assert_eq!(deleted, StatusCode::OK, "{name}");
    }
}

#[tokio::test]
async fn payments_are_indexed_and_found_over_tls() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment = harness.settle(user, "0812-tls", 400).await;
    let id = payment["payment_id"].as_str().unwrap().to_owned();
    let (server, alias) = (TlsServer::start(), format!("tls-{}", Uuid::now_v7()));
    let kafka = format!("{}/kafka/search-indexer.properties", harness.stack.dir);
    let settings = [
        ("SEARCH_URL", server.url.as_str()),
        ("SSL_CERT_FILE", server.authority.as_str()),
        ("SEARCH_ALIAS", alias.as_str()),
    ];
    let writer = FurtherInstance::start("search-indexer", &indexer(&settings, &kafka)).await;
    let reader = FurtherInstance::start("payments-svc", &settings).await;
    let began = Instant::now();
    loop {
        let answer = search_at(&reader.url, user, &[("q", "0812-tls")]).await;
        if answer.status == StatusCode::OK && ids(&answer.body) == [id.clone()] {
            break;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{answer:?}, not {id}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop((writer, reader));
    forget(&harness, &alias).await;
}

#[tokio::test]
async fn an_index_whose_authority_is_not_trusted_is_neither_written_nor_read() {
    let harness = Harness::shared().await;
    let (server, other) = (TlsServer::start(), authority());
    let (trusted, alias) = (other.authority().display().to_string(), format!("tls-{}", Uuid::now_v7()));
    let kafka = format!("{}/kafka/search-indexer.properties", harness.stack.dir);
    let settings = [
        ("SEARCH_URL", server.url.as_str()),
        ("SSL_CERT_FILE", trusted.as_str()),
        ("SEARCH_ALIAS", alias.as_str()),
    ];
    let reader = FurtherInstance::start("payments-svc", &settings).await;
    let answer = search_at(&reader.url, Uuid::now_v7(), &[("q", "0812")]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
    let mut writer = FurtherInstance::begin("search-indexer", &indexer(&settings, &kafka));
    let problem: Value = writer.not_ready().await;
    assert!(problem["detail"].as_str().unwrap().contains("certificate"), "{problem}");
    let index = format!("{}/{alias}-1", harness.stack.search_url.as_deref().unwrap());
    assert_eq!(get(index).await.unwrap().status(), StatusCode::NOT_FOUND);
    fs::remove_dir_all(other.dir).unwrap();
}
