//! Sends e-mails through an SMTP server. Connections are kept and shared.

use std::time::Duration;

use lettre::address::Address;
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::{Error, PoolConfig};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use crate::render::{self, Ended};
use crate::saga::Answer;

/// Connections that are kept, and for how long.
const CONNECTIONS_MAX: u32 = 4;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Replies that say that the mailbox does not exist, or that its name is not allowed (RFC 5321, section 4.2.3).
const NO_MAILBOX: [u16; 3] = [550, 551, 553];

#[derive(Clone)]
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Mailer {
    /// # Errors
    /// When the URL is malformed.
    pub fn new(url: &str, from: Mailbox) -> anyhow::Result<Self> {
        let pool = PoolConfig::new().max_size(CONNECTIONS_MAX).idle_timeout(IDLE_TIMEOUT);
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url)?.pool_config(pool).build();
        Ok(Self { transport, from })
    }

    /// Sends one e-mail. The caller bounds the time.
    pub async fn send(&self, address: &str, ended: &Ended) -> Answer {
        let Ok(message) = self.message(address, ended) else { return Answer::NoAnswer("invalid address") };
        match self.transport.send(message).await {
            Ok(_) => Answer::Accepted,
            Err(error) => answer(&error),
        }
    }

    fn message(&self, address: &str, ended: &Ended) -> anyhow::Result<Message> {
        let email = render::email(ended);
        let domain = self.from.email.domain();
        Ok(Message::builder()
            .from(self.from.clone())
            .to(address.parse::<Address>()?.into())
            .message_id(Some(format!("<{}@{domain}>", ended.message_id())))
            .subject(email.subject)
            .multipart(MultiPart::alternative_plain_html(email.text, email.html))?)
    }
}

/// The server's text is left out: it may repeat the address.
fn answer(error: &Error) -> Answer {
    match error.status().map(u16::from) {
        Some(code) if NO_MAILBOX.contains(&code) => Answer::NoRecipient,
        Some(status) => Answer::NotAccepted { status, retry_after: None },
        None if error.is_tls() => Answer::NoAnswer("TLS failed"),
        None => Answer::NoAnswer("no answer of the SMTP server"),
    }
}
