use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use postgres_protocol::authentication::sasl;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::postgres::replication_stream::{Origins, Replication};

/// A session with a server that says this and no more.
fn session(answer: &[u8]) -> (Session, UnixStream) {
    let (ours, mut server) = UnixStream::pair().unwrap();
    server.write_all(answer).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let (socket, input, prepared) = (Socket::Unix(ours), BytesMut::new(), Vec::new());
    (Session { socket, input, host: 0, backend: Backend::default(), version: 15, prepared }, server)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag], length.as_slice(), body].concat()
}

/// Messages of the kinds that come at such times, with anything in them.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![8 => prop::sample::select(b"RSKZEDTCNW".to_vec()), 1 => any::<u8>()];
    // The first four bytes say which step of signing in it is.
    let step =
        prop::sample::select(vec![0u32, 3, 5, 10, 11, 12]).prop_map(|step| step.to_be_bytes().to_vec());
    let text = "SCRAM-SHA-256\x00\x00|r=[a-z]{1,30},s=c2FsdA==,i=1|v=[a-z]{0,9}".prop_map(String::into_bytes);
    let rest = prop_oneof![text, vec(any::<u8>(), 0..40)];
    let body =
        prop_oneof![(step, rest).prop_map(|(step, rest)| [step, rest].concat()), vec(any::<u8>(), 0..40)];
    vec((tag, body), 0..8).prop_map(|all| all.iter().flat_map(|(tag, body)| message(*tag, body)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The halt it prevents: a panic, or waiting for ever.
    #[test]
    fn whatever_a_server_answers_is_taken_or_refused(bytes in anything()) {
        let (mut asking, _server) = session(&bytes);
        let _ = asking.query("select 1");
        let (starting, _server) = session(&bytes);
        let _ = Replication::start(starting, "slot", &["publication"], Origins::Any);
        let (mut signing_in, _server) = session(&bytes);
        // Nobody signs in without the server's consent.
        let database = "postgres://user:password@nowhere/d".parse().expect("a URL");
        if signing_in.authenticate("user", &database).is_ok() {
            prop_assert!(bytes.contains(&b'Z') && bytes.contains(&b'R'));
        }
    }
}

#[test]
fn an_answer_is_its_rows_and_an_error_is_its_code() {
    let row = message(b'D', b"\x00\x02\x00\x00\x00\x01x\xff\xff\xff\xff");
    let error = message(b'E', b"SERROR\0C42P01\0Mno such thing\0\0");
    let ready = message(b'Z', b"I");
    let (mut good, _server) = session(&[row.clone(), ready.clone()].concat());
    assert_eq!(good.query("").unwrap(), [vec![Some("x".to_owned()), None]]);
    let (mut bad, _server) = session(&[row, error, ready].concat());
    assert_eq!(bad.query("").unwrap_err().code(), Some("42P01"));
}

/// It is a host that failed, so that the next one is tried; and without a checkpoint nothing is asked.
#[test]
fn a_session_with_a_former_primary_is_given_up() {
    let primary = ServerIdentity { system_id: "7".to_owned(), timeline: 2 };
    let ready = message(b'Z', b"I");
    for (timeline, expected) in [(b'1', Some(true)), (b'2', None), (b'3', None), (b'x', Some(false))] {
        let row = message(b'D', &[0, 2, 0, 0, 0, 1, b'7', 0, 0, 0, 1, timeline]);
        let (found, _server) = session(&[row, ready.clone()].concat());
        let error = found.unless_former(Some(&primary)).err();
        assert_eq!(error.map(|error| error.is_host_specific()), expected, "{timeline}");
    }
    let (unasked, _server) = session(b"");
    assert!(unasked.unless_former(None).is_ok());
}

#[test]
fn the_major_version_is_read_from_any_server() {
    let versions = ["15.8", "15.8 (Debian 15.8-1)", "18beta1", "9.6.24", "", "x"].map(sign_in::major);
    assert_eq!(versions, [15, 15, 18, 9, 0, 0]);
}

#[test]
fn a_sign_in_is_bound_to_the_certificate_if_both_sides_can() {
    use tokio_postgres::config::ChannelBinding as Binding;
    let both = [sasl::SCRAM_SHA_256.to_owned(), sasl::SCRAM_SHA_256_PLUS.to_owned()];
    let plain = [sasl::SCRAM_SHA_256.to_owned()];
    let chosen = |offered: &[String], tls: bool, wanted| {
        sign_in::mechanism(offered, tls.then(|| vec![1]), wanted).ok().map(|(mechanism, _)| mechanism)
    };
    for wanted in [Binding::Prefer, Binding::Require] {
        assert_eq!(chosen(&both, true, wanted), Some(sasl::SCRAM_SHA_256_PLUS));
    }
    assert_eq!(chosen(&both, true, Binding::Disable), Some(sasl::SCRAM_SHA_256));
    assert_eq!(chosen(&both, false, Binding::Prefer), Some(sasl::SCRAM_SHA_256));
    assert_eq!(chosen(&plain, true, Binding::Prefer), Some(sasl::SCRAM_SHA_256));
    assert_eq!(chosen(&plain, true, Binding::Require), None);
    assert_eq!(chosen(&both, false, Binding::Require), None);
    assert_eq!(chosen(&[], true, Binding::Prefer), None);
}

/// Who is not proved to be the server is nobody, if the URL asks for that; and nobody is ready before a sign-in.
#[test]
fn a_server_that_proves_nothing_is_refused_where_proof_is_asked_for() {
    let (ok, ready) = (message(b'R', &0u32.to_be_bytes()), message(b'Z', b"I"));
    let offer = message(b'R', &[&10u32.to_be_bytes()[..], b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"].concat());
    let signs_in = |said: &[&[u8]], url: &str| {
        let (mut session, _server) = session(&said.concat());
        session.authenticate("user", &url.parse().expect("a URL")).is_ok()
    };
    let (trusting, careful) = ("postgres://u@h/d", "postgres://u:p@h/d?channel_binding=require");
    assert!(signs_in(&[&ok, &ready], trusting));
    assert!(!signs_in(&[&ready], trusting));
    assert!(!signs_in(&[&ok, &ready], careful));
    assert!(!signs_in(&[&ready], careful));
    assert!(!signs_in(&[&offer, &ok, &ready], careful));
}
