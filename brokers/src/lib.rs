//! How Kafka is reached: the servers' addresses, and a file of properties with which a program signs in there.
//!
//! * The file has librdkafka's format, that of `kcat -F`: one `key=value` a line, `#` begins a comment.
//! * It says how to connect, and nothing else. What a client does there (acknowledgements, groups, offsets) is the
//!   program's own: a guarantee must not depend on a file. So other properties are refused.
//! * Its `bootstrap.servers` replaces the address of the command line: how to sign in belongs to a listener.
//! * Its values are secrets. No error names one.

mod properties;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches, Id};
use rdkafka::ClientConfig;

pub use self::properties::Properties;

const SERVERS: &str = "bootstrap.servers";

/// The command line of everything that needs Kafka. What is needed of it is known only when the file is read: `Brokers`.
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

/// Kafka, and as whom it is spoken to.
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
    /// # Errors
    /// When neither says where Kafka is.
    fn new(servers: Option<String>, properties: Properties) -> Result<Self> {
        let servers = properties.get(SERVERS).map(str::to_owned).or(servers);
        Ok(Self { servers: servers.context("nothing says where Kafka is")?, properties })
    }

    /// Without signing in.
    pub fn at(servers: impl Into<String>) -> Self {
        Self { servers: servers.into(), properties: Properties::default() }
    }

    /// # Errors
    /// When the file cannot be used, or names no servers.
    pub fn read(file: &str) -> Result<Self> {
        let properties = Properties::read(file).map_err(anyhow::Error::msg)?;
        Self::new(None, properties).with_context(|| format!("{file} has no bootstrap.servers"))
    }

    /// As the file says that this variable of the environment names.
    ///
    /// # Errors
    /// When it is not set; and as `read`.
    pub fn from_env(variable: &str) -> Result<Self> {
        let file = std::env::var(variable).with_context(|| {
            format!("{variable} is not set: run this by `cargo stack`, or source .stack/env")
        })?;
        Self::read(&file)
    }

    /// Whether anything is said of who connects, and how.
    pub fn signs_in(&self) -> bool {
        self.properties.iter().any(|(key, _)| key != SERVERS)
    }

    /// Puts it into a client's settings, over what stands there.
    pub fn apply(&self, config: &mut ClientConfig) {
        for (key, value) in self.properties.iter() {
            config.set(key, value);
        }
        config.set(SERVERS, &self.servers);
    }

    /// The settings of a client that has no others.
    pub fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.apply(&mut config);
        config
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
