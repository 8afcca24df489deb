//! The alerts of a stack, as its Prometheus judges them.

use std::time::Duration;

use anyhow::{Context, Result};
use saga::http_client;
use serde::Deserialize;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Of an alert's series, the most severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    Inactive,
    /// Its condition holds, and has not held for long enough.
    Pending,
    Firing,
}

pub struct Prometheus {
    http: reqwest::Client,
    url: String,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    alerts: Vec<Alert>,
}

#[derive(Deserialize)]
struct Alert {
    labels: Labels,
    state: AlertState,
}

#[derive(Deserialize)]
struct Labels {
    alertname: String,
}

impl Prometheus {
    /// # Errors
    /// When no client can be made.
    pub fn new(url: &str) -> Result<Self> {
        let http = http_client::builder().timeout(REQUEST_TIMEOUT).build()?;
        Ok(Self { http, url: url.to_owned() })
    }

    /// # Errors
    /// When Prometheus does not answer.
    pub async fn state(&self, alert: &str) -> Result<AlertState> {
        let url = format!("{}/api/v1/alerts", self.url);
        let response = self.http.get(url).send().await.context("Prometheus")?.error_for_status()?;
        Ok(most_severe(&response.text().await.context("Prometheus")?, alert)?)
    }

    /// The alerts of severity `page` that fired at any time of the last seconds.
    ///
    /// # Errors
    /// When Prometheus does not answer.
    pub async fn paged(&self, within: Duration) -> Result<Vec<String>> {
        let seconds = within.as_secs().max(1);
        let fired = format!(
            "count by (alertname) (max_over_time(ALERTS{{alertstate=\"firing\",severity=\"page\"}}[{seconds}s]))"
        );
        let url = format!("{}/api/v1/query", self.url);
        let url = reqwest::Url::parse_with_params(&url, [("query", fired)]).context("Prometheus")?;
        let response = self.http.get(url).send().await.context("Prometheus")?.error_for_status()?;
        Ok(names(&response.text().await.context("Prometheus")?)?)
    }
}

/// The answer to a query, by its labels alone.
#[derive(Deserialize)]
struct Queried {
    data: QueriedData,
}

#[derive(Deserialize)]
struct QueriedData {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: Labels,
}

fn names(answer: &str) -> serde_json::Result<Vec<String>> {
    let Queried { data } = serde_json::from_str(answer)?;
    let mut names: Vec<String> = data.result.into_iter().map(|series| series.metric.alertname).collect();
    names.sort();
    Ok(names)
}

fn most_severe(answer: &str, alert: &str) -> serde_json::Result<AlertState> {
    let Answer { data } = serde_json::from_str(answer)?;
    let of_alert = data.alerts.iter().filter(|one| one.labels.alertname == alert);
    Ok(of_alert.map(|one| one.state).max().unwrap_or(AlertState::Inactive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_what_fired() {
        let answer = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"alertname":"B"},"value":[1767225600,"2"]},{"metric":{"alertname":"A"},"value":[1767225600,"1"]}]}}"#;
        assert_eq!(names(answer).unwrap(), ["A", "B"]);
        assert!(
            names(r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#).unwrap().is_empty()
        );
    }

    #[test]
    fn an_alert_fires_if_one_of_its_series_does() {
        let answer = r#"{"status":"success","data":{"alerts":[
            {"labels":{"alertname":"A","source":"x"},"annotations":{},"state":"firing","activeAt":"2026-01-01T00:00:00Z","value":"1"},
            {"labels":{"alertname":"A","source":"y"},"annotations":{},"state":"pending","activeAt":"2026-01-01T00:00:00Z","value":"1"},
            {"labels":{"alertname":"B"},"annotations":{},"state":"pending","activeAt":"2026-01-01T00:00:00Z","value":"1"}]}}"#;
        let state = |alert| most_severe(answer, alert).unwrap();
        assert_eq!(
            [state("A"), state("B"), state("C")],
            [AlertState::Firing, AlertState::Pending, AlertState::Inactive]
        );
    }
}
