//! Apache Kafka (KRaft, one node) from Maven Central: the jars are all there is to it.
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

use anyhow::{Context, Result};

use super::java::java;
use super::text;
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
        match settings_of_last_start(layout) {
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

/// Whether its settings, as they were last written, keep anyone from anything.
pub fn has_authorizer(layout: &Layout) -> bool {
    settings_of_last_start(layout).is_some_and(|settings| settings.contains("authorizer.class.name"))
}

fn settings_of_last_start(layout: &Layout) -> Option<String> {
    fs::read_to_string(layout.data.join("kafka/server.properties")).ok()
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
        let port = layout.port(Port::Kafka);
        let text = format!("bootstrap.servers=127.0.0.1:{port}\nsecurity.protocol=SSL\n{tls}");
        write_private(&client_file(layout, READER), &text)?;
    }
    for user in USERS.into_iter().chain([ADMIN]) {
        let (port, password) = (layout.port(Port::KafkaSasl), secret(layout, user)?);
        let (login, mechanism) = (users.login(user, &password), users.mechanism());
        let text = format!(
            "# {user}, in the format of librdkafka: kcat -F, KAFKA_CONFIG.
bootstrap.servers=127.0.0.1:{port}
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

pub fn prepare(layout: &Layout, step: &Step) -> Result<Vec<Spec>> {
    write_client_files(layout, Users::Kept)?;
    let java = java(&JAVA).context("Java 17 or newer is not installed")?;
    let home = layout.server_dir("kafka")?;
    let classes = format!("{}/*", jars(layout).display());
    let properties = home.join("server.properties");
    let logging = home.join("log4j2.properties");
    layout.write_for_server(&properties, &settings(layout, &home, Users::Kept)?)?;
    layout.write_for_server(&logging, LOGGING)?;
    let logging = format!("-Dlog4j2.configurationFile={}", logging.display());
    if !home.join("logs/meta.properties").is_file() {
        step.now("formatting its storage");
        let mut argv =
            vec![text(&java), "-Xmx128m".into(), "-XX:TieredStopAtLevel=1".into(), logging.clone()];
        argv.extend(["-cp".into(), classes.clone(), "kafka.tools.StorageTool".into(), "format".into()]);
        argv.extend(["--standalone".into(), "-t".into(), cluster_id()?, "-c".into(), text(&properties)]);
        launch::tool(&home, layout.uid, &argv, &BTreeMap::new()).context("cannot format Kafka's storage")?;
    }
    let mut argv = vec![text(&java), "-Xms384m".into(), "-Xmx512m".into()];
    argv.extend([
        "-XX:+UseG1GC".into(),
        "-XX:MaxGCPauseMillis=20".into(),
        "-XX:+ExitOnOutOfMemoryError".into(),
    ]);
    argv.extend(agent::argument(layout, &home)?);
    argv.extend(["-Djava.awt.headless=true".into(), logging, "-cp".into(), classes, "kafka.Kafka".into()]);
    argv.push(text(&properties));
    Ok(vec![super::spec(layout, "kafka", home, argv, Port::Kafka)])
}

/// 22 characters of URL-safe base 64. The first is a letter: Kafka's command line refuses a leading hyphen.
fn cluster_id() -> Result<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0_u8; 22];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    // The last character carries only two bits of the 128.
    let character = |(at, byte): (usize, &u8)| match at {
        0 => ALPHABET[usize::from(byte % 26)],
        21 => ALPHABET[usize::from(byte % 4) * 16],
        _ => ALPHABET[usize::from(byte % 64)],
    };
    Ok(bytes.iter().enumerate().map(|item| char::from(character(item))).collect())
}

pub fn settings(layout: &Layout, home: &Path, users: Users) -> Result<String> {
    let (port, sasl) = (layout.port(Port::Kafka), layout.port(Port::KafkaSasl));
    let controller = layout.port(Port::KafkaController);
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
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
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
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
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
        for _ in 0..200 {
            let id = cluster_id().unwrap();
            assert_eq!(id.len(), 22);
            assert!(id.starts_with(|c: char| c.is_ascii_uppercase()), "{id}");
        }
    }
}
