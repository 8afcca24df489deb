//! Compares the manifests of compose/kubernetes with what a stack starts and with compose.yaml, so that none says what the others do not.

mod servers;

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::servers::{haproxy, prometheus};

/// The manifests, and the secrets that `prepare` writes for them.
struct Harness {
    folder: PathBuf,
    layout: Layout,
    /// By key in the store.
    stored: BTreeMap<String, String>,
    manifests: Vec<Value>,
    compose: Value,
}

impl Harness {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("stack-kubernetes-{test}-{}", std::process::id()));
        let stored = prepare(&folder).unwrap();
        let layout = layout(&folder).unwrap();
        let compose = fs::read_to_string(root().join("compose/compose.yaml")).unwrap();
        let manifests = files_of_tree().iter().flat_map(|path| documents(path)).collect();
        Self { folder, layout, stored, manifests, compose: serde_saphyr::from_str(&compose).unwrap() }
    }

    fn all(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.manifests.iter().filter(move |manifest| manifest["kind"] == kind)
    }

    fn named(&self, kind: &str, name: &str) -> &Value {
        let found = self.all(kind).find(|manifest| name_of(manifest) == name);
        found.unwrap_or_else(|| panic!("compose/kubernetes has no {kind} {name}"))
    }

    /// What pods are made by, of ours and of servers without an operator.
    fn workloads(&self) -> impl Iterator<Item = &Value> {
        let kinds = ["Deployment", "StatefulSet", "Job"];
        self.manifests.iter().filter(move |manifest| kinds.iter().any(|kind| manifest["kind"] == *kind))
    }

    fn workload(&self, name: &str) -> &Value {
        let found = self.workloads().find(|manifest| name_of(manifest) == name);
        found.unwrap_or_else(|| panic!("compose/kubernetes has no pods of {name}"))
    }

    /// The instances that pods run.
    fn instances() -> impl Iterator<Item = Instance> {
        INSTANCES.into_iter().filter(has_pods)
    }

    /// The files of an external secret, each with its key in the store.
    fn secret(&self, name: &str) -> BTreeMap<&str, &str> {
        let data = items(&self.named("ExternalSecret", name)["spec"]["data"]);
        data.map(|entry| (text(&entry["secretKey"]), text(&entry["remoteRef"]["key"]))).collect()
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

/// The manifests' files, without those of Kustomize.
fn files_of_tree() -> Vec<PathBuf> {
    let tree = root().join("compose/kubernetes");
    let folders =
        fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let entries = folders.flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.retain(|path| !path.ends_with("kustomization.yaml"));
    files.sort();
    files
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn words(list: &Value) -> Vec<&str> {
    items(list).filter_map(Value::as_str).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn name_of(manifest: &Value) -> &str {
    text(&manifest["metadata"]["name"])
}

fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

fn container(workload: &Value) -> &Value {
    &pod(workload)["containers"][0]
}

fn environment_of(workload: &Value) -> BTreeMap<&str, &str> {
    let all = items(&container(workload)["env"]).filter(|variable| variable["value"].is_string());
    all.map(|variable| (text(&variable["name"]), text(&variable["value"]))).collect()
}

/// Mebibytes, as compose.yaml or a manifest writes them.
fn mebibytes(size: &str) -> u64 {
    let digits: u64 = size.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap();
    if size.to_lowercase().contains('g') { digits * 1024 } else { digits }
}

#[test]
fn each_pod_has_the_variables_that_a_stack_gives_a_process() {
    let harness = Harness::new("variables");
    for instance in Harness::instances() {
        let name = instance.name;
        let mut expected = BTreeMap::from([("ADMIN_HOSTS".to_owned(), format!("{name},$(POD_IP)"))]);
        let mut secrets = BTreeMap::new();
        for (variable, given) in variables(&harness.layout, instance).unwrap() {
            match given {
                Given::Text(_) if is_of_the_caller(&variable) => {}
                Given::Text(value) => drop(expected.insert(variable, value)),
                Given::File { name: file, .. } => {
                    let variable =
                        if variable == "KAFKA_CONFIG" { variable } else { format!("{variable}_FILE") };
                    expected.insert(variable, format!("/run/secrets/{file}"));
                    secrets.insert(file.clone(), store_key(&file));
                }
            }
        }
        let workload = harness.workload(name);
        let expected: BTreeMap<&str, &str> =
            expected.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(environment_of(workload), expected, "{name}");
        let secrets: BTreeMap<&str, &str> =
            secrets.iter().map(|(file, key)| (file.as_str(), key.as_str())).collect();
        assert_eq!(harness.secret(name), secrets, "{name}");
        let variables = &container(workload)["env"];
        assert_eq!(variables[0]["name"], "POD_IP", "{name}: a variable is known to those behind it");
    }
}

/// Whether the environment of whoever runs the test gives it.
fn is_of_the_caller(variable: &str) -> bool {
    let names =
        ["RUST_LOG", "LOG_FORMAT", "HOLD_DELAY_MAX_SECONDS", "CORS_ORIGINS", "CORS_CREDENTIALS_ORIGINS"];
    names.contains(&variable) || variable.starts_with("AUTH")
}

#[test]
fn each_pod_is_probed_and_ended_as_a_process_of_a_stack_is() {
    let harness = Harness::new("probes");
    for instance in Harness::instances() {
        let name = instance.name;
        let (workload, spec) = (harness.workload(name), instance.spec(&harness.layout).unwrap());
        let container = container(workload);
        let image = format!("coro/{}:{}", instance.service.program(), env!("CARGO_PKG_VERSION"));
        assert_eq!(container["image"], image.as_str(), "{name}");
        let is_relay = matches!(instance.service, Service::Relay | Service::FraudRelay);
        assert_eq!(words(&container["args"]), if is_relay { vec!["run"] } else { vec![] }, "{name}");
        assert_eq!(pod(workload)["terminationGracePeriodSeconds"], spec.stop_seconds, "{name}");
        let ports: BTreeMap<&str, &Value> =
            items(&container["ports"]).map(|port| (text(&port["name"]), &port["containerPort"])).collect();
        let admin = if instance.service == Service::Gateway { "public" } else { "admin" };
        assert_eq!(ports[admin], harness.layout.port(instance.admin), "{name}");
        if let Some(public) = ports.get("public") {
            assert_eq!(**public, harness.layout.port(instance.public), "{name}");
        }
        for (probe, path) in [("livenessProbe", "/health"), ("readinessProbe", instance.ready_path())] {
            let get = &container[probe]["httpGet"];
            let found = (text(&get["path"]), text(&get["port"]), text(&get["scheme"]));
            assert_eq!(found, (path, admin, "HTTPS"), "{name}: {probe}");
            assert_eq!(get["httpHeaders"][0]["value"], "localhost", "{name}: no other name is answered");
        }
    }
}

/// Networks that pods have no label for: who scrapes, and whom anybody may reach, is by policies of their own; mail goes outside.
const NOT_JOINED: [&str; 3] = ["observe", "outside", "mail"];

#[test]
fn pods_are_on_the_networks_of_compose() {
    let harness = Harness::new("networks");
    for workload in harness.workloads() {
        let name = name_of(workload);
        let service = if name.starts_with("migrate-") { "migrate" } else { name };
        let labels = workload["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        let joined: BTreeSet<&str> =
            labels.keys().filter_map(|key| key.strip_prefix("network.coro/")).collect();
        let networks = words(&harness.compose["services"][service]["networks"]);
        let goes_out = service == "notifier";
        let expected = networks
            .into_iter()
            .filter(|network| !NOT_JOINED.contains(network) || (goes_out && *network == "outside"));
        assert_eq!(joined, expected.collect(), "{name}");
        assert_eq!(labels["app.kubernetes.io/part-of"], "coro", "{name} is not under the policy `nobody`");
        for network in joined.into_iter().filter(|network| *network != "edge") {
            let policy = harness.named("NetworkPolicy", &format!("to-{network}"));
            let selected = &policy["spec"]["podSelector"]["matchLabels"];
            assert_eq!(selected[format!("network.coro/{network}")], "joined", "to-{network}");
        }
    }
    for (port, host, number) in PLACES.iter().filter(|(port, ..)| *port != Port::Smtp) {
        let to = |policy: &&Value| {
            items(&policy["spec"]["egress"])
                .any(|rule| items(&rule["ports"]).any(|allowed| allowed["port"] == *number))
        };
        assert!(harness.all("NetworkPolicy").any(|policy| to(&policy)), "nobody reaches {host}, {port:?}");
    }
}

#[test]
fn nobody_is_root_or_may_become_it() {
    let harness = Harness::new("hardened");
    for workload in harness.workloads() {
        let name = name_of(workload);
        let (pod, container) = (pod(workload), container(workload));
        let context = &pod["securityContext"];
        assert_eq!(context["runAsNonRoot"], true, "{name}");
        assert!(context["runAsUser"].as_u64().is_some_and(|user| user > 0), "{name}");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["enableServiceLinks"], false, "{name}");
        let own = &container["securityContext"];
        assert_eq!(own["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(own["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(words(&own["capabilities"]["drop"]), ["ALL"], "{name}");
        assert!(items(&pod["containers"]).count() == 1 && pod["initContainers"].is_null(), "{name}");
    }
    let enforced = "pod-security.kubernetes.io/enforce";
    assert_eq!(harness.named("Namespace", "coro")["metadata"]["labels"][enforced], "restricted");
}

#[test]
fn limits_and_users_are_those_of_compose() {
    let harness = Harness::new("limits");
    for workload in harness.workloads() {
        let name = name_of(workload);
        let service = if name.starts_with("migrate-") { "migrate" } else { name };
        let service = &harness.compose["services"][service];
        let limit = text(&container(workload)["resources"]["limits"]["memory"]);
        assert_eq!(mebibytes(limit), mebibytes(text(&service["mem_limit"])), "{name}");
        let user = &pod(workload)["securityContext"]["runAsUser"];
        assert_eq!(text(&service["user"]).split(':').next().unwrap(), user.to_string(), "{name}");
    }
}

#[test]
fn no_machine_has_all_pods_of_a_service_and_none_are_taken_away_at_once() {
    let harness = Harness::new("spread");
    // Losing the one costs no payment: latency for Valkey, watching for the auditor. The simulated gateway has a ledger.
    let singles = ["valkey", "auditor", "gateway-sim"];
    let several = |workload: &&Value| workload["kind"] != "Job" && !singles.contains(&name_of(workload));
    for workload in harness.workloads().filter(several) {
        let name = name_of(workload);
        let replicas = &workload["spec"]["replicas"];
        let scaled =
            harness.all("ScaledObject").find(|object| object["spec"]["scaleTargetRef"]["name"] == name);
        match scaled {
            // A number here would be set again at each `apply`.
            Some(object) => assert!(replicas.is_null() && object["spec"]["minReplicaCount"] == 2, "{name}"),
            None => assert_eq!(*replicas, 2, "{name}"),
        }
        let budget = &harness.named("PodDisruptionBudget", name)["spec"];
        assert_eq!(budget["maxUnavailable"], 1, "{name}");
        assert_eq!(budget["selector"]["matchLabels"]["app.kubernetes.io/name"], name);
        let spread: Vec<(&str, &str)> = items(&pod(workload)["topologySpreadConstraints"])
            .map(|rule| (text(&rule["topologyKey"]), text(&rule["whenUnsatisfiable"])))
            .collect();
        let expected =
            [("kubernetes.io/hostname", "DoNotSchedule"), ("topology.kubernetes.io/zone", "ScheduleAnyway")];
        assert_eq!(spread, expected, "{name}");
    }
}

#[test]
fn services_are_scaled_by_their_own_lag_and_queue() {
    let harness = Harness::new("scaled");
    let routes = fs::read_to_string(root().join("cdc-relay/relay.toml")).unwrap();
    for object in harness.all("ScaledObject") {
        let (name, spec) = (name_of(object), &object["spec"]);
        let mut by_processor = false;
        for trigger in items(&spec["triggers"]) {
            let metadata = &trigger["metadata"];
            match text(&trigger["type"]) {
                "kafka" => {
                    assert_eq!(metadata["consumerGroup"], name, "the group is called as its service is");
                    let topic = text(&metadata["topic"]);
                    let listed = format!("name = \"${{TOPIC_PREFIX:-}}{topic}\"\npartitions = 4\n");
                    assert!(routes.contains(&listed), "{name}: {topic} has other partitions");
                    let address = placed(
                        &harness.layout,
                        &format!("127.0.0.1:{}", harness.layout.port(Port::KafkaSasl)),
                    );
                    assert_eq!(metadata["bootstrapServers"], address.as_str(), "{name}");
                }
                "rabbitmq" => assert_eq!(metadata["queueName"], rabbitmq::QUEUE, "{name}"),
                kind => {
                    assert_eq!(kind, "cpu", "{name}");
                    by_processor = true;
                }
            }
            if let Some(login) = trigger["authenticationRef"]["name"].as_str() {
                for given in items(&harness.named("TriggerAuthentication", login)["spec"]["secretTargetRef"])
                {
                    let (secret, key) = (text(&given["name"]), text(&given["key"]));
                    assert!(key == "ca.crt" || secret.starts_with(name), "{name} is given {secret}");
                }
            }
        }
        // More members than partitions have nothing to consume; clients have work for more instances.
        let most = spec["maxReplicaCount"].as_u64().unwrap();
        assert!(most <= 4 || (by_processor && name == "payments-svc"), "{name}: {most}");
    }
}

#[test]
fn every_secret_is_made_and_every_value_has_a_pod() {
    let harness = Harness::new("secrets");
    let data = harness.all("ExternalSecret").flat_map(|secret| items(&secret["spec"]["data"]));
    let used: BTreeSet<&str> = data.map(|entry| text(&entry["remoteRef"]["key"])).collect();
    assert_eq!(used, harness.stored.keys().map(String::as_str).collect());
    for secret in harness.all("ExternalSecret") {
        let store = &secret["spec"]["secretStoreRef"];
        assert_eq!((text(&store["kind"]), text(&store["name"])), ("ClusterSecretStore", "coro"));
    }
    for (key, value) in &harness.stored {
        assert!(!value.contains("127.0.0.1:21"), "{key} has an address of a stack:\n{value}");
        let own = harness.layout.dir.display().to_string();
        assert!(!value.contains(&own), "{key} has a path of a stack:\n{value}");
        assert!(key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{key}");
    }
    assert_eq!(prepare(&harness.folder).unwrap(), harness.stored, "made once and kept");
}

#[test]
fn the_edge_has_the_variables_of_a_stacks_edge() {
    let harness = Harness::new("edge");
    let workload = harness.workload("haproxy");
    let variables = items(&container(workload)["env"]).map(|variable| text(&variable["name"]));
    let expected = haproxy::environment(&harness.layout, Path::new("/"));
    assert_eq!(variables.collect::<BTreeSet<_>>(), expected.keys().map(String::as_str).collect());
    let given = environment_of(workload);
    for (name, host, port) in
        [("PAYMENTS_1_ADDR", "payments-svc", Port::Payments), ("BALANCE_ADDR", "balance-svc", Port::Balance)]
    {
        let address = format!("{host}.coro.svc.cluster.local:{}", harness.layout.port(port));
        assert_eq!(given[name], address, "HAProxy adds nothing to a name");
        let names = words(&harness.named("Certificate", host)["spec"]["dnsNames"]);
        assert!(
            given["SERVICES_TLS"].contains(&format!("verifyhost {}", names.last().unwrap())),
            "{names:?}"
        );
    }
    for (name, port) in
        [("PAYMENTS_1_ADMIN_PORT", Port::PaymentsAdmin), ("BALANCE_ADMIN_PORT", Port::BalanceAdmin)]
    {
        assert_eq!(given[name], harness.layout.port(port).to_string());
    }
    // It asks for names every second, and their server keeps answers for five.
    for behind in ["payments-svc", "balance-svc"] {
        let seconds = harness.workload(behind)["spec"]["minReadySeconds"].as_u64();
        assert!(
            seconds.is_some_and(|seconds| seconds >= 15),
            "{behind}: an old pod goes before the edge knows the new one"
        );
    }
    assert_eq!(given["EDGE_PAY_PAGE"], "off", "with AUTH=header whoever opens the page pays as any user");
}

#[test]
fn every_file_is_in_its_kustomization() {
    let tree = root().join("compose/kubernetes");
    let folders: BTreeSet<PathBuf> =
        files_of_tree().iter().map(|file| file.parent().unwrap().to_owned()).collect();
    for folder in &folders {
        let kustomization = documents(&folder.join("kustomization.yaml")).remove(0);
        assert_eq!(kustomization["namespace"], "coro", "{}", folder.display());
        let listed: BTreeSet<PathBuf> = words(&kustomization["resources"])
            .into_iter()
            .filter(|resource| !resource.starts_with(".."))
            .map(|resource| folder.join(resource))
            .collect();
        let files = files_of_tree().into_iter().filter(|file| file.starts_with(folder));
        assert_eq!(listed, files.collect(), "{}", folder.display());
    }
    let whole = documents(&tree.join("kustomization.yaml")).remove(0);
    let names = folders.iter().map(|folder| folder.file_name().unwrap().to_str().unwrap());
    let expected: BTreeSet<&str> = names.filter(|name| *name != "gateway-sim").collect();
    assert_eq!(words(&whole["resources"]).into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn what_listens_has_metrics_that_are_let_through() {
    let harness = Harness::new("metrics");
    let metrics = harness.named("NetworkPolicy", "metrics");
    assert_eq!(metrics["spec"]["ingress"][0]["ports"][0]["port"], "admin");
    let scraped: BTreeSet<String> = prometheus::targets(&harness.layout)
        .iter()
        .map(|target| text(&target["labels"]["instance"]).to_owned())
        .collect();
    for instance in Harness::instances().filter(|instance| instance.service != Service::Gateway) {
        assert!(scraped.contains(instance.name), "{}", instance.name);
        let names =
            items(&container(harness.workload(instance.name))["ports"]).map(|port| text(&port["name"]));
        assert!(names.into_iter().any(|name| name == "admin"), "{}", instance.name);
    }
}
