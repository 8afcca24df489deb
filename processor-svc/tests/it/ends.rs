//! Processes that end between any two effects, with charges of every form under way: the next ones bring
//! everything to its end. What succeeded was charged exactly once, and nothing else was.
//!
//! Each failpoint is hit twice: at once, and after it was passed some times, in the middle of a batch.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use jiff::Timestamp;
use processor_svc::failpoints::Failpoint;
use processor_svc::work::Job;
use tokio::net::TcpSocket;
use uuid::Uuid;

use crate::harness::{Database, Gateway, Processor, WAIT_TIMEOUT, bound, env, job, process};
use crate::queue::{Queue, with_queue};
use crate::topic::{CANCEL_REQUESTED, Topic, cancel_request};

/// Charged by the first call that reaches the gateway, whatever its caller receives.
const CHARGED: [&str; 15] = [
    "1",
    "1-slow20",
    "1-tail5",
    "1-thenhang",
    "1-thenreset",
    "1-thenhttp500",
    "1-thenhttp502",
    "1-thenhttp429",
    "1-thenhttp409",
    "1-thengarbage",
    "1-thencut",
    "1-thenhang-lag200",
    "1-thenhttp500-hooklate100",
    "1-late250",
    "1-soft200",
];
/// Not decided by the first call: sent again under the same key, or made impossible where keys are ignored.
const UNDECIDED: [&str; 9] = [
    "1-hang",
    "1-hangx2",
    "1-reset",
    "1-http500",
    "1-http502",
    "1-http429",
    "1-http409",
    "1-garbage",
    "1-cut",
];
/// Charged after the gateway's promise ran out, by when it may have been sent again or made impossible.
const TARDY: [&str; 1] = ["1-late1500"];
const DECLINED: [&str; 9] = [
    "1-decline",
    "1-decline200",
    "1-decline-slow20",
    "1-decline-thenhang",
    "1-decline-thenreset",
    "1-decline-hang",
    "1-decline-http500",
    "1-decline-late200",
    "1-decline-soft100",
];

/// The form of a charge, which is known before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    Charged,
    Undecided,
    Tardy,
    Declined,
    /// Its deadline has passed before the message is taken.
    Late,
    /// Asked to be cancelled; its work message comes afterwards.
    Cancelled,
    /// The request to cancel and the work message come at the same time.
    Raced,
}

/// Charges of every form.
fn all_forms() -> Vec<(Form, Job)> {
    let of = |form: Form, numbers: &[&str]| -> Vec<(Form, Job)> {
        numbers.iter().map(|number| (form, job(number))).collect()
    };
    let mut late = of(Form::Late, &["1", "1-thenhang"]);
    for (_, job) in &mut late {
        job.expires_at = Some(Timestamp::now() - Duration::from_secs(1));
    }
    [
        of(Form::Charged, &CHARGED),
        of(Form::Undecided, &UNDECIDED),
        of(Form::Tardy, &TARDY),
        of(Form::Declined, &DECLINED),
        late,
        of(Form::Cancelled, &["1", "1-thenhang"]),
        of(Form::Raced, &["1", "1-slow20"]),
    ]
    .concat()
}

fn jobs(all: &[(Form, Job)], wanted: impl Fn(Form) -> bool) -> Vec<Job> {
    all.iter().filter(|(form, _)| wanted(*form)).map(|(_, job)| job.clone()).collect()
}

/// How often a place is passed before the process ends there: for the second time round.
fn passes(failpoint: Failpoint) -> usize {
    match failpoint {
        // Passed by each charge.
        Failpoint::BeforeCall | Failpoint::AfterCall | Failpoint::BeforeInquiry | Failpoint::AfterInquiry => {
            10
        }
        // Passed by each batch.
        Failpoint::BeforeIntent
        | Failpoint::AfterIntent
        | Failpoint::AfterAck
        | Failpoint::BeforeOutcome
        | Failpoint::AfterOutcome
        | Failpoint::AfterCacheWrite
        | Failpoint::BeforeVoid
        | Failpoint::AfterVoid
        | Failpoint::AfterHasten => 2,
        // What is asked at once is one batch.
        Failpoint::AfterCancel => 0,
    }
}

struct Harness {
    database: Database,
    gateway: Gateway,
    queue: Queue,
    topic: Topic,
    flags: Vec<String>,
    /// Of the processes, one after the other; it stays theirs.
    _port: TcpSocket,
}

impl Harness {
    /// `gateway` and `processor` get the same setting of idempotency keys.
    async fn new(gateway: &[&str], processor: &[&str]) -> Harness {
        const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        // Webhooks go there, whichever process listens.
        let port = bound();
        let public = port.local_addr().unwrap();
        let hooks =
            [format!("--webhook-url=http://{public}/webhooks/gateway"), format!("--webhook-secret={SECRET}")];
        let hooks: Vec<&str> = hooks.iter().map(String::as_str).collect();
        let gateway = Gateway::with(&[gateway, &hooks].concat()).await;
        let (database, queue, topic) = (Database::new().await, Queue::new().await, Topic::new().await);
        let mut flags = topic.reading(with_queue(&database, &gateway, &queue, &env("REDIS_URL")));
        flags.extend(processor.iter().map(|flag| (*flag).to_owned()));
        // Few at a time, so that there are several batches. A name, so that the group does not wait for the dead.
        flags.extend(["--calls-max=16", "--group-instance-id=one"].map(str::to_owned));
        flags.extend([format!("--listen-addr={public}"), format!("--webhook-secret={SECRET}")]);
        Harness { database, gateway, queue, topic, flags, _port: port }
    }

    /// Charges of every form, and a process that ends at `failpoint` after it was passed `passes` times.
    async fn end_at(&self, failpoint: Failpoint, passes: usize) -> Vec<(Form, Job)> {
        let all = all_forms();
        self.queue.send(&jobs(&all, |form| form != Form::Cancelled)).await;
        for job in jobs(&all, |form| matches!(form, Form::Cancelled | Form::Raced)) {
            self.topic.produce(CANCEL_REQUESTED, &cancel_request(&job));
        }
        let mut child = process(&self.flags, &format!("{}={passes}*off->return", failpoint.name()));
        let ended = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = tokio::time::timeout(WAIT_TIMEOUT, ended).await;
        let status =
            ended.unwrap_or_else(|_| panic!("{failpoint:?} was not reached {passes} times and once more"));
        assert_eq!(status.signal(), Some(6), "{failpoint:?}: {status}");
        all
    }

    /// A process that stays brings everything to its end; how that was, by payment.
    async fn finish(self, all: &[(Form, Job)]) -> HashMap<Uuid, String> {
        // In this process, where nothing ends.
        let flags: Vec<String> =
            self.flags.iter().filter(|flag| !flag.starts_with("--listen-addr")).cloned().collect();
        let processor = Processor::with(flags.clone()).await;
        let ended = "select count(*) from charges where decided_at is not null";
        self.database.until(ended, all.len() as i64).await;
        // Work that was cancelled before it came.
        let cancelled = jobs(all, |form| form == Form::Cancelled);
        self.queue.send(&cancelled).await;
        let dropped = async || {
            let count = async |result| {
                processor.metric(&format!("processor_jobs_total{{result=\"{result}\"}}")).await
            };
            count("already").await + count("ended").await
        };
        let taken = async {
            while dropped().await < cancelled.len() as f64 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, taken).await.expect("late work messages are dropped");
        assert_eq!(processor.alarms().await, [""; 0]);
        processor.end().await;
        self.queue.until_taken(&flags).await;
        assert_eq!(self.database.number("select count(*) from parked").await, 0);
        let lapsed = "select least(count(*), 1) from charge_attempts where kind = 'sweep'";
        assert_eq!(self.database.number(lapsed).await, 1, "no end met a call under way");

        let rows = self.database.query("select payment_id, status, amount from charges").await;
        let mut succeeded: Vec<(String, i64)> = rows
            .iter()
            .filter(|row| row.get::<_, &str>("status") == "succeeded")
            .map(|row| (row.get::<_, Uuid>("payment_id").to_string(), row.get("amount")))
            .collect();
        succeeded.sort();
        assert_eq!(
            self.gateway.ledger().await,
            succeeded,
            "what succeeded is charged once, and nothing else is"
        );
        let ends = rows.iter().map(|row| (row.get("payment_id"), row.get("status"))).collect();
        self.queue.end().await;
        self.gateway.end().await;
        self.database.end().await;
        ends
    }
}

/// Ends at every place, then checks each charge's end against those its form may have.
async fn every_failpoint(
    harness: Harness,
    failpoints: &[Failpoint],
    may_end: impl Fn(Form) -> &'static [&'static str],
) {
    let mut all = Vec::new();
    for failpoint in failpoints {
        all.extend(harness.end_at(*failpoint, 0).await);
        if passes(*failpoint) > 0 {
            all.extend(harness.end_at(*failpoint, passes(*failpoint)).await);
        }
    }
    let ends = harness.finish(&all).await;
    assert_eq!(ends.len(), all.len());
    let mut ends_by_form: HashMap<Form, HashMap<&str, usize>> = HashMap::new();
    for (form, job) in &all {
        let end = ends[&job.charge.payment_id].as_str();
        assert!(may_end(*form).contains(&end), "{form:?} {} is {end}", job.charge.client_number);
        *ends_by_form.entry(*form).or_default().entry(end).or_default() += 1;
    }
    // Ends that forms may have are not only had by chance.
    for form in [Form::Charged, Form::Undecided, Form::Declined, Form::Late, Form::Cancelled] {
        let usual = may_end(form)[0];
        assert!(
            ends_by_form[&form].contains_key(usual),
            "no {form:?} charge ended {usual}: {ends_by_form:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn wherever_it_ends_every_payment_is_charged_once_or_not_at_all() {
    let harness = Harness::new(&[], &[]).await;
    let voids = [Failpoint::BeforeVoid, Failpoint::AfterVoid];
    let failpoints: Vec<Failpoint> =
        Failpoint::ALL.iter().copied().filter(|failpoint| !voids.contains(failpoint)).collect();
    let may_end = |form: Form| -> &[&str] {
        match form {
            Form::Charged | Form::Undecided | Form::Tardy => &["succeeded"],
            Form::Declined => &["declined"],
            Form::Late => &["expired"],
            Form::Cancelled => &["cancelled"],
            Form::Raced => &["succeeded", "cancelled"],
        }
    };
    every_failpoint(harness, &failpoints, may_end).await;
}

/// Nothing is sent twice there, so a charge that was not made when its process ended is never made.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn wherever_it_ends_no_payment_is_charged_twice_by_a_gateway_that_ignores_keys() {
    let harness = Harness::new(&["--idempotency=ignored"], &["--gateway-idempotent=false"]).await;
    let may_end = |form: Form| -> &[&str] {
        match form {
            Form::Charged | Form::Tardy => &["succeeded", "declined"],
            Form::Undecided | Form::Declined => &["declined"],
            Form::Late => &["expired"],
            Form::Cancelled => &["cancelled"],
            Form::Raced => &["succeeded", "cancelled", "declined"],
        }
    };
    every_failpoint(harness, Failpoint::ALL, may_end).await;
}
