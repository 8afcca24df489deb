//! The public keys of an issuer that may sign tokens, from its JSON Web Key Set (RFC 7517).
//!
//! * A key is for one algorithm: an RSA key for RS256, a P-256 key for ES256.
//! * A key whose `use`, `key_ops` or `alg` says otherwise is left out, as is one that cannot be read: an issuer's set may
//!   hold keys for other purposes.
//! * A token names one key. Two keys that fit are none.

use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// The key that a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName {
    pub algorithm: Algorithm,
    /// `kid`. A token without one is signed by the only key of its algorithm.
    pub id: Option<String>,
}

/// The keys of one set that may sign tokens.
pub struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: Arc<DecodingKey>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

impl Keys {
    /// Reads a set.
    ///
    /// # Errors
    /// When the text is no JSON Web Key Set.
    pub fn read(text: &[u8]) -> anyhow::Result<Self> {
        // The parser's own error would repeat a part of the text.
        let set = serde_json::from_slice::<Set>(text)
            .map_err(|error| anyhow::anyhow!("the answer is no JSON Web Key Set (line {})", error.line()))?;
        Ok(Self(set.keys.into_iter().filter_map(Key::read).collect()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn find(&self, name: &KeyName) -> Option<Arc<DecodingKey>> {
        let mut fitting = self
            .0
            .iter()
            .filter(|key| key.algorithm == name.algorithm && (name.id.is_none() || key.id == name.id));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Some(key.key.clone()),
            (None | Some(_), _) => None,
        }
    }
}

impl Key {
    fn read(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let (may_be_for, common) = (algorithm_of(&jwk.algorithm)?, &jwk.common);
        let is_for_it = match (may_be_for, common.key_algorithm) {
            (_, None)
            | (Algorithm::RS256, Some(KeyAlgorithm::RS256))
            | (Algorithm::ES256, Some(KeyAlgorithm::ES256)) => true,
            (_, Some(_)) => false,
        };
        let signs = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature));
        let verifies =
            common.key_operations.as_ref().is_none_or(|uses| uses.contains(&KeyOperations::Verify));
        if !(is_for_it && signs && verifies) {
            return None;
        }
        let key = Arc::new(DecodingKey::from_jwk(&jwk).ok()?);
        Some(Self { id: jwk.common.key_id, algorithm: may_be_for, key })
    }
}

/// The algorithm of tokens that a key of this kind can be for.
fn algorithm_of(parameters: &AlgorithmParameters) -> Option<Algorithm> {
    match parameters {
        AlgorithmParameters::RSA(_) => Some(Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Some(Algorithm::ES256),
        // Secrets, other curves, and kinds yet to come.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rsa(more: &Value) -> Value {
        with(json!({"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB"}), more)
    }

    fn ec(more: &Value) -> Value {
        with(json!({"kty": "EC", "kid": "a", "crv": "P-256", "x": "AQAB", "y": "AQAB"}), more)
    }

    fn with(mut key: Value, more: &Value) -> Value {
        for (name, value) in more.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    }

    fn set(keys: &[Value]) -> Keys {
        Keys::read(json!({"keys": keys}).to_string().as_bytes()).unwrap()
    }

    fn name(algorithm: Algorithm, id: Option<&str>) -> KeyName {
        KeyName { algorithm, id: id.map(str::to_owned) }
    }

    #[test]
    fn a_key_is_for_one_algorithm_of_signatures() {
        let (rs256, es256) = (Some(Algorithm::RS256), Some(Algorithm::ES256));
        for (jwk, algorithm) in [
            (rsa(&json!({})), rs256),
            (
                rsa(&json!({"use": "sig", "alg": "RS256", "key_ops": ["verify"], "x5c": ["x"], "x5t": "y"})),
                rs256,
            ),
            (ec(&json!({})), es256),
            (ec(&json!({"use": "sig", "alg": "ES256"})), es256),
            (rsa(&json!({"use": "enc"})), None),
            (rsa(&json!({"use": "enc", "alg": "RSA-OAEP"})), None),
            (rsa(&json!({"alg": "RSA-OAEP"})), None),
            (rsa(&json!({"alg": "RS384"})), None),
            (rsa(&json!({"alg": "PS256"})), None),
            (rsa(&json!({"alg": "ES256"})), None),
            (rsa(&json!({"alg": "HS256"})), None),
            (rsa(&json!({"alg": "something"})), None),
            (rsa(&json!({"key_ops": ["encrypt"]})), None),
            (rsa(&json!({"key_ops": []})), None),
            (ec(&json!({"alg": "RS256"})), None),
            (ec(&json!({"alg": "ES384"})), None),
            (ec(&json!({"crv": "P-384"})), None),
            (ec(&json!({"crv": "secp256k1"})), None),
            (ec(&json!({"use": "enc"})), None),
            (json!({"kty": "oct", "kid": "a", "k": "AQAB"}), None),
            (json!({"kty": "oct", "kid": "a", "k": "AQAB", "alg": "RS256"}), None),
            (json!({"kty": "OKP", "kid": "a", "crv": "Ed25519", "x": "AQAB"}), None),
            (json!({"kty": "AKP", "kid": "a", "alg": "ML-DSA-44", "pub": "AQAB"}), None),
            (json!({"kty": "RSA", "kid": "a", "n": "not base64!", "e": "AQAB"}), None),
            (json!({"kty": "RSA", "kid": "a"}), None),
            (json!({}), None),
            (json!("key"), None),
        ] {
            // Beside a good one, which it does not spoil.
            let keys = set(&[rsa(&json!({"kid": "other"})), jwk.clone()]);
            for asked in [Algorithm::RS256, Algorithm::ES256, Algorithm::HS256] {
                let found = keys.find(&name(asked, Some("a"))).is_some();
                assert_eq!(found, Some(asked) == algorithm, "{asked:?} {jwk}");
            }
            assert!(keys.find(&name(Algorithm::RS256, Some("other"))).is_some(), "{jwk}");
            assert_eq!(keys.len(), if algorithm.is_some() { 2 } else { 1 }, "{jwk}");
        }
    }

    #[test]
    fn a_token_names_one_key() {
        let keys = set(&[
            rsa(&json!({"kid": "a"})),
            rsa(&json!({"kid": "b"})),
            rsa(&json!({"kid": "twice"})),
            rsa(&json!({"kid": "twice"})),
            ec(&json!({"kid": "a"})),
        ]);
        for (asked, found) in [
            (name(Algorithm::RS256, Some("a")), true),
            (name(Algorithm::ES256, Some("a")), true),
            (name(Algorithm::RS256, Some("b")), true),
            (name(Algorithm::ES256, Some("b")), false),
            (name(Algorithm::RS256, Some("A")), false),
            (name(Algorithm::RS256, Some("twice")), false),
            (name(Algorithm::RS256, None), false),
            (name(Algorithm::ES256, None), true),
        ] {
            assert_eq!(keys.find(&asked).is_some(), found, "{asked:?}");
        }
        let nameless = set(&[json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"})]);
        assert!(nameless.find(&name(Algorithm::RS256, None)).is_some());
        assert!(nameless.find(&name(Algorithm::RS256, Some("a"))).is_none(), "the token names another");
    }

    #[test]
    fn a_set_is_a_list_of_keys() {
        assert_eq!(Keys::read(br#"{"keys":[],"more":1}"#).unwrap().len(), 0);
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":"secret-looking"}"#,
            "<html>",
            "{\"keys\":[",
        ] {
            let error = Keys::read(bad.as_bytes()).err().unwrap().to_string();
            assert!(error.contains("no JSON Web Key Set") && !error.contains("secret"), "{bad}: {error}");
        }
    }
}
