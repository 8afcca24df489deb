//! Sends e-mails through an SMTP server.
//!
//! * Each attempt has a connection of its own. A future that is dropped closes it, so no attempt ever reads the reply
//!   that another one was waiting for.
//! * An e-mail is accepted by a reply of success (2yz) after its final dot, and by nothing else.
//! * It is given up only where the server says that this mailbox does not exist. Every other refusal may be about the
//!   sender or a policy, which an operator can change.

use std::error::Error as _;

use lettre::address::Address;
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::Error;
use lettre::transport::smtp::response::Severity;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use crate::render::{self, PaymentEnd};
use crate::saga::Answer;

/// Bad mailbox, bad system, bad syntax, moved without a forwarding address, no mail taken (RFC 3463, RFC 7505).
const NO_MAILBOX: [&str; 5] = ["5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10"];

#[derive(Clone)]
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Mailer {
    /// # Errors
    /// When the URL is malformed.
    pub fn new(url: &str, from: Mailbox) -> anyhow::Result<Self> {
        Ok(Self { transport: AsyncSmtpTransport::<Tokio1Executor>::from_url(url)?.build(), from })
    }

    /// Sends one e-mail. The caller bounds the time.
    pub async fn send(&self, address: &str, end: &PaymentEnd) -> Answer {
        let Ok(message) = self.message(address, end) else { return Answer::NoAnswer("invalid address") };
        match self.transport.send(message).await {
            Ok(reply) if reply.code().severity == Severity::PositiveCompletion => Answer::Accepted,
            Ok(reply) => Answer::NotAccepted { status: reply.code().into(), retry_after: None },
            Err(error) => answer(&error),
        }
    }

    fn message(&self, address: &str, end: &PaymentEnd) -> anyhow::Result<Message> {
        let email = render::email(end);
        let domain = self.from.email.domain();
        Ok(Message::builder()
            .from(self.from.clone())
            .to(address.parse::<Address>()?.into())
            .message_id(Some(format!("<{}@{domain}>", end.message_id())))
            .subject(email.subject)
            .multipart(MultiPart::alternative_plain_html(email.text, email.html))?)
    }
}

/// The server's text is left out: it may repeat the address.
fn answer(error: &Error) -> Answer {
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    match error.status().map(u16::from) {
        Some(_) if error.is_permanent() && has_no_mailbox(&text) => Answer::NoRecipient,
        Some(status) => Answer::NotAccepted { status, retry_after: None },
        None if error.is_tls() => Answer::NoAnswer("TLS failed"),
        None => Answer::NoAnswer("no answer of the SMTP server"),
    }
}

/// Whether the enhanced status, with which the text of a reply begins, says that there is no such mailbox.
fn has_no_mailbox(text: &str) -> bool {
    text.split_whitespace().next().is_some_and(|status| NO_MAILBOX.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mailbox_that_does_not_exist_is_final() {
        for text in ["5.1.1 <a@b>: no such person", "5.1.10", "5.1.2 x\r\n5.1.2 y"] {
            assert!(has_no_mailbox(text), "{text}");
        }
        for text in ["", "5.7.1 sender refused by policy", "5.1.8 bad sender", "no 5.1.1", "5.1.11", "4.1.1"]
        {
            assert!(!has_no_mailbox(text), "{text}");
        }
    }
}
