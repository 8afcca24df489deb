//! A gateway of its own for each test, and a client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The token of the operators of a test's gateway.
const ADMIN_TOKEN: &str = "the-token-of-a-test";
/// Longer than anything a test waits for takes, on a busy machine too.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Gateway {
    pub address: SocketAddr,
    ledger: PathBuf,
    pub http: Client,
    shutdown: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Gateway {
    pub async fn start(extra: &[&str]) -> Gateway {
        let ledger = std::env::temp_dir().join(format!("gateway-sim-{}.ndjson", uuid::Uuid::new_v4()));
        Gateway::start_on(ledger, extra).await
    }

    pub async fn start_on(ledger: PathBuf, extra: &[&str]) -> Gateway {
        let path = ledger.to_str().unwrap();
        let args = ["gateway-sim", "--ledger-path", path, "--admin-token", ADMIN_TOKEN]
            .into_iter()
            .chain(extra.iter().copied());
        let config = gateway_sim::Config::try_parse_from(args).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(gateway_sim::run(config, listener, shutdown.clone()));
        listener::tls::install_provider();
        let http = Client::builder().no_proxy().timeout(WAIT_TIMEOUT).build().unwrap();
        Gateway { address, ledger, http, shutdown, served }
    }

    pub async fn stop(self) -> PathBuf {
        self.shutdown.cancel();
        self.served.await.unwrap().unwrap();
        self.ledger
    }

    pub async fn end(self) {
        std::fs::remove_file(self.stop().await).unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn send(&self, key: &str, body: &Value) -> reqwest::Result<reqwest::Response> {
        self.http.post(self.url("/charges")).header("idempotency-key", key).json(body).send().await
    }

    pub async fn charge(&self, reference: &str, number: &str) -> (StatusCode, Value) {
        let reply = self.send(reference, &body(reference, 15_000, number)).await.unwrap();
        (reply.status(), reply.json().await.unwrap())
    }

    pub async fn fails(&self, reference: &str, number: &str) -> reqwest::Error {
        match self.send(reference, &body(reference, 15_000, number)).await {
            Ok(reply) => reply.bytes().await.expect_err("a whole answer"),
            Err(error) => error,
        }
    }

    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        let reply = self.http.get(self.url(path)).send().await.unwrap();
        (reply.status(), reply.text().await.unwrap())
    }

    /// A call of somebody who may change the gateway's behaviour.
    pub fn as_operator(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method.parse().unwrap(), self.url(path)).bearer_auth(ADMIN_TOKEN)
    }

    /// An admin call that must be taken.
    pub async fn put(&self, path: &str, json: Value) {
        let reply = self.as_operator("PUT", path).json(&json).send().await.unwrap();
        assert_eq!(reply.status(), 204, "{}", reply.text().await.unwrap());
    }

    pub async fn void(&self, reference: &str, body: Value) -> (StatusCode, Value) {
        let url = self.url(&format!("/charges/{reference}/void"));
        let reply = self.http.post(url).json(&body).send().await.unwrap();
        (reply.status(), reply.json().await.unwrap())
    }

    pub async fn inquire(&self, reference: &str) -> Value {
        let (status, text) = self.get(&format!("/charges/{reference}")).await;
        let body: Value = serde_json::from_str(&text).unwrap();
        if status == 200 { body } else { body["status"].clone() }
    }

    pub async fn ledger(&self) -> Vec<(String, i64)> {
        let (status, text) = self.get("/ledger").await;
        assert_eq!(status, 200);
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["kind"], "charge");
            (line["reference"].as_str().unwrap().to_owned(), line["amount"].as_i64().unwrap())
        };
        text.lines().map(line).collect()
    }
}

pub fn body(reference: &str, amount: i64, number: &str) -> Value {
    json!({"reference": reference, "amount": amount, "client_number": number, "service_id": "power"})
}

/// Waits until an inquiry sees the charge.
pub async fn found(gateway: &Gateway, reference: &str) {
    let sees = async {
        while gateway.get(&format!("/charges/{reference}")).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, sees).await.expect("the charge appears");
}
