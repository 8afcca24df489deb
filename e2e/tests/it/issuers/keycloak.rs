//! Keycloak: a realm with one client, and an administrator who rotates its keys.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use stack::keycloak;
use stack::layout::Layout;
use tokio::process::{Child, Command};

use super::{AUDIENCE, CLIENT_ID, CLIENT_SECRET, Issuer, free_port};
use crate::harness::http;

/// It takes 40 seconds on two idle cores.
const START_TIMEOUT: Duration = Duration::from_secs(300);
const REALM: &str = "coro";
const ADMINISTRATOR: (&str, &str) = ("admin", "admin-of-a-test");

pub struct Keycloak {
    pub issuer: Issuer,
    server: String,
    /// The client's own id.
    client: String,
    http: reqwest::Client,
    process: Child,
}

impl Keycloak {
    /// Starts it, with a realm whose client signs by RS256.
    pub async fn start() -> Self {
        let install = || keycloak::install(&Layout::from_env().unwrap()).unwrap();
        let folder = tokio::task::spawn_blocking(install).await.unwrap();
        let port = free_port();
        let process = run(&folder, port);
        let server = format!("http://127.0.0.1:{port}");
        let url = format!("{server}/realms/{REALM}");
        let connect = format!("{url}/protocol/openid-connect");
        let (jwks_url, token_url) = (format!("{connect}/certs"), format!("{connect}/token"));
        let issuer = Issuer::new(url, jwks_url, token_url, "JWT");
        let http = http();
        let mut keycloak = Self { issuer, server, client: String::new(), http, process };
        keycloak.until_it_answers().await;
        keycloak.make_realm().await;
        keycloak
    }

    async fn until_it_answers(&mut self) {
        let began = Instant::now();
        let url = format!("{}/realms/master", self.server);
        while !self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(self.process.try_wait().unwrap().is_none(), "Keycloak has ended");
            assert!(began.elapsed() < START_TIMEOUT, "Keycloak does not start");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A realm, its client, the client's scopes, and two audiences: `aud` is an array.
    async fn make_realm(&mut self) {
        let realm =
            json!({"realm": REALM, "enabled": true, "accessTokenLifespan": 300, "sslRequired": "none"});
        self.ask(Method::POST, "/admin/realms", &realm).await;
        let audience = |name: &str| {
            json!({"name": name, "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
                   "config": {"included.custom.audience": name, "access.token.claim": "true"}})
        };
        let client = json!({
            "clientId": CLIENT_ID, "secret": CLIENT_SECRET, "publicClient": false, "serviceAccountsEnabled": true,
            "standardFlowEnabled": false, "attributes": {"access.token.signed.response.alg": "RS256"},
            "protocolMappers": [audience("https://other.example"), audience(AUDIENCE)],
        });
        self.client = self.make("clients", &client).await;
        for scope in ["payments:read", "payments:write"] {
            let attributes = json!({"include.in.token.scope": "true"});
            let scope = json!({"name": scope, "protocol": "openid-connect", "attributes": attributes});
            let id = self.make("client-scopes", &scope).await;
            let path = format!("{}/optional-client-scopes/{id}", self.client_path());
            self.ask(Method::PUT, &path, &json!({})).await;
        }
    }

    /// The user behind the client, a UUID.
    pub async fn subject(&self) -> String {
        let path = format!("{}/service-account-user", self.client_path());
        let user: Value = self.ask(Method::GET, &path, &Value::Null).await.json().await.unwrap();
        user["id"].as_str().unwrap().to_owned()
    }

    /// A new key for ES256 signs from now on, if its priority is the highest. The others stay published.
    pub async fn signs_by_es256(&self, priority: u16) {
        let (name, priority) = (format!("es256-{priority}"), priority.to_string());
        let key = json!({
            "name": name, "providerId": "ecdsa-generated", "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": [priority], "enabled": ["true"], "active": ["true"], "ecdsaEllipticCurveKey": ["P-256"]},
        });
        self.make("components", &key).await;
        let mut client: Value =
            self.ask(Method::GET, &self.client_path(), &Value::Null).await.json().await.unwrap();
        client["attributes"]["access.token.signed.response.alg"] = "ES256".into();
        self.ask(Method::PUT, &self.client_path(), &client).await;
    }

    /// Withdraws the key that signed by RS256.
    pub async fn withdraws_rs256(&self) {
        let path = format!("/admin/realms/{REALM}/components?type=org.keycloak.keys.KeyProvider");
        let keys: Value = self.ask(Method::GET, &path, &Value::Null).await.json().await.unwrap();
        let found = keys.as_array().unwrap().iter().find(|key| key["name"] == "rsa-generated").unwrap();
        let path = format!("/admin/realms/{REALM}/components/{}", found["id"].as_str().unwrap());
        self.ask(Method::DELETE, &path, &Value::Null).await;
    }

    fn client_path(&self) -> String {
        format!("/admin/realms/{REALM}/clients/{}", self.client)
    }

    /// Makes something in the realm; its id.
    async fn make(&self, kind: &str, what: &Value) -> String {
        let answer = self.ask(Method::POST, &format!("/admin/realms/{REALM}/{kind}"), what).await;
        let location = answer.headers()["location"].to_str().unwrap();
        location.rsplit('/').next().unwrap().to_owned()
    }

    /// Asks as the administrator, whose tokens live for a minute.
    async fn ask(&self, method: Method, path: &str, body: &Value) -> Response {
        let (user, password) = ADMINISTRATOR;
        let login = format!("grant_type=password&client_id=admin-cli&username={user}&password={password}");
        let url = format!("{}/realms/master/protocol/openid-connect/token", self.server);
        let request = self.http.post(url).header("content-type", "application/x-www-form-urlencoded");
        let token: Value = request.body(login).send().await.unwrap().json().await.unwrap();
        let token = token["access_token"].as_str().unwrap_or_else(|| panic!("no administrator: {token}"));
        let request = self.http.request(method, format!("{}{path}", self.server)).bearer_auth(token);
        let request = if body.is_null() { request } else { request.json(body) };
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer
    }
}

impl Drop for Keycloak {
    fn drop(&mut self) {
        if let Some(pid) = self.process.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Starts it with its data in memory.
fn run(folder: &Path, port: u16) -> Child {
    let (user, password) = ADMINISTRATOR;
    Command::new("bash")
        .arg(folder.join("bin/kc.sh"))
        .args(["start", "--optimized", "--http-enabled=true", "--http-host=127.0.0.1"])
        .args([&format!("--http-port={port}"), "--hostname-strict=false"])
        .env("JAVA_HOME", keycloak::java_home().unwrap())
        .env("JAVA_OPTS_KC_HEAP", "-Xms64m -Xmx256m")
        .env("KC_BOOTSTRAP_ADMIN_USERNAME", user)
        .env("KC_BOOTSTRAP_ADMIN_PASSWORD", password)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}
