//! Sends an e-mail through an SMTP server.
//!
//! * Each attempt has a connection of its own. A future that is dropped closes it, so no attempt ever reads the reply
//!   that another one was waiting for.
//! * An e-mail is accepted by a reply of success (2yz) after its final dot, and by nothing else.
//! * A mailbox does not exist only where the server says so. Every other refusal may be about the sender or a policy,
//!   which an operator can change.
//! * A password is sent over TLS, or to this machine.
//! * The caller bounds the time.

use std::error::Error as _;
use std::net::IpAddr;
use std::str::FromStr;

use lettre::address::Address;
pub use lettre::message::Mailbox;
use lettre::message::MultiPart;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::response::Severity;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use warp::http::Uri;

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// Bad mailbox, bad system, bad syntax, moved without a forwarding address, no mail taken (RFC 3463, RFC 7505).
const NO_MAILBOX: [&str; 5] = ["5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10"];

/// An e-mail: subject, text and HTML say the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Email {
    pub subject: String,
    pub text: String,
    pub html: String,
}

/// What the server made of an e-mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    NoMailbox,
    /// The code of its reply.
    NotAccepted(u16),
}

/// Why there is no answer. The server may have accepted the e-mail all the same.
pub type NoAnswer = &'static str;

/// The URL of an SMTP server, such as `smtps://user:password@mail:465` or `smtp://mail:587?tls=required`.
// No Debug: it would print the password.
#[derive(Clone)]
pub struct SmtpUrl(String);

impl FromStr for SmtpUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = Transport::from_url(text).is_ok();
        let uri: Option<Uri> = text.parse().ok().filter(|_| parsed);
        let uri = uri.ok_or("give a URL such as smtps://user:password@mail")?;
        let has_password = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        let required = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "tls=required"));
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        if has_password && !is_local && !required && uri.scheme_str() != Some("smtps") {
            return Err("the password would be sent without TLS: use smtps://, or add ?tls=required");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether an e-mail can be addressed to it.
pub fn is_address(text: &str) -> bool {
    text.parse::<Address>().is_ok()
}

#[derive(Clone)]
pub struct Mailer {
    transport: Transport,
    from: Mailbox,
}

impl Mailer {
    /// # Errors
    /// Never: the URL was read before.
    pub fn new(url: &SmtpUrl, from: Mailbox) -> Result<Self, Error> {
        Ok(Self { transport: Transport::from_url(&url.0)?.build(), from })
    }

    /// Sends one e-mail. `id` makes its `Message-ID`, and is the same at every attempt.
    ///
    /// # Errors
    /// When there was no answer.
    pub async fn send(&self, to: &str, id: &str, email: Email) -> Result<Answer, NoAnswer> {
        let message = self.message(to, id, email).ok_or("invalid address")?;
        match self.transport.send(message).await {
            Ok(reply) if reply.code().severity == Severity::PositiveCompletion => Ok(Answer::Accepted),
            Ok(reply) => Ok(Answer::NotAccepted(reply.code().into())),
            Err(error) => answer(&error),
        }
    }

    fn message(&self, to: &str, id: &str, email: Email) -> Option<Message> {
        let domain = self.from.email.domain();
        let message = Message::builder()
            .from(self.from.clone())
            .to(to.parse::<Address>().ok()?.into())
            .message_id(Some(format!("<{id}@{domain}>")))
            .subject(email.subject)
            .multipart(MultiPart::alternative_plain_html(email.text, email.html));
        message.ok()
    }
}

/// The server's text is left out: it may repeat the address.
fn answer(error: &Error) -> Result<Answer, NoAnswer> {
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    match error.status().map(u16::from) {
        Some(_) if error.is_permanent() && has_no_mailbox(&text) => Ok(Answer::NoMailbox),
        Some(status) => Ok(Answer::NotAccepted(status)),
        None if error.is_tls() => Err("TLS failed"),
        None => Err("no answer of the SMTP server"),
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

    #[test]
    fn a_password_is_not_sent_without_tls_but_to_this_machine() {
        for good in [
            "smtps://user:password@mail:465",
            "smtp://user:password@mail:587?tls=required",
            "smtp://user:password@127.0.0.1:25",
            "smtp://user:password@localhost",
            "smtp://mail:25",
            "smtp://mail?tls=opportunistic",
        ] {
            assert!(good.parse::<SmtpUrl>().is_ok_and(|url| url.0 == good), "{good}");
        }
        for bad in [
            "smtp://user:password@mail",
            "smtp://user:password@mail?tls=opportunistic",
            "http://mail",
            "mail",
        ] {
            assert!(bad.parse::<SmtpUrl>().is_err(), "{bad}");
        }
    }
}
