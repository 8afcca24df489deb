//! `cargo stack scale NAME N`: a service gets another number of instances while the stack runs, and no request fails.
//!
//! * Instances come and go one by one. A further one gets requests when it is ready, and few at first.
//! * One that goes is drained: the edge gives it nothing more, what it has begun is waited for, and then it gets SIGTERM. Its
//!   consumer group gives its partitions to the others at once.
//! * Again: whatever is not as it was asked for, also after a command that was interrupted. With the number that the stack has it
//!   starts what does not run.

mod plan;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::control::{Client, Request};
use crate::extras::Extra;
use crate::layout::Layout;
use crate::output::{Progress, Step as Line};
use crate::servers::haproxy::runtime::{Runtime, Wanted};
use crate::servers::haproxy::slots::Backend;
use crate::servers::{haproxy, kafka, prometheus};
use crate::services::Instance;
use crate::services::further::{SCALABLE, Scalable};
use crate::up::wait_for_service;
use crate::{probe, release, workspace};
use plan::Step;

/// The edge asks four times a second.
const EDGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than a request takes, but for those that follow a payment: an instance that stops ends them, and they go on at another.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives a service so many instances.
///
/// # Errors
/// When there may not be so many, before anything was changed; or when an instance does not start, which is removed again.
pub fn run(layout: &Layout, name: &str, wanted: usize) -> Result<()> {
    let scalable = Scalable::named(name).with_context(|| {
        let names: Vec<&str> = SCALABLE.iter().map(|scalable| scalable.names[0]).collect();
        format!(
            "{name} has one instance, or is none of ours. Of these there may be several: {}",
            names.join(", ")
        )
    })?;
    plan::check(name, wanted)?;
    let mut lock = fd_lock::RwLock::new(std::fs::File::create(layout.dir.join("command.lock"))?);
    let _alone = lock.try_write().context("another `up`, `down` or `scale` of this stack is under way")?;
    Scaling::begin(layout, scalable)?.carry_out(wanted)
}

/// The service that is scaled, and everybody who has to know.
struct Scaling<'a> {
    layout: &'a Layout,
    scalable: &'static Scalable,
    instances: Vec<Instance>,
    edge: Option<(&'static Backend, Runtime)>,
    supervisor: Client,
    progress: Progress,
}

impl<'a> Scaling<'a> {
    /// Changes nothing.
    fn begin(layout: &'a Layout, scalable: &'static Scalable) -> Result<Self> {
        ensure!(
            Extra::includes(&Extra::of(layout), scalable.service.extra()),
            "this stack has no {}: `cargo stack up --with` adds the part that it belongs to",
            scalable.names[0]
        );
        let supervisor = Client::of_running(layout)?;
        let edge = Backend::of(scalable.service).map(|backend| anyhow::Ok((backend, Runtime::of(layout)?)));
        Ok(Self {
            layout,
            scalable,
            instances: scalable.instances().collect(),
            edge: edge.transpose()?,
            supervisor,
            progress: Progress::default(),
        })
    }

    fn carry_out(mut self, wanted: usize) -> Result<()> {
        let steps = plan::steps(&self.present()?, wanted);
        for step in steps {
            match step {
                Step::Start(number) => self.start(number)?,
                Step::Drain(number) => self.drain(number)?,
            }
        }
        self.keep(wanted)?;
        self.settle_edge(wanted)?;
        self.progress.line(&format!("{}: {wanted}", self.scalable.names[0]));
        Ok(())
    }

    /// The instances that the supervisor knows, by number: whether each runs.
    fn present(&mut self) -> Result<BTreeMap<usize, bool>> {
        let children = self.supervisor.status()?;
        let names = (1..).zip(self.scalable.names);
        Ok(names
            .filter_map(|(number, name)| {
                let child = children.iter().find(|child| child.name == name)?;
                Some((number, child.id.is_some()))
            })
            .collect())
    }

    /// The number is kept first: whoever asks meanwhile knows the instance.
    fn start(&mut self, number: usize) -> Result<()> {
        let instance = self.instances[number - 1];
        let before = self.scalable.count(self.layout);
        self.keep(before.max(number))?;
        let (layout, edge, supervisor) = (self.layout, &self.edge, &mut self.supervisor);
        let started = self
            .progress
            .step(instance.name, |line| begin(layout, edge.as_ref(), supervisor, instance, line));
        if started.is_err() && number > before {
            self.supervisor.send(&Request::Remove { name: instance.name.to_owned() })?;
            self.set(instance, Wanted::Maintenance)?;
            self.keep(before)?;
        }
        started
    }

    fn drain(&mut self, number: usize) -> Result<()> {
        let instance = self.instances[number - 1];
        let (layout, edge, supervisor) = (self.layout, &self.edge, &mut self.supervisor);
        let before = self.scalable.count(layout);
        let scalable = self.scalable;
        self.progress.step(instance.name, |line| {
            if let Some((backend, runtime)) = edge {
                line.now("draining");
                runtime.set(backend, instance.name, Wanted::Drain)?;
                let is_idle =
                    || requests(runtime, backend, instance.name).is_ok_and(|requests| requests == 0);
                // Whoever follows a payment there is sent on when it stops.
                let _waited = probe::until(DRAIN_TIMEOUT, is_idle, || Ok(()));
            }
            line.now("stopping");
            // Nobody misses it when it is gone.
            scalable.keep(layout, before.min(number - 1).max(1))?;
            prometheus::write_targets(layout)?;
            supervisor.send(&Request::Remove { name: instance.name.to_owned() })?;
            if let Some((backend, runtime)) = edge {
                runtime.set(backend, instance.name, Wanted::Maintenance)?;
            }
            let left = kafka::members::remove(layout, instance.service.program(), instance.name);
            left.context("its partitions wait until its session with Kafka ends, for six seconds")?;
            Ok("drained".to_owned())
        })
    }

    fn set(&self, instance: Instance, wanted: Wanted) -> Result<()> {
        match &self.edge {
            Some((backend, runtime)) => runtime.set(backend, instance.name, wanted),
            None => Ok(()),
        }
    }

    /// Keeps the number for whoever comes later: the next command, and Prometheus.
    fn keep(&self, count: usize) -> Result<()> {
        self.scalable.keep(self.layout, count)?;
        prometheus::write_targets(self.layout)
    }

    /// Each slot is as the number says, now and when HAProxy starts again.
    fn settle_edge(&mut self, wanted: usize) -> Result<()> {
        if self.edge.is_none() {
            return Ok(());
        }
        for (number, instance) in (1..).zip(self.instances.clone()) {
            self.set(instance, if number <= wanted { Wanted::Ready } else { Wanted::Maintenance })?;
        }
        // One that runs is left alone, and is started so from then on.
        for spec in haproxy::prepare(self.layout)? {
            self.supervisor.send(&Request::Run { spec })?;
        }
        Ok(())
    }
}

/// Starts an instance, and returns when it gets requests.
fn begin(
    layout: &Layout,
    edge: Option<&(&'static Backend, Runtime)>,
    supervisor: &mut Client,
    instance: Instance,
    line: &Line,
) -> Result<String> {
    line.now("starting");
    for port in instance.ports().into_iter().map(|port| layout.port(port)) {
        ensure!(probe::port_is_free(port), "port {port}, for {}, is held by another program", instance.name);
    }
    let spec = release::spec(layout, instance, &workspace::folder(layout))?;
    supervisor.send(&Request::Run { spec })?;
    wait_for_service(layout, instance)?;
    if let Some((backend, runtime)) = edge {
        line.now("joining the edge");
        runtime.set(backend, instance.name, Wanted::Ready)?;
        let is_up = || {
            let slots = runtime.slots().unwrap_or_default();
            slots
                .iter()
                .any(|slot| slot.backend == backend.name && slot.server == instance.name && slot.is_up())
        };
        probe::until(EDGE_TIMEOUT, is_up, || Ok(()))
            .with_context(|| format!("the edge does not find {} ready", instance.name))?;
    }
    Ok(String::new())
}

/// The requests that an instance serves, in all backends that have it.
fn requests(runtime: &Runtime, backend: &Backend, server: &str) -> Result<u64> {
    let is_of = |name: &str| name == backend.name || backend.followers.contains(&name);
    let slots = runtime.slots()?.into_iter();
    Ok(slots.filter(|slot| is_of(&slot.backend) && slot.server == server).map(|slot| slot.sessions).sum())
}
