//! The surroundings of a drill: a load, the alerts, the runbook, and the audit at the end.

mod ending;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backon::{BackoffBuilder, ExponentialBuilder};
use coroctl::client::Client;
use coroctl::stack::Stack;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::alerts::{AlertState, Prometheus};
use super::report::ObservedAlert;
use super::runbook::Section;
use super::view::View;
use super::{Drill, runbook, script};
use crate::chaos;
use crate::steady_load::SteadyLoad;

const USERS: usize = 20;
/// The load has to be accepted before anything is broken.
const FIRST_PAYMENTS: usize = 10;
const FIRST_PAYMENTS_TIMEOUT: Duration = Duration::from_secs(60);
/// Rules of the drills look at ten minutes at most.
const EARLIER_TIMEOUT: Duration = Duration::from_secs(900);
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(2);

pub struct Harness {
    pub stack: Stack,
    /// Through the edge, as apps do.
    pub client: Client,
    pub load: Arc<SteadyLoad>,
    pub view: View,
    drill: &'static Drill,
    prometheus: Prometheus,
    running: JoinHandle<()>,
    began: Instant,
    /// When it was broken, and when the last script had been run.
    broken: Instant,
    mended: Instant,
    alerts: Vec<ObservedAlert>,
    scripts: usize,
    explained: BTreeSet<String>,
    notes: Vec<String>,
    /// Payments beside the load, each with its user.
    others: Vec<(Uuid, Uuid)>,
}

impl Harness {
    /// Begins the load, and waits until payments are accepted, and until the drill's alert is quiet: what was broken before, such as by
    /// another drill, may still cause it.
    ///
    /// # Errors
    /// When the stack accepts nothing, or the alert goes on: then the drill would show nothing.
    pub async fn begin(stack: &Stack, drill: &'static Drill, view: View) -> Result<Self> {
        let client = Client::new(&stack.through_edge())?;
        let prometheus = Prometheus::new(&stack.prometheus_url)?;
        let explained = chaos::parked(stack).await?;
        let users = chaos::load::fund(&client, USERS).await?;
        let interval = drill.load_interval();
        let load = SteadyLoad::new(client.clone(), users, &stack.demo_service_id, interval);
        let running = load.clone();
        let running = tokio::spawn(async move { running.run().await });
        let now = Instant::now();
        let harness = Self {
            stack: stack.clone(),
            client,
            load,
            view,
            drill,
            prometheus,
            running,
            began: now,
            broken: now,
            mended: now,
            alerts: Vec::new(),
            scripts: 0,
            explained,
            notes: Vec::new(),
            others: Vec::new(),
        };
        harness.accepts(FIRST_PAYMENTS).await?;
        if let Some(listed) = &drill.alert {
            let what = format!("{} of before to end ({}/alerts)", listed.name, stack.prometheus_url);
            let is_quiet = async || harness.is(listed.name, AlertState::Inactive).await;
            harness.until(EARLIER_TIMEOUT, &what, is_quiet).await?;
        }
        harness.view.line(&format!("load: {:.0} payments a second", 1.0 / interval.as_secs_f64()));
        Ok(harness)
    }

    /// Waits until so many more payments are accepted.
    ///
    /// # Errors
    /// When they are not within a minute.
    pub async fn accepts(&self, more: usize) -> Result<()> {
        let wanted = self.load.accepted_count() + more;
        let met = async || Ok(self.load.accepted_count() >= wanted);
        let failed = || self.load.failed().pop().unwrap_or_else(|| "no answer".to_owned());
        self.until(FIRST_PAYMENTS_TIMEOUT, "payments to be accepted", met).await.with_context(failed)
    }

    /// Pays as a new user, beside the load; returns the payment's id.
    ///
    /// # Errors
    /// When the payment is not accepted.
    pub async fn pay(&mut self, client_number: &str, amount: i64) -> Result<Uuid> {
        let user_id = self.client.user_with(amount).await?;
        let payment_id = self.client.pay(user_id, client_number, amount).await?;
        self.others.push((user_id, payment_id));
        Ok(payment_id)
    }

    /// Notes that it is broken from now on.
    pub fn is_broken(&mut self, what: &str) {
        self.broken = Instant::now();
        self.view.line(&format!("broken: {what}"));
    }

    /// Waits until the drill's alert fires.
    ///
    /// # Errors
    /// When it does not within the listed time since it was broken.
    pub async fn alert_fires(&mut self) -> Result<()> {
        let listed = self.drill.alert.as_ref().context("this drill has no alert")?;
        self.fires(listed.name, listed.within).await
    }

    /// Waits until this alert fires.
    ///
    /// # Errors
    /// When it does not within this time since it was broken.
    pub async fn fires(&mut self, alert: &str, within: Duration) -> Result<()> {
        let listed = within.as_secs();
        let left = within.saturating_sub(self.broken.elapsed());
        let what = format!("{alert} to fire (listed: {listed} s)");
        self.until(left, &what, async || self.is(alert, AlertState::Firing).await).await?;
        let fired_after = self.broken.elapsed().as_secs_f64();
        self.view.line(&format!("{alert} fires after {fired_after:.0} s (listed: {listed} s)"));
        self.alerts.push(ObservedAlert { alert: alert.to_owned(), fired_after, listed, ended_after: None });
        Ok(())
    }

    /// Waits until the drill's alert is gone.
    ///
    /// # Errors
    /// As [`Harness::ends`].
    pub async fn alert_ends(&mut self, within: Duration) -> Result<()> {
        let listed = self.drill.alert.as_ref().context("this drill has no alert")?;
        self.ends(listed.name, within).await
    }

    /// Waits until an alert is gone.
    ///
    /// # Errors
    /// When it is not within this time since the last script.
    pub async fn ends(&mut self, alert: &str, within: Duration) -> Result<()> {
        let left = within.saturating_sub(self.mended.elapsed());
        let what = format!("{alert} to end");
        self.until(left, &what, async || self.is(alert, AlertState::Inactive).await).await?;
        let seconds = self.mended.elapsed().as_secs_f64();
        self.view.line(&format!("{alert} is gone {seconds:.0} s after the runbook"));
        // The last one: a drill may break several things, one after the other.
        let seen = self.alerts.iter_mut().rev().find(|seen| seen.alert == alert);
        if let Some(seen) = seen {
            seen.ended_after = Some(seconds);
        }
        Ok(())
    }

    async fn is(&self, alert: &str, wanted: AlertState) -> Result<bool> {
        Ok(self.prometheus.state(alert).await? == wanted)
    }

    /// Runs the scripts below *Do* of the drill's section, one after the other.
    ///
    /// # Errors
    /// When there is none, or one fails.
    pub async fn run_runbook(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        let (page, heading) = (self.drill.page, self.drill.section);
        self.run_section(page, heading, variables).await.map(drop)
    }

    /// Runs the scripts below *Do* of a section, one after the other; returns what each printed.
    ///
    /// # Errors
    /// When there is none, or one fails.
    pub async fn run_section(
        &mut self,
        page: &str,
        heading: &str,
        variables: &[(&str, &str)],
    ) -> Result<Vec<String>> {
        let section = runbook::section(page, heading)?;
        ensure!(!section.acts.is_empty(), "{page}, section {heading}, has nothing to run");
        let mut printed = Vec::new();
        for text in &section.acts {
            printed.push(self.run_script(&section, text, variables).await?);
        }
        Ok(printed)
    }

    /// The section of the runbook that ends this drill.
    ///
    /// # Errors
    /// When there is none.
    pub fn section(&self) -> Result<Section> {
        runbook::section(self.drill.page, self.drill.section)
    }

    /// Runs one script of a section; returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run_script(
        &mut self,
        section: &Section,
        text: &str,
        variables: &[(&str, &str)],
    ) -> Result<String> {
        let Section { page, heading, .. } = section;
        self.view.line(&format!("runbook {page}, {heading}:"));
        self.view.below(text);
        self.view.wait("the script of the runbook");
        let began = Instant::now();
        let printed = script::run(text, variables).await.with_context(|| format!("{page}, {heading}"))?;
        self.mended = Instant::now();
        self.scripts += 1;
        self.view.line(&format!("done in {:.1} s", began.elapsed().as_secs_f64()));
        Ok(printed)
    }

    /// Runs `cargo stack` with these arguments; returns what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub async fn cargo_stack(&self, arguments: &[&str]) -> Result<String> {
        self.view.line(&format!("cargo stack {}", arguments.join(" ")));
        script::cargo_stack(arguments).await
    }

    /// Something that was seen, for the report.
    pub fn note(&mut self, text: String) {
        self.view.line(&text);
        self.notes.push(text);
    }

    /// The pages that fire or are about to.
    ///
    /// # Errors
    /// When Prometheus does not answer.
    pub async fn pages(&self) -> Result<BTreeMap<String, AlertState>> {
        self.prometheus.pages().await
    }

    /// The alerts that have paged somebody within this time.
    ///
    /// # Errors
    /// When Prometheus does not answer.
    pub async fn paged(&self, within: Duration) -> Result<Vec<String>> {
        self.prometheus.paged(within).await
    }

    /// Looks with growing pauses until the condition is met; a look that fails is repeated.
    ///
    /// # Errors
    /// When it is not met in time, with the last failure.
    pub async fn until(
        &self,
        timeout: Duration,
        what: &str,
        is_met: impl AsyncFn() -> Result<bool>,
    ) -> Result<()> {
        let began = Instant::now();
        let pauses =
            ExponentialBuilder::default().with_min_delay(POLL_INTERVAL_MIN).with_max_delay(POLL_INTERVAL_MAX);
        for pause in pauses.without_max_times().build() {
            let seconds = began.elapsed().as_secs();
            let (accepted, failed) = (self.load.accepted_count(), self.load.failed_count());
            self.view.wait(&format!(
                "waits for {what}, {seconds} s; payments accepted {accepted}, requests failed {failed}"
            ));
            let looked = is_met().await;
            match looked {
                Ok(true) => return Ok(()),
                Ok(false) if began.elapsed() < timeout => {}
                Err(_) if began.elapsed() < timeout => {}
                Ok(false) => bail!("waited {} s in vain for {what}", timeout.as_secs()),
                Err(error) => {
                    return Err(error.context(format!("waited {} s in vain for {what}", timeout.as_secs())));
                }
            }
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }
}
