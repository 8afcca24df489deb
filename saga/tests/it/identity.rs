//! Tokens of a third-party issuer: who is let in, and how the others are refused.

use std::time::Duration;

use prometheus::Registry;
use saga::identity::settings::{JwtSettings, Typ};
use saga::identity::{Caller, Identity, Limits, Scope, Settings};
use saga::problem::recover;
use serde_json::{Value, json};
use uuid::Uuid;
use warp::Filter;

use crate::issuer::{AUDIENCE, Behaviour, ISSUER, Issuer, SigningKey, encode, good_claims, now, with};

/// No second fetch within a test, whatever is asked for.
pub const ONE_FETCH: Limits = Limits {
    cool_down: Duration::from_secs(3600),
    due: Duration::from_secs(3600),
    age_max: Duration::from_secs(3600),
    outage_max: Duration::from_secs(3600),
    fetch_timeout: Duration::from_secs(20),
};

pub fn identity(issuer: &Issuer, limits: Limits) -> Identity {
    Identity::start_within(limits, Settings::Jwt(issuer.settings()), &Registry::new()).unwrap()
}

/// The answer to a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The caller's id, or the last segment of the problem's type.
    pub body: String,
    pub challenge: String,
}

impl Answer {
    pub fn invalid() -> Self {
        let challenge = "Bearer error=\"invalid_token\"".to_owned();
        Self { status: 401, body: "invalid-token".to_owned(), challenge }
    }
}

async fn call_with(identity: &Identity, scope: Scope, headers: &[(&str, &str)]) -> Answer {
    let route = warp::any().and(identity.user(scope)).map(|caller: Caller| caller.user_id.to_string());
    let request = warp::test::request();
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let reply = request.reply(&route.recover(recover)).await;
    let text = String::from_utf8(reply.body().to_vec()).unwrap();
    let body = match serde_json::from_str::<Value>(&text) {
        Ok(problem) => problem["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned(),
        Err(_) => text,
    };
    let challenge = reply.headers().get("www-authenticate").map_or("", |value| value.to_str().unwrap());
    Answer { status: reply.status().as_u16(), body, challenge: challenge.to_owned() }
}

pub async fn call(identity: &Identity, token: &str) -> Answer {
    call_with(identity, Scope::Write, &[("authorization", &format!("Bearer {token}"))]).await
}

fn user_of(sub: &str) -> String {
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, ISSUER.as_bytes());
    Uuid::new_v5(&namespace, sub.as_bytes()).to_string()
}

#[tokio::test]
async fn a_good_token_names_its_user_and_x_user_id_does_not() {
    let (rsa, ec) = (SigningKey::rsa("r"), SigningKey::ec("e"));
    let issuer = Issuer::new(&[&rsa, &ec]).await;
    let identity = identity(&issuer, ONE_FETCH);
    let other = Uuid::now_v7().to_string();
    for key in [&rsa, &ec] {
        for changes in [
            json!({}),
            json!({"aud": ["https://issuer.example/userinfo", AUDIENCE]}),
            json!({"scope": "openid", "permissions": ["payments:write"]}),
            json!({"scope": null, "scp": ["payments:write"]}),
            json!({"exp": now() - 30}),
            json!({"nbf": now() + 30}),
            json!({"nbf": now() - 30, "jti": "x", "azp": "y"}),
        ] {
            let token = key.token(&key.header(), &with(good_claims(), &changes));
            let authorization = format!("Bearer {token}");
            let headers = [("authorization", authorization.as_str()), ("x-user-id", &other)];
            let answer = call_with(&identity, Scope::Write, &headers).await;
            assert_eq!((answer.status, answer.body), (200, user_of("auth0|5f7c")), "{changes}");
        }
    }
    let token = rsa.token(&rsa.header(), &with(good_claims(), &json!({"sub": other})));
    assert_eq!(call(&identity, &token).await.body, other, "a UUID is the user id");
    assert_eq!(issuer.fetches(), 1, "the set is fetched once for all of them");
}

#[tokio::test]
async fn who_has_no_token_or_no_scope_learns_what_to_bring() {
    let key = SigningKey::ec("e");
    let issuer = Issuer::new(&[&key]).await;
    let identity = identity(&issuer, ONE_FETCH);
    let id = Uuid::now_v7().to_string();
    for headers in [vec![], vec![("x-user-id", id.as_str())], vec![("authorization", "Basic dXNlcjpwYXNz")]] {
        let challenge = "Bearer scope=\"payments:read\"".to_owned();
        let missing = Answer { status: 401, body: "unauthorized".to_owned(), challenge };
        assert_eq!(call_with(&identity, Scope::Read, &headers).await, missing, "{headers:?}");
    }
    let reader = key.token(&key.header(), &with(good_claims(), &json!({"scope": "payments:read"})));
    let authorization = format!("Bearer {reader}");
    let headers = [("authorization", authorization.as_str())];
    assert_eq!(call_with(&identity, Scope::Read, &headers).await.status, 200);
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"payments:write\"".to_owned();
    let refused = Answer { status: 403, body: "insufficient-scope".to_owned(), challenge };
    assert_eq!(call_with(&identity, Scope::Write, &headers).await, refused);
}

/// HMAC-SHA-256 of the message, under a key that everybody knows: the issuer's public one.
fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    format!("{message}.{}", encode(ring::hmac::sign(&key, message.as_bytes())))
}

/// The issuer's keys, and an attacker's that have the same names.
struct Keys {
    rsa: SigningKey,
    ec: SigningKey,
    encryption: SigningKey,
    evil_rsa: SigningKey,
    evil_ec: SigningKey,
}

impl Keys {
    fn new() -> Self {
        Self {
            rsa: SigningKey::rsa("r"),
            ec: SigningKey::ec("e"),
            encryption: SigningKey::rsa("enc"),
            evil_rsa: SigningKey::rsa("r"),
            evil_ec: SigningKey::ec("e"),
        }
    }

    fn set(&self) -> String {
        let for_encryption = with(self.encryption.jwk(), &json!({"use": "enc", "alg": "RSA-OAEP"}));
        json!({"keys": [for_encryption, self.rsa.jwk(), self.ec.jwk()]}).to_string()
    }

    /// Good claims under a header or a signature that is not the issuer's. `evil` is a server with the attacker's keys.
    fn forged_headers(&self, evil: &str) -> Vec<(&'static str, String)> {
        let Self { rsa, ec, encryption, evil_rsa, evil_ec } = self;
        let claims = good_claims();
        let like = |key: &SigningKey, changes: Value| with(key.header(), &changes);
        let unsigned =
            |header: &Value| format!("{}.{}.", encode(header.to_string()), encode(claims.to_string()));
        let by_evil = |changes: Value| evil_rsa.token(&like(rsa, changes), &claims);
        let modulus = rsa.jwk()["n"].as_str().unwrap().to_owned();
        let hs = like(rsa, json!({"alg": "HS256"}));
        vec![
            ("alg none", unsigned(&like(rsa, json!({"alg": "none"})))),
            ("alg None", unsigned(&like(rsa, json!({"alg": "None"})))),
            ("no signature", unsigned(&rsa.header())),
            ("HS256 by the public key", hs256(modulus.as_bytes(), &hs, &claims)),
            ("HS256 by the set", hs256(self.set().as_bytes(), &hs, &claims)),
            ("HMAC said to be RS256", hs256(modulus.as_bytes(), &rsa.header(), &claims)),
            ("another's RSA key", evil_rsa.good_token()),
            ("another's EC key", evil_ec.good_token()),
            ("jwk", by_evil(json!({"jwk": evil_rsa.jwk()}))),
            ("jwk alone", by_evil(json!({"kid": null, "jwk": evil_rsa.jwk()}))),
            ("jku", by_evil(json!({"jku": evil}))),
            ("x5u", by_evil(json!({"x5u": evil}))),
            ("jku as kid", by_evil(json!({"kid": evil}))),
            ("crit", rsa.token(&like(rsa, json!({"crit": ["exp"]})), &claims)),
            ("crit b64", rsa.token(&like(rsa, json!({"crit": ["b64"], "b64": false})), &claims)),
            ("the encryption key", encryption.good_token()),
            ("an unknown kid", ec.token(&like(ec, json!({"kid": "other"})), &claims)),
            ("RS256, EC key named", rsa.token(&like(rsa, json!({"kid": "e"})), &claims)),
            ("ES256, RSA key named", ec.token(&like(ec, json!({"kid": "r"})), &claims)),
            ("RS256, EC key used", ec.token(&rsa.header(), &claims)),
            ("another type", rsa.token(&like(rsa, json!({"typ": "at+jwt"})), &claims)),
        ]
    }

    /// A good token, damaged.
    fn damaged(&self) -> Vec<(&'static str, String)> {
        let (good, good_ec) = (self.rsa.good_token(), self.ec.good_token());
        let parts: Vec<&str> = good.split('.').collect();
        let signature_of_other = good_ec.rsplit('.').next().unwrap();
        let other_claims = encode(with(good_claims(), &json!({"sub": "auth0|admin"})).to_string());
        vec![
            ("other claims", format!("{}.{other_claims}.{}", parts[0], parts[2])),
            ("a signature of another token", format!("{}.{}.{signature_of_other}", parts[0], parts[1])),
            ("a short signature", good[..good.len() - 8].to_owned()),
            ("a padded signature", format!("{good}=")),
            ("one part more", format!("{good}.x")),
            ("one part less", format!("{}.{}", parts[0], parts[1])),
            ("no token", "x".to_owned()),
            ("a long token", format!("{good}{}", "x".repeat(9000))),
        ]
    }

    /// Signed by the issuer, for somebody else or for another time.
    fn bad_claims(&self) -> Vec<(&'static str, String)> {
        let changes = vec![
            ("another issuer", json!({"iss": "https://evil.example/"})),
            ("an issuer without its slash", json!({"iss": ISSUER.trim_end_matches('/')})),
            ("no issuer", json!({"iss": null})),
            ("an issuer of another type", json!({"iss": {"iss": ISSUER}})),
            ("another audience", json!({"aud": "https://other.example"})),
            ("other audiences", json!({"aud": ["https://other.example", "https://pay.example/"]})),
            ("no audiences", json!({"aud": []})),
            ("no audience", json!({"aud": null})),
            ("an audience of another type", json!({"aud": {"0": AUDIENCE}})),
            ("expired", json!({"exp": now() - 120})),
            ("expired long ago", json!({"exp": 0})),
            ("expiry of another type", json!({"exp": "2999-01-01"})),
            ("a negative expiry", json!({"exp": -1})),
            ("no expiry", json!({"exp": null})),
            ("not yet valid", json!({"nbf": now() + 120})),
            ("not-before of another type", json!({"nbf": "1999-01-01"})),
            ("no user", json!({"sub": null})),
            ("an empty user", json!({"sub": ""})),
            ("a user of another type", json!({"sub": 7})),
        ];
        let token = |changes: &Value| self.rsa.token(&self.rsa.header(), &with(good_claims(), changes));
        changes.into_iter().map(|(what, changes)| (what, token(&changes))).collect()
    }
}

#[tokio::test]
async fn nobody_forges_a_token() {
    let keys = Keys::new();
    let evil = Issuer::new(&[&keys.evil_rsa, &keys.evil_ec]).await;
    let issuer = Issuer::new(&[]).await;
    issuer.becomes(Behaviour::Body(keys.set().into_bytes()));
    let identity = identity(&issuer, ONE_FETCH);
    for good in [keys.rsa.good_token(), keys.ec.good_token()] {
        assert_eq!(call(&identity, &good).await.status, 200);
    }
    for forged in [keys.forged_headers(&evil.url), keys.damaged(), keys.bad_claims()] {
        for (what, token) in forged {
            assert_eq!(call(&identity, &token).await, Answer::invalid(), "{what}");
        }
    }
    assert_eq!((issuer.fetches(), evil.fetches()), (1, 0), "no token makes us ask anybody");
}

#[tokio::test]
async fn an_access_token_by_its_own_type() {
    let key = SigningKey::ec("e");
    let issuer = Issuer::new(&[&key]).await;
    let settings = Settings::Jwt(JwtSettings {
        typ: Typ::AccessToken,
        user_claim: "https://pay.example/user".to_owned(),
        ..issuer.settings()
    });
    let identity = Identity::start(settings, &Registry::new()).unwrap();
    let user = Uuid::now_v7().to_string();
    let claims = with(good_claims(), &json!({"https://pay.example/user": user}));
    let token = key.token(&with(key.header(), &json!({"typ": "at+jwt"})), &claims);
    assert_eq!(call(&identity, &token).await.body, user);
    assert_eq!(call(&identity, &key.token(&key.header(), &claims)).await, Answer::invalid());
}

/// To the fraction of a second: a stream ends then, and its client must not begin another one with the same token.
#[tokio::test]
async fn a_token_is_refused_from_the_moment_on_at_which_its_streams_end() {
    let key = SigningKey::ec("e");
    let issuer = Issuer::new(&[&key]).await;
    let identity = identity(&issuer, ONE_FETCH);
    assert_eq!(call(&identity, &key.good_token()).await.status, 200);
    // The second in which the leeway ends has begun already.
    for _ in 0..20 {
        let ended = now() - i64::from(issuer.settings().leeway_seconds);
        let token = key.token(&key.header(), &with(good_claims(), &json!({"exp": ended})));
        assert_eq!(call(&identity, &token).await, Answer::invalid());
    }
}
