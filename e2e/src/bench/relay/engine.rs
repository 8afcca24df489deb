//! What tells rows to Kafka: cdc-relay, Debezium, or whoever commits.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use stack::process::ProcessId;

use super::backlog::{Backlog, PUBLICATION, TABLE};
use super::debezium::Debezium;
use super::kafka::{PARTITIONS, Teller};
use super::{Name, World};

/// The names of one run.
pub struct Run {
    pub slot: String,
    /// Debezium's prefix of topics.
    pub prefix: String,
    pub topic: String,
    pub state_topic: String,
    pub dead_letter_topic: String,
}

impl Run {
    pub fn new(name: Name, of: &str) -> Self {
        let prefix = format!("bench_{}_{of}", format!("{name:?}").to_lowercase());
        Self {
            slot: prefix.clone(),
            topic: format!("{prefix}.public.{TABLE}"),
            state_topic: format!("{prefix}.state"),
            dead_letter_topic: format!("{prefix}.dead"),
            prefix,
        }
    }
}

pub enum Engine<'e> {
    Relay(&'e mut Relay),
    Debezium(&'e mut Debezium),
    Direct(Teller),
}

impl Engine<'_> {
    pub fn name(&self) -> Name {
        match self {
            Self::Relay(_) => Name::Relay,
            Self::Debezium(_) => Name::Debezium,
            Self::Direct(_) => Name::Direct,
        }
    }

    /// Tells a row right after its commit, if that is how it is done.
    pub fn direct(&self) -> Option<&Teller> {
        match self {
            Self::Direct(teller) => Some(teller),
            Self::Relay(_) | Self::Debezium(_) => None,
        }
    }

    /// Lets it stream from the run's slot into the run's topic.
    pub async fn start(&mut self, world: &World<'_>, backlog: &Backlog, run: &Run) -> Result<()> {
        match self {
            Self::Relay(relay) => relay.start(world, backlog, run).await,
            Self::Debezium(debezium) => debezium.create(world, backlog, run).await,
            Self::Direct(_) => Ok(()),
        }
    }

    pub async fn stop(&mut self, world: &World<'_>) -> Result<()> {
        match self {
            Self::Relay(relay) => relay.stop().await,
            Self::Debezium(debezium) => debezium.delete(world).await,
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
    pub fn log(&self, world: &World<'_>) -> String {
        let log = match self {
            Self::Relay(_) => relay_log(world),
            Self::Debezium(_) => Debezium::log(world),
            Self::Direct(_) => return "the committers did not do it".to_owned(),
        };
        format!("{} did not do it; its log: {}", self.name().shown(), log.display())
    }
}

pub fn process(child: &Child) -> Option<ProcessId> {
    ProcessId::of(i32::try_from(child.id()).ok()?)
}

fn relay_log(world: &World<'_>) -> PathBuf {
    world.folder.join("cdc-relay.log")
}

#[derive(Default)]
pub struct Relay {
    child: Option<Child>,
}

impl Relay {
    async fn start(&mut self, world: &World<'_>, backlog: &Backlog, run: &Run) -> Result<()> {
        let routes = world.folder.join("relay.toml");
        std::fs::write(&routes, routes_file(backlog, run))?;
        // A slot that it does not remember is refused. This one was made for it and never told from.
        world.topics.make_compacted(&run.state_topic).await?;
        let (system_id, timeline) = backlog.cluster().await?;
        let memory = serde_json::json!({
            "system_id": system_id, "timeline": timeline, "slot": run.slot, "phase": "creating",
            "acknowledged": "0/0", "told": "0/0", "chain": "0/0", "routes": "",
        });
        let (topics, topic, key) =
            (world.topics.clone(), run.state_topic.clone(), format!("bench/{}", run.slot));
        tokio::task::spawn_blocking(move || topics.write(&topic, &key, &memory.to_string())).await??;
        let child = Command::new(&world.options.programs.relay)
            .args(["run", "--routes"])
            .arg(&routes)
            .args(["--admin-addr", "127.0.0.1:0", "--kafka-config", &world.stack.kafka_admin_config])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(relay_log(world))?)
            .spawn()
            .with_context(|| format!("cannot run {}", world.options.programs.relay.display()))?;
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
