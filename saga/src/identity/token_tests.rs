//! Tests headers and claims as decision tables; signatures are tested with a real issuer's set in `tests/it`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;

const ISSUER: &str = "https://tenant.eu.auth0.com/";

fn rules(typ: Typ, user_claim: &str) -> Rules {
    Rules::new(&JwtSettings {
        issuer: ISSUER.to_owned(),
        audience: "https://pay".to_owned(),
        jwks_url: "https://tenant.eu.auth0.com/.well-known/jwks.json".parse().unwrap(),
        user_claim: user_claim.to_owned(),
        typ,
        leeway_seconds: 60,
    })
}

fn token(header: &Value) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part(&header.to_string()), part("{}"), part("signature"))
}

#[test]
fn a_header_names_a_key_or_is_refused() {
    let key = |algorithm, id: Option<&str>| Ok(KeyName { algorithm, id: id.map(str::to_owned) });
    for (header, verdict) in [
        (json!({"alg": "RS256", "kid": "k", "typ": "JWT"}), key(Algorithm::RS256, Some("k"))),
        (json!({"alg": "ES256", "kid": "k", "typ": "jwt"}), key(Algorithm::ES256, Some("k"))),
        (json!({"alg": "ES256", "typ": "application/jwt"}), key(Algorithm::ES256, None)),
        (json!({"alg": "RS256"}), key(Algorithm::RS256, None)),
        // What a token brings or points at is not looked at.
        (
            json!({"alg": "RS256", "kid": "k", "jku": "https://evil", "x5u": "https://evil"}),
            key(Algorithm::RS256, Some("k")),
        ),
        (json!({"alg": "RS256", "typ": "at+jwt"}), Err(Refusal::Typ)),
        (json!({"alg": "RS256", "typ": "dpop+jwt"}), Err(Refusal::Typ)),
        (json!({"alg": "RS256", "typ": ""}), Err(Refusal::Typ)),
        (json!({"alg": "RS256", "crit": ["exp"]}), Err(Refusal::Critical)),
        (json!({"alg": "RS256", "crit": []}), Err(Refusal::Critical)),
        (json!({"alg": "HS256"}), Err(Refusal::Algorithm)),
        (json!({"alg": "RS384"}), Err(Refusal::Algorithm)),
        (json!({"alg": "PS256"}), Err(Refusal::Algorithm)),
        (json!({"alg": "ES384"}), Err(Refusal::Algorithm)),
        (json!({"alg": "EdDSA"}), Err(Refusal::Algorithm)),
        (json!({"alg": "none"}), Err(Refusal::Unreadable)),
        (json!({"alg": "NONE"}), Err(Refusal::Unreadable)),
        (json!({"alg": "rs256"}), Err(Refusal::Unreadable)),
        (json!({"alg": ["RS256"]}), Err(Refusal::Unreadable)),
        (json!({"kid": "k"}), Err(Refusal::Unreadable)),
        (json!([]), Err(Refusal::Unreadable)),
    ] {
        assert_eq!(rules(Typ::Jwt, "sub").key_name(&token(&header)), verdict, "{header}");
    }
}

#[test]
fn an_access_token_says_that_it_is_one() {
    for (typ, accepted) in [
        (json!("at+jwt"), true),
        (json!("AT+JWT"), true),
        (json!("application/at+jwt"), true),
        (json!("JWT"), false),
        (json!("id+jwt"), false),
        (Value::Null, false),
    ] {
        let header = token(&json!({"alg": "RS256", "typ": typ}));
        assert_eq!(rules(Typ::AccessToken, "sub").key_name(&header).is_ok(), accepted, "{typ}");
    }
}

#[test]
fn what_is_no_token_is_not_read() {
    let good = token(&json!({"alg": "RS256"}));
    assert!(rules(Typ::Jwt, "sub").key_name(&good).is_ok());
    let (long, two_dots) = (format!("{good}{}", "x".repeat(TOKEN_BYTES_MAX)), good.replace('.', ".."));
    for bad in ["", "x", "..", "a.b.c", "a.b", &long, &two_dots, &format!("{good}.e.f")] {
        assert_eq!(rules(Typ::Jwt, "sub").key_name(bad), Err(Refusal::Unreadable), "{bad:.40}");
    }
}

fn claims(more: &Value) -> Claims {
    let mut claims =
        json!({"iss": ISSUER, "sub": "auth0|1", "exp": 2_000_000_000, "scope": "openid payments:read"});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object().unwrap().clone()
}

/// These ids are stored with payments: they never change.
#[test]
fn a_user_is_a_uuid_or_becomes_the_same_one_for_ever() {
    let id = "0198c0de-0000-7000-8000-000000000001";
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, ISSUER.as_bytes());
    let derived = |text: &str| Ok(Uuid::new_v5(&namespace, text.as_bytes()));
    for (claim, value, user) in [
        ("sub", json!(id), Ok(id.parse().unwrap())),
        ("sub", json!(id.to_uppercase()), Ok(id.parse().unwrap())),
        ("sub", json!("auth0|1"), derived("auth0|1")),
        ("sub", json!("AUTH0|1"), derived("AUTH0|1")),
        ("sub", json!(id.replace('-', "")), derived(&id.replace('-', ""))),
        ("https://pay/user", json!(id), Ok(id.parse().unwrap())),
        ("sub", json!(""), Err(Refusal::User)),
        ("sub", json!(1), Err(Refusal::User)),
        ("sub", json!([id]), Err(Refusal::User)),
        ("sub", Value::Null, Err(Refusal::User)),
    ] {
        let mut given = claims(&json!({}));
        given.remove("sub");
        given.insert(claim.to_owned(), value.clone());
        let caller = rules(Typ::Jwt, claim).caller(&given, Scope::Read);
        assert_eq!(caller.map(|caller| caller.user_id), user, "{claim} {value}");
    }
    assert_eq!(rules(Typ::Jwt, "uid").caller(&claims(&json!({})), Scope::Read), Err(Refusal::User));
    let golden = rules(Typ::Jwt, "sub").caller(&claims(&json!({})), Scope::Read).unwrap().user_id;
    assert_eq!(golden.to_string(), "bbd9dd17-40c8-5646-8c5a-99e18631cc6e");
}

#[test]
fn a_scope_is_granted_by_one_of_three_claims() {
    let (read, write) = ("payments:read", "payments:write");
    for (given, reads, writes) in [
        (json!({"scope": read}), true, false),
        (json!({"scope": write}), false, true),
        (json!({"scope": "a payments:write payments:read b"}), true, true),
        (json!({"scope": "", "scp": [write, read]}), true, true),
        (json!({"scope": "openid", "permissions": [write]}), false, true),
        (json!({"scp": "payments:read"}), true, false),
        (json!({"scope": "", "scp": [], "permissions": []}), false, false),
        (json!({"scope": "payments:readx payments:writ"}), false, false),
        (json!({"scope": "payments:read,payments:write"}), false, false),
        (json!({"scope": "PAYMENTS:READ"}), false, false),
        (json!({"scope": {"payments:read": true}, "permissions": [["payments:read"]]}), false, false),
    ] {
        let mut all = claims(&json!({"scope": null}));
        all.extend(given.as_object().unwrap().clone());
        for (scope, granted) in [(Scope::Read, reads), (Scope::Write, writes)] {
            let caller = rules(Typ::Jwt, "sub").caller(&all, scope);
            let verdict = caller.map(|_| ());
            assert_eq!(verdict, if granted { Ok(()) } else { Err(Refusal::Scope(scope)) }, "{given}");
        }
    }
}

#[test]
fn a_caller_expires_with_the_token_and_the_leeway() {
    for (expires, at) in [
        (json!(2_000_000_000), Timestamp::from_second(2_000_000_060).unwrap()),
        (json!(2_000_000_000.9), Timestamp::from_second(2_000_000_060).unwrap()),
        (json!(u64::MAX), Timestamp::MAX),
    ] {
        let caller = rules(Typ::Jwt, "sub").caller(&claims(&json!({"exp": expires})), Scope::Read);
        assert_eq!(caller.unwrap().expires_at, Some(at), "{expires}");
    }
}

#[test]
fn each_refusal_has_its_status() {
    for (refusal, status) in [
        (Refusal::Missing(Scope::Read), 401),
        (Refusal::Unreadable, 401),
        (Refusal::Algorithm, 401),
        (Refusal::Critical, 401),
        (Refusal::Typ, 401),
        (Refusal::UnknownKey, 401),
        (Refusal::Signature, 401),
        (Refusal::Expired, 401),
        (Refusal::NotYetValid, 401),
        (Refusal::Issuer, 401),
        (Refusal::Audience, 401),
        (Refusal::Claims, 401),
        (Refusal::User, 401),
        (Refusal::Scope(Scope::Read), 403),
        (Refusal::KeysUnavailable, 503),
    ] {
        assert_eq!(Problem::from(refusal).kind.status(), status, "{refusal:?}");
    }
}
