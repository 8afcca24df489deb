//! Who may do what on Kafka: the rules of the stack, and how they get there.
//!
//! * Only the relay writes. Everybody else reads: the services as themselves and in their own groups, a subscriber the
//!   topics of the saga in groups that begin with its name, anyone who does not sign in wherever they like.
//! * A rule that stands there already is left as it is, so `allow` may be repeated.
//! * In containers the administrator makes the rules, in a stack the broker itself.
//!
//! Kafka's own tool does the same in two seconds of a Java machine for each principal; these are three requests.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::SUBSCRIBER;
use super::protocol::{Broker, put};
use crate::layout::Layout;
use crate::servers::Node;

/// The API's number, and its version without tagged fields.
const CREATE_ACLS: (i16, i16) = (30, 1);
const LITERAL: u8 = 3;
const PREFIXED: u8 = 4;
const ALLOW: u8 = 3;

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

/// Gives the users of the stack their passwords, and makes its rules, at this node and for all.
///
/// # Errors
/// As [`allow`].
pub fn ensure_rules(layout: &Layout, node: Node) -> Result<()> {
    if super::Users::of(layout) == super::Users::Kept {
        super::scram::set_users(layout, node)?;
    }
    create(Broker::as_itself(layout, node)?, &rules())
}

/// Makes these rules, as the broker itself.
///
/// # Errors
/// When Kafka does not answer, or refuses.
pub fn allow(layout: &Layout, rules: &[Rule<'_>]) -> Result<()> {
    create(Broker::as_itself(layout, Node::One)?, rules)
}

/// Makes these rules on the Kafka at this address (HOST:PORT), as the administrator with this password.
///
/// # Errors
/// As [`allow`].
pub fn allow_at(address: &str, password: &str, timeout: Duration, rules: &[Rule<'_>]) -> Result<()> {
    create(Broker::as_administrator(address, password, timeout)?, rules)
}

fn create(mut broker: Broker, rules: &[Rule<'_>]) -> Result<()> {
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
    let mut answer = broker.ask(CREATE_ACLS, &body)?;
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
