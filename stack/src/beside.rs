//! `cargo stack restart cdc-relay --beside`: a relay is replaced while another one stands by, so that events wait for no start.
//!
//! * A second relay starts from the new program, on a port of its own, and waits for the slots. The first one ends: it has
//!   drained, and the second one takes over. The first one's successor starts and waits in turn. Then the second one ends, and the
//!   successor takes over.
//! * So there are two take-overs and no start in between. Never do two relays read one slot: the server lets one in.
//! * The second one is no part of the stack: it is gone afterwards, also when a step fails. Then the relay that was there streams, or
//!   whichever of the two programs the supervisor runs under its name.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::control::{Client, Request};
use crate::layout::{Layout, Port};
use crate::services::{Instance, Service};
use crate::spec::Spec;
use crate::up::wait_for_service;
use crate::{probe, release};

/// A start on a slow machine, and the check of everything that streaming needs.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// A relay that waits looks every half second whether the slot is free.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(60);

/// Replaces a relay by this specification, and returns when the successor streams every source that it has.
///
/// # Errors
/// When it is no relay or does not run, or a step takes too long.
pub fn restart(layout: &Layout, instance: Instance, spec: Spec) -> Result<()> {
    ensure!(
        matches!(instance.service, Service::Relay | Service::FraudRelay),
        "{} is no relay: a second one beside it would not wait until it has ended",
        instance.name
    );
    let mut client = Client::of_running(layout)?;
    ensure!(
        client.status()?.iter().any(|child| child.name == instance.name && child.id.is_some()),
        "{} does not run: cargo stack start {}",
        instance.name,
        instance.name
    );
    let second = format!("{}-beside", instance.name);
    let replaced = replace(layout, &mut client, instance, &second, spec);
    // Also after a failure: nobody else knows of it.
    let removed = client.send(&Request::Remove { name: second });
    replaced.and(removed.map(drop))?;
    until_it_streams(layout, instance, &[])
}

/// Waits until a relay streams every source that it has, these among them.
///
/// # Errors
/// When that takes too long.
pub fn until_it_streams(layout: &Layout, relay: Instance, expected: &[String]) -> Result<()> {
    let streams =
        || probe::text(layout, relay.admin, "/health").is_some_and(|health| streams(&health, expected));
    probe::until(TAKE_OVER_TIMEOUT, streams, || Ok(())).with_context(|| {
        format!("{} does not stream every source: {}", relay.name, layout.http(relay.admin, "/health"))
    })
}

/// Starts the second one, and replaces the first one while that waits.
fn replace(layout: &Layout, client: &mut Client, instance: Instance, second: &str, spec: Spec) -> Result<()> {
    let port = layout.port(Port::RelayBeside);
    let mut beside =
        Spec { name: second.to_owned(), log: layout.log(second), port: Some(port), ..spec.clone() };
    beside.env.insert("ADMIN_ADDR".to_owned(), format!("127.0.0.1:{port}"));
    client.send(&Request::Run { spec: beside })?;
    // While the first one has the slots, it is ready when it waits for all of them.
    let waits = || probe::http(layout, Port::RelayBeside, "/ready");
    probe::until(READY_TIMEOUT, waits, || Ok(()))
        .with_context(|| format!("{second} does not stand by; see {}", layout.log(second).display()))?;
    release::replace(client, spec)?;
    wait_for_service(layout, instance)
}

/// Whether every source of a relay's `/health` streams, these among them.
fn streams(health: &str, expected: &[String]) -> bool {
    let Ok(health) = serde_json::from_str::<serde_json::Value>(health) else { return false };
    let Some(sources) = health["sources"].as_object().filter(|all| !all.is_empty()) else { return false };
    let are_there = expected.iter().all(|name| sources.contains_key(name));
    are_there && sources.values().all(|source| source["state"] == "streaming")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_streams_when_each_of_its_sources_does() {
        let two = r#"{"status":"ok","sources":{"a":{"state":"streaming"},"b":{"state":"streaming"}}}"#;
        assert!(streams(two, &["b".to_owned()]) && !streams(two, &["b".to_owned(), "c".to_owned()]));
        for (health, expected) in [
            (two, true),
            (r#"{"status":"ok","sources":{"a":{"state":"streaming"},"b":{"state":"standby"}}}"#, false),
            (r#"{"status":"ok","sources":{"a":{"state":"refused","detail":"x"}}}"#, false),
            (r#"{"status":"ok","sources":{}}"#, false),
            ("", false),
        ] {
            assert_eq!(streams(health, &[]), expected, "{health}");
        }
    }

    #[test]
    fn only_a_relay_is_replaced_so() {
        let dir = std::env::temp_dir().join(format!("stack-beside-{}", std::process::id()));
        let layout = Layout::new(Some(dir), 22_000).unwrap();
        let refused = |name| {
            let instance = Instance::named(name).unwrap();
            let spec = instance.spec(&layout).unwrap();
            restart(&layout, instance, spec).unwrap_err().to_string()
        };
        assert!(refused("balance-svc").contains("no relay"));
        assert!(refused("cdc-relay").contains("not up"));
        std::fs::remove_dir_all(&layout.dir).unwrap();
    }
}
