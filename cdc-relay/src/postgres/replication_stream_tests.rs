use std::os::unix::net::UnixStream;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A stream whose server is the other end of a socket.
fn pair() -> (Replication, UnixStream) {
    let (ours, server) = UnixStream::pair().unwrap();
    let answer = [b'W', 0, 0, 0, 7, 0, 0, 0];
    (Replication::begin(Socket::Unix(ours), answer.to_vec()).unwrap(), server)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn data(payload: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.extend_from_slice(&[0; 24]);
    body.extend_from_slice(payload);
    message(b'd', &body)
}

fn keepalive(wal_end: u64, reply: bool) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.extend_from_slice(&wal_end.to_be_bytes());
    body.extend_from_slice(&[0; 8]);
    body.push(u8::from(reply));
    message(b'd', &body)
}

/// The payloads and keepalives that can be taken now.
fn taken(stream: &mut Replication) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(frame) = stream.frame().unwrap() {
        all.push(match frame {
            Frame::Data(range) => stream.bytes(&range).to_vec(),
            Frame::Keepalive { wal_end, reply } => format!("{wal_end} {reply}").into_bytes(),
        });
    }
    all
}

#[test]
fn frames_are_found_however_the_reads_cut_them() {
    let sent: Vec<Vec<u8>> = (0..50u8).map(|n| vec![n; usize::from(n) * 7]).collect();
    let bytes: Vec<u8> = sent.iter().flat_map(|payload| data(payload)).collect();
    for piece in [1, 2, 3, 5, 26, 31, 1000] {
        let (mut stream, mut server) = pair();
        let mut found = Vec::new();
        for part in bytes.chunks(piece) {
            server.write_all(part).unwrap();
            stream.read().unwrap();
            found.extend(taken(&mut stream));
        }
        assert_eq!(found, sent, "in pieces of {piece}");
        assert_eq!(stream.buffered(), 0);
    }
}

/// A server that gets nothing for six seconds ends the session, and another relay reads the slot.
#[test]
fn the_server_gets_a_status_while_something_else_takes_long() {
    let (mut stream, mut server) = pair();
    let mut status = [0u8; 39];
    let work = || server.read_exact(&mut status).unwrap();
    stream.confirm_while(work);
    assert_eq!((status[0], status[5], &status[6..30]), (b'd', b'r', &[0u8; 24][..]));
    // Afterwards it is as before.
    stream.confirm(Lsn(7), false).unwrap();
    server.read_exact(&mut status).unwrap();
    assert_eq!(status[6..14], 7u64.to_be_bytes());
}

#[test]
fn a_message_has_the_time_at_which_the_server_sent_it() {
    let (mut stream, mut server) = pair();
    let body = [&b"w"[..], &1u64.to_be_bytes(), &2u64.to_be_bytes(), &3i64.to_be_bytes(), b"row"].concat();
    server.write_all(&message(b'd', &body)).unwrap();
    stream.read().unwrap();
    let Some(Frame::Data(range)) = stream.frame().unwrap() else { panic!("no message") };
    assert_eq!((stream.bytes(&range), stream.sent_at(&range)), (&b"row"[..], PgTime(3)));
}

/// What is looked at decides whether the next frame may be taken, so it has to be that one.
#[test]
fn a_notice_hides_no_message_from_a_look() {
    let (mut stream, mut server) = pair();
    let notices = [message(b'N', b"SNOTICE\0\0"), message(b'S', b"TimeZone\0UTC\0")].concat();
    server.write_all(&[notices, data(b"one")].concat()).unwrap();
    stream.read().unwrap();
    let looked = stream.next_data().unwrap().expect("a message");
    assert_eq!(stream.frame().unwrap(), Some(Frame::Data(looked)));
    assert_eq!(stream.next_data().unwrap(), None);
}

#[test]
fn messages_can_be_looked_at_without_being_taken() {
    let (mut stream, mut server) = pair();
    assert_eq!(stream.next_data().unwrap(), None);
    let whole = [keepalive(5, false), data(b"one"), data(b"two"), data(b"three")].concat();
    server.write_all(&whole[..whole.len() - 1]).unwrap();
    stream.read().unwrap();
    assert_eq!(stream.next_data().unwrap(), None, "the next one is a keepalive");
    let seen = std::cell::RefCell::new(Vec::new());
    let look = |stream: &Replication, wanted: &[u8]| {
        stream.find_data(|data| {
            seen.borrow_mut().push(data.to_vec());
            (data == wanted).then_some(data.len())
        })
    };
    assert_eq!(look(&stream, b"two"), Some(3));
    assert_eq!(look(&stream, b"three"), None, "its last byte is missing");
    assert_eq!(*seen.borrow(), [b"one", b"two", b"one", b"two"]);
    assert!(matches!(stream.frame().unwrap(), Some(Frame::Keepalive { .. })));
    let next = stream.next_data().unwrap().unwrap();
    assert_eq!(stream.bytes(&next), b"one");
    server.write_all(&whole[whole.len() - 1..]).unwrap();
    assert_eq!(taken(&mut stream), [b"one".to_vec(), b"two".to_vec()], "nothing was taken");
    stream.read().unwrap();
    assert_eq!(look(&stream, b"three"), Some(5));
}

#[test]
fn a_message_larger_than_the_buffer_is_read_whole_and_the_buffer_shrinks_again() {
    let (mut stream, server) = pair();
    let large = vec![7u8; 3 * BUFFER_BYTES + 11];
    let bytes: Vec<u8> = [data(b"before"), data(&large), data(b"after")].concat();
    let writer = std::thread::spawn(move || {
        let mut server = server;
        server.write_all(&bytes).unwrap();
        server
    });
    let mut found = Vec::new();
    while found.len() < 3 {
        stream.read().unwrap();
        found.extend(taken(&mut stream));
    }
    assert!(found == [b"before".to_vec(), large, b"after".to_vec()]);
    let _server = writer.join().unwrap();
    stream.read().unwrap();
    assert_eq!(stream.buffer.len(), BUFFER_BYTES);
}

/// The standstill it prevents: a read cut short by the buffer alone looks like the end of what is there.
#[test]
fn there_is_room_for_a_whole_read_however_much_of_a_message_came_before() {
    let (mut stream, mut server) = pair();
    let message = data(&vec![7u8; BUFFER_BYTES - 100]);
    let (most, rest) = message.split_at(BUFFER_BYTES - 1000);
    for piece in most.chunks(10_000) {
        server.write_all(piece).unwrap();
        stream.read().unwrap();
    }
    assert_eq!(stream.buffered(), most.len());
    server.write_all(&[rest, &data(&vec![8u8; READ_BYTES_MIN])].concat()).unwrap();
    let mut read = 0;
    while read == 0 {
        read = stream.read().unwrap();
    }
    assert!(read > rest.len(), "{read}");
}

#[test]
fn keepalives_say_where_the_log_ends_and_whether_to_answer() {
    let (mut stream, mut server) = pair();
    server.write_all(&[keepalive(0x16_B3748, true), keepalive(1, false)].concat()).unwrap();
    stream.read().unwrap();
    assert_eq!(taken(&mut stream), [b"0/16B3748 true".to_vec(), b"0/1 false".to_vec()]);
}

#[test]
fn a_confirmation_names_one_position_three_times() {
    let (mut stream, mut server) = pair();
    stream.confirm(Lsn(0x16_B3748), true).unwrap();
    let mut frame = [0u8; 39];
    server.read_exact(&mut frame).unwrap();
    assert_eq!(&frame[..6], b"d\0\0\0\x26r");
    for part in [6, 14, 22] {
        assert_eq!(frame[part..part + 8], 0x16_B3748u64.to_be_bytes());
    }
    assert_eq!(frame[38], 1);
}

#[test]
fn an_ended_stream_is_an_error_with_its_code() {
    let (mut stream, mut server) = pair();
    server.write_all(&message(b'E', b"SFATAL\0C57P01\0Mterminating\0\0")).unwrap();
    stream.read().unwrap();
    assert_eq!(stream.frame().unwrap_err().code(), Some("57P01"));

    let (mut stream, server) = pair();
    drop(server);
    assert!(matches!(stream.read(), Err(PostgresError::Io(_))));

    for goodbye in [message(b'c', b""), message(b'C', b"COPY 0\0")] {
        let (mut stream, mut server) = pair();
        server.write_all(&goodbye).unwrap();
        stream.read().unwrap();
        let error = stream.frame().unwrap_err().to_string();
        assert!(error.contains("the server ended the stream"), "{error}");
    }

    let (mut stream, mut server) = pair();
    server.write_all(&[b'd', 0, 0, 0, 3]).unwrap();
    stream.read().unwrap();
    assert!(matches!(stream.frame(), Err(PostgresError::Protocol(_))));
}

#[test]
fn nothing_to_read_is_no_error() {
    let (mut stream, _server) = pair();
    assert_eq!(stream.read().unwrap(), 0);
    assert_eq!(stream.frame().unwrap(), None);
}

/// As `pair`, with what came in one piece with the answer.
fn begun_with(more: &[u8]) -> (Replication, UnixStream) {
    let (ours, server) = UnixStream::pair().unwrap();
    let read = [&[b'W', 0, 0, 0, 7, 0, 0, 0][..], more].concat();
    (Replication::begin(Socket::Unix(ours), read).unwrap(), server)
}

/// Something that is never readable, and the other end that keeps it so.
fn silence() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

const LONG: Duration = Duration::from_secs(20);

/// Waits as long as it may, and answers whether there was something to take.
fn waited(stream: &mut Replication, timeout: Duration) -> bool {
    let (wake, _other) = silence();
    let began = std::time::Instant::now();
    let ready = stream.wait(&wake, timeout).unwrap();
    assert!(!ready.server || began.elapsed() < LONG / 2, "it waited {:?}", began.elapsed());
    ready.server
}

#[test]
fn frames_in_one_piece_with_the_start_are_not_waited_for() {
    let (mut stream, _server) = begun_with(&data(b"row"));
    assert!(waited(&mut stream, LONG));
    assert_eq!(stream.read().unwrap(), 0);
    assert_eq!(taken(&mut stream), [b"row".to_vec()]);
    assert!(!waited(&mut stream, Duration::from_millis(1)), "it is taken");
    // Half a message is no input.
    let (mut stream, mut server) = begun_with(&data(b"row")[..20]);
    assert!(!waited(&mut stream, Duration::from_millis(1)));
    server.write_all(&data(b"row")[20..]).unwrap();
    assert!(waited(&mut stream, LONG));
    stream.read().unwrap();
    assert_eq!(taken(&mut stream), [b"row".to_vec()]);
}

#[test]
fn the_servers_last_word_is_taken_before_the_end_of_the_connection() {
    let (mut stream, server) = begun_with(&message(b'E', b"SERROR\0C42704\0Mno such thing\0\0"));
    drop(server);
    assert!(waited(&mut stream, LONG));
    stream.read().unwrap();
    assert_eq!(stream.frame().unwrap_err().code(), Some("42704"));
    // A malformed message is an error at once, even if the server is silent afterwards.
    let (mut stream, _server) = begun_with(&[b'd', 0, 0, 0, 3]);
    assert!(waited(&mut stream, LONG));
    stream.read().unwrap();
    assert!(matches!(stream.frame(), Err(PostgresError::Protocol(_))));
}

#[test]
fn whoever_else_is_waited_for_wakes() {
    let (mut stream, mut server) = pair();
    let (wake, mut waker) = silence();
    waker.write_all(b"!").unwrap();
    assert_eq!(stream.wait(&wake, LONG).unwrap(), Ready { server: false, woken: true });
    server.write_all(&data(b"row")).unwrap();
    assert_eq!(stream.wait(&wake, LONG).unwrap(), Ready { server: true, woken: true });
}

/// A stream over TLS, and its server.
fn encrypted() -> (Replication, rustls::StreamOwned<rustls::ServerConnection, std::net::TcpStream>) {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(std::sync::Arc::new(config)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream
    });
    let database: crate::postgres::connection_url::Database =
        "postgres://u@localhost/d?sslmode=require".parse().unwrap();
    let socket = std::net::TcpStream::connect(address).unwrap();
    let ours =
        crate::postgres::tls_stream::TlsStream::handshake(socket, database.tls(), "localhost").unwrap();
    let answer = [b'W', 0, 0, 0, 7, 0, 0, 0];
    let stream = Replication::begin(Socket::Tls(Box::new(ours)), answer.to_vec()).unwrap();
    (stream, server.join().unwrap())
}

/// The standstill it prevents: decrypted bytes that no read asked for are in no socket.
#[test]
fn decrypted_bytes_are_not_waited_for() {
    let (mut stream, mut server) = encrypted();
    server.write_all(&[data(b"row"), data(&[7; 6000])].concat()).unwrap();
    assert!(waited(&mut stream, LONG));
    // As a reader with a small buffer does.
    let mut first = vec![0; data(b"row").len()];
    while stream.socket.read(&mut first).is_err() {}
    assert!(waited(&mut stream, LONG));
    let mut found = Vec::new();
    while found.is_empty() {
        stream.read().unwrap();
        found = taken(&mut stream);
    }
    assert_eq!(found, [vec![7; 6000]]);
    assert!(!waited(&mut stream, Duration::from_millis(1)));
    // The peer closes TLS while the connection stays open.
    server.conn.send_close_notify();
    server.conn.complete_io(&mut server.sock).unwrap();
    assert!(waited(&mut stream, LONG));
    assert!(matches!(stream.read(), Err(PostgresError::Io(_))));
}

/// A record that nobody can decrypt, in one piece with one that is whole: the read that brings the whole one keeps the
/// error to itself.
#[test]
fn an_error_of_an_encrypted_stream_is_not_waited_for() {
    let (mut stream, mut server) = encrypted();
    let mut sent = Vec::new();
    server.conn.writer().write_all(&data(b"row")).unwrap();
    server.conn.write_tls(&mut sent).unwrap();
    sent.extend_from_slice(&[23, 3, 3, 0, 32]);
    sent.extend_from_slice(&[0; 32]);
    server.sock.write_all(&sent).unwrap();
    // The server keeps the connection open and sends nothing more.
    let error = loop {
        assert!(waited(&mut stream, LONG));
        match stream.read() {
            Ok(_) => drop(taken(&mut stream)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PostgresError::Io(error) if error.kind() == io::ErrorKind::InvalidData));
}

/// Pending output leaves while we wait for the server, even if the socket was full when it was written.
#[test]
fn pending_tls_output_leaves_while_we_wait() {
    let (mut stream, mut server) = encrypted();
    let mut confirmed = 0u64;
    while !stream.socket.has_pending_output() {
        stream.confirm(Lsn(confirmed), false).unwrap();
        confirmed += 1;
    }
    let reader = std::thread::spawn(move || {
        let mut frame = [0u8; 39];
        for lsn in 0..confirmed {
            server.read_exact(&mut frame).unwrap();
            assert_eq!(frame[6..14], lsn.to_be_bytes());
        }
        server
    });
    let (wake, _other) = silence();
    while stream.socket.has_pending_output() {
        stream.wait(&wake, LONG).unwrap();
    }
    drop(reader.join().unwrap());
}

/// Messages that a server might send, or something like them: with other kinds and lengths that do not fit.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![8 => Just(b'd'), 1 => any::<u8>()];
    let kind = prop_oneof![4 => Just(b'w'), 4 => Just(b'k'), 1 => any::<u8>()];
    let body = prop_oneof![vec(any::<u8>(), 17), vec(any::<u8>(), 0..80)];
    let surplus = prop_oneof![12 => Just(0i32), 1 => -6i32..7];
    let one = (tag, kind, body, surplus).prop_map(|(tag, kind, body, surplus)| {
        let mut out = message(tag, &[&[kind], body.as_slice()].concat());
        let announced = (body.len() as i32 + 5 + surplus).to_be_bytes();
        out.splice(1..5, announced);
        out
    });
    vec(one, 0..12).prop_map(|messages| messages.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The losses it prevents: a panic, and bytes of one message taken for those of another.
    #[test]
    fn whatever_comes_is_refused_or_found_in_what_was_read(bytes in anything(), piece in 1usize..90) {
        let (mut stream, mut server) = pair();
        let (mut sent, mut taken) = (0, 0);
        for part in bytes.chunks(piece) {
            server.write_all(part).unwrap();
            sent += part.len();
            stream.read().unwrap();
            loop {
                let frame = match stream.frame() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                };
                if let Frame::Data(range) = frame {
                    let data = stream.bytes(&range);
                    prop_assert_eq!(data.len(), range.len());
                    // Each frame has the bytes that were sent, at its range.
                    let end = sent - stream.buffered();
                    prop_assert_eq!(data, &bytes[end - data.len()..end]);
                    prop_assert!(end - data.len() >= taken);
                    taken = end;
                }
            }
            prop_assert!(stream.buffered() <= sent - taken);
            let announced = stream.buffer.get(stream.at + 1..stream.at + 5).map_or(0, |length| {
                u32::from_be_bytes(length.try_into().unwrap())
            });
            if stream.buffered() >= 5 && announced > 1 << 20 {
                return Ok(()); // out of step; such a message may be as large as it says
            }
        }
    }
}
