//! Asks the relay that reads the source for its halted keys.
//!
//! * The later rows of a halted key wait for its release, and would be emitted after those of the target. So while there is one no
//!   fence is put up, and nothing is granted.
//! * A process that stands by, or has not begun to stream, shows none, since it has not read them. It is as good as no answer.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Client;
use saga::http_client;

const TIMEOUT: Duration = Duration::from_secs(5);
/// The metrics of the relay, one line for each source.
const HALTED_KEYS: &str = "cdc_relay_halted_keys{source=\"";
const STATE: &str = "cdc_relay_state{source=\"";
const STREAMING: &str = "\",state=\"streaming\"} 1";

/// The relay of the source.
#[derive(Args, Clone, Debug, Default)]
pub struct RelayListener {
    /// The admin listener of the relay's process that reads the source. Without it nothing is fenced or granted.
    #[arg(long = "relay-admin-url", env = "RELAY_ADMIN_URL", value_name = "URL")]
    pub url: Option<String>,
    /// The name of the source in the relay's routes file. Without it that process has to read all of its sources.
    #[arg(long = "relay-source", value_name = "NAME")]
    pub source: Option<String>,
}

/// What the listener is asked by. A mover keeps it: under the fence there is no time to make one.
///
/// # Errors
/// When this machine's certificates cannot be read.
pub(super) fn client() -> Result<Client> {
    http_client::builder().timeout(TIMEOUT).build().context("no HTTP client")
}

impl RelayListener {
    /// The number of halted keys; nothing when the process does not answer, or does not read the source.
    pub(super) async fn halted_keys(&self, client: &Client) -> Option<u64> {
        let url = format!("{}/metrics", self.url.as_deref()?.trim_end_matches('/'));
        let answer = client.get(&url).send().await.ok()?.error_for_status().ok()?;
        halted_keys(&answer.text().await.ok()?, self.source.as_deref())
    }
}

fn halted_keys(metrics: &str, source: Option<&str>) -> Option<u64> {
    let streams = |name: &str| {
        let line =
            |line: &str| line.strip_prefix(STATE)?.strip_prefix(name)?.strip_prefix(STREAMING).map(drop);
        metrics.lines().any(|text| line(text).is_some())
    };
    let (mut sources, mut halted) = (0, 0.0);
    for line in metrics.lines().filter_map(|line| line.strip_prefix(HALTED_KEYS)) {
        let (name, value) = line.split_once("\"} ")?;
        if source.is_some_and(|source| source != name) {
            continue;
        }
        if !streams(name) {
            return None;
        }
        sources += 1;
        halted += value.parse::<f64>().ok()?;
    }
    (sources > 0).then_some(halted as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_streams_knows_the_halted_keys() {
        let metrics = "# HELP cdc_relay_halted_keys x
cdc_relay_halted_keys{source=\"a\"} 1
cdc_relay_halted_keys{source=\"b\"} 2
cdc_relay_halted_keys{source=\"c\"} 0
cdc_relay_state{source=\"a\",state=\"streaming\"} 1
cdc_relay_state{source=\"b\",state=\"standby\"} 0
cdc_relay_state{source=\"b\",state=\"streaming\"} 1
cdc_relay_state{source=\"c\",state=\"standby\"} 1
cdc_relay_state{source=\"c\",state=\"streaming\"} 0
";
        for (source, expected) in
            [(Some("a"), Some(1)), (Some("b"), Some(2)), (Some("c"), None), (Some("d"), None), (None, None)]
        {
            assert_eq!(halted_keys(metrics, source), expected, "{source:?}");
        }
        let both = metrics.replace("{source=\"c\"", "{other=\"c\"");
        assert_eq!(halted_keys(&both, None), Some(3), "all sources that it has");
        assert_eq!(halted_keys("other 5\n", None), None);
        assert_eq!(halted_keys("cdc_relay_halted_keys{source=\"a\"} x\n", None), None);
    }
}
