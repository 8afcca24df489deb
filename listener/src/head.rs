//! Checks that the head of a request is unambiguous.
//!
//! * Since HTTP/1.1 there is exactly one valid `Host` (RFC 9112, section 3.2).
//! * A header with one value is given once, since two readers might use different values.
//! * A path has one spelling: no slash at its end, and no more than 8,000 characters.
//! * A body has no content coding.

use warp::http::header::{CONTENT_ENCODING, HOST, HeaderMap, HeaderValue};
use warp::http::request::Parts;
use warp::http::uri::Authority;
use warp::http::{Uri, Version};

use crate::{Reason, Refusal};

/// The minimum that RFC 9110 (section 4.1) requires of every recipient.
const TARGET_CHARS_MAX: usize = 8_000;

/// Headers of which one value is read, and how each is spelled in an answer.
const GIVEN_ONCE: [(&str, &str); 9] = [
    ("content-type", "Content-Type"),
    ("authorization", "Authorization"),
    ("origin", "Origin"),
    ("x-user-id", "X-User-ID"),
    ("idempotency-key", "Idempotency-Key"),
    ("last-event-id", "Last-Event-ID"),
    ("webhook-id", "webhook-id"),
    ("webhook-timestamp", "webhook-timestamp"),
    ("webhook-signature", "webhook-signature"),
];

/// Checks the rules above.
///
/// # Errors
/// When a rule is broken.
pub fn check(parts: &Parts) -> Result<(), Refusal> {
    check_host(parts.version, &parts.headers)?;
    for (name, spelled) in GIVEN_ONCE {
        if parts.headers.get_all(name).iter().nth(1).is_some() {
            return Err(Refusal::field(spelled, "is given more than once"));
        }
    }
    check_target(&parts.uri)?;
    let coded = parts.headers.get_all(CONTENT_ENCODING).iter().any(|coding| !is_identity(coding));
    if coded {
        return Err(Refusal::new(Reason::MediaType, "The body must come without a content coding."));
    }
    Ok(())
}

fn check_host(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let refuse = |detail: &str| Err(Refusal::new(Reason::Malformed, detail));
    match (hosts.next(), hosts.next()) {
        (None, _) if version < Version::HTTP_11 => Ok(()),
        (None, _) => refuse("Since HTTP/1.1 a request has a Host header."),
        (Some(_), Some(_)) => refuse("The Host header is given more than once."),
        (Some(host), None) if authority(host).is_none() => refuse("The Host header names no host."),
        (Some(_), None) => Ok(()),
    }
}

/// The host, and the port if there is one, that a `Host` header names.
pub(crate) fn authority(host: &HeaderValue) -> Option<Authority> {
    let authority = Authority::try_from(host.as_bytes()).ok()?;
    let port = authority.as_str().strip_prefix(authority.host())?;
    let port = port.strip_prefix(':').unwrap_or(port);
    let is_port =
        port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    // RFC 3986 takes a list joined by commas for one name; it is none.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~[]:".contains(&byte);
    let is_host = !authority.host().is_empty() && authority.host().bytes().all(is_name);
    (is_port && is_host).then_some(authority)
}

fn check_target(target: &Uri) -> Result<(), Refusal> {
    let length = target.path_and_query().map_or(0, |path| path.as_str().len());
    if length > TARGET_CHARS_MAX {
        let detail = format!("A path and its query have at most {TARGET_CHARS_MAX} characters.");
        return Err(Refusal::new(Reason::UriTooLong, detail));
    }
    if target.path().len() > 1 && target.path().ends_with('/') {
        return Err(Refusal::new(Reason::NotFound, "No path of ours ends with a slash."));
    }
    Ok(())
}

fn is_identity(coding: &HeaderValue) -> bool {
    coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")
}

#[cfg(test)]
mod tests {
    use warp::http::Request;

    use super::*;

    fn judge(version: Version, target: &str, headers: &[(&str, &[u8])]) -> Result<(), Reason> {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        check(&request.body(()).unwrap().into_parts().0).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_host_is_one_valid_host() {
        for (version, hosts, verdict) in [
            (Version::HTTP_11, vec!["coro"], Ok(())),
            (Version::HTTP_11, vec!["coro:80"], Ok(())),
            (Version::HTTP_11, vec!["coro:"], Ok(())),
            (Version::HTTP_11, vec!["[::1]:80"], Ok(())),
            (Version::HTTP_10, vec![], Ok(())),
            (Version::HTTP_11, vec![], Err(Reason::Malformed)),
            (Version::HTTP_2, vec![], Err(Reason::Malformed)),
            (Version::HTTP_11, vec![""], Err(Reason::Malformed)),
            (Version::HTTP_11, vec![":80"], Err(Reason::Malformed)),
            (Version::HTTP_11, vec!["coro:x"], Err(Reason::Malformed)),
            (Version::HTTP_11, vec!["coro:99999"], Err(Reason::Malformed)),
            (Version::HTTP_11, vec!["me@coro"], Err(Reason::Malformed)),
            (Version::HTTP_11, vec!["coro/x"], Err(Reason::Malformed)),
            (Version::HTTP_11, vec!["coro, coro"], Err(Reason::Malformed)),
            (Version::HTTP_11, vec!["coro,coro"], Err(Reason::Malformed)),
            (Version::HTTP_11, vec!["coro", "coro"], Err(Reason::Malformed)),
            (Version::HTTP_10, vec!["coro", "other"], Err(Reason::Malformed)),
        ] {
            let headers: Vec<(&str, &[u8])> = hosts.iter().map(|host| ("host", host.as_bytes())).collect();
            assert_eq!(judge(version, "/", &headers), verdict, "{version:?} {hosts:?}");
        }
    }

    #[test]
    fn what_has_one_value_is_given_once() {
        for (name, _) in GIVEN_ONCE {
            let once: [(&str, &[u8]); 2] = [("host", b"coro"), (name, b"x")];
            assert_eq!(judge(Version::HTTP_11, "/", &once), Ok(()), "{name}");
            let twice: [(&str, &[u8]); 3] = [("host", b"coro"), (name, b"x"), (name, b"x")];
            assert_eq!(judge(Version::HTTP_11, "/", &twice), Err(Reason::Validation), "{name}");
        }
        let list: [(&str, &[u8]); 3] = [("host", b"coro"), ("accept", b"a/b"), ("accept", b"c/d")];
        assert_eq!(judge(Version::HTTP_11, "/", &list), Ok(()), "a list may come in parts");
    }

    #[test]
    fn a_path_has_one_spelling_and_an_end() {
        let long = format!("/{}", "x".repeat(TARGET_CHARS_MAX));
        let query = format!("/a?{}", "x".repeat(TARGET_CHARS_MAX));
        for (target, verdict) in [
            ("/", Ok(())),
            ("/a", Ok(())),
            ("/a?x=/", Ok(())),
            ("*", Ok(())),
            ("http://coro", Ok(())),
            ("/a/", Err(Reason::NotFound)),
            ("//", Err(Reason::NotFound)),
            ("/a/?x", Err(Reason::NotFound)),
            (&long, Err(Reason::UriTooLong)),
            (&query, Err(Reason::UriTooLong)),
        ] {
            assert_eq!(judge(Version::HTTP_11, target, &[("host", b"coro")]), verdict, "{target:.20}");
        }
    }

    #[test]
    fn no_content_coding_is_offered() {
        for (coding, verdict) in [
            ("identity", Ok(())),
            ("Identity", Ok(())),
            ("gzip", Err(Reason::MediaType)),
            ("identity, gzip", Err(Reason::MediaType)),
        ] {
            let headers: [(&str, &[u8]); 2] = [("host", b"coro"), ("content-encoding", coding.as_bytes())];
            assert_eq!(judge(Version::HTTP_11, "/", &headers), verdict, "{coding}");
        }
    }
}
