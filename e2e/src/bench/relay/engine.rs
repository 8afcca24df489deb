//! The engines that bring rows to Kafka: cdc-relay, Debezium, or the committer itself.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use stack::process::ProcessId;

use super::backlog::{Backlog, PUBLICATION, TABLE};
use super::debezium::Debezium;
use super::kafka::{DirectProducer, PARTITIONS};
use super::run::{Run, process};
use super::{BenchContext, Name};

pub enum Engine<'e> {
    Relay(&'e mut Relay),
    Debezium(&'e mut Debezium),
    Direct(DirectProducer),
}

impl Engine<'_> {
    pub fn name(&self) -> Name {
        match self {
            Self::Relay(_) => Name::Relay,
            Self::Debezium(_) => Name::Debezium,
            Self::Direct(_) => Name::Direct,
        }
    }

    /// The producer of rows right after their commit, if the engine is the committer.
    pub fn direct(&self) -> Option<&DirectProducer> {
        match self {
            Self::Direct(producer) => Some(producer),
            Self::Relay(_) | Self::Debezium(_) => None,
        }
    }

    /// Lets it stream from the run's slot into the run's topic.
    pub async fn start(&mut self, context: &BenchContext<'_>, backlog: &Backlog, run: &Run) -> Result<()> {
        match self {
            Self::Relay(relay) => relay.start(context, backlog, run).await,
            Self::Debezium(debezium) => debezium.create(context, backlog, run).await,
            Self::Direct(_) => Ok(()),
        }
    }

    pub async fn stop(&mut self, context: &BenchContext<'_>) -> Result<()> {
        match self {
            Self::Relay(relay) => relay.stop().await,
            Self::Debezium(debezium) => debezium.delete(context).await,
            Self::Direct(_) => Ok(()),
        }
    }

    pub fn process(&self) -> Result<ProcessId> {
        match self {
            Self::Relay(relay) => relay.child.as_ref().and_then(process),
            Self::Debezium(debezium) => debezium.process(),
            Self::Direct(_) => ProcessId::of(std::process::id().cast_signed()),
        }
        .with_context(|| format!("{} has ended", self.name().shown()))
    }

    /// Where to look when it did not work.
    pub fn log(&self, context: &BenchContext<'_>) -> String {
        let log = match self {
            Self::Relay(_) => relay_log(context),
            Self::Debezium(_) => Debezium::log(context),
            Self::Direct(_) => return "the committers failed".to_owned(),
        };
        format!("{} failed; its log: {}", self.name().shown(), log.display())
    }
}

fn relay_log(context: &BenchContext<'_>) -> PathBuf {
    context.folder.join("cdc-relay.log")
}

#[derive(Default)]
pub struct Relay {
    child: Option<Child>,
}

impl Relay {
    async fn start(&mut self, context: &BenchContext<'_>, backlog: &Backlog, run: &Run) -> Result<()> {
        let routes = context.folder.join("relay.toml");
        std::fs::write(&routes, routes_file(backlog, run))?;
        // The relay refuses a slot without a checkpoint. This slot is new, so its checkpoint says that nothing was emitted.
        context.topics.make_compacted(&run.state_topic).await?;
        let (system_id, timeline) = backlog.cluster().await?;
        let checkpoint = serde_json::json!({
            "system_id": system_id, "timeline": timeline, "slot": run.slot, "phase": "creating",
            "acknowledged": "0/0", "told": "0/0", "chain": "0/0", "routes": "",
        });
        let (topics, topic, key) =
            (context.topics.clone(), run.state_topic.clone(), format!("bench/{}", run.slot));
        tokio::task::spawn_blocking(move || topics.write(&topic, &key, &checkpoint.to_string())).await??;
        let child = Command::new(&context.options.programs.relay)
            .args(["run", "--routes"])
            .arg(&routes)
            .args(["--admin-addr", "127.0.0.1:0", "--kafka-config", &context.stack.kafka_admin_config])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(relay_log(context))?)
            .spawn()
            .with_context(|| format!("cannot run {}", context.options.programs.relay.display()))?;
        self.child = Some(child);
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            if let Some(id) = process(&child) {
                id.signal(rustix::process::Signal::TERM);
            }
            tokio::task::spawn_blocking(move || child.wait()).await??;
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Nothing is tuned: whoever writes the shortest file gets these figures.
fn routes_file(backlog: &Backlog, run: &Run) -> String {
    let Run { slot, topic, state_topic, dead_letter_topic, .. } = run;
    let url = &backlog.url;
    format!(
        r#"[relay]
state_topic = "{state_topic}"
dead_letter_topic = "{dead_letter_topic}"

[[topics]]
name = "{topic}"
partitions = {PARTITIONS}

[[sources]]
name = "bench"
url = "{url}"
slot = "{slot}"
publication = "{PUBLICATION}"
event_source = "/bench"

[[sources.tables]]
name = "{TABLE}"
key = "{{id}}"
id = "bench/{TABLE}/{{id}}"

[[sources.tables.routes]]
topic = "{topic}"
type = "order.made.v1"
"#
    )
}
