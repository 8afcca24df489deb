//! Gives the users of Kafka their passwords, as credentials that the broker keeps (SCRAM-SHA-512) and that may change while it runs.
//!
//! * A password itself is not sent: only what is made of it and a salt (RFC 5802, section 3).
//! * Who has signed in stays so until the connection ends.
//!
//! Kafka's own tool, `kafka-configs.sh`, does the same in two seconds of a Java machine for each user.

use anyhow::{Context, Result};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha512;

use super::protocol::Broker;
use super::{ADMIN, USERS, secret};
use crate::layout::{Layout, random};
use crate::servers::Node;

/// The least that Kafka takes. The passwords are random numbers, which nobody guesses.
const ITERATIONS: u32 = 4096;
/// The number of the API, and its one version. It has tagged fields, of which none are used: a zero byte each.
const ALTER_USER_SCRAM_CREDENTIALS: (i16, i16) = (51, 0);
const NO_TAGS: u8 = 0;
const SCRAM_SHA_512: u8 = 2;

/// Gives each user the password of its file of secrets, at this node and for all, as the broker itself.
///
/// # Errors
/// When Kafka does not answer, or refuses.
pub fn set_users(layout: &Layout, node: Node) -> Result<()> {
    let users: Vec<(&str, String)> = USERS
        .into_iter()
        .chain([ADMIN])
        .map(|user| Ok((user, secret(layout, user)?)))
        .collect::<Result<_>>()?;
    let mut broker = Broker::as_itself(layout, node)?;
    let mut answer = broker.ask(ALTER_USER_SCRAM_CREDENTIALS, &request(&users)?)?;
    let [_no_tags] = answer.array()?;
    let _throttled = answer.array::<4>()?;
    for _ in 0..length(answer.array()?)? {
        let [name] = answer.array()?;
        answer.skip(length([name])?)?;
        answer.no_error("the password of a user")?;
        let [message] = answer.array()?;
        answer.skip(usize::from(message).saturating_sub(1))?;
        let [_no_tags] = answer.array()?;
    }
    Ok(())
}

/// No user is removed; each gets one credential, in the place of the one it has.
fn request(users: &[(&str, String)]) -> Result<Vec<u8>> {
    let mut body = vec![NO_TAGS, compact(0)?, compact(users.len())?];
    for (user, password) in users {
        // Unlike the salt of one who chose it, that of a random number need not be secret either.
        let salt = random()?;
        put(&mut body, user.as_bytes())?;
        body.push(SCRAM_SHA_512);
        body.extend_from_slice(&ITERATIONS.to_be_bytes());
        put(&mut body, salt.as_bytes())?;
        put(&mut body, &salted(password.as_bytes(), salt.as_bytes(), ITERATIONS)?)?;
        body.push(NO_TAGS);
    }
    body.push(NO_TAGS);
    Ok(body)
}

/// A length in one byte, as long as it fits: nothing here is longer.
fn compact(length: usize) -> Result<u8> {
    let byte = u8::try_from(length + 1).ok().filter(|byte| *byte < 0x80);
    byte.context("too long for a length of one byte")
}

/// The way back.
fn length([byte]: [u8; 1]) -> Result<usize> {
    let length = usize::from(byte).checked_sub(1).filter(|length| *length < 0x7f);
    length.context("Kafka's answer has a length of more than one byte")
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    body.push(compact(bytes.len())?);
    body.extend_from_slice(bytes);
    Ok(())
}

/// `Hi` of RFC 5802: PBKDF2 with one block.
fn salted(password: &[u8], salt: &[u8], iterations: u32) -> Result<[u8; 64]> {
    let keyed = Hmac::<Sha512>::new_from_slice(password).context("a password without bytes")?;
    let next = |bytes: &[&[u8]]| -> [u8; 64] {
        let mut mac = keyed.clone();
        bytes.iter().for_each(|bytes| mac.update(bytes));
        mac.finalize().into_bytes().into()
    };
    let mut last = next(&[salt, &1_u32.to_be_bytes()]);
    let mut all = last;
    for _ in 1..iterations {
        last = next(&[&last]);
        all.iter_mut().zip(last).for_each(|(all, last)| *all ^= last);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// PBKDF2-HMAC-SHA-512 of the password "password" and the salt "salt", as published with the vectors of RFC 6070.
    #[test]
    fn a_password_is_salted_as_every_client_does_it() {
        for (iterations, begin) in
            [(1, "867f70cf1ade02cff3752599a3a53dc4"), (2, "e1d9c16aa681708a45f5c7c4e215ceb6")]
        {
            let found = hexadecimal(&salted(b"password", b"salt", iterations).unwrap());
            assert_eq!(&found[..32], begin, "{iterations} iterations");
        }
    }

    #[test]
    fn a_request_has_no_password() {
        let body = request(&[("relay", "0123456789abcdef0123456789abcdef".to_owned())]).unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("0123456789abcdef"));
        assert_eq!(body[..9], *b"\0\x01\x02\x06relay");
    }
}
