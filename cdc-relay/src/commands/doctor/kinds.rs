//! Checks what several databases of one kind, and copies between them, rest on.

use super::Routed;
use super::facts::Facts;
use super::finding::Finding;
use crate::routes::{OriginRule, Source};

/// The first version that leaves out what another server wrote.
const ORIGIN_VERSION: u32 = 160_000;

pub fn kinds(facts: &Facts, Routed { routes, source }: Routed<'_>) -> Vec<Finding> {
    let of_its_kind = |other: &&Source| other.kind.get_ref() == source.kind.get_ref();
    let is_alone = routes.sources.iter().filter(of_its_kind).count() < 2;
    let tables = source.entries().filter(|table| !is_alone && table.id.is_none());
    let mut findings: Vec<Finding> = tables
        .map(|table| {
            Finding::warning("source.kind", &format!("table {}", table.name.get_ref()), "its events have no `id`")
                .why("an event has another id in each source of the kind, so a row that moves is emitted as a new one")
                .fix("id = \"…\"   -- in the routes file, for this table: of columns that identify row and version")
        })
        .collect();
    findings.extend((source.origin == OriginRule::None).then(|| origin(facts)));
    findings
}

fn origin(facts: &Facts) -> Finding {
    let (check, subject) = ("source.origin", "origin = \"none\"");
    if facts.version >= ORIGIN_VERSION {
        return Finding::ok(check, subject, "the server leaves out what replication copied");
    }
    Finding::warning(check, subject, "the relay leaves out what replication copied, and not the server")
        .why("once an origin is dropped the server names it no more, and the relay emits what it has not confirmed yet")
        .fix("upgrade to PostgreSQL 16, or drop a subscription only after the slot is confirmed beyond its last change")
}
