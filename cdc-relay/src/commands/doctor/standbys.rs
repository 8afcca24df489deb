//! Checks whether the relay waits for synchronous standbys, and whether there are any.

use super::facts::{Facts, Walsender};
use super::finding::Finding;
use super::server::reload;
use crate::postgres::quorum::{Quorum, Standby, Standing, is_synchronous, standing};
use crate::postgres::sql;
use crate::routes::SynchronousRule;

const CHECK: &str = "source.synchronous";

pub fn standbys(facts: &Facts, rule: SynchronousRule) -> Vec<Finding> {
    let names = facts.text("synchronous_standby_names");
    match rule {
        SynchronousRule::Off if names.is_empty() => Vec::new(),
        SynchronousRule::Off => vec![
            Finding::warning(CHECK, "synchronous", "off, and the server has synchronous standbys")
                .why(
                    "the relay emits a transaction before they have it; a promotion then undoes the transaction, and not its \
                     events",
                )
                .fix("synchronous = \"require\"   -- in the routes file, for this source"),
        ],
        SynchronousRule::Require => {
            let mut findings = vec![required(facts, names)];
            findings.extend(any_name(names));
            findings
        }
    }
}

fn required(facts: &Facts, names: &str) -> Finding {
    let subject = format!("synchronous_standby_names = '{names}'");
    let waits = "every transaction waits for synchronous standbys before it is emitted";
    if facts.walsenders.iter().any(|walsender| walsender.state.is_none()) {
        let role = sql::identifier(&facts.role.name);
        return Finding::would_not_work(CHECK, &subject, "cannot be seen by this role")
            .why("the relay has to see which standbys have flushed what")
            .fix(format!("grant pg_read_all_stats to {role};"));
    }
    let standbys: Vec<Standby> = facts.walsenders.iter().map(standby).collect();
    match standing(Quorum::parse(names), &standbys) {
        Standing::Flushed(position) => {
            Finding::ok(CHECK, &subject, format!("enough standbys have flushed up to {position}"))
        }
        Standing::NotConfigured => {
            Finding::would_not_work(CHECK, &subject, "there are no synchronous standbys")
                .why(format!("{waits}, so nothing is emitted"))
                .fix(reload("synchronous_standby_names", "'ANY 1 (<names of the standbys>)'"))
                .fix("or take `synchronous` out of the routes file")
        }
        Standing::TooFew { needed, connected } => {
            Finding::would_not_work(CHECK, &subject, format!("{connected} of {needed} are connected"))
                .why(format!("{waits}, and so does every commit"))
                .fix("look at the standbys: their application_name, and pg_stat_replication on the primary")
        }
    }
}

fn standby(walsender: &Walsender) -> Standby {
    Standby {
        is_synchronous: walsender.state.as_deref().is_some_and(is_synchronous),
        flushed: walsender.flushed.as_deref().and_then(|lsn| lsn.parse().ok()),
    }
}

/// A list that names everybody.
fn any_name(names: &str) -> Option<Finding> {
    names.contains('*').then(|| {
        Finding::warning(CHECK, "synchronous_standby_names", "has a `*`")
            .why(
                "the server takes logical subscribers for synchronous standbys then, the relay among them, and releases commits \
                 that no standby has; the relay does not count them",
            )
            .fix("name the standbys")
    })
}
