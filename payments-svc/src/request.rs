//! The identity of a request to pay, derived from the request alone.
//!
//! * The id of a payment says when it was accepted and which request made it: a UUIDv7 whose random bits are a hash of the user
//!   and the idempotency key. Events have the id and not the key, so a payment that is made again from its events is still
//!   found by the client's key.
//! * Everything here is stored, or compared with what is stored, so it never changes between releases.

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

/// The id of a payment that is accepted now under this key of the user.
///
/// Its 74 random bits are the first 80 bits of SHA-256 over user and key, less the six in the places of version and variant.
pub fn payment_id(now: Timestamp, user_id: Uuid, idempotency_key: &str) -> Uuid {
    // No clock of ours is before 1970.
    let milliseconds = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let hash = Sha256::new().chain_update(user_id).chain_update(idempotency_key).finalize();
    let mut random = [0; 10];
    random.copy_from_slice(&hash[..10]);
    Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid()
}

/// The column `idempotency_key` of a payment that is made again: what its id says of the request. No client's key begins with
/// a blank.
pub fn recovered_key(payment_id: Uuid) -> String {
    let digits = payment_id.simple().to_string();
    // The first twelve are the time.
    format!(" recovered/{}", &digits[12..])
}

/// SHA-256 over the parsed fields, each with its length, so that no two requests share one by where a field ends.
pub fn fingerprint(client_number: &str, service_id: &str, amount: i64) -> [u8; 32] {
    let mut hash = Sha256::new();
    for field in [client_number.as_bytes(), service_id.as_bytes(), &amount.to_be_bytes()] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use saga::fields::text_error;

    use super::*;

    const USER: Uuid = Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0001);

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    #[test]
    fn the_id_is_stable() {
        let id = payment_id(at(0x0198_c0de_0000), USER, "order-1");
        assert_eq!(id.to_string(), "0198c0de-0000-7e84-887b-03739da5a2a5");
        assert_eq!(id.get_version_num(), 7);
    }

    #[test]
    fn a_request_has_one_recovered_key_whenever_it_comes() {
        let key = |time, user, key| recovered_key(payment_id(at(time), user, key));
        let first = key(1, USER, "k");
        assert_eq!(first, key(2, USER, "k"));
        assert_ne!(first, key(1, USER, "K"));
        assert_ne!(first, key(1, Uuid::from_u128(1), "k"));
        assert!(text_error(&first, 255).is_some(), "a client's key could be {first:?}");
    }

    #[test]
    fn the_fingerprint_is_stable_and_keeps_fields_apart() {
        let hex: String =
            fingerprint("0812", "electricity", 15000).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "4544ab27c3e2ae832dcbe3a1b88615eea0b154a5471fc57eda5d7d173e7f9d86");
        assert_ne!(fingerprint("ab", "c", 1), fingerprint("a", "bc", 1));
        assert_ne!(fingerprint("a", "b", 1), fingerprint("a", "b", 2));
    }
}
