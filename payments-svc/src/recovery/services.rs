//! Compares the services that can be paid with what ServiceTopic says of them.
//!
//! * The owner of the database changes services, and payments-svc may not: a change that the backup lacks is a finding, and the
//!   owner makes it again. Until then the database stays closed, so that no payment is accepted for a service that was disabled.
//! * The topic is compacted. It is read from its first record on, since the last change of a service may be old.

use std::collections::BTreeMap;

use anyhow::Context;
use saga::consumer::TopicRange;
use saga::contract::{SERVICE_TOPIC, Service};
use saga::recovery::{Emitted, Recovery};

use crate::store;

/// Services by id.
type Services = BTreeMap<String, Service>;

/// Reports each service that is not as the topic says.
///
/// # Errors
/// When the topic cannot be read or the database failed.
pub async fn compare(recovery: &mut Recovery) -> anyhow::Result<()> {
    let range = TopicRange { since: None, ..recovery.topic(SERVICE_TOPIC) };
    let mut batches = range.read(|record| Emitted::read(record, "event of a service"))?;
    let mut emitted = Services::new();
    while let Some(batch) = batches.next().await? {
        for Emitted { body, .. } in recovery.readable(batch) {
            take_in(&mut emitted, body);
        }
    }
    let client = recovery.pool().get().await.context("no connection to the payments database")?;
    let rows = store::published_services(&client).await?;
    drop(client);
    for finding in findings(&rows, &emitted) {
        recovery.report(finding);
    }
    Ok(())
}

/// Keeps the last version of each service.
fn take_in(services: &mut Services, service: Service) {
    let is_older = services.get(&service.service_id).is_some_and(|known| known.version > service.version);
    if !is_older {
        services.insert(service.service_id.clone(), service);
    }
}

/// What the rows lack of the events. A row that is newer than its event was changed, and is emitted again.
fn findings(rows: &[Service], emitted: &Services) -> Vec<String> {
    let mut found = Vec::new();
    for event in emitted.values() {
        let id = &event.service_id;
        let version = event.version;
        match rows.iter().find(|row| row.service_id == *id) {
            None => found.push(format!(
                "service {id} is lacking: add it as the owner, and update it until it has version {version}, as on {SERVICE_TOPIC}"
            )),
            Some(row) if row.version < version => found.push(format!(
                "service {id} has version {}: update it as the owner until it has version {version}, as on {SERVICE_TOPIC}",
                row.version
            )),
            Some(row) if row.version == version && row != event => found.push(format!(
                "service {id} differs from version {version} on {SERVICE_TOPIC}: update it as the owner to what it has to be"
            )),
            Some(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(id: &str, version: i32, enabled: bool) -> Service {
        let event = if version == 1 { "added" } else { "changed" };
        Service { service_id: id.into(), name: id.into(), enabled, event: event.into(), version }
    }

    #[test]
    fn a_change_that_the_backup_lacks_is_found() {
        let mut emitted = Services::new();
        for event in [
            service("same", 1, true),
            service("older", 1, true),
            service("older", 2, false),
            // Read again, from a record that compaction has not removed yet.
            service("older", 1, true),
            service("newer", 1, true),
            service("other", 2, false),
            service("lacking", 1, true),
        ] {
            take_in(&mut emitted, event);
        }
        let rows = [
            service("same", 1, true),
            service("older", 1, true),
            service("newer", 2, false),
            service("other", 2, true),
            service("unemitted", 1, true),
        ];
        let found = findings(&rows, &emitted);
        let begins = ["service lacking is lacking", "service older has version 1", "service other differs"];
        assert_eq!(found.len(), begins.len(), "{found:?}");
        for (found, begin) in found.iter().zip(begins) {
            assert!(found.starts_with(begin), "{found}");
        }
    }
}
