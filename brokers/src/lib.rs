//! The connection to Kafka: the addresses of the servers, and a file of properties for signing in.
//!
//! * The file has librdkafka's format, that of `kcat -F`: one `key=value` a line, `#` begins a comment.
//! * It configures the connection only. Acknowledgements, groups and offsets belong to the program: a guarantee must not
//!   depend on a file. So other properties are refused.
//! * Its `bootstrap.servers` replaces the address of the command line, since the way to sign in belongs to a listener.
//! * Its values are secrets. No error contains one.
//! * `rabbitmq`, a feature, connects to RabbitMQ.

mod properties;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches, Id};
use rdkafka::ClientConfig;

pub use self::properties::Properties;

const SERVERS: &str = "bootstrap.servers";

/// The flags of every program that needs Kafka. [`Brokers`] checks them after the file has been read.
#[derive(Debug, Args)]
struct Flags {
    /// Kafka's bootstrap servers, as host:port, with commas between.
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    kafka_brokers: Option<String>,
    /// How to sign in to Kafka: a file of librdkafka's properties of connections (bootstrap.servers, security.*, sasl.*,
    /// ssl.* and the like), one key=value a line. Its bootstrap.servers replaces --kafka-brokers.
    #[arg(long, env = "KAFKA_CONFIG", value_name = "FILE", value_parser = Properties::read)]
    kafka_config: Option<Properties>,
}

/// The addresses of Kafka, and how to sign in there.
#[derive(Debug, Clone)]
pub struct Brokers {
    /// As host:port, with commas between.
    pub servers: String,
    properties: Properties,
}

impl FromArgMatches for Brokers {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = Flags::from_arg_matches(matches)?;
        Self::new(flags.kafka_brokers, flags.kafka_config.unwrap_or_default()).map_err(|why| {
            let why =
                format!("{why}: give --kafka-brokers, or bootstrap.servers in the file of --kafka-config\n");
            clap::Error::raw(ErrorKind::MissingRequiredArgument, why)
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Brokers {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }

    fn group_id() -> Option<Id> {
        Flags::group_id()
    }
}

impl Brokers {
    /// Kafka at these addresses, or at those of the properties.
    ///
    /// # Errors
    /// When neither names the servers.
    pub fn new(servers: Option<String>, properties: Properties) -> Result<Self> {
        let servers = properties.get(SERVERS).map(str::to_owned).or(servers);
        Ok(Self { servers: servers.context("the address of Kafka is missing")?, properties })
    }

    /// Kafka at these addresses, without signing in.
    pub fn at(servers: impl Into<String>) -> Self {
        Self { servers: servers.into(), properties: Properties::default() }
    }

    /// Kafka as this file describes it.
    ///
    /// # Errors
    /// When the file cannot be used, or names no servers.
    pub fn read(file: &str) -> Result<Self> {
        let properties = Properties::read(file).map_err(anyhow::Error::msg)?;
        Self::new(None, properties).with_context(|| format!("{file} has no bootstrap.servers; add them"))
    }

    /// Kafka as the file in this environment variable describes it.
    ///
    /// # Errors
    /// When the variable is not set; and as [`Brokers::read`].
    pub fn from_env(variable: &str) -> Result<Self> {
        let file = std::env::var(variable).with_context(|| {
            format!("{variable} is not set, so Kafka cannot be reached: run this by `cargo stack`, or `. .stack/env` first")
        })?;
        Self::read(&file)
    }

    /// Whether the file configures more than the addresses.
    pub fn signs_in(&self) -> bool {
        self.properties.iter().any(|(key, _)| key != SERVERS)
    }

    /// Sets the properties in the settings of a client.
    pub fn apply(&self, config: &mut ClientConfig) {
        for (key, value) in self.properties.iter() {
            config.set(key, value);
        }
        config.set(SERVERS, &self.servers);
    }

    /// The settings of a client with these properties only.
    pub fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.apply(&mut config);
        config
    }
}

impl From<&Brokers> for Brokers {
    fn from(brokers: &Brokers) -> Self {
        brokers.clone()
    }
}

/// Kafka at these addresses, without signing in.
impl From<&str> for Brokers {
    fn from(servers: &str) -> Self {
        Self::at(servers)
    }
}

/// Kafka at these addresses, without signing in.
impl From<&String> for Brokers {
    fn from(servers: &String) -> Self {
        Self::at(servers.as_str())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Needed {
        #[command(flatten)]
        kafka: Brokers,
    }

    #[derive(Debug, Parser)]
    struct Optional {
        #[command(flatten)]
        kafka: Option<Brokers>,
    }

    /// A file with this text, named after the test.
    fn file(test: &str, text: &str) -> String {
        let path = std::env::temp_dir().join(format!("brokers-{test}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn needed(arguments: &[&str]) -> Result<Brokers, String> {
        let arguments = ["program"].iter().chain(arguments);
        Needed::try_parse_from(arguments).map(|needed| needed.kafka).map_err(|error| error.to_string())
    }

    #[test]
    fn the_address_beside_the_sign_in_wins() {
        let (with, without) = (file("with", "bootstrap.servers=file:2"), file("without", "sasl.username=u"));
        let brokers = needed(&["--kafka-brokers=flag:1", "--kafka-config", &with]).unwrap();
        assert_eq!(brokers.servers, "file:2");
        assert_eq!(brokers.config().get("bootstrap.servers"), Some("file:2"));
        let brokers = needed(&["--kafka-brokers=flag:1", "--kafka-config", &without]).unwrap();
        assert_eq!((brokers.servers.as_str(), brokers.config().get("sasl.username")), ("flag:1", Some("u")));
        let said = Brokers::read(&without).unwrap_err().to_string();
        assert!(said.contains("has no bootstrap.servers"), "{said}");
        [with, without].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }

    #[test]
    fn where_kafka_is_optional_nothing_is_nothing() {
        let parse =
            |arguments: &[&str]| Optional::try_parse_from(["program"].iter().chain(arguments)).unwrap().kafka;
        // Whoever runs this may have a stack in his environment, which counts too.
        let set = ["KAFKA_BROKERS", "KAFKA_CONFIG"].iter().any(|name| std::env::var_os(name).is_some());
        assert_eq!(parse(&[]).is_some(), set);
        assert_eq!(needed(&[]).is_ok(), set);
        assert_eq!(parse(&["--kafka-brokers=flag:1"]).unwrap().servers, "flag:1");
    }

    #[test]
    fn nothing_prints_a_secret() {
        let file =
            file("secret", "security.protocol=sasl_plaintext\nsasl.password=hunter2\nsasl.pasword=hunter2");
        let said = needed(&["--kafka-config", &file]).unwrap_err();
        assert!(said.contains("line 3") && said.contains("--kafka-config"), "{said}");
        std::fs::write(&file, "bootstrap.servers=a:1\nsasl.password=hunter2").unwrap();
        let brokers = needed(&["--kafka-config", &file]).unwrap();
        for said in [said, format!("{brokers:?}")] {
            assert!(!said.contains("hunter2"), "{said}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}
