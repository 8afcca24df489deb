//! Prometheus: scrapes whatever exposes metrics, and judges it by the rules.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Node, kafka, rabbitmq, text};
use crate::certificates;
use crate::extras::Extra;
use crate::layout::{Layout, Port};
use crate::program::find_program;
use crate::services::Instance;
use crate::spec::Spec;

/// Files of rules that `prometheus.yml` names.
const RULES: [&str; 7] =
    ["auditor.yml", "cdc-relay.yml", "consumers.yml", "notifier.yml", "saga.yml", "servers.yml", "slo.yml"];

/// What does not depend on where it listens, and where its files are.
pub const FLAGS: [&str; 3] =
    ["--storage.tsdb.retention.time=3d", "--storage.tsdb.retention.size=512MB", "--log.level=warn"];

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let program = find_program("prometheus").context("Prometheus is not installed")?;
    let home = layout.server_dir("prometheus")?;
    let config = home.join("prometheus.yml");
    layout.write_for_server(&config, &layout.compose_file("prometheus/prometheus.yml")?)?;
    let rules = layout.server_dir("prometheus/rules")?;
    for name in RULES {
        layout.write_for_server(
            &rules.join(name),
            &layout.compose_file(&format!("prometheus/rules/{name}"))?,
        )?;
    }
    write_targets(layout)?;
    if layout.is_encrypted() {
        certificates::give_authority(layout, &home)?;
    }
    let authority = home.join("ca.pem");
    let mut argv = vec![
        text(&program),
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", home.join("data").display()),
        format!("--web.listen-address=127.0.0.1:{}", layout.port(Port::Prometheus)),
    ];
    argv.extend(FLAGS.map(str::to_owned));
    let mut spec = super::spec(layout, "prometheus", home, argv, Port::Prometheus);
    // It has little to do, and the machine has other work.
    spec.env.insert("GOMAXPROCS".to_owned(), "1".to_owned());
    if layout.is_encrypted() {
        spec.env.insert("SSL_CERT_FILE".to_owned(), text(&authority));
    }
    Ok(vec![spec])
}

/// Writes what is scraped. A Prometheus that runs reads the file again when it changes.
///
/// # Errors
/// When it cannot be written.
pub fn write_targets(layout: &Layout) -> Result<()> {
    let targets = serde_json::to_string_pretty(&targets(layout))?;
    layout.write_for_server(&layout.server_dir("prometheus")?.join("targets.json"), &targets)
}

/// The subject of each exporter of which there is one, and its port. The rules of machines look for the job `node`.
const EXPORTERS: [(&str, Port); 3] =
    [("node", Port::NodeExporter), ("postgres", Port::PostgresExporter), ("redis", Port::RedisExporter)];

/// Each service is a job with as many targets as it has instances; so is each server that can be scraped, by itself or by an
/// exporter.
pub fn targets(layout: &Layout) -> Vec<Value> {
    let instances = Instance::of(layout).into_iter();
    let services = instances.map(|instance| (instance.service.program(), instance.name, instance.admin));
    let nodes = || Node::all(layout).iter().copied();
    let brokers = nodes().map(|node| ("kafka", kafka::name(node), kafka::agent::port(node)));
    let exporters = EXPORTERS.map(|(name, port)| (name, name, port)).into_iter().chain(brokers);
    let exporters = exporters.filter(|_| Extra::of(layout).contains(&Extra::Observe));
    let queues = nodes().map(|node| ("rabbitmq", rabbitmq::name(node), rabbitmq::metrics_port(node)));
    let servers = [("haproxy", Port::EdgeAdmin), ("prometheus", Port::Prometheus)];
    let servers = servers.map(|(name, port)| (name, name, port)).into_iter().chain(queues);
    services
        .chain(servers)
        .chain(exporters)
        .map(|(job, instance, port)| {
            let url = layout.http(port, "");
            let (scheme, address) = url.split_once("://").unwrap_or(("http", &url));
            json!({"targets": [address], "labels": {"__scheme__": scheme, "job": job, "instance": instance}})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_rules_is_loaded() {
        let config = include_str!("../../../compose/prometheus/prometheus.yml");
        let listed: Vec<&str> =
            config.lines().filter_map(|line| line.trim_start().strip_prefix("- rules/")).collect();
        assert_eq!(listed, RULES);
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/prometheus/rules");
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string());
        let mut rules: Vec<String> =
            names.map(Result::unwrap).filter(|name| !name.ends_with("_test.yml")).collect();
        rules.sort();
        assert_eq!(rules, RULES);
    }
}
