//! Removes a member from its consumer groups by its name.
//!
//! * A member with a name that ends says nothing to its group: it may come back, and its partitions wait for it until its session
//!   ends. That is right for a restart. One that does not come back is removed, and the others get its partitions at once.
//! * Who is no member of a group cannot be removed from it, and that is no error.

use anyhow::{Context, Result, bail};

use super::protocol::{Answer, Broker, put};
use crate::layout::Layout;
use crate::servers::Node;

/// The numbers of the APIs, and the versions without tagged fields. The one of leaving takes names of members since version 3.
const LIST_GROUPS: (i16, i16) = (16, 2);
const LEAVE_GROUP: (i16, i16) = (13, 3);
const NO_ERROR: i16 = 0;
const UNKNOWN_MEMBER: i16 = 25;

/// Removes the member of this name from the groups of a service: the one that has the name of its program, and those whose
/// names begin with it, such as one for each index. Returns the groups that had it.
///
/// # Errors
/// When Kafka refuses, or a node of it does not answer: it may coordinate a group that has the member.
pub fn remove(layout: &Layout, program: &str, member: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mut away = None;
    // Each node lists the groups that it coordinates, and takes requests for no other.
    for node in Node::all(layout) {
        let mut broker = match Broker::as_itself(layout, *node) {
            Ok(broker) => broker,
            // The member leaves the groups of the others first.
            Err(error) => {
                away = Some(error);
                continue;
            }
        };
        let mut answer = broker.ask(LIST_GROUPS, &[])?;
        let groups = groups(&mut answer).context("the list of consumer groups")?;
        for group in groups.into_iter().filter(|group| is_of(group, program)) {
            let mut answer = broker.ask(LEAVE_GROUP, &request(&group, member)?)?;
            if was_member(&mut answer).with_context(|| format!("{member} in the consumer group {group}"))? {
                left.push(group);
            }
        }
    }
    away.map_or(Ok(left), Err)
}

fn is_of(group: &str, program: &str) -> bool {
    group.strip_prefix(program).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn groups(answer: &mut Answer) -> Result<Vec<String>> {
    let _throttled = answer.array::<4>()?;
    answer.no_error("the list")?;
    let count = i32::from_be_bytes(answer.array()?);
    (0..count)
        .map(|_| {
            let group = answer.text()?;
            let _kind = answer.text()?;
            Ok(group)
        })
        .collect()
}

/// Its name alone: the id that the group has given it is not known here.
fn request(group: &str, member: &str) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    put(&mut body, group);
    body.extend_from_slice(&1_i32.to_be_bytes());
    put(&mut body, "");
    put(&mut body, member);
    Ok(body)
}

fn was_member(answer: &mut Answer) -> Result<bool> {
    let _throttled = answer.array::<4>()?;
    answer.no_error("the removal")?;
    let _one = answer.array::<4>()?;
    let (_id, _name) = (answer.text()?, answer.text()?);
    match i16::from_be_bytes(answer.array()?) {
        NO_ERROR => Ok(true),
        UNKNOWN_MEMBER => Ok(false),
        code => bail!("Kafka refused its removal: error {code} of its protocol"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i16) -> Vec<u8> {
        let mut bytes = [0_i32.to_be_bytes().as_slice(), &0_i16.to_be_bytes(), &1_i32.to_be_bytes()].concat();
        put(&mut bytes, "");
        put(&mut bytes, "payments-svc-3");
        bytes.extend(code.to_be_bytes());
        bytes
    }

    #[test]
    fn whoever_is_no_member_was_none_and_every_other_error_is_one() {
        for (code, expected) in [(NO_ERROR, Some(true)), (UNKNOWN_MEMBER, Some(false)), (16, None)] {
            let found = was_member(&mut Answer::of(answer(code)));
            assert_eq!(found.ok(), expected, "{code}");
        }
        assert!(was_member(&mut Answer::of(answer(0)[..12].to_vec())).is_err(), "cut off");
    }

    #[test]
    fn a_group_of_a_service_has_its_name_or_begins_with_it() {
        assert!(is_of("payments-svc", "payments-svc") && is_of("search-indexer-7", "search-indexer"));
        assert!(!is_of("payments-svcs", "payments-svc") && !is_of("balance-svc", "payments-svc"));
    }
}
