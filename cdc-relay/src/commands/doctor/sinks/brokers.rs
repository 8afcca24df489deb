//! Checks whether Kafka can lose an acknowledged record.
//!
//! * It gathers facts first. Each check is a pure function of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::commands::doctor::finding::Finding;
use crate::commands::doctor::slot::duration;
use crate::routes::Routes;

#[derive(Debug, Clone, Default)]
pub struct Topic {
    pub partitions: usize,
    /// The fewest replicas of any partition.
    pub replicas: usize,
    pub config: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub brokers: usize,
    /// Missing topics that the relay may not create.
    pub not_created: BTreeSet<String>,
    /// Topics whose settings the relay may not read.
    pub not_described: BTreeSet<String>,
    pub topics: BTreeMap<String, Topic>,
}

impl Topic {
    fn text(&self, name: &str) -> &str {
        self.config.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.text(name).parse().ok()
    }

    fn compacted(&self) -> bool {
        self.text("cleanup.policy").contains("compact")
    }

    /// Records are deleted after so many milliseconds, or once there are so many bytes.
    fn forgets(&self) -> Option<String> {
        if !self.text("cleanup.policy").contains("delete") {
            return None;
        }
        let (time, size) =
            (self.number("retention.ms").unwrap_or(-1), self.number("retention.bytes").unwrap_or(-1));
        match (time, size) {
            (..0, ..0) => None,
            (0.., _) => Some(format!("records are deleted after {}", duration(time as f64 / 1000.0))),
            (..0, 0..) => Some(format!("a partition keeps {}", crate::commands::doctor::slot::size(size))),
        }
    }
}

fn configs(topic: &str, setting: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {topic} --add-config {setting}"
    )
}

pub fn check(facts: &Facts, routes: &Routes) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("kafka.brokers", "brokers", facts.brokers.to_string())];
    findings.extend(permissions(facts));
    for wanted in &routes.topics {
        let (name, partitions) = (wanted.name.get_ref(), wanted.partitions);
        if facts.not_created.contains(name) || facts.not_described.contains(name) {
            continue;
        }
        let Some(topic) = facts.topics.get(name) else {
            let how_many = match partitions {
                crate::routes::Topic::DEFAULT_PARTITIONS => {
                    "as many partitions as the broker gives".to_owned()
                }
                _ => format!("{partitions} partitions"),
            };
            let found = format!("does not exist; `cdc-relay run` makes it with {how_many}");
            findings.push(Finding::ok("kafka.topic", &format!("topic {name}"), found));
            continue;
        };
        let before = findings.len();
        findings.extend(shape(name, topic, partitions));
        findings.extend(safety(name, topic, facts.brokers));
        findings.extend(events(wanted, topic, routes.relay.max_record_bytes));
        if findings.len() == before {
            let found = format!("{} partitions, {} replicas", topic.partitions, topic.replicas);
            findings.push(Finding::ok("kafka.topic", &format!("topic {name}"), found));
        }
    }
    let (state, dead) = (routes.relay.state_topic.get_ref(), routes.relay.dead_letter_topic.get_ref());
    findings.extend(
        described(facts, state).map_or_else(Vec::new, |topic| state_topic(state, topic, facts.brokers)),
    );
    findings.extend(
        described(facts, dead).map_or_else(Vec::new, |topic| dead_letter_topic(dead, topic, facts.brokers)),
    );
    findings
}

fn described<'f>(facts: &'f Facts, name: &str) -> Option<&'f Topic> {
    facts.topics.get(name).filter(|_| !facts.not_described.contains(name))
}

/// Operations that Kafka's authorizer denies to the relay. Only a write shows whether the relay may write.
fn permissions(facts: &Facts) -> Vec<Finding> {
    let allow = |topic: &str, operation: &str| {
        format!(
            "kafka-acls.sh --bootstrap-server … --add --allow-principal User:… --operation {operation} --topic {topic}"
        )
    };
    let create = facts.not_created.iter().map(|topic| {
        let found = "does not exist, and this principal may not create it".to_owned();
        Finding::would_not_work("kafka.authorization", &format!("topic {topic}"), found)
            .why("the relay does not start before all of its topics exist")
            .fix(allow(topic, "Create"))
    });
    let describe = facts.not_described.iter().map(|topic| {
        let found = "this principal may not read its settings, so they are not checked".to_owned();
        Finding::warning("kafka.authorization", &format!("topic {topic}"), found)
            .why("the relay then takes [relay] max_record_bytes for the topic's limit")
            .fix(allow(topic, "DescribeConfigs"))
    });
    create.chain(describe).collect()
}

fn shape(name: &str, topic: &Topic, partitions: i32) -> Option<Finding> {
    let subject = format!("topic {name}");
    let found = format!("has {} partitions, the routes file says {partitions}", topic.partitions);
    let left_to_the_broker = partitions == crate::routes::Topic::DEFAULT_PARTITIONS;
    (!left_to_the_broker && i64::try_from(topic.partitions) != Ok(i64::from(partitions))).then(|| {
        Finding::warning("kafka.partitions", &subject, found)
            .why("the relay emits to the partitions that exist; when partitions are added, later events of a key may overtake earlier ones")
            .fix(format!("[[topics]] name = \"{name}\" partitions = {}", topic.partitions))
    })
}

/// The records that are lost with a broker.
fn safety(name: &str, topic: &Topic, brokers: usize) -> Vec<Finding> {
    let subject = format!("topic {name}");
    let mut findings = Vec::new();
    if topic.replicas < 2 {
        // With one broker there is nothing to choose.
        let make = if brokers > 1 { Finding::would_lose_data } else { Finding::warning };
        findings.push(
            make("kafka.replication", &subject, "one replica".to_owned())
                .why("acknowledged records are gone with the disk of one broker, and the slot is already past them")
                .fix("with three brokers: kafka-reassign-partitions.sh, and [relay] replication_factor = 3"),
        );
    } else if topic.number("min.insync.replicas").unwrap_or(1) < 2 {
        findings.push(
            Finding::warning("kafka.min_insync", &subject, "min.insync.replicas = 1")
                .why("while replicas lag, one broker alone acknowledges, and its loss loses the records")
                .fix(configs(name, "min.insync.replicas=2")),
        );
    }
    if topic.text("unclean.leader.election.enable") == "true" {
        findings.push(
            Finding::would_lose_data(
                "kafka.unclean_election",
                &subject,
                "unclean.leader.election.enable = true",
            )
            .why("a replica that lacks acknowledged records may become the leader, and they are gone")
            .fix(configs(name, "unclean.leader.election.enable=false")),
        );
    }
    findings
}

fn events(wanted: &crate::routes::Topic, topic: &Topic, max_record_bytes: usize) -> Vec<Finding> {
    let name = wanted.name.get_ref();
    let subject = format!("topic {name}");
    let mut findings = Vec::new();
    let most = topic.number("max.message.bytes").unwrap_or(i64::MAX);
    if most < max_record_bytes as i64 {
        let found = format!("max.message.bytes = {most}, and [relay] max_record_bytes = {max_record_bytes}");
        findings.push(
            Finding::warning("kafka.max_message_bytes", &subject, found)
                .why("a row between the two becomes a dead letter, and halts its key")
                .fix(configs(name, &format!("max.message.bytes={}", max_record_bytes + 65_536))),
        );
    }
    if wanted.is_compacted() && !topic.compacted() {
        findings.push(
            Finding::warning(
                "kafka.cleanup",
                &subject,
                "is not compacted, and the routes file lists it as such",
            )
            .why("its records have no position: `verify` cannot show that one is missing")
            .fix(configs(name, "cleanup.policy=compact")),
        );
    } else if topic.compacted() && !wanted.is_compacted() {
        findings.push(
            Finding::warning("kafka.cleanup", &subject, format!("cleanup.policy = {}", topic.text("cleanup.policy")))
                .why("only the last event of each key is kept: a consumer that lags misses the others, and `verify` finds gaps")
                .fix(configs(name, "cleanup.policy=delete")),
        );
    } else if let Some(forgets) = topic.forgets() {
        let made = if topic.number("retention.ms").is_some_and(|ms| (0..86_400_000).contains(&ms)) {
            Finding::would_lose_data("kafka.retention", &subject, forgets)
        } else {
            Finding::warning("kafka.retention", &subject, forgets)
        };
        findings.push(
            made.why("a consumer that is away for longer misses events without an error, and a new one cannot begin at the first event")
                .fix(configs(name, "retention.ms=-1")),
        );
    }
    findings
}

fn state_topic(name: &str, topic: &Topic, brokers: usize) -> Vec<Finding> {
    let subject = format!("state topic {name}");
    let mut findings = safety(name, topic, brokers);
    if let Some(forgets) =
        topic.forgets().or_else(|| (!topic.compacted()).then(|| "is not compacted".to_owned()))
    {
        findings.push(
            Finding::would_lose_data("kafka.state", &subject, forgets)
                .why("without the checkpoint nobody knows which transactions were emitted from the slot; the relay then refuses to stream")
                .fix(configs(name, "cleanup.policy=compact")),
        );
    }
    if topic.partitions != 1 {
        findings.push(
            Finding::would_not_work("kafka.state", &subject, format!("has {} partitions", topic.partitions))
                .why("the relay reads the checkpoint from one partition")
                .fix("name another topic in [relay] state_topic, and let `cdc-relay run` make it"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok("kafka.state", &subject, "compacted, one partition"));
    }
    findings
}

fn dead_letter_topic(name: &str, topic: &Topic, brokers: usize) -> Vec<Finding> {
    let subject = format!("dead-letter topic {name}");
    let mut findings = safety(name, topic, brokers);
    let forgets = topic.forgets().or_else(|| topic.compacted().then(|| "is compacted".to_owned()));
    if let Some(forgets) = forgets {
        findings.push(
            Finding::would_lose_data("kafka.dead_letters", &subject, forgets)
                .why("only this topic records the halted keys: once its records are gone, later rows overtake the dead letter, and the dead letter is lost")
                .fix(configs(name, "cleanup.policy=delete,retention.ms=-1,retention.bytes=-1")),
        );
    }
    if topic.partitions != 1 {
        findings.push(
            Finding::would_not_work(
                "kafka.dead_letters",
                &subject,
                format!("has {} partitions", topic.partitions),
            )
            .why("the relay reads the halted keys from one partition")
            .fix("name another topic in [relay] dead_letter_topic, and let `cdc-relay run` make it"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok("kafka.dead_letters", &subject, "kept for ever, one partition"));
    }
    findings
}

pub use self::ask::ask;

mod ask {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use ::brokers::Brokers;
    use anyhow::{Context, Result};
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::error::RDKafkaErrorCode;

    use super::{Facts, Topic};
    use crate::routes::Routes;
    use crate::sinks::kafka::client_config;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Asks the brokers of the topics that the routes name. Makes none.
    pub async fn ask(brokers: &Brokers, routes: &Routes) -> Result<Facts> {
        let mut config = client_config(brokers, routes);
        config.set("allow.auto.create.topics", "false");
        let admin: AdminClient<DefaultClientContext> = config.create().context("no Kafka client")?;
        let metadata = admin.inner().fetch_metadata(None, TIMEOUT).context("the brokers do not answer")?;
        let relay = &routes.relay;
        let names = routes.topics.iter().map(|topic| topic.name.get_ref().as_str());
        let names: Vec<&str> = names
            .chain([relay.state_topic.get_ref().as_str(), relay.dead_letter_topic.get_ref().as_str()])
            .collect();
        let mut facts = Facts { brokers: metadata.brokers().len(), ..Facts::default() };
        for topic in metadata.topics().iter().filter(|topic| names.contains(&topic.name())) {
            let replicas =
                topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            let known = Topic { partitions: topic.partitions().len(), replicas, ..Topic::default() };
            facts.topics.insert(topic.name().to_owned(), known);
        }
        facts.not_created =
            not_created(&admin, names.iter().copied().filter(|name| !facts.topics.contains_key(*name)))
                .await?;
        let known: Vec<String> = facts.topics.keys().cloned().collect();
        let resources: Vec<ResourceSpecifier<'_>> =
            known.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        if resources.is_empty() {
            return Ok(facts);
        }
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let answers =
            admin.describe_configs(&resources, &options).await.context("cannot read topic settings")?;
        for (name, answer) in known.iter().zip(answers) {
            let answer = match answer {
                Ok(answer) => answer,
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    facts.not_described.insert(name.clone());
                    continue;
                }
                Err(code) => anyhow::bail!("settings of topic {name}: {code}"),
            };
            let entries = answer.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
            if let Some(topic) = facts.topics.get_mut(name) {
                topic.config = entries.collect();
            }
        }
        Ok(facts)
    }

    /// Those that the brokers would not have this principal create. Creates none.
    async fn not_created(
        admin: &AdminClient<DefaultClientContext>,
        missing: impl Iterator<Item = &str>,
    ) -> Result<BTreeSet<String>> {
        let missing: Vec<NewTopic<'_>> =
            missing.map(|name| NewTopic::new(name, -1, TopicReplication::Fixed(-1))).collect();
        if missing.is_empty() {
            return Ok(BTreeSet::new());
        }
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).validate_only(true);
        let answers = admin.create_topics(&missing, &options).await.context("cannot ask for topics")?;
        let forbidden = answers.into_iter().filter_map(|answer| match answer {
            Err((name, RDKafkaErrorCode::TopicAuthorizationFailed)) => Some(name),
            _ => None,
        });
        Ok(forbidden.collect())
    }
}
