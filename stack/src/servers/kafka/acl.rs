//! Who may do what on Kafka: the rules of the stack, and how they get there.
//!
//! * Only the relay writes. Everybody else reads: the services as themselves and in their own groups, a subscriber the
//!   topics of the saga in groups that begin with its name, anyone who does not sign in wherever they like.
//! * A rule that stands there already is left as it is, so `allow` may be repeated.
//! * In containers the administrator makes the rules, in a stack the broker itself.
//!
//! Kafka's own tool does the same in two seconds of a Java machine for each principal; these are three requests.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{ADMIN, SUBSCRIBER};
use crate::layout::{Layout, Port};
use crate::link::{self, Link};

const TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: i32 = 1 << 20;

/// Those of Kafka's operations that are given; reading and writing include describing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum Operation {
    Read = 3,
    Write = 4,
    Create = 5,
    DescribeConfigs = 10,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum Resource {
    Topic = 2,
    Group = 3,
}

/// `principal` may do this on the resource of that name; `*` is every one, `name*` every one that begins so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule<'a> {
    pub principal: &'a str,
    pub operation: Operation,
    pub resource: Resource,
    pub name: &'a str,
}

/// The topics that a subscriber may read.
const SUBSCRIBED_TOPICS: [&str; 5] =
    ["PaymentTopic", "BalanceTopic", "PaymentResultTopic", "ServiceTopic", "FraudAlertTopic"];

/// The rules of the stack.
pub fn rules() -> Vec<Rule<'static>> {
    use Operation::{Create, DescribeConfigs, Read, Write};
    let rule = |principal, operation, resource, name| Rule { principal, operation, resource, name };
    // Groups are called as their services are; the relay has one for reading and one for `verify`.
    let readers = [
        ("ANONYMOUS", "*"),
        ("payments-svc", "payments-svc"),
        ("balance-svc", "balance-svc"),
        ("processor-svc", "processor-svc"),
        // Each rebuild of an index has a group of its own.
        ("search-indexer", "search-indexer*"),
        ("notifier", "notifier"),
        ("fraud", "fraud"),
        ("auditor", "auditor"),
        ("tracer", "tracer"),
        ("relay", "cdc-relay"),
        ("relay", "cdc-relay-verify"),
    ];
    let reading = readers.into_iter().flat_map(|(principal, group)| {
        [
            rule(principal, Read, Resource::Topic, "*"),
            rule(principal, DescribeConfigs, Resource::Topic, "*"),
            rule(principal, Read, Resource::Group, group),
        ]
    });
    let producing = [Write, Create].map(|operation| rule("relay", operation, Resource::Topic, "*"));
    // No more than it needs, as docs/SUBSCRIBE.md gives it to each subscriber.
    let subscribing = SUBSCRIBED_TOPICS.map(|topic| rule(SUBSCRIBER, Read, Resource::Topic, topic));
    let group = rule(SUBSCRIBER, Read, Resource::Group, "subscriber*");
    reading.chain(producing).chain(subscribing).chain([group]).collect()
}

/// Gives the users of the stack their passwords, and makes its rules.
///
/// # Errors
/// As [`allow`].
pub fn ensure_rules(layout: &Layout) -> Result<()> {
    if super::Users::of(layout) == super::Users::Kept {
        super::scram::set_users(layout)?;
    }
    allow(layout, &rules())
}

/// Makes these rules, as the broker itself.
///
/// # Errors
/// When Kafka does not answer, or refuses.
pub fn allow(layout: &Layout, rules: &[Rule<'_>]) -> Result<()> {
    Broker::as_itself(layout)?.create(rules)
}

/// Makes these rules on the Kafka at this address (HOST:PORT), as the administrator with this password.
///
/// # Errors
/// As [`allow`].
pub fn allow_at(address: &str, password: &str, timeout: Duration, rules: &[Rule<'_>]) -> Result<()> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    stream.set_read_timeout(Some(timeout))?;
    let mut broker = Broker { stream: Box::new(stream) };
    broker.sign_in(ADMIN, password)?;
    broker.create(rules)
}

/// A connection that speaks as much of Kafka's protocol as is needed here.
pub struct Broker {
    stream: Box<dyn Link>,
}

impl Broker {
    /// Signed in as the broker itself, whose password is in its settings, so that it knows it before it knows any user.
    ///
    /// # Errors
    /// When Kafka does not answer, or refuses.
    pub fn as_itself(layout: &Layout) -> Result<Self> {
        let port = layout.port(Port::KafkaSasl);
        let stream =
            link::open(layout, port, None, TIMEOUT).with_context(|| format!("cannot reach port {port}"))?;
        let mut broker = Self { stream };
        broker.sign_in(super::BROKER, &super::secret(layout, super::BROKER)?)?;
        Ok(broker)
    }

    fn sign_in(&mut self, user: &str, password: &str) -> Result<()> {
        let mut mechanism = Vec::new();
        put(&mut mechanism, "PLAIN");
        self.ask(SASL_HANDSHAKE, &mechanism)?.no_error("the handshake")?;
        let token = format!("\0{user}\0{password}");
        let mut body = i32::try_from(token.len())?.to_be_bytes().to_vec();
        body.extend_from_slice(token.as_bytes());
        self.ask(SASL_AUTHENTICATE, &body)?.no_error("the password")
    }

    fn create(&mut self, rules: &[Rule<'_>]) -> Result<()> {
        let mut body = i32::try_from(rules.len())?.to_be_bytes().to_vec();
        for rule in rules {
            body.push(rule.resource as u8);
            let (name, pattern) = match rule.name.strip_suffix('*') {
                Some(prefix) if !prefix.is_empty() => (prefix, PREFIXED),
                Some(_) | None => (rule.name, LITERAL),
            };
            put(&mut body, name);
            body.push(pattern);
            put(&mut body, &format!("User:{}", rule.principal));
            put(&mut body, "*");
            body.extend([rule.operation as u8, ALLOW]);
        }
        let mut answer = self.ask(CREATE_ACLS, &body)?;
        let _throttled = answer.array::<4>()?;
        let count = i32::from_be_bytes(answer.array()?);
        ensure!(usize::try_from(count) == Ok(rules.len()), "{count} answers for {} rules", rules.len());
        for rule in rules {
            answer.no_error(&format!("{rule:?}"))?;
            // A text that goes with an error.
            let length = i16::from_be_bytes(answer.array()?);
            answer.skip(usize::try_from(length).unwrap_or(0))?;
        }
        Ok(())
    }

    /// Asks by the API of this number and version.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn ask(&mut self, (api, version): (i16, i16), body: &[u8]) -> Result<Answer> {
        // Correlation 1, no name of a client.
        let header = [api.to_be_bytes(), version.to_be_bytes(), [0, 0], [0, 1], [0xff, 0xff]].concat();
        let length = i32::try_from(header.len() + body.len())?;
        self.stream.write_all(&[&length.to_be_bytes()[..], &header, body].concat())?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = i32::from_be_bytes(length);
        ensure!((4..=ANSWER_BYTES_MAX).contains(&length), "an answer of {length} bytes");
        let mut answer = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut answer)?;
        Ok(Answer { rest: answer.split_off(4) })
    }
}

/// The API's number, and its version without tagged fields.
const SASL_HANDSHAKE: (i16, i16) = (17, 1);
const SASL_AUTHENTICATE: (i16, i16) = (36, 1);
const CREATE_ACLS: (i16, i16) = (30, 1);
const LITERAL: u8 = 3;
const PREFIXED: u8 = 4;
const ALLOW: u8 = 3;

fn put(body: &mut Vec<u8>, text: &str) {
    // Names here are short.
    body.extend_from_slice(&i16::try_from(text.len()).unwrap_or(i16::MAX).to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}

/// What is left of an answer to be read.
pub struct Answer {
    rest: Vec<u8>,
}

impl Answer {
    /// # Errors
    /// When there are not so many bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = *self.rest.first_chunk::<N>().context("Kafka's answer is cut off")?;
        self.skip(N)?;
        Ok(bytes)
    }

    /// # Errors
    /// When there are not so many bytes.
    pub fn skip(&mut self, bytes: usize) -> Result<()> {
        ensure!(self.rest.len() >= bytes, "Kafka's answer is cut off");
        self.rest.drain(..bytes);
        Ok(())
    }

    /// Reads an error code.
    ///
    /// # Errors
    /// When it is one.
    pub fn no_error(&mut self, what: &str) -> Result<()> {
        match i16::from_be_bytes(self.array()?) {
            0 => Ok(()),
            code => bail!("Kafka refused {what}: error {code} of its protocol"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_the_relay_writes_or_creates() {
        let writing = |rule: &Rule<'_>| matches!(rule.operation, Operation::Write | Operation::Create);
        let writers: Vec<&str> =
            rules().iter().filter(|rule| writing(rule)).map(|rule| rule.principal).collect();
        assert_eq!(writers, ["relay", "relay"]);
    }
}
