//! Counts events and messages that came more than once: a run without any proves nothing about them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;

use coroctl::stack::Stack;
use coroctl::topics::{self, SAGA_TOPICS};
use saga::http_client;

const SCRAPE_TIMEOUT: Duration = Duration::from_millis(300);

/// Counts by topic the events that were emitted again since `since`: same id, another offset.
pub async fn re_emitted(stack: &Stack, since: Timestamp) -> Result<BTreeMap<String, u64>> {
    let brokers = stack.kafka()?;
    let read = move || topics::read(&brokers, &SAGA_TOPICS, since);
    let events = tokio::task::spawn_blocking(read).await.context("reader")??;
    let mut again: BTreeMap<String, u64> = SAGA_TOPICS.map(|topic| (topic.to_owned(), 0)).into();
    let mut ids: HashMap<(&str, &str), u64> = HashMap::with_capacity(events.len());
    for event in &events {
        let times = ids.entry((&event.topic, event.header("ce_id"))).or_default();
        if *times > 0 {
            *again.entry(event.topic.clone()).or_default() += 1;
        }
        *times += 1;
    }
    Ok(again)
}

/// The counters of events and messages that services had applied before.
const SERIES: [(&str, &str); 5] = [
    ("events that payments-svc had applied", "consumer_records_total{outcome=\"already\"} "),
    ("events that payments-svc-2 had applied", "consumer_records_total{outcome=\"already\"} "),
    ("events that balance-svc had applied", "consumer_records_total{outcome=\"already\"} "),
    ("work messages that processor-svc had taken up", "processor_jobs_total{result=\"already\"} "),
    ("work messages of charges that had ended", "processor_jobs_total{result=\"ended\"} "),
];

/// Adds those counters up over the lives of their processes. The sums are lower bounds: counts between the last poll
/// of a process and its kill are missing.
pub struct DuplicateCounters {
    http: reqwest::Client,
    series: Vec<Series>,
}

struct Series {
    name: &'static str,
    url: String,
    line: &'static str,
    begin: Option<u64>,
    /// The sum of lives that are over.
    before: u64,
    last: u64,
}

impl Series {
    /// A counter that went back began anew.
    fn record(&mut self, value: u64) {
        let begin = *self.begin.get_or_insert(value);
        if value < self.last {
            self.before += self.last - begin;
            self.begin = Some(0);
        }
        self.last = value;
    }

    fn sum(&self) -> u64 {
        self.before + self.last - self.begin.unwrap_or_default()
    }
}

impl DuplicateCounters {
    pub fn new(stack: &Stack) -> Result<Self> {
        let http = http_client::builder().timeout(SCRAPE_TIMEOUT).build()?;
        let admins = [
            &stack.payments_admin_url,
            &stack.payments_2_admin_url,
            &stack.balance_admin_url,
            &stack.processor_admin_url,
            &stack.processor_admin_url,
        ];
        let series = SERIES.iter().zip(admins).map(|((name, line), admin)| Series {
            name,
            url: format!("{admin}/metrics"),
            line,
            begin: None,
            before: 0,
            last: 0,
        });
        Ok(Self { http, series: series.collect() })
    }

    /// Reads all of them. One that does not answer is being killed or has been.
    pub async fn poll(&mut self) {
        for series in &mut self.series {
            let Ok(response) = self.http.get(&series.url).send().await else { continue };
            let Ok(text) = response.text().await else { continue };
            series.record(value(&text, series.line));
        }
    }

    pub fn sums(&self) -> BTreeMap<&'static str, u64> {
        self.series.iter().map(|series| (series.name, series.sum())).collect()
    }
}

/// A labelled counter that never counted is not there: 0.
fn value(metrics: &str, line: &str) -> u64 {
    metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_up_over_several_lives() {
        let (name, line) = SERIES[0];
        let mut series = Series { name, url: String::new(), line, begin: None, before: 0, last: 0 };
        for count in [5, 9, 2, 2, 7, 0, 1] {
            series.record(count);
        }
        assert_eq!(series.sum(), (9 - 5) + 7 + 1);
    }

    #[test]
    fn a_counter_is_found_by_its_line() {
        let text = "# HELP x\nconsumer_records_total{outcome=\"already\"} 12\nother 3\n";
        assert_eq!(value(text, SERIES[0].1), 12);
        assert_eq!(value(text, SERIES[3].1), 0);
    }
}
