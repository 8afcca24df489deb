//! Compares what operators are asked for with the servers of a stack and the images of compose.yaml.

use super::*;
use crate::servers::kafka::acl::{self, Resource};
use crate::servers::{Node, opensearch, postgres};

/// The settings of a text with a line for each, as name and value.
fn settings(text: &str, separator: char) -> Vec<(&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once(separator));
    pairs.map(|(name, value)| (name.trim(), value.trim().trim_matches('\''))).collect()
}

fn tag(image: &str) -> &str {
    image.rsplit_once(':').unwrap().1
}

impl Harness {
    fn image_of_compose(&self, service: &str) -> &str {
        text(&self.compose["services"][service]["image"])
    }

    fn memory_of_compose(&self, service: &str) -> u64 {
        mebibytes(text(&self.compose["services"][service]["mem_limit"]))
    }
}

#[test]
fn postgres_has_the_parameters_of_a_stack() {
    let harness = Harness::new("postgres");
    let cluster = &harness.named("Cluster", "postgres")["spec"];
    let given = &cluster["postgresql"]["parameters"];
    // The operator's own: where it listens, how it logs, and what becomes of WAL.
    let operators = [
        "port",
        "listen_addresses",
        "unix_socket_directories",
        "log_line_prefix",
        "archive_mode",
        "archive_command",
    ];
    let all = postgres::settings(5432, Path::new("/"));
    let ours = settings(&all, '=').into_iter().filter(|(name, _)| !operators.contains(name));
    let mut count = 0;
    for (name, value) in ours {
        assert_eq!(given[name], value, "{name}");
        count += 1;
    }
    let more = ["sync_replication_slots", "hot_standby_feedback"];
    assert_eq!(given.as_object().unwrap().len(), count + more.len(), "{given}");
    for name in more {
        assert_eq!(given[name], "on", "without it no slot survives a promotion");
    }
    let synchronous = &cluster["postgresql"]["synchronous"];
    assert_eq!(
        synchronous["dataDurability"], "required",
        "a commit that a machine alone has is lost with it"
    );
    assert_eq!(cluster["replicationSlots"]["highAvailability"]["synchronizeLogicalDecoding"], true);
    let (ours, compose) = (text(&cluster["imageName"]), harness.image_of_compose("postgres"));
    assert!(tag(ours).starts_with(&format!("{}-", tag(compose))), "{ours}, {compose}");
    let limit = mebibytes(text(&cluster["resources"]["limits"]["memory"]));
    assert_eq!(limit, harness.memory_of_compose("postgres"));
}

/// What Strimzi says itself: who a broker is, where it listens, who signs in.
const OF_STRIMZI: [&str; 13] = [
    "process.roles",
    "node.id",
    "controller.",
    "listeners",
    "advertised.",
    "listener.",
    "ssl.",
    "inter.broker.",
    "sasl.",
    "authorizer.",
    "allow.everyone.",
    "super.users",
    "log.dirs",
];

#[test]
fn kafka_has_the_settings_of_a_stack() {
    let harness = Harness::new("kafka");
    let kafka = &harness.named("Kafka", "kafka")["spec"]["kafka"];
    // Of an encrypted stack it would copy certificates, and Strimzi says where they are.
    let plain = compose::layout(&harness.folder.join("plain")).unwrap();
    plain.choose_ha().unwrap();
    let all = kafka::settings(&plain, Node::One, Path::new("/"), Users::Kept).unwrap();
    let ours = settings(&all, '=');
    let ours = ours.into_iter().filter(|(name, _)| !OF_STRIMZI.iter().any(|own| name.starts_with(own)));
    let expected: BTreeMap<&str, String> = ours.map(|(name, value)| (name, value.to_owned())).collect();
    let given = kafka["config"].as_object().unwrap();
    let given: BTreeMap<&str, String> = given
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().map_or(value.to_string(), str::to_owned)))
        .collect();
    assert_eq!(given, expected);
    assert_eq!(kafka["version"], kafka::VERSION);
    let listener = &kafka["listeners"][0];
    assert_eq!(
        (&listener["tls"], &listener["authentication"]["type"]),
        (&true.into(), &"scram-sha-512".into())
    );
    assert_eq!(items(&kafka["listeners"]).count(), 1, "nobody is let in without signing in");
    let pool = &harness.named("KafkaNodePool", "broker")["spec"];
    assert_eq!(pool["replicas"], 3);
    let limit = mebibytes(text(&pool["resources"]["limits"]["memory"]));
    assert_eq!(limit, harness.memory_of_compose("kafka"));
}

#[test]
fn kafkas_users_may_do_what_those_of_a_stack_may() {
    let harness = Harness::new("users");
    let users: BTreeSet<&str> = harness.all("KafkaUser").map(name_of).collect();
    assert_eq!(users, kafka::USERS.into_iter().chain([kafka::ADMIN]).collect());
    let mut given = BTreeSet::new();
    for user in harness.all("KafkaUser") {
        let password = &user["spec"]["authentication"]["password"]["valueFrom"]["secretKeyRef"];
        assert_eq!(password["key"], name_of(user), "each has a password of its own");
        for rule in items(&user["spec"]["authorization"]["acls"]) {
            let resource = &rule["resource"];
            let star = if resource["patternType"] == "prefix" { "*" } else { "" };
            for operation in words(&rule["operations"]) {
                let name = format!("{}{star}", text(&resource["name"]));
                given.insert((name_of(user), operation.to_owned(), text(&resource["type"]).to_owned(), name));
            }
        }
    }
    // Nobody is let in without signing in.
    let rules = acl::rules().into_iter().filter(|rule| rule.principal != "ANONYMOUS");
    let expected: BTreeSet<_> = rules
        .map(|rule| {
            let resource = if rule.resource == Resource::Topic { "topic" } else { "group" };
            (rule.principal, format!("{:?}", rule.operation), resource.to_owned(), rule.name.to_owned())
        })
        .collect();
    assert_eq!(given, expected);
}

#[test]
fn rabbitmq_has_the_limits_of_a_stack() {
    let harness = Harness::new("rabbitmq");
    let cluster = &harness.named("RabbitmqCluster", "rabbitmq")["spec"];
    let given = settings(text(&cluster["rabbitmq"]["additionalConfig"]), '=');
    let path = Path::new("/etc/rabbitmq-definitions/definitions.json");
    let all = rabbitmq::limits(path);
    assert_eq!(given, settings(&all, '='));
    assert_eq!(text(&cluster["image"]), harness.image_of_compose("rabbitmq"));
    assert_eq!(cluster["tls"]["disableNonTLSListeners"], true);
    assert_eq!(cluster["replicas"], 3);
    let limit = mebibytes(text(&cluster["resources"]["limits"]["memory"]));
    assert_eq!(limit, harness.memory_of_compose("rabbitmq"));
    let budget = &harness.named("PodDisruptionBudget", "rabbitmq")["spec"];
    assert_eq!(budget["maxUnavailable"], 1, "its operator makes none");
}

#[test]
fn opensearch_has_the_settings_of_a_stack() {
    let harness = Harness::new("opensearch");
    let cluster = &harness.named("OpenSearchCluster", "opensearch")["spec"];
    let all = opensearch::settings(&harness.layout, Path::new("/d"));
    // The operator's own, and what only one node has.
    let operators = ["cluster.", "node.name", "network.", "http.", "transport.", "discovery.", "path."];
    let ours = settings(&all, ':').into_iter();
    let expected: BTreeMap<&str, &str> =
        ours.filter(|(name, _)| !operators.iter().any(|own| name.starts_with(own))).collect();
    let given = cluster["general"]["additionalConfig"].as_object().unwrap();
    let given: BTreeMap<&str, &str> =
        given.iter().map(|(name, value)| (name.as_str(), text(value))).collect();
    assert_eq!(given, expected);
    assert_eq!(cluster["general"]["version"], opensearch::VERSION);
    assert_eq!(cluster["general"]["setVMMaxMapCount"], false, "it would need a privileged container");
    let pool = &cluster["nodePools"][0];
    let limit = mebibytes(text(&pool["resources"]["limits"]["memory"]));
    assert_eq!(limit, harness.memory_of_compose("opensearch"));
    let users: BTreeSet<&str> = harness.all("OpensearchUser").map(name_of).collect();
    assert_eq!(users, SEARCH_USERS.into_iter().filter(|user| *user != "admin").collect());
}

#[test]
fn images_of_others_are_those_of_compose() {
    let harness = Harness::new("images");
    for name in ["haproxy", "valkey"] {
        assert_eq!(text(&container(harness.workload(name))["image"]), harness.image_of_compose(name));
    }
    let migrate = harness.workload(&format!("migrate-{}", env!("CARGO_PKG_VERSION").replace('.', "-")));
    assert_eq!(container(migrate)["image"], format!("coro/migrate:{}", env!("CARGO_PKG_VERSION")));
    let variables: BTreeSet<&str> = environment_of(migrate).into_keys().collect();
    let compose = harness.compose["services"]["migrate"]["environment"].as_object().unwrap();
    assert_eq!(variables, compose.keys().map(String::as_str).collect());
}

#[test]
fn a_certificate_has_the_name_that_its_clients_call() {
    let harness = Harness::new("certificates");
    for (port, host, _) in PLACES.iter().filter(|(port, ..)| *port != Port::Smtp) {
        let names =
            harness.all("Certificate").flat_map(|certificate| words(&certificate["spec"]["dnsNames"]));
        assert!(names.into_iter().any(|name| name == *host), "no certificate is for {host}, {port:?}");
    }
    for certificate in harness.all("Certificate") {
        let (name, issuer) = (name_of(certificate), text(&certificate["spec"]["issuerRef"]["name"]));
        let expected = if name == "coro-authority" { "self-signed" } else { "coro" };
        assert_eq!(issuer, expected, "{name}");
    }
}
