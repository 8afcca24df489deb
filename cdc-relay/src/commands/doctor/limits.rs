//! Checks the limits of connections and passwords, which no session can set for itself.

use super::facts::{Facts, Slot};
use super::finding::Finding;
use super::server::restart;
use super::slot::duration;
use crate::postgres::sql::identifier;

/// Connections of a source: a walsender, three for slot and publication, and at times one more.
const CONNECTIONS_MAX: i64 = 5;
/// A password that ends sooner is reported, in seconds.
const PASSWORD_SOON: i64 = 30 * 86_400;

/// `slot`: if it is read, the relay has its connections but for the one that it takes for moments.
pub fn limits(facts: &Facts, slot: Option<&Slot>) -> Vec<Finding> {
    let connected = slot.is_some_and(|slot| slot.active);
    let needed = if connected { 1 } else { CONNECTIONS_MAX };
    // A walsender does not count here.
    let ordinary = if connected { 1 } else { CONNECTIONS_MAX - 1 };
    let found = [role(facts, needed), database(facts, needed), server(facts, ordinary), password(facts)];
    found.into_iter().flatten().collect()
}

const WHY: &str =
    "the relay takes up to five connections for a source, and one that is refused ends the stream";

fn role(facts: &Facts, needed: i64) -> Option<Finding> {
    let role = &facts.role;
    let limit = role.connection_limit.filter(|limit| !role.superuser && limit - role.connections < needed)?;
    let found = format!("may have {limit} connections, and has {}", role.connections);
    Some(
        Finding::would_not_work("role.connections", &format!("role {}", role.name), found)
            .why(WHY)
            .fix(format!("alter role {} connection limit -1;", identifier(&role.name))),
    )
}

fn database(facts: &Facts, needed: i64) -> Option<Finding> {
    let (room, name) = (&facts.room, &facts.database);
    let limit = room
        .database_limit
        .filter(|limit| !facts.role.superuser && limit - room.database_connections < needed)?;
    let found = format!("may have {limit} connections, and has {}", room.database_connections);
    Some(
        Finding::would_not_work("database.connections", &format!("database {name}"), found)
            .why(WHY)
            .fix(format!("alter database {} connection limit -1;", identifier(name))),
    )
}

fn server(facts: &Facts, needed: i64) -> Option<Finding> {
    let number = |name| facts.text(name).parse::<i64>().ok();
    let most = number("max_connections")?;
    let kept = |name| if facts.role.superuser { 0 } else { number(name).unwrap_or(0) };
    let reserved = kept("superuser_reserved_connections") + kept("reserved_connections");
    let (check, used) = ("server.max_connections", facts.room.connections);
    let left = most - reserved - used;
    let found = format!("{used} of {most} in use, and {reserved} are kept for others");
    let make = match left {
        left if left < needed => Finding::would_not_work,
        left if left < most / 20 => Finding::warning,
        _ => return None,
    };
    let finding = make(check, "max_connections", found).why(WHY);
    Some(
        finding
            .fix(restart("max_connections", &(most + 50).to_string()))
            .fix("end connections that nobody needs"),
    )
}

fn password(facts: &Facts) -> Option<Finding> {
    let role = &facts.role;
    let seconds = role.valid_for.filter(|seconds| *seconds < PASSWORD_SOON)?;
    let found = match seconds {
        ..=0 => "its password has ended".to_owned(),
        _ => format!("its password ends in {}", duration(seconds as f64)),
    };
    Some(
        Finding::warning("role.valid_until", &format!("role {}", role.name), found)
            .why("after that the relay cannot sign in by it, and the server retains WAL until it can")
            .fix(format!("alter role {} valid until 'infinity';", identifier(&role.name))),
    )
}
