//! Compares compose.yaml with what a stack starts, so that neither says what the other does not.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::servers::{haproxy, opensearch, zipkin};
use crate::services::Service;

/// compose.yaml, and the files that `prepare` writes for it.
struct Harness {
    folder: PathBuf,
    layout: Layout,
    files: BTreeMap<String, String>,
    yaml: Value,
}

impl Harness {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("stack-compose-{test}-{}", std::process::id()));
        let files = prepare(&folder).unwrap();
        let layout = layout(&folder).unwrap();
        let text = fs::read_to_string(root().join("compose/compose.yaml")).unwrap();
        Self { folder, layout, files, yaml: serde_saphyr::from_str(&text).unwrap() }
    }

    fn service(&self, name: &str) -> &Value {
        let service = &self.yaml["services"][name];
        assert!(service.is_object(), "compose.yaml has no service {name}");
        service
    }

    fn services(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.yaml["services"].as_object().unwrap().iter()
    }

    /// The variables of a service, in compose.yaml.
    fn environment(&self, name: &str) -> BTreeMap<String, String> {
        let all = self.service(name)["environment"].as_object().cloned().unwrap_or_default();
        all.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect()
    }

    fn networks(&self, name: &str) -> BTreeSet<&str> {
        words(&self.service(name)["networks"]).into_iter().collect()
    }

    /// The names of the secrets that a service has.
    fn secrets(&self, service: &Value) -> BTreeSet<String> {
        let all = service["secrets"].as_array().cloned().unwrap_or_default();
        let name = |secret: &Value| secret.as_str().or(secret["source"].as_str()).unwrap().to_owned();
        all.iter().map(name).collect()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What the environment of whoever runs the test may add to a stack's.
const GIVEN: [&str; 7] = [
    "RUST_LOG",
    "LOG_FORMAT",
    "HOLD_DELAY_MAX_SECONDS",
    "TRACE_SAMPLE_RATIO",
    "SSL_CERT_FILE",
    "CORS_ORIGINS",
    "CORS_CREDENTIALS_ORIGINS",
];

#[test]
fn each_service_has_the_variables_that_a_stack_gives_it() {
    let harness = Harness::new("variables");
    for instance in INSTANCES {
        let mut expected = BTreeMap::from([("ADMIN_HOSTS".to_owned(), instance.name.to_owned())]);
        let mut secrets = BTreeSet::new();
        for (name, given) in variables(&harness.layout, instance).unwrap() {
            match given {
                Given::Text(_) if GIVEN.contains(&name.as_str()) || name.starts_with("AUTH") => {}
                Given::Text(value) => drop(expected.insert(name, value)),
                Given::File { name: file, .. } => {
                    let variable = if name == "KAFKA_CONFIG" { name } else { format!("{name}_FILE") };
                    expected.insert(variable, format!("{MOUNTED}/{file}"));
                    secrets.insert(file);
                }
            }
        }
        assert_eq!(harness.environment(instance.name), expected, "{}", instance.name);
        let service = harness.service(instance.name);
        assert_eq!(harness.secrets(service), secrets, "{}", instance.name);
        let is_relay = matches!(instance.service, Service::Relay | Service::FraudRelay);
        assert_eq!(words(&service["command"]), if is_relay { vec!["run"] } else { vec![] });
        assert_eq!(service["build"]["target"], instance.service.program());
        assert_eq!(service["stop_grace_period"], "20s", "{}", instance.name);
        let check = words(&service["healthcheck"]["test"]);
        let port = harness.layout.port(instance.admin).to_string();
        let path = Some(instance.ready_path()).filter(|path| *path != "/ready");
        let expected: Vec<&str> = ["CMD", "ready", &port].into_iter().chain(path).collect();
        assert_eq!(check, expected, "{}", instance.name);
    }
}

#[test]
fn the_profiles_are_the_parts_of_a_stack() {
    let harness = Harness::new("profiles");
    let named = |extra: Extra| extra.to_possible_value().unwrap().get_name().to_owned();
    for instance in INSTANCES {
        let expected: Vec<String> = instance.service.extra().map(named).into_iter().collect();
        assert_eq!(words(&harness.service(instance.name)["profiles"]), expected, "{}", instance.name);
    }
    let all: BTreeSet<&str> =
        harness.services().flat_map(|(_, service)| words(&service["profiles"])).collect();
    let parts = Extra::value_variants().iter().map(|extra| named(*extra));
    let expected: BTreeSet<String> = parts.chain(["tools".to_owned()]).collect();
    assert_eq!(all.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), expected);
}

#[test]
fn a_service_reaches_the_servers_that_it_has_to_and_no_others() {
    let harness = Harness::new("networks");
    let servers =
        ["postgres", "kafka", "rabbitmq", "valkey", "opensearch", "mailpit", "collector", "gateway-sim"];
    for instance in INSTANCES {
        let given: Vec<String> =
            variables(&harness.layout, instance).unwrap().into_values().map(text).collect();
        for server in servers.into_iter().filter(|server| *server != instance.name) {
            let needs = given.iter().any(|text| text.contains(&format!("{server}:")));
            let shared = !harness.networks(instance.name).is_disjoint(&harness.networks(server));
            assert_eq!(shared, needs, "{} and {server}", instance.name);
        }
    }
    for (name, network) in harness.yaml["networks"].as_object().unwrap() {
        assert_eq!(network["internal"] == true, name != "outside", "{name}");
    }
    // Receivers of webhooks are outside; the others publish a port.
    let out: Vec<&String> = harness
        .services()
        .filter(|(_, service)| words(&service["networks"]).contains(&"outside"))
        .filter(|(_, service)| service["ports"].is_null())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(out, ["notifier"]);
}

#[test]
fn exporters_collect_what_those_of_a_stack_do_and_reach_their_own_server() {
    let harness = Harness::new("exporters");
    let placed_environment = |given: [(&'static str, String); 3]| -> BTreeMap<String, String> {
        let given = given.map(|(name, value)| (name.to_owned(), placed(&harness.layout, &value)));
        given.into_iter().chain([("GOMAXPROCS".to_owned(), "1".to_owned())]).collect()
    };
    let mounted = |name: &str| Path::new(MOUNTED).join(name);
    let postgres =
        exporters::postgres_environment(&harness.layout, Path::new("/"), &mounted("coro-monitor-password"));
    assert_eq!(harness.environment("postgres-exporter"), placed_environment(postgres));
    let redis = exporters::redis_environment(&harness.layout, &mounted("redis-exporter-passwords.json"));
    assert_eq!(harness.environment("redis-exporter"), placed_environment(redis));

    let command = words(&harness.service("node-exporter")["command"]);
    let collectors = command.iter().filter(|flag| flag.starts_with("--collector.") && !flag.contains('='));
    assert_eq!(collectors.copied().collect::<Vec<_>>(), exporters::COLLECTORS);
    let command = words(&harness.service("postgres-exporter")["command"]);
    assert!(command.contains(&"--disable-default-metrics"), "{command:?}");
    for (name, networks) in [
        ("node-exporter", &["observe"][..]),
        ("postgres-exporter", &["observe", "postgres"]),
        ("redis-exporter", &["observe", "valkey"]),
    ] {
        assert_eq!(harness.networks(name), networks.iter().copied().collect(), "{name}");
    }
    let dockerfile = fs::read_to_string(root().join("compose/Dockerfile")).unwrap();
    let agent = format!("jmx_prometheus_javaagent:{} ", kafka::agent::VERSION);
    assert!(dockerfile.contains(&agent), "{agent}");
}

#[test]
fn prometheus_runs_as_in_a_stack_and_reaches_what_it_scrapes() {
    let harness = Harness::new("prometheus");
    let command = words(&harness.service("prometheus")["command"]);
    let places = ["--config.file=", "--storage.tsdb.path="];
    let flags = command.into_iter().filter(|flag| !places.iter().any(|place| flag.starts_with(place)));
    assert_eq!(flags.collect::<Vec<_>>(), prometheus::FLAGS);
    assert_eq!(harness.environment("prometheus")["GOMAXPROCS"], "1");

    let targets: Value = serde_json::from_str(&harness.files["prometheus-targets.json"]).unwrap();
    let own = harness.networks("prometheus");
    let mut jobs = BTreeSet::new();
    for target in targets.as_array().unwrap() {
        let address = target["targets"][0].as_str().unwrap();
        let (host, port) = address.split_once(':').unwrap();
        let known = PLACES.iter().any(|(_, place, number)| *place == host && number.to_string() == port);
        assert!(known, "{address} is no container's");
        let reached = host == "prometheus" || !own.is_disjoint(&harness.networks(host));
        assert!(reached, "Prometheus is on no network of {host}");
        // Where a container answers with what is scraped, its health check asks there too.
        if host.ends_with("-exporter") && !harness.service(host)["healthcheck"].is_null() {
            let check = words(&harness.service(host)["healthcheck"]["test"]);
            assert!(check.last().unwrap().contains(&format!(":{port}/")), "{check:?}");
        }
        jobs.insert(target["labels"]["job"].as_str().unwrap().to_owned());
    }
    for job in ["kafka", "node", "postgres", "redis", "haproxy", "rabbitmq", "prometheus"] {
        assert!(jobs.contains(job), "{job} is not scraped");
    }
    let grafana = harness.environment("grafana");
    let own = harness.layout.port(Port::Prometheus);
    assert_eq!(grafana["PROMETHEUS_URL"], placed(&harness.layout, &format!("http://127.0.0.1:{own}")));
}

/// The agent is a program in Kafka's own process: the start of the container loads it as a stack does.
#[test]
fn kafkas_exporter_has_the_port_and_the_beans_that_are_scraped() {
    let harness = Harness::new("agent");
    let start = fs::read_to_string(root().join("compose/kafka/start.sh")).unwrap();
    let (_, _, port) = PLACES.iter().find(|(port, ..)| *port == Port::KafkaMetrics).unwrap();
    assert!(start.contains(&format!("-javaagent:$agent={port}:/opt/coro/metrics.yml")), "{start}");
    let volumes = words(&harness.service("kafka")["volumes"]);
    for volume in ["kafka-agent:/opt/coro/agent:ro", "./kafka/metrics.yml:/opt/coro/metrics.yml:ro"] {
        assert!(volumes.contains(&volume), "{volumes:?}");
    }
    let agent = harness.service("kafka-agent");
    assert_eq!(
        (words(&agent["profiles"]), words(&agent["volumes"])),
        (vec!["observe"], vec!["kafka-agent:/var/lib/coro"])
    );
    let waits = &harness.service("kafka")["depends_on"]["kafka-agent"];
    assert_eq!(waits["required"], false, "without the profile Kafka starts all the same");
}

#[test]
fn zipkin_keeps_as_much_as_that_of_a_stack() {
    let harness = Harness::new("zipkin");
    let given = harness.environment("zipkin");
    assert_eq!(given["MEM_MAX_SPANS"], zipkin::SPANS_MAX.to_string());
    assert!(given["JAVA_OPTS"].contains(&format!("-Xmx{} ", zipkin::HEAP)), "{}", given["JAVA_OPTS"]);
}

fn text(given: Given) -> String {
    match given {
        Given::Text(text) | Given::File { text, .. } => text,
    }
}

#[test]
fn the_edge_has_the_variables_of_a_stacks_edge() {
    let harness = Harness::new("edge");
    let ours = haproxy::environment(&harness.layout, Path::new("/"));
    let mut given = harness.environment("haproxy");
    assert_eq!(given.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    // They depend on the machine, or on containers.
    for name in ["EDGE_CONNECTIONS", "EDGE_ADMIN_HOST", "SERVICES_DNS", "SERVICES_INSTANCES", "EDGE_ORIGINS"]
    {
        given.remove(name);
    }
    for (name, value) in given {
        let own = placed(&harness.layout, &ours[&name]).replace("haproxy:", "0.0.0.0:");
        assert_eq!(value, own, "{name}");
    }
}

#[test]
fn the_operators_command_has_the_addresses_of_a_stack() {
    let harness = Harness::new("coroctl");
    let shown = environment::variables(&harness.layout).unwrap();
    let given = harness.environment("coroctl");
    assert_eq!(given, harness.environment("first-payment"));
    for (name, value) in given.into_iter().filter(|(_, value)| value != "none") {
        let secret = name.strip_suffix("_FILE").and_then(|name| shown.get(name));
        match secret {
            Some(text) => {
                let file = value.strip_prefix("/run/secrets/").unwrap();
                assert_eq!(harness.files[file], placed(&harness.layout, text), "{name}");
            }
            None => assert_eq!(value, placed(&harness.layout, &shown[name.as_str()]), "{name}"),
        }
    }
}

#[test]
fn every_file_is_mounted_and_every_secret_is_made() {
    let harness = Harness::new("files");
    let made: BTreeSet<&String> = harness.files.keys().collect();
    let declared = harness.yaml["secrets"].as_object().unwrap();
    assert_eq!(declared.keys().collect::<BTreeSet<_>>(), made);
    for (name, secret) in declared {
        assert_eq!(secret["file"], format!("./secrets/{name}"));
    }
    let used: BTreeSet<String> =
        harness.services().flat_map(|(_, service)| harness.secrets(service)).collect();
    assert_eq!(used.iter().collect::<BTreeSet<_>>(), made);
    for (service, name) in harness
        .services()
        .flat_map(|(service, value)| harness.secrets(value).into_iter().map(move |name| (service, name)))
    {
        assert!(made.contains(&name), "{service}: {name}");
    }
    for (name, text) in &harness.files {
        assert!(!text.contains("127.0.0.1:21"), "{name} has an address of a stack:\n{text}");
    }
}

#[test]
fn secrets_are_kept_and_their_folder_is_private() {
    let harness = Harness::new("kept");
    assert_eq!(prepare(&harness.folder).unwrap(), harness.files);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&harness.folder), 0o700);
    assert_eq!(mode(&harness.folder.join("admin-token")), 0o444, "users of the containers read it");
}

/// Those that may write outside of their volumes: the image's start does.
const WRITERS: [&str; 1] = ["opensearch"];

#[test]
fn nobody_is_root_or_may_become_it() {
    let harness = Harness::new("hardened");
    for (name, service) in harness.services() {
        let user = service["user"].as_str().unwrap_or_default();
        assert!(!user.is_empty() && !user.starts_with("0:") && user != "0", "{name} is {user:?}");
        assert_eq!(service["read_only"] == true, !WRITERS.contains(&name.as_str()), "{name}");
        assert_eq!(words(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(words(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        assert!(service["mem_limit"].is_string() && service["pids_limit"].is_number(), "{name}: limits");
        assert!(service["privileged"].is_null() && service["cap_add"].is_null(), "{name}");
        let cannot_be_asked =
            service["restart"] == "no" || ["collector", "redis-exporter"].contains(&name.as_str());
        assert_eq!(service["healthcheck"].is_null(), cannot_be_asked, "{name}");
        for port in words(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} publishes {port}");
        }
    }
}

#[test]
fn images_have_exact_tags_and_the_versions_of_a_stack() {
    let harness = Harness::new("images");
    let image = |name: &str| harness.service(name)["image"].as_str().unwrap().to_owned();
    assert_eq!(image("kafka"), format!("apache/kafka:{}", kafka::VERSION));
    assert_eq!(image("opensearch"), format!("opensearchproject/opensearch:{}", opensearch::VERSION));
    assert_eq!(image("collector"), format!("otel/opentelemetry-collector:{}", collector::VERSION));
    assert_eq!(image("zipkin"), format!("openzipkin/zipkin:{}", zipkin::VERSION));
    let version = env!("CARGO_PKG_VERSION");
    for (name, service) in harness.services() {
        let image = image(name);
        let Some(tag) = image.strip_prefix("coro/") else {
            let tag = image.rsplit_once(':').unwrap().1;
            assert!(tag.split('.').count() >= 2 && !image.contains('$'), "{name}: {image}");
            continue;
        };
        let target = service["build"]["target"].as_str().unwrap();
        assert_eq!(tag, format!("{target}:${{CORO_VERSION:-{version}}}"));
    }
    let dockerfile = fs::read_to_string(root().join("compose/Dockerfile")).unwrap();
    for program in PROGRAMS {
        assert!(dockerfile.contains(&format!("FROM runtime AS {program}\n")), "{program}");
    }
    let toolchain = fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let rust = toolchain.split('"').nth(1).unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{rust}-slim-bookworm AS built\n")), "{rust}");
    assert!(dockerfile.contains(&format!("ENV RUSTUP_TOOLCHAIN={rust}\n")), "{rust}");
    assert!(dockerfile.contains(&format!("image.version=\"{version}\"")), "{version}");
}
