//! Apache Kafka (KRaft) from Maven Central: the jars are all there is to it.
//!
//! A stack has one node, a highly available one three, any of which may be lost: each record is on all of them, and is acknowledged
//! once every replica in sync has it, which are two at least.
//!
//! It has two listeners. One is for whoever does not sign in, and only reads; at the other the relay, the services, a
//! subscriber and the administrator sign in by name. The broker itself signs in to its controller: without that the controller would
//! have to trust everyone who does not.
//!
//! In a stack the broker keeps the passwords of all but itself, so that they may be changed while it runs (`scram`). In containers
//! they are in its settings ([`Users`]).

pub mod acl;
pub mod agent;
pub mod members;
mod protocol;
pub mod scram;

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::java::java;
use super::{Node, text};
use crate::certificates;
use crate::launch;
use crate::layout::{Layout, Port, write_private};
use crate::maven::{Artifact, Content, Download};
use crate::output::Step;
use crate::spec::Spec;

pub const VERSION: &str = "4.3.1";
const LOG4J: &str = "2.25.4";
/// What Kafka's server needs.
pub const JAVA: RangeInclusive<u32> = 17..=u32::MAX;
/// The broker itself; nobody else has its password.
const BROKER: &str = "kafka";
/// May do everything.
pub const ADMIN: &str = "admin";
/// A subscriber: the principal that docs/SUBSCRIBE.md signs in with.
pub const SUBSCRIBER: &str = "subscriber";
/// Everyone else who can sign in.
pub const USERS: [&str; 10] = [
    "relay",
    "payments-svc",
    "balance-svc",
    "processor-svc",
    "search-indexer",
    "notifier",
    "fraud",
    "auditor",
    "tracer",
    SUBSCRIBER,
];

/// Whoever does not sign in, on an encrypted stack: the file that says whom to trust.
pub const READER: &str = "reader";

pub fn name(node: Node) -> &'static str {
    node.of(["kafka", "kafka-2", "kafka-3"])
}

/// That of whoever does not sign in.
pub fn port(node: Node) -> Port {
    node.of([Port::Kafka, Port::Kafka2, Port::Kafka3])
}

fn sasl_port(node: Node) -> Port {
    node.of([Port::KafkaSasl, Port::KafkaSasl2, Port::KafkaSasl3])
}

fn controller_port(node: Node) -> Port {
    node.of([Port::KafkaController, Port::KafkaController2, Port::KafkaController3])
}

pub fn ports(node: Node) -> &'static [Port] {
    node.of([
        &[Port::Kafka, Port::KafkaSasl, Port::KafkaController, Port::KafkaMetrics],
        &[Port::Kafka2, Port::KafkaSasl2, Port::KafkaController2, Port::KafkaMetrics2],
        &[Port::Kafka3, Port::KafkaSasl3, Port::KafkaController3, Port::KafkaMetrics3],
    ])
}

/// The addresses of all nodes, for whoever does not sign in.
pub fn addresses(layout: &Layout) -> String {
    Node::addresses(layout, port)
}

/// Where the passwords of the users are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// In the settings of the broker, which it reads at its start: nobody has to give them to it.
    Listed,
    /// Kept by the broker, to which they are given when it has started.
    Kept,
}

impl Users {
    /// Those of a stack: what its broker was started with, and from its next start on `Kept`.
    pub fn of(layout: &Layout) -> Self {
        match settings_of_last_start(layout, Node::One) {
            Some(settings) if !settings.contains(Self::Kept.mechanism()) => Self::Listed,
            Some(_) | None => Self::Kept,
        }
    }

    fn mechanism(self) -> &'static str {
        match self {
            Self::Listed => "PLAIN",
            Self::Kept => "SCRAM-SHA-512",
        }
    }

    /// The class by which Java signs in.
    fn module(self) -> &'static str {
        match self {
            Self::Listed => "org.apache.kafka.common.security.plain.PlainLoginModule",
            Self::Kept => "org.apache.kafka.common.security.scram.ScramLoginModule",
        }
    }

    fn login(self, user: &str, password: &str) -> String {
        format!("{} required username=\"{user}\" password=\"{password}\"", self.module())
    }
}

/// Where the jars of this version are, or will be.
pub fn jars(layout: &Layout) -> PathBuf {
    layout.cache.join(format!("kafka-{VERSION}"))
}

pub fn downloaded(layout: &Layout) -> bool {
    jars(layout).is_dir()
}

/// Downloads the jars once for all stacks.
///
/// # Errors
/// As [`Download::ensure`].
pub fn download(layout: &Layout, step: &Step) -> Result<String> {
    let target = jars(layout);
    // Kafka's own poms bring no SLF4J binding; without one there is no log at all.
    let artifacts = [
        Artifact::jar("org.apache.kafka", "kafka_2.13", VERSION),
        Artifact::jar("org.apache.kafka", "kafka-tools", VERSION),
        Artifact::jar("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J),
    ];
    let download = Download { content: Content::Jars(&artifacts), target: &target };
    let what = format!("Kafka {VERSION} from Maven, 85 MB: up to a minute");
    download.ensure(layout, step, &what, |_| Ok(()))?;
    Ok(format!("{VERSION} in {}", target.display()))
}

/// Whether the settings of a node, as they were last written, keep anyone from anything.
pub fn has_authorizer(layout: &Layout, node: Node) -> bool {
    settings_of_last_start(layout, node).is_some_and(|settings| settings.contains("authorizer.class.name"))
}

fn settings_of_last_start(layout: &Layout, node: Node) -> Option<String> {
    fs::read_to_string(layout.data.join(name(node)).join("server.properties")).ok()
}

/// The file by which this user signs in, in the format of librdkafka and `kcat -F`.
pub fn client_file(layout: &Layout, user: &str) -> PathBuf {
    layout.dir.join("kafka").join(format!("{user}.properties"))
}

/// Writes the files of all users; only the caller can read them.
///
/// # Errors
/// When one cannot be written.
pub fn write_client_files(layout: &Layout, users: Users) -> Result<()> {
    let folder = layout.dir.join("kafka");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mut tls, mut protocol) = (String::new(), "SASL_PLAINTEXT");
    if layout.is_encrypted() {
        tls = format!("ssl.ca.location={}\n", layout.authority().display());
        protocol = "SASL_SSL";
        let text = format!("bootstrap.servers={}\nsecurity.protocol=SSL\n{tls}", addresses(layout));
        write_private(&client_file(layout, READER), &text)?;
    }
    for user in USERS.into_iter().chain([ADMIN]) {
        let (servers, password) = (Node::addresses(layout, sasl_port), secret(layout, user)?);
        let (login, mechanism) = (users.login(user, &password), users.mechanism());
        let text = format!(
            "# {user}, in the format of librdkafka: kcat -F, KAFKA_CONFIG.
bootstrap.servers={servers}
security.protocol={protocol}
{tls}sasl.mechanism={mechanism}
sasl.username={user}
sasl.password={password}
# Kafka's own tools want this line instead of the last two:
# sasl.jaas.config={login};
"
        );
        write_private(&client_file(layout, user), &text)?;
    }
    Ok(())
}

fn secret(layout: &Layout, user: &str) -> Result<String> {
    layout.secret(&secret_name(user))
}

/// The name of a user's secret, see [`Layout::secret`].
pub fn secret_name(user: &str) -> String {
    format!("kafka-{user}")
}

pub fn prepare(layout: &Layout, node: Node, step: &Step) -> Result<Vec<Spec>> {
    write_client_files(layout, Users::Kept)?;
    let java = java(&JAVA).context("Java 17 or newer is not installed")?;
    let home = layout.server_dir(name(node))?;
    let classes = format!("{}/*", jars(layout).display());
    let properties = home.join("server.properties");
    let logging = home.join("log4j2.properties");
    layout.write_for_server(&properties, &settings(layout, node, &home, Users::Kept)?)?;
    layout.write_for_server(&logging, LOGGING)?;
    let logging = format!("-Dlog4j2.configurationFile={}", logging.display());
    let formatted = home.join("logs/meta.properties");
    if formatted.is_file() {
        ensure_of_cluster(layout, &formatted)?;
    } else {
        step.now("formatting its storage");
        let mut argv =
            vec![text(&java), "-Xmx128m".into(), "-XX:TieredStopAtLevel=1".into(), logging.clone()];
        argv.extend(["-cp".into(), classes.clone(), "kafka.tools.StorageTool".into(), "format".into()]);
        if Node::all(layout) == [node] {
            argv.push("--standalone".into());
        }
        argv.extend(["-t".into(), cluster_id(layout)?, "-c".into(), text(&properties)]);
        launch::tool(&home, layout.uid, &argv, &BTreeMap::new()).context("cannot format Kafka's storage")?;
    }
    let mut argv = vec![text(&java), "-Xms384m".into(), "-Xmx512m".into()];
    argv.extend([
        "-XX:+UseG1GC".into(),
        "-XX:MaxGCPauseMillis=20".into(),
        "-XX:+ExitOnOutOfMemoryError".into(),
    ]);
    argv.extend(agent::argument(layout, node, &home)?);
    argv.extend(["-Djava.awt.headless=true".into(), logging, "-cp".into(), classes, "kafka.Kafka".into()]);
    argv.push(text(&properties));
    Ok(vec![super::spec(layout, name(node), home, argv, port(node))])
}

/// Data of a single node, or of another cluster, would wait for a majority that never comes.
fn ensure_of_cluster(layout: &Layout, formatted: &Path) -> Result<()> {
    let describe = || format!("cannot read {}", formatted.display());
    let properties = fs::read_to_string(formatted).with_context(describe)?;
    ensure!(
        !layout.is_ha() || properties.contains(&format!("cluster.id={}\n", cluster_id(layout)?)),
        "the data of Kafka are not those of three nodes of this stack: `cargo stack clean`, then `cargo stack up --ha`"
    );
    Ok(())
}

/// The same for all nodes, and of this stack alone: the 128 bits of a secret, as 22 characters of URL-safe base 64. The first bits are
/// fixed, so that the first character is one of A to P: Kafka's command line refuses a leading hyphen.
fn cluster_id(layout: &Layout) -> Result<String> {
    let random = layout.secret("kafka-cluster")?;
    let bits = u128::from_str_radix(&random, 16).context("the secret kafka-cluster is no number")?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode((bits >> 2).to_be_bytes()))
}

/// Who decides for the cluster: one node by itself, or the majority of three.
fn quorum(layout: &Layout) -> String {
    let voter = |(id, node): (usize, &Node)| {
        let port = layout.port(controller_port(*node));
        format!("{}@127.0.0.1:{port}", id + 1)
    };
    match Node::all(layout) {
        [node] => {
            let port = layout.port(controller_port(*node));
            format!("controller.quorum.bootstrap.servers=127.0.0.1:{port}")
        }
        nodes => {
            let voters: Vec<String> = nodes.iter().enumerate().map(voter).collect();
            format!("controller.quorum.voters={}", voters.join(","))
        }
    }
}

pub fn settings(layout: &Layout, node: Node, home: &Path, users: Users) -> Result<String> {
    let (port, sasl) = (layout.port(port(node)), layout.port(sasl_port(node)));
    let (controller, id) = (layout.port(controller_port(node)), node.of([1, 2, 3]));
    let quorum = quorum(layout);
    // A record has so many copies, and is acknowledged only while so many of them are in sync.
    let (copies, least) = if layout.is_ha() { (3, 2) } else { (1, 1) };
    // By its own name the broker signs in to itself and to its controller.
    let broker = Users::Listed.login(BROKER, &secret(layout, BROKER)?);
    let user = |name: &str| Ok(format!(" user_{name}=\"{}\"", secret(layout, name)?));
    let itself = user(BROKER)?;
    let (listed, kept) = match users {
        Users::Listed => {
            (USERS.into_iter().chain([ADMIN]).map(user).collect::<Result<String>>()?, String::new())
        }
        Users::Kept => (
            String::new(),
            // The broker itself signs in as ever, since it has to before it knows any user.
            format!(
                "listener.name.sasl.sasl.enabled.mechanisms=PLAIN,{}\n\
                 listener.name.sasl.scram-sha-512.sasl.jaas.config={} required;\n",
                users.mechanism(),
                users.module()
            ),
        ),
    };
    let tls = protocols(layout, home)?;
    Ok(format!(
        "process.roles=broker,controller
node.id={id}
{quorum}
listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl}
{tls}controller.listener.names=CONTROLLER
inter.broker.listener.name=SASL
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
listener.name.sasl.plain.sasl.jaas.config={broker}{itself}{listed};
{kept}listener.name.controller.plain.sasl.jaas.config={broker}{itself};
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:{BROKER};User:{ADMIN}
log.dirs={}/logs
num.partitions=1
default.replication.factor={copies}
min.insync.replicas={least}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={least}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={least}
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.segment.bytes=268435456
log.retention.ms=-1
",
        home.display()
    ))
}

/// The protocols of the listeners: by their names, or all by TLS with the files in `home`.
fn protocols(layout: &Layout, home: &Path) -> Result<String> {
    if !layout.is_encrypted() {
        return Ok("listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT\n".to_owned());
    }
    certificates::give(layout, "kafka", home)?;
    let home = home.display();
    Ok(format!(
        "listener.security.protocol.map=PLAINTEXT:SSL,SASL:SASL_SSL,CONTROLLER:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={home}/tls.pem
ssl.truststore.type=PEM
ssl.truststore.location={home}/ca.pem
"
    ))
}

pub const LOGGING: &str = "status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %-5p %m (%c{1})%n
rootLogger.level=info
rootLogger.appenderRef.out.ref=out
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_never_looks_like_a_flag() {
        let dir = std::env::temp_dir().join(format!("stack-kafka-{}", std::process::id()));
        let layout = Layout::new(Some(dir), 22_000).unwrap();
        for _ in 0..200 {
            let id = cluster_id(&layout).unwrap();
            assert_eq!((id.len(), &id), (22, &cluster_id(&layout).unwrap()));
            assert!(id.starts_with(|c: char| c.is_ascii_uppercase()), "{id}");
            layout.renew_secret("kafka-cluster").unwrap();
        }
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn three_nodes_have_one_quorum_and_data_of_another_cluster_are_refused() {
        let dir = std::env::temp_dir().join(format!("stack-quorum-{}", std::process::id()));
        let layout = Layout::new(Some(dir.clone()), 22_000).unwrap();
        let layout = Layout { data: dir.join("data"), ..layout };
        let alone = settings(&layout, Node::One, Path::new("/k"), Users::Kept).unwrap();
        assert!(alone.contains("\ncontroller.quorum.bootstrap.servers=127.0.0.1:22005\n"), "{alone}");
        assert!(alone.contains("\nmin.insync.replicas=1\n"), "{alone}");
        layout.choose_ha().unwrap();
        for (id, node) in [(1, Node::One), (2, Node::Two), (3, Node::Three)] {
            let text = settings(&layout, node, Path::new("/k"), Users::Kept).unwrap();
            for line in [
                &format!("node.id={id}"),
                "controller.quorum.voters=1@127.0.0.1:22005,2@127.0.0.1:22084,3@127.0.0.1:22088",
                "min.insync.replicas=2",
                "default.replication.factor=3",
            ] {
                assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
            }
        }
        assert_eq!(addresses(&layout), "127.0.0.1:22004,127.0.0.1:22082,127.0.0.1:22086");
        let formatted = layout.dir.join("meta.properties");
        fs::write(&formatted, "version=1\ncluster.id=AnotherClusterOfAnother\n").unwrap();
        let refused = ensure_of_cluster(&layout, &formatted).unwrap_err().to_string();
        assert!(refused.contains("cargo stack clean"), "{refused}");
        fs::write(&formatted, format!("cluster.id={}\n", cluster_id(&layout).unwrap())).unwrap();
        ensure_of_cluster(&layout, &formatted).unwrap();
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
