//! All requests to the collector: OTLP over HTTP, in JSON (OpenTelemetry protocol 1.10).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::pending::Trace;
use crate::saga::Span;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Sent,
    /// The collector does not want them, now or later.
    Refused,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Refused => "refused",
        }
    }
}

pub struct Store {
    http: reqwest::Client,
    url: String,
}

impl Store {
    /// # Errors
    /// When the endpoint is no URL, or the client cannot be created.
    pub fn new(endpoint: &str) -> Result<Self> {
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        ensure!(reqwest::Url::parse(&url).is_ok(), "OTEL_EXPORTER_OTLP_ENDPOINT is no URL");
        let http = saga::http_client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT);
        Ok(Self { http: http.build().context("cannot create the client of the collector")?, url })
    }

    /// Sends the spans of these traces.
    ///
    /// # Errors
    /// When there is no answer, or one that asks to come back: the same traces may be sent again.
    pub async fn send(&self, traces: &[Trace]) -> Result<Outcome> {
        if traces.is_empty() {
            return Ok(Outcome::Sent);
        }
        let request = self.http.post(&self.url).json(&body(traces));
        // The URL may have a password in it.
        let response = request.send().await.map_err(reqwest::Error::without_url)?;
        match response.status() {
            status if status.is_success() => Ok(Outcome::Sent),
            // Those that may be sent again, by the protocol.
            status @ (StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => anyhow::bail!("the collector answers {status}"),
            _ => Ok(Outcome::Refused),
        }
    }
}

/// An `ExportTraceServiceRequest`: one resource for each service.
fn body(traces: &[Trace]) -> Value {
    let mut services: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for trace in traces {
        for span in trace.spans() {
            services.entry(span.service).or_default().push(one(trace, &span));
        }
    }
    let resources = services.into_iter().map(|(service, spans)| {
        json!({
            "resource": {"attributes": [attribute("service.name", service)]},
            "scopeSpans": [{"scope": {"name": "coro.tracer"}, "spans": spans}],
        })
    });
    json!({"resourceSpans": resources.collect::<Vec<_>>()})
}

fn one(trace: &Trace, span: &Span) -> Value {
    json!({
        "traceId": format!("{:032x}", trace.context.trace),
        "spanId": format!("{:016x}", span.id),
        "parentSpanId": format!("{:016x}", span.parent),
        "name": span.name,
        "kind": span.kind as u8,
        "startTimeUnixNano": span.start.as_nanosecond().to_string(),
        "endTimeUnixNano": span.end.as_nanosecond().to_string(),
        "attributes": span.attributes.iter().map(|(name, value)| attribute(name, value)).collect::<Vec<_>>(),
    })
}

fn attribute(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}
