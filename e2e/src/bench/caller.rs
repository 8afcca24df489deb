//! One keep-alive connection to payments-svc, or to the edge: the cheapest client that still speaks HTTP.

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use uuid::Uuid;

/// The client number of every payment that the gateway is to approve.
pub const CLIENT_NUMBER: &str = "081234567890";
pub const AMOUNT: i64 = 15_000;

/// Where payments are posted.
#[derive(Clone)]
pub struct Address {
    authority: String,
    service_id: String,
}

impl Address {
    pub fn new(payments_url: &str, service_id: &str) -> Result<Self> {
        let uri: Uri = payments_url.parse().context("PAYMENTS_URL")?;
        let authority = uri.authority().context("PAYMENTS_URL names no host")?.to_string();
        Ok(Self { authority, service_id: service_id.to_owned() })
    }
}

pub struct Caller {
    address: Address,
    sender: SendRequest<Full<Bytes>>,
}

/// The answer to a request to pay.
pub struct Answer {
    status: StatusCode,
    location: Option<String>,
    /// An earlier request with the key had made the payment.
    pub is_replayed: bool,
    pub body: Bytes,
}

impl Answer {
    pub fn is_created(&self) -> bool {
        self.status == StatusCode::CREATED
    }

    /// # Errors
    /// When no payment is named, as in a refusal.
    pub fn payment_id(&self) -> Result<Uuid> {
        let location = self.location.as_deref();
        let id = location.and_then(|path| path.rsplit('/').next()).context("a Location in the 201")?;
        id.parse().context("a payment id in the Location")
    }

    /// The status, with the type of the problem.
    pub fn kind(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let kind = problem["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default();
        format!("{} {kind}", self.status.as_u16()).trim_end().to_owned()
    }
}

impl Caller {
    pub async fn connect(address: &Address) -> Result<Self> {
        let stream = TcpStream::connect(&address.authority).await.context("connect to payments-svc")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end is also the end of every request on it, where it is reported.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { address: address.clone(), sender })
    }

    /// Whether payments-svc has hung up, as it does on connections that say nothing for some seconds.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Asks to pay under a key of its own; the answer is the id of the accepted payment.
    pub async fn pay(&mut self, user_id: Uuid) -> Result<Uuid> {
        let answer = self.post(user_id, CLIENT_NUMBER, &Uuid::new_v4().to_string()).await?;
        let (status, body) = (answer.status, String::from_utf8_lossy(&answer.body));
        ensure!(answer.is_created(), "the payment was refused: {status} {body}");
        answer.payment_id()
    }

    /// Asks to pay, and returns whatever is answered. Client number and key need no escapes in JSON.
    pub async fn post(&mut self, user_id: Uuid, client_number: &str, key: &str) -> Result<Answer> {
        let body = format!(
            r#"{{"client_number":"{client_number}","service_id":"{}","amount":{AMOUNT},"idempotency_key":"{key}"}}"#,
            self.address.service_id,
        );
        let request = Request::builder()
            .method(Method::POST)
            .uri("/payments")
            .header(HOST, &self.address.authority)
            .header(CONTENT_TYPE, "application/json")
            .header("x-user-id", user_id.to_string())
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await.context("the connection to payments-svc")?;
        let response = self.sender.send_request(request).await.context("POST /payments")?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the answer to POST /payments")?.to_bytes();
        let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let is_replayed = head.headers.get("idempotent-replayed").is_some_and(|value| value == "true");
        Ok(Answer { status: head.status, location, is_replayed, body })
    }
}
