//! Services get further instances under load, all of them are restarted one after the other, and the further ones go again.
//!
//! * No request fails, payments go on settling, and nobody is paged.
//! * Each further instance behind the edge answers requests while it is there.
//! * One that is gone is no member of its consumer group any more: its partitions wait for nobody. There are as many members as
//!   instances, also beyond the number of partitions; those without any serve HTTP only.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coroctl::stack::Stack;
use rdkafka::consumer::{BaseConsumer, Consumer};
use saga::http_client;
use stack::layout::Layout;
use stack::services::further::Scalable;

use super::harness::Harness;
use super::{pages, script, upgrade};

const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Slow start, and time for a machine that is busy.
const SERVES_TIMEOUT: Duration = Duration::from_secs(60);
/// Payments while all instances are there.
const PAYMENTS: usize = 100;

/// The services that the runbook scales, and how many instances each has at first and in between.
const SCALED: [(&str, usize, usize); 3] =
    [("payments-svc", 2, 6), ("balance-svc", 1, 3), ("processor-svc", 1, 3)];

/// # Errors
/// When a script fails, an instance serves nobody or is still a member afterwards, payments stand still for too long, or somebody is
/// paged.
pub async fn play(harness: &mut Harness) -> Result<()> {
    for (name, at_first, _) in SCALED {
        let count = count(name)?;
        ensure!(
            count == at_first,
            "there are {count} instances of {name}: the drill begins with those of every stack, by `cargo stack scale \
             {name} {at_first}`"
        );
    }
    let quiet = pages::Quiet::begin(harness).await?;
    let section = harness.section()?;
    let [out, restart, back] = section.acts.as_slice() else {
        bail!("{} has other scripts than to grow, to restart and to shrink", section.heading)
    };
    harness.run_script(&section, out, &[]).await?;
    for (name, _, most) in SCALED {
        joined(harness, name, most).await?;
    }
    for (name, at_first, most) in SCALED.into_iter().filter(|(name, ..)| *name == "payments-svc") {
        serve(harness, name, at_first, most).await?;
    }
    harness.run_script(&section, restart, &[("SERVICES", &upgrade::services()?)]).await?;
    harness.accepts(PAYMENTS).await?;
    harness.run_script(&section, back, &[]).await?;
    for (name, at_first, _) in SCALED {
        // At once: nobody waits for a session to end.
        let members = members(&harness.stack, name).await?;
        ensure!(members.len() == at_first, "the group {name} still has {}", members.join(", "));
    }
    harness.note("whoever went was no member of its group any more when its instance was gone".to_owned());
    quiet.end(harness).await
}

/// Back to the instances of every stack.
///
/// # Errors
/// When one cannot be drained or started.
pub async fn undo() -> Result<()> {
    for (name, at_first, _) in SCALED {
        if count(name)? != at_first {
            script::cargo_stack(&["scale", name, &at_first.to_string()]).await?;
        }
    }
    Ok(())
}

fn count(name: &str) -> Result<usize> {
    let scalable = Scalable::named(name).with_context(|| format!("{name} has one instance"))?;
    Ok(scalable.count(&Layout::from_env()?))
}

/// Waits until all instances are members of their group.
async fn joined(harness: &Harness, name: &'static str, count: usize) -> Result<()> {
    let is_met = async || Ok(members(&harness.stack, name).await?.len() == count);
    harness.until(SERVES_TIMEOUT, &format!("{count} members of the group {name}"), is_met).await
}

/// Waits until every further instance has answered requests.
async fn serve(harness: &mut Harness, name: &str, at_first: usize, most: usize) -> Result<()> {
    let further: BTreeSet<String> = (at_first + 1..=most).map(|number| format!("{name}-{number}")).collect();
    let url = format!("{}/metrics", harness.stack.edge_admin_url);
    let http = http_client::builder().timeout(BROKER_TIMEOUT).build()?;
    let is_met = async || {
        let page = http.get(&url).send().await?.error_for_status()?.text().await?;
        let waiting: Vec<&String> =
            further.iter().filter(|server| answers(&page, name, server) == 0).collect();
        ensure!(waiting.is_empty(), "no answer of {waiting:?} yet");
        Ok(true)
    };
    harness.until(SERVES_TIMEOUT, &format!("answers of {} further instances", further.len()), is_met).await?;
    harness.note(format!("each of {} further instances of {name} has answered requests", further.len()));
    Ok(())
}

/// The answers without an error of a server, as the edge counts them.
fn answers(page: &str, backend: &str, server: &str) -> u64 {
    let parts = [
        "haproxy_server_http_responses_total{".to_owned(),
        format!("proxy=\"{backend}\""),
        format!("server=\"{server}\""),
        "code=\"2xx\"".to_owned(),
    ];
    let line = page.lines().find(|line| parts.iter().all(|part| line.contains(part.as_str())));
    line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0)
}

/// The members of the consumer group of a service, by the ids that the group has given them.
///
/// # Errors
/// When Kafka does not answer.
pub async fn members(stack: &Stack, group: &'static str) -> Result<Vec<String>> {
    let brokers = stack.kafka()?;
    let asked = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = brokers.config().create().context("a client of Kafka")?;
        let groups = client.fetch_group_list(Some(group), BROKER_TIMEOUT).context("the consumer group")?;
        let members = groups.groups().iter().flat_map(|group| group.members());
        anyhow::Ok(members.map(|member| member.id().to_owned()).collect())
    });
    asked.await.context("the reader of groups")?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{DRILLS, Name, runbook};

    #[test]
    fn answers_of_a_server_are_those_of_its_line() {
        let page = "# HELP haproxy_server_http_responses_total Total number.\n\
            haproxy_server_http_responses_total{proxy=\"payments-svc\",server=\"payments-svc\",code=\"2xx\"} 5\n\
            haproxy_server_http_responses_total{proxy=\"payments-svc\",server=\"payments-svc-3\",code=\"5xx\"} 7\n\
            haproxy_server_http_responses_total{proxy=\"payments-svc\",server=\"payments-svc-3\",code=\"2xx\"} 12\n";
        let counted = ["payments-svc", "payments-svc-3", "payments-svc-4"];
        assert_eq!(counted.map(|server| answers(page, "payments-svc", server)), [5, 12, 0]);
    }

    #[test]
    fn the_runbook_scales_what_the_drill_looks_at() {
        let drill = DRILLS.iter().find(|drill| drill.name == Name::Scale).unwrap();
        let section = runbook::section(drill.page, drill.section).unwrap();
        let [out, _restart, back] = section.acts.as_slice() else { panic!("{:?}", section.acts) };
        for (name, at_first, most) in SCALED {
            assert!(out.contains(&format!("cargo stack scale {name} {most}\n")), "{name}");
            assert!(back.contains(&format!("cargo stack scale {name} {at_first}\n")), "{name}");
            let known = Scalable::named(name).unwrap();
            assert_eq!(known.instances().nth(most - 1).unwrap().name, format!("{name}-{most}"));
        }
    }
}
