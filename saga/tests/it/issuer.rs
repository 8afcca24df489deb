//! A token issuer of a test's own: keys, a server of key sets that can do everything wrong, and tokens.
//!
//! * Keys are made when a test runs: RSA by `openssl`, since ring makes none; P-256 by ring.

use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use saga::identity::settings::{JwtSettings, Typ};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const ISSUER: &str = "https://issuer.example/";
pub const AUDIENCE: &str = "https://pay.example";

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// A key of an issuer, or of somebody who would like to be one.
pub struct SigningKey {
    pub id: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

impl SigningKey {
    pub fn rsa(id: &'static str) -> Self {
        let made = Command::new("openssl")
            .args([
                "genpkey",
                "-quiet",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
                "-outform",
                "DER",
            ])
            .output()
            .expect("openssl, which ca-certificates brings, makes RSA keys");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // OpenSSL writes PKCS #8, before its version 3.2 PKCS #1.
        let pair = RsaKeyPair::from_pkcs8(&made.stdout).or_else(|_| RsaKeyPair::from_der(&made.stdout));
        Self { id, pair: Pair::Rsa(pair.unwrap()) }
    }

    pub fn ec(id: &'static str) -> Self {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random);
        Self { id, pair: Pair::Ec(pair.unwrap()) }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ec(_) => "ES256",
        }
    }

    /// The public key, as a set has it.
    pub fn jwk(&self) -> Value {
        let (id, alg) = (self.id, self.algorithm());
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "kid": id, "use": "sig", "alg": alg, "n": encode(public.n), "e": encode(public.e)})
            }
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at(32);
                json!({"kty": "EC", "kid": id, "use": "sig", "alg": alg, "crv": "P-256", "x": encode(x), "y": encode(y)})
            }
        }
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims.
    pub fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", encode(signature))
    }

    /// The header that this key's tokens have.
    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "kid": self.id, "typ": "JWT"})
    }

    /// A token that is good in every way.
    pub fn good_token(&self) -> String {
        self.token(&self.header(), &good_claims())
    }
}

/// Claims that may do everything, for an hour.
pub fn good_claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "auth0|5f7c", "iat": now(), "exp": now() + 3600,
        "scope": "openid payments:read payments:write",
    })
}

/// `value` with some members changed; null removes one.
pub fn with(mut value: Value, changes: &Value) -> Value {
    for (name, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => drop(value.as_object_mut().unwrap().remove(name)),
            change => value[name] = change.clone(),
        }
    }
    value
}

/// What the server of key sets does with a request.
#[derive(Clone)]
pub enum Behaviour {
    /// 200 with this body.
    Body(Vec<u8>),
    /// 200 with a body that never ends.
    Endless,
    /// 302 to this place.
    Redirect(String),
    /// 500.
    Broken,
    /// 500 with this body.
    BrokenWith(Vec<u8>),
    /// It hangs up without an answer.
    Away,
    /// A head and half a body, and then nothing.
    Slow(Vec<u8>),
}

struct State {
    behaviour: Behaviour,
    fetches: usize,
}

/// A server of key sets.
#[derive(Clone)]
pub struct Issuer {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Issuer {
    pub async fn new(keys: &[&SigningKey]) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/.well-known/jwks.json", socket.local_addr().unwrap());
        let state = State { behaviour: Behaviour::Body(set(keys)), fetches: 0 };
        let issuer = Self { url, state: Arc::new(Mutex::new(state)) };
        let server = issuer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                tokio::spawn(server.clone().answer(stream));
            }
        });
        issuer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn becomes(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    pub fn has(&self, keys: &[&SigningKey]) {
        self.becomes(Behaviour::Body(set(keys)));
    }

    /// Requests so far.
    pub fn fetches(&self) -> usize {
        self.state().fetches
    }

    async fn answer(self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let behaviour = {
            let mut state = self.state();
            state.fetches += 1;
            state.behaviour.clone()
        };
        // Whoever has seen enough hangs up.
        let _ = answer(behaviour, &mut stream).await;
    }

    /// Settings that accept the tokens of this issuer.
    pub fn settings(&self) -> JwtSettings {
        JwtSettings {
            issuer: ISSUER.to_owned(),
            audience: AUDIENCE.to_owned(),
            jwks_url: self.url.parse().unwrap(),
            user_claim: "sub".to_owned(),
            typ: Typ::Jwt,
            leeway_seconds: 60,
        }
    }
}

async fn answer(behaviour: Behaviour, stream: &mut TcpStream) -> std::io::Result<()> {
    match behaviour {
        Behaviour::Body(body) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.into_bytes(), body].concat()).await?;
        }
        Behaviour::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"keys\":[").await?;
            loop {
                stream.write_all(&[b' '; 16 * 1024]).await?;
            }
        }
        Behaviour::Redirect(target) => {
            let head = format!("HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
        }
        Behaviour::Broken => {
            stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n").await?;
        }
        Behaviour::BrokenWith(body) => {
            let head =
                format!("HTTP/1.1 500 Internal Server Error\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.into_bytes(), body].concat()).await?;
        }
        Behaviour::Away => {}
        Behaviour::Slow(body) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let half = &body[..body.len() / 2];
            stream.write_all(&[head.as_bytes(), half].concat()).await?;
            // Until the client hangs up.
            stream.read_u8().await?;
        }
    }
    stream.shutdown().await
}

pub fn set(keys: &[&SigningKey]) -> Vec<u8> {
    let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
    json!({"keys": keys}).to_string().into_bytes()
}
