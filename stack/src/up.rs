//! `cargo stack up`: from nothing to a payment, and from any state in between.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::control::{Client, Reply, Request};
use crate::database_url::postgres_url;
use crate::extras::Extra;
use crate::install::Purpose;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::output::{Progress, say};
use crate::process::ProcessId;
use crate::servers::{
    Node, Server, collector, haproxy, kafka, opensearch, patroni, prometheus, rabbitmq, zipkin,
};
use crate::services::{self, Instance, token_issuer};
use crate::shards::FurtherShard;
use crate::spec::Spec;
use crate::{
    certificates, distribute, down, environment, install, logs, probe, process, release, shards, state,
    supervisor, workspace,
};

/// A service that is not ready by then has failed to start. It waits for topics and for the others by itself.
const SERVICE_START_TIMEOUT: Duration = Duration::from_secs(90);

/// The part of the stack that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Servers and schemas: what tests of a single service need.
    Servers,
    /// And the services.
    Services,
    /// And one payment, to see it work.
    Payment,
}

/// The arguments of `up`.
pub struct Wish {
    pub extent: Extent,
    /// Parts to add to the stack.
    pub with: Vec<Extra>,
    /// Install packages without asking.
    pub yes: bool,
    /// The stack goes down with this process.
    pub owner: Option<ProcessId>,
    /// Every link is encrypted. A stack that was made so stays so.
    pub tls: bool,
    /// Postgres, Kafka and RabbitMQ are highly available. A stack that was made so stays so.
    pub ha: bool,
    /// The number of shards of payments and balance; as it is kept, if none is named. A stack that has fewer gets more.
    pub shards: Option<usize>,
    /// The folder of the programs of another revision: they run, and nothing is built. Otherwise this revision's.
    pub programs: Option<PathBuf>,
}

/// As [`up`], from nothing: data of an earlier run would hide what a first start does.
///
/// # Errors
/// As [`up`], or when something of an earlier run cannot be removed.
pub fn afresh(layout: &Layout, wish: &Wish) -> Result<()> {
    // It may have been removed since the layout was made: with the stack that was here before.
    std::fs::create_dir_all(&layout.dir)?;
    down::down(layout)?;
    down::remove(layout)?;
    std::fs::create_dir_all(&layout.dir)?;
    up(layout, wish)
}

/// # Errors
/// At the first step that fails; what runs by then keeps running, and the next `up` goes on from there.
pub fn up(layout: &Layout, wish: &Wish) -> Result<()> {
    let extent = wish.extent;
    let progress = Progress::default();
    let mut lock = fd_lock::RwLock::new(std::fs::File::create(layout.dir.join("command.lock"))?);
    let _alone = lock.try_write().context("another `up`, `down` or `scale` of this stack is under way")?;
    shards::choose(layout, wish.shards, wish.ha, wish.tls)?;
    if wish.ha {
        layout.choose_ha()?;
    }
    let has_exporters = Extra::of(layout).contains(&Extra::Observe);
    if layout.is_ha() && wish.with.contains(&Extra::Observe) && !has_exporters {
        ensure!(
            Client::connect(&layout.socket()).is_none(),
            "the brokers of Kafka run without exporters: `cargo stack down`, then `cargo stack up --with observe`"
        );
    }
    Extra::add(layout, &wish.with)?;
    clear_the_way(layout, &progress)?;
    install::ensure(layout, Purpose::Stack, wish.yes, &progress)?;
    if wish.tls && !layout.is_encrypted() {
        ensure!(
            Client::connect(&layout.socket()).is_none(),
            "the stack runs without TLS: `cargo stack down`, then `cargo stack up --tls`"
        );
        progress.step("certificates", |_| certificates::make(layout).map(|()| String::new()))?;
    }
    // Before the minutes of a first build, so that what is wrong with the stack's folder is said at once.
    environment::write(layout)?;
    shards::write_routes(layout, &layout.root)?;
    drop(supervisor::ensure(layout, wish.owner)?);
    // Downloads and servers wait for others most of the time, the compiler for none.
    std::thread::scope(|scope| {
        let built = scope.spawn(|| match wish.programs {
            Some(_) => Ok(()),
            None => build(layout, extent, &progress),
        });
        let started = servers(layout, &progress);
        let built = built.join().unwrap_or_else(|_| bail!("the build panicked"));
        started.and(built)
    })?;
    let programs = wish.programs.clone().unwrap_or_else(|| workspace::folder(layout));
    progress.step("migrate", |_| migrate(layout, &programs))?;
    let added = share_out(layout, &programs, &progress)?;
    if extent != Extent::Servers {
        start_services(layout, &programs, &progress)?;
        if !added.is_empty() {
            progress.step("new shards", |_| distribute::introduce(layout, &added).map(|()| String::new()))?;
        }
        if layout.is_ha() {
            // The relay has made them by now.
            progress.step("slots", |_| patroni::keep_slots(layout))?;
        }
        if extent == Extent::Payment {
            first_payment(layout, &progress)?;
        }
    }
    summary(layout, extent)
}

/// The buckets of a stack with several shards. Returns those that are to be introduced.
fn share_out(layout: &Layout, programs: &Path, progress: &Progress) -> Result<Vec<FurtherShard>> {
    let mut added = Vec::new();
    if layout.shard_count() > 1 {
        progress.step("shards", |_| {
            added = distribute::run(layout, programs)?;
            let names: Vec<&str> = added.iter().map(|shard| shard.name()).collect();
            let own_none = if names.is_empty() {
                String::new()
            } else {
                format!("; no bucket yet: {}", names.join(", "))
            };
            Ok(format!("{}{own_none}", layout.shard_count()))
        })?;
    }
    Ok(added)
}

fn servers(layout: &Layout, progress: &Progress) -> Result<()> {
    if layout.is_ha() && !patroni::downloaded(layout) {
        progress.step("download", |step| patroni::download(layout, step))?;
    }
    if !kafka::downloaded(layout) {
        progress.step("download", |step| kafka::download(layout, step))?;
    }
    if Server::of(layout).contains(&Server::OpenSearch) && !opensearch::downloaded(layout) {
        progress.step("download", |step| opensearch::download(layout, step))?;
    }
    if Server::of(layout).contains(&Server::Zipkin) && !zipkin::downloaded(layout) {
        progress.step("download", |step| zipkin::download(layout, step))?;
    }
    if Extra::of(layout).contains(&Extra::Observe) && !kafka::agent::downloaded(layout) {
        progress.step("download", |step| kafka::agent::download(layout, step))?;
    }
    if Server::of(layout).contains(&Server::Collector) && !collector::built(layout) {
        progress.step("collector", |step| collector::build(layout, step))?;
    }
    start_servers(layout, progress)
}

/// Orphans of this stack are ended; ports that someone else holds are named before anything starts.
fn clear_the_way(layout: &Layout, progress: &Progress) -> Result<()> {
    let running = match Client::connect(&layout.socket()) {
        Some(mut client) => client.status()?.into_iter().filter(|child| child.id.is_some()).collect(),
        None => {
            let orphans = state::remove_orphans(layout)?;
            if orphans > 0 {
                progress.line(&format!("  Ended {orphans} processes that an earlier run left behind."));
            }
            Vec::new()
        }
    };
    let is_ours = |name: &str| running.iter().any(|child| child.name == name);
    let servers = Server::of(layout).into_iter().map(|server| (server.name(), server.ports().to_vec()));
    let services = Instance::of(layout).into_iter().map(|instance| (instance.name, instance.ports()));
    let taken: Vec<String> = servers
        .chain(services)
        .filter(|(name, _)| !is_ours(name))
        .flat_map(|(name, ports)| ports.into_iter().map(move |port| (name, layout.port(port))))
        // The port mapper outlives its broker.
        .filter(|(name, port)| {
            !(*name == rabbitmq::name(Node::One) && is_ours("epmd") && *port == layout.port(Port::Epmd))
        })
        .filter(|(_, port)| !probe::port_is_free(*port))
        .map(|(name, port)| match process::listener(port) {
            Some((pid, command)) => format!("port {port}, for {name}, is held by {command} (pid {pid})"),
            None => format!("port {port}, for {name}, is held by another program"),
        })
        .collect();
    if !taken.is_empty() {
        bail!(
            "{}\nNothing was started. Another STACK_PORT avoids this (now {}).",
            taken.join("\n"),
            layout.base_port
        );
    }
    Ok(())
}

/// All at once: the slowest sets the pace.
fn start_servers(layout: &Layout, progress: &Progress) -> Result<()> {
    let start = |server: Server| {
        progress.step(server.name(), |step| {
            let mut client = Client::connect(&layout.socket()).context("the supervisor is gone")?;
            let mut changed = false;
            let name = server.name();
            let mut runs = client.status()?.iter().any(|child| child.name == name && child.id.is_some());
            if runs && let Server::Kafka(node) = server {
                ensure!(
                    kafka::has_authorizer(layout, node),
                    "Kafka runs with the settings of a version that had no authorizer: cargo stack down, then up again"
                );
                // All nodes at once would be an outage.
                if !layout.is_ha() && kafka::agent::is_missing(layout, node) {
                    step.now("stopping, to start it with its exporter");
                    client.send(&Request::Stop { name: name.to_owned() })?;
                    runs = false;
                }
            }
            // Configuration of one that runs is left alone until it is restarted.
            if !runs {
                for spec in server.prepare(layout, step)? {
                    changed |= run(&mut client, spec)?;
                }
            }
            if server == Server::Prometheus {
                // An extra that was added since it started is scraped too.
                prometheus::write_targets(layout)?;
            }
            step.now("starting");
            wait_for_server(layout, server, &mut client)?;
            Ok(if changed { String::new() } else { "already running".to_owned() })
        })
    };
    std::thread::scope(|scope| {
        let started: Vec<_> =
            Server::of(layout).into_iter().map(|server| scope.spawn(move || start(server))).collect();
        // All of them are waited for, so that every failure is seen; the first is returned.
        let results: Vec<Result<()>> = started
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a step panicked")))
            .collect();
        results.into_iter().collect()
    })
}

/// # Errors
/// When it ends or is not ready in time; the end of its log is in the message.
pub fn wait_for_server(layout: &Layout, server: Server, client: &mut Client) -> Result<()> {
    let name = server.name();
    let ready = || server.ready(layout);
    let waited = probe::until(server.start_timeout(), ready, || alive(client, name));
    let waited = waited.map_err(|error| match server {
        Server::Kafka(node) => match kafka::acl::ensure_rules(layout, node) {
            Err(why) => error.context(format!("Kafka's rules cannot be made: {why:#}")),
            Ok(()) => error,
        },
        _ => error,
    });
    waited.with_context(|| excerpt(layout, name))
}

fn alive(client: &mut Client, name: &str) -> Result<()> {
    let child =
        client.status()?.into_iter().find(|child| child.name == name).context("it is not in the stack")?;
    if child.id.is_none() {
        bail!("{name} {}", child.state);
    }
    Ok(())
}

fn excerpt(layout: &Layout, name: &str) -> String {
    let log = layout.log(name);
    format!("{name} did not become ready. The end of {}:\n{}", log.display(), logs::tail(&log, 15))
}

fn run(client: &mut Client, spec: Spec) -> Result<bool> {
    match client.send(&Request::Run { spec })? {
        Reply::Done { changed } => Ok(changed),
        other => bail!(
            "the supervisor answered {other:?}, which this version does not know: `cargo stack down`, then `up` again"
        ),
    }
}

fn build(layout: &Layout, extent: Extent, progress: &Progress) -> Result<()> {
    let first = !workspace::binary(layout, "migrate").is_file();
    progress.step("build", |step| {
        if first && extent != Extent::Servers {
            step.now("the first build takes some minutes");
            progress.line("    The first build takes some minutes (librdkafka is compiled once).");
        }
        let programs = match extent {
            Extent::Servers if layout.shard_count() > 1 => vec!["migrate", "coroctl"],
            Extent::Servers => vec!["migrate"],
            Extent::Services | Extent::Payment => services::programs(layout),
        };
        let targets: Vec<&str> = programs.into_iter().flat_map(|program| ["--bin", program]).collect();
        workspace::build(layout, &targets, step)?;
        Ok(String::new())
    })
}

/// On the server of each shard: all have the same databases and services that can be paid.
fn migrate(layout: &Layout, programs: &Path) -> Result<String> {
    let urls = match layout.is_ha() {
        true => vec![postgres_url(layout, "postgres", Login::Superuser)?],
        false => shards::admin_urls(layout)?,
    };
    urls.into_iter().try_for_each(|url| migrate_server(layout, programs, url))?;
    Ok("roles and databases".to_owned())
}

fn migrate_server(layout: &Layout, programs: &Path, admin_url: String) -> Result<()> {
    let mut command = workspace::command(layout, &programs.join("migrate").display().to_string());
    command.arg("--seed").env("ADMIN_DATABASE_URL", admin_url);
    let output = command.envs(environment::role_passwords(layout)?).output()?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        let advice = match reason.contains("is different than filesystem one") {
            // Before a release migrations are edited in place; a stack's data is there to be thrown away.
            true => {
                "\nA migration was edited after this stack applied it. To start afresh: cargo stack clean"
            }
            false => "",
        };
        bail!("{}{advice}", reason.trim());
    }
    Ok(())
}

fn start_services(layout: &Layout, programs: &Path, progress: &Progress) -> Result<()> {
    let (built, absent): (Vec<Instance>, Vec<Instance>) =
        Instance::of(layout).into_iter().partition(|instance| release::program(programs, *instance).is_ok());
    for instance in absent {
        progress.line(&format!("  - {} has no binary and is left out", instance.name));
    }
    let mut client = Client::connect(&layout.socket()).context("the supervisor is gone")?;
    let children = client.status()?;
    for instance in &built {
        let runs = children.iter().any(|child| child.name == instance.name && child.id.is_some());
        let changed = run(&mut client, release::spec(layout, *instance, programs)?)?;
        let serves_with_others = built.iter().filter(|other| other.service == instance.service).count() > 1;
        if runs && changed && serves_with_others {
            // The others go on serving meanwhile, and are next.
            wait_for_service(layout, *instance)?;
        }
    }
    let wait = |instance: Instance| {
        progress.step(instance.name, |step| {
            step.now("starting");
            wait_for_service(layout, instance)?;
            Ok(String::new())
        })
    };
    std::thread::scope(|scope| {
        let waiting: Vec<_> = built.iter().map(|instance| scope.spawn(move || wait(*instance))).collect();
        // All of them are waited for, so that every failure is seen; the first is returned.
        let results: Vec<Result<()>> = waiting
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a step panicked")))
            .collect();
        results.into_iter().collect::<Result<()>>()
    })?;
    // It has to see them, too.
    let sees_them = || probe::http(layout, Port::Edge, "/health");
    probe::until(SERVICE_START_TIMEOUT, sees_them, || Ok(())).with_context(|| excerpt(layout, "haproxy"))
}

/// One payment, to see it work. Where clients need the token of an issuer, only they can make one.
fn first_payment(layout: &Layout, progress: &Progress) -> Result<()> {
    if let Some(issuer) = token_issuer() {
        progress.line(&format!("  No payment is made: it needs a token of {issuer}."));
        return Ok(());
    }
    progress.line("");
    workspace::coroctl(layout, &["first-payment"]).context("the first payment did not go through")
}

/// # Errors
/// When it does not say in time that it is ready; the end of its log is in the message.
pub fn wait_for_service(layout: &Layout, instance: Instance) -> Result<()> {
    let ready = || probe::http(layout, instance.admin, instance.ready_path());
    // One that crashes is restarted and may yet come up: only time decides.
    probe::until(SERVICE_START_TIMEOUT, ready, || Ok(())).with_context(|| excerpt(layout, instance.name))
}

fn summary(layout: &Layout, extent: Extent) -> Result<()> {
    let variables = environment::variables(layout)?;
    let names: &[&str] = match extent {
        Extent::Servers => &["KAFKA_BROKERS"],
        Extent::Services | Extent::Payment => {
            &["EDGE_URL", "GATEWAY_URL", "PROMETHEUS_URL", "ZIPKIN_URL", "KAFKA_BROKERS"]
        }
    };
    say("");
    for (name, value) in names.iter().filter_map(|name| Some((name, variables.get(name)?))) {
        say(&format!("{name:<16} {value}"));
    }
    if let Some(page) = haproxy::pay_page(layout).filter(|_| extent != Extent::Servers) {
        say(&format!("{:<16} {page}", "Pay by hand"));
    }
    let postgres = if layout.is_ha() { patroni::addresses(layout) } else { shards::addresses(layout) };
    say(&format!("{:<16} {postgres}", "Postgres"));
    say(&format!("\nEverything else, passwords included: . {}", layout.dir.join("env").display()));
    Ok(())
}
