//! Answers that do not name our charge decide nothing, whoever gave them and whatever they say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use processor_svc::work::Job;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::flow::{count, references, waiting};
use crate::harness::{Database, Gateway, Processor, job, jobs, rows_alone};

/// Words after which the gateway has charged, or will, whatever was answered.
const CHARGED: &[&str] = &[
    "1-thenstrayno",
    "1-thenstraybad",
    "1-thenstraynone",
    "1-thennamelessno",
    "1-thennamelessbad",
    "1-thennamelessnone",
    "1-thenamountno",
    "1-thenamountbad",
    "1-thencached",
    "1-thenpage200",
    "1-thenpage402",
    "1-thenpage403",
    "1-thenpage404",
    // Not charged by the call: a success that was believed would take money for nothing.
    "1-strayok",
    "1-namelessok",
    "1-amountok",
    "1-cachedx2",
    "1-page200",
    // What inquiries are answered.
    "1-thenhttp500-askstraynox2",
    "1-thenhttp500-asknamelessnox2",
    "1-thenhttp500-asknamelessnonex2",
    "1-thenhttp500-askamountnox2",
    "1-thenhttp500-askcachedx2",
    "1-thenhttp500-askpage200",
    "1-thenhttp500-askpage404x2",
    "1-http500-askstrayokx2",
    "1-http500-asknamelessokx2",
    "1-late250-askamountokx2",
];

/// The same where the gateway declines.
const DECLINED: &[&str] = &[
    "1-decline-thenstrayok",
    "1-decline-thennamelessok",
    "1-decline-thenamountok",
    "1-decline-thencached",
    "1-decline-thenhttp500-askstrayokx2",
    "1-decline-thenhttp500-asknamelessokx2",
    "1-decline-thenhttp500-askcachedx2",
];

/// Every charge's end by its client number.
async fn ends(database: &Database) -> BTreeMap<String, String> {
    let rows = database
        .query("select client_number, status || coalesce(' ' || reason, '') as ended from charges")
        .await;
    rows.iter().map(|row| (row.get("client_number"), row.get("ended"))).collect()
}

#[tokio::test]
async fn an_answer_that_does_not_name_our_charge_is_no_outcome() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let good: Vec<Job> = CHARGED.iter().map(|number| job(number)).collect();
    let bad: Vec<Job> = DECLINED.iter().map(|number| job(number)).collect();
    waiting(&database, &[good.clone(), bad.clone()].concat()).await;
    let processor = Processor::new(&database, gateway.address).await;
    database.until("select count(*) from charges where decided_at is null", 0).await;
    let charged = CHARGED.iter().map(|number| ((*number).to_owned(), "succeeded".to_owned()));
    let declined =
        DECLINED.iter().map(|number| ((*number).to_owned(), "declined declined_by_issuer".to_owned()));
    assert_eq!(ends(&database).await, charged.chain(declined).collect());
    assert_eq!(gateway.ledger().await, references(&good));
    let guessed = "select count(*) from charges where provider_reference = 'ch_00000000deadbeef'";
    assert_eq!(database.number(guessed).await, 0);
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

/// The charge comes after the void was "confirmed": a confirmation that names nothing keeps nothing out.
#[tokio::test]
async fn a_void_is_confirmed_only_by_an_answer_that_names_it() {
    let (database, gateway) = (Database::new().await, Gateway::with(&["--idempotency", "ignored"]).await);
    let words = ["voidstrayok", "voidnamelessok", "voidamountok", "voidpage200"];
    let all: Vec<Job> = words.iter().map(|word| job(&format!("1-late900-{word}x1000"))).collect();
    waiting(&database, &all).await;
    let mut flags = rows_alone(&database.url, gateway.address);
    flags.push("--gateway-idempotent=false".to_owned());
    let processor = Processor::with(flags).await;
    database.until("select count(*) from charges where decided_at is null", 0).await;
    assert_eq!(database.number(&count("succeeded")).await, 4, "{:?}", ends(&database).await);
    assert_eq!(gateway.ledger().await, references(&all));
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

/// A relay of TCP connections that gets out of step: the first answer of each is given twice, so that from then on
/// every request gets the answer to the one before it.
struct OutOfStep {
    address: SocketAddr,
    /// Requests by connection.
    served: Arc<Mutex<Vec<usize>>>,
}

impl OutOfStep {
    async fn before(gateway: SocketAddr) -> OutOfStep {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let counts = served.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = {
                    let mut counts = counts.lock().unwrap();
                    counts.push(0);
                    counts.len() - 1
                };
                let counts = counts.clone();
                tokio::spawn(async move {
                    let _ = relay(client, gateway, || counts.lock().unwrap()[number] += 1).await;
                });
            }
        });
        OutOfStep { address, served }
    }
}

async fn relay(mut client: TcpStream, gateway: SocketAddr, counted: impl Fn()) -> std::io::Result<()> {
    let mut gateway = TcpStream::connect(gateway).await?;
    let mut before: Option<Vec<u8>> = None;
    while let Some(request) = message(&mut client).await? {
        counted();
        gateway.write_all(&request).await?;
        let Some(answer) = message(&mut gateway).await? else { break };
        client.write_all(before.as_ref().unwrap_or(&answer)).await?;
        before = Some(answer);
    }
    Ok(())
}

/// One HTTP message with a body of known length; none at the end.
async fn message(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut message = Vec::new();
    while !message.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => message.push(byte),
            Err(_) if message.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let head = String::from_utf8_lossy(&message).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    stream.read_exact(&mut body).await?;
    message.extend(body);
    Ok(Some(message))
}

#[tokio::test]
async fn a_connection_whose_answers_are_out_of_step_is_left_at_the_first_sign() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let proxy = OutOfStep::before(gateway.address).await;
    let (good, bad) = (jobs(6, "5551234"), jobs(6, "1-decline"));
    let mixed: Vec<Job> =
        good.iter().zip(&bad).flat_map(|(one, other)| [one.clone(), other.clone()]).collect();
    waiting(&database, &mixed).await;
    let mut flags = rows_alone(&database.url, proxy.address);
    // One request at a time, so that they share a connection.
    flags.push("--inquiries-max=1".to_owned());
    let processor = Processor::with(flags).await;
    database.until(&count("succeeded"), 6).await;
    database.until(&count("declined"), 6).await;
    assert_eq!(gateway.ledger().await, references(&good));
    let rows = database.query("select payment_id from charges where status = 'declined'").await;
    let mut declined: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    declined.sort();
    let mut expected: Vec<Uuid> = bad.iter().map(|job| job.charge.payment_id).collect();
    expected.sort();
    assert_eq!(declined, expected);
    let served = proxy.served.lock().unwrap().clone();
    assert!(served.iter().all(|requests| *requests <= 2), "requests by connection: {served:?}");
    processor.end().await;
    gateway.end().await;
    database.end().await;
}
