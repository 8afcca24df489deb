//! Tokens of issuers that others have made, at both public services: who is let in, keys that change, and streams that
//! end with their token.
//!
//! * The services run beside those of the stack, with groups of their own, and know users by tokens.
//! * Keycloak is for `--all`: it takes a minute.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coroctl::client::order;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::following::{Follower, expect_story};
use crate::harness::{Harness, WAIT_TIMEOUT, binary, get, http};
use crate::issuers::{AUDIENCE, Issuer, Keycloak, OidcProvider};

const ALL_SCOPES: &str = "payments:read payments:write";

/// A service that accepts the tokens of an issuer.
struct Verifier {
    process: Child,
    url: String,
}

impl Verifier {
    async fn start(harness: &Harness, issuer: &Issuer, service: &str, database: &str) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (public, admin): (SocketAddr, SocketAddr) = (free(), free());
        let role = format!("{database}_svc");
        let passwords = sql::Passwords::from_env().unwrap();
        let password = passwords.of(&role).unwrap();
        let url = sql::database_url(&harness.stack.postgres_admin_url, database, &role, password).unwrap();
        let process = Command::new(binary(service))
            .args([format!("--listen-addr={public}"), format!("--admin-addr={admin}")])
            .args(["--kafka-brokers", &harness.stack.kafka_brokers])
            // Its own, so that nobody else's partitions move.
            .args(["--group-id", &format!("{service}-{}", Uuid::now_v7()), "--drain-ms=0"])
            .env("DATABASE_URL", url)
            .envs(issuer.settings.iter().cloned())
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while !get(format!("http://{admin}/ready")).await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(began.elapsed() < WAIT_TIMEOUT, "{service} does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, url: format!("http://{public}") }
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        // As it is asked to: it leaves its group at once.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}

/// A payments-svc and a balance-svc that know their users by tokens.
struct Services {
    harness: Harness,
    payments: Verifier,
    balance: Verifier,
    http: reqwest::Client,
}

impl Services {
    async fn accepting(issuer: &Issuer) -> Self {
        let harness = Harness::shared().await;
        let payments = Verifier::start(&harness, issuer, "payments-svc", "payments").await;
        let balance = Verifier::start(&harness, issuer, "balance-svc", "balance").await;
        Self { harness, payments, balance, http: http() }
    }

    /// A request of somebody who also says to be another user.
    fn request(&self, method: Method, url: String) -> RequestBuilder {
        self.http.request(method, url).header("x-user-id", Uuid::now_v7().to_string())
    }

    fn pay(&self, client_number: &str, amount: i64) -> RequestBuilder {
        let key = Uuid::new_v4().to_string();
        let body = order(client_number, &self.harness.stack.demo_service_id, amount, &key);
        self.request(Method::POST, format!("{}/payments", self.payments.url)).json(&body)
    }

    async fn paid(&self, token: &str, client_number: &str, amount: i64) -> Value {
        let answer = self.pay(client_number, amount).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    /// `GET /balance`.
    async fn balance(&self, token: &str) -> Response {
        let request = self.request(Method::GET, format!("{}/balance", self.balance.url));
        request.bearer_auth(token).send().await.unwrap()
    }

    /// `GET /payments`.
    async fn list(&self, token: &str) -> Response {
        let request = self.request(Method::GET, format!("{}/payments?limit=1", self.payments.url));
        request.bearer_auth(token).send().await.unwrap()
    }

    /// Waits until both services accept the token, as they do once they have fetched its key.
    async fn until_accepted(&self, token: &str) {
        let began = Instant::now();
        loop {
            let answers = [self.list(token).await.status(), self.balance(token).await.status()];
            if answers == [StatusCode::OK; 2] {
                return;
            }
            assert!(answers.iter().all(|status| [StatusCode::OK, StatusCode::UNAUTHORIZED].contains(status)));
            assert!(began.elapsed() < WAIT_TIMEOUT, "a new key is not accepted: {answers:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Both services refuse the token.
    async fn expect_refused(&self, token: &str) {
        for answer in [self.list(token).await, self.balance(token).await] {
            expect_challenge(&answer, StatusCode::UNAUTHORIZED, "Bearer error=\"invalid_token\"");
        }
    }
}

fn expect_challenge(answer: &Response, status: StatusCode, challenge: &str) {
    assert_eq!(
        (answer.status(), &answer.headers()["www-authenticate"].to_str().unwrap()),
        (status, &challenge)
    );
}

/// One part of a token, as JSON: 0 is its header, 1 its claims.
fn part(token: &str, part: usize) -> Value {
    let part = token.split('.').nth(part).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// A user pays, follows the payment and reads the balance; without a token or its scope nobody does.
async fn a_client_pays_by_token(services: &Services, issuer: &Issuer, user: Uuid) {
    services.harness.client.deposit(user, 1_000, &Uuid::new_v4().to_string()).await.unwrap();
    let token = issuer.token(ALL_SCOPES).await;
    let payment = services.paid(&token, "0812", 400).await;
    assert_eq!(payment["user_id"], user.to_string(), "X-User-ID is ignored");
    let id = payment["payment_id"].as_str().unwrap();
    let url = format!("{}/payments/{id}?wait=25000", services.payments.url);
    let ended: Value = Follower::with_token(&token).get(&url, None).await.json().await.unwrap();
    assert_eq!(ended["status"], "completed");
    let balance: Value = services.balance(&token).await.json().await.unwrap();
    assert_eq!((&balance["available"], &balance["held"]), (&json!(600), &json!(0)));

    let nobody = services.pay("0812", 1).send().await.unwrap();
    expect_challenge(&nobody, StatusCode::UNAUTHORIZED, "Bearer scope=\"payments:write\"");
    let url = format!("{}/balance", services.balance.url);
    let nobody = services.request(Method::GET, url).send().await.unwrap();
    expect_challenge(&nobody, StatusCode::UNAUTHORIZED, "Bearer scope=\"payments:read\"");
    // More than the last character, some bits of which count for nothing.
    let forged = token.replacen(&token[token.len() - 9..], &"A".repeat(9), 1);
    services.expect_refused(&forged).await;

    let reader = issuer.token("payments:read").await;
    assert_eq!(services.list(&reader).await.status(), StatusCode::OK);
    assert_eq!(services.balance(&reader).await.status(), StatusCode::OK);
    let refused = services.pay("0812", 1).bearer_auth(&reader).send().await.unwrap();
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"payments:write\"";
    expect_challenge(&refused, StatusCode::FORBIDDEN, challenge);
    let writer = issuer.token("payments:write").await;
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"payments:read\"";
    expect_challenge(&services.balance(&writer).await, StatusCode::FORBIDDEN, challenge);
}

/// The subject of its tokens is no UUID.
fn user_of(provider: &OidcProvider) -> Uuid {
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, provider.issuer.url.as_bytes());
    Uuid::new_v5(&namespace, provider.subject().as_bytes())
}

#[tokio::test]
async fn a_client_pays_by_a_token_of_oidc_provider_whose_keys_change() {
    let mut provider = OidcProvider::start("e1 ES256 r1 RS256").await;
    let services = Services::accepting(&provider.issuer).await;
    let user = user_of(&provider);
    let old = provider.issuer.token(ALL_SCOPES).await;
    assert_eq!(part(&old, 0), json!({"alg": "ES256", "typ": "at+jwt", "kid": "e1"}));
    a_client_pays_by_token(&services, &provider.issuer, user).await;
    // Another algorithm under the name of no key before; the old keys are withdrawn.
    provider.has("r2 RS256").await;
    let new = provider.issuer.token(ALL_SCOPES).await;
    assert_eq!(part(&new, 0), json!({"alg": "RS256", "typ": "at+jwt", "kid": "r2"}));
    services.until_accepted(&new).await;
    services.expect_refused(&old).await;
    assert_eq!(services.paid(&new, "0812", 100).await["user_id"], user.to_string());
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_goes_on_with_another() {
    let provider = OidcProvider::start("e1 ES256").await;
    let services = Services::accepting(&provider.issuer).await;
    let issuer = &provider.issuer;
    let token = issuer.token(ALL_SCOPES).await;
    services.harness.client.deposit(user_of(&provider), 1_000, "first").await.unwrap();
    // The gateway answers long after the token below has expired.
    let payment = services.paid(&token, "0812-slow9000", 100).await;
    let id: Uuid = payment["payment_id"].as_str().unwrap().parse().unwrap();
    let brief = issuer.token_for(&format!("{AUDIENCE}/brief"), "payments:read").await;
    let mut stream = Follower::with_token(&brief).open(&services.payments.url, id, None).await;
    let first = stream.next().await.unwrap();
    let before = stream.rest().await;
    let expires = part(&brief, 1)["exp"].as_i64().unwrap();
    assert!(jiff::Timestamp::now().as_second() >= expires, "the stream ends no sooner than its token");
    let last = before.last().unwrap_or(&first);
    assert_ne!(last.payment["status"], "completed", "the token ends the stream, and not the payment");
    services.expect_refused(&brief).await;
    let follower = Follower::with_token(&token);
    let rest = follower.open(&services.payments.url, id, Some(&last.id.to_string())).await.rest().await;
    expect_story(&rest, last.id);
}

#[tokio::test]
#[ignore = "takes a minute, and installs Keycloak: cargo stack test --all"]
async fn a_client_pays_by_a_token_of_keycloak_whose_keys_change() {
    let keycloak = Keycloak::start().await;
    let issuer = &keycloak.issuer;
    let services = Services::accepting(issuer).await;
    let old = issuer.token(ALL_SCOPES).await;
    let audiences = part(&old, 1)["aud"].as_array().unwrap().clone();
    assert!(audiences.len() > 1 && audiences.contains(&json!(AUDIENCE)), "{audiences:?}");
    assert_eq!(part(&old, 0)["alg"], "RS256");
    let user = keycloak.subject().await.parse().unwrap();
    a_client_pays_by_token(&services, issuer, user).await;
    keycloak.signs_by_es256(200).await;
    let new = issuer.token(ALL_SCOPES).await;
    assert_eq!(part(&new, 0)["alg"], "ES256");
    services.until_accepted(&new).await;
    for token in [&old, &new] {
        assert_eq!(services.balance(token).await.status(), StatusCode::OK, "both keys are published");
    }
    keycloak.withdraws_rs256().await;
    // A third key makes the services fetch again, and forget the withdrawn one.
    keycloak.signs_by_es256(300).await;
    services.until_accepted(&issuer.token(ALL_SCOPES).await).await;
    services.expect_refused(&old).await;
}
