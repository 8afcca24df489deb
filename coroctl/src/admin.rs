//! Asks the admin listeners of the services for acts, as a named operator.
//!
//! * A service decides and writes; nothing is changed here.
//! * A refusal is an error with the service's own words. A service that does not answer may have acted: asking again has the
//!   same answer and no second effect.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::Response;
use saga::http_client;
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A service with an admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Payments,
    Balance,
    Processor,
}

/// The admin listeners, and who asks.
#[derive(Args, Clone)]
pub struct Admin {
    /// Your name: lower-case letters, digits and `._@-`. It is kept with what you do.
    #[arg(long, env = "CORO_OPERATOR", value_name = "NAME")]
    pub operator: String,
    /// The token of the admin listeners. ADMIN_TOKEN_FILE may name a file with it.
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
    /// The admin listener of payments-svc, any instance.
    #[arg(long, env = "PAYMENTS_ADMIN_URL", value_name = "URL")]
    pub payments_admin_url: Option<String>,
    /// The admin listener of balance-svc.
    #[arg(long, env = "BALANCE_ADMIN_URL", value_name = "URL")]
    pub balance_admin_url: Option<String>,
    /// The admin listener of processor-svc.
    #[arg(long, env = "PROCESSOR_ADMIN_URL", value_name = "URL")]
    pub processor_admin_url: Option<String>,
}

impl Admin {
    /// Sends a request and returns the service's answer.
    ///
    /// # Errors
    /// When an address or the token is missing, the service does not answer, or it refuses.
    pub async fn post(&self, service: Service, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}{path}", self.url(service)?.trim_end_matches('/'));
        let http = http_client::builder().timeout(TIMEOUT).build()?;
        let request = http.post(&url).bearer_auth(self.token()?).json(body);
        let response = request.send().await.with_context(|| {
            format!(
                "{url} does not answer. Whether it acted is not known; send the same again, which is safe"
            )
        })?;
        answer(response).await
    }

    fn url(&self, service: Service) -> Result<&str> {
        let (url, variable) = match service {
            Service::Payments => (&self.payments_admin_url, "PAYMENTS_ADMIN_URL"),
            Service::Balance => (&self.balance_admin_url, "BALANCE_ADMIN_URL"),
            Service::Processor => (&self.processor_admin_url, "PROCESSOR_ADMIN_URL"),
        };
        url.as_deref().with_context(|| format!("{variable} is not given: the address of the admin listener"))
    }

    fn token(&self) -> Result<&str> {
        self.admin_token
            .as_deref()
            .context("ADMIN_TOKEN is not given: acts need the token of the admin listeners")
    }
}

async fn answer(response: Response) -> Result<Value> {
    let status = response.status();
    let body: Value =
        response.json().await.with_context(|| format!("{status}, and the answer is no JSON"))?;
    if status.is_success() {
        return Ok(body);
    }
    let (title, detail) = (body["title"].as_str(), body["detail"].as_str());
    let fields = body["errors"].as_array().into_iter().flatten();
    let fields = fields
        .filter_map(|error| Some(format!(" {} {}.", error["field"].as_str()?, error["detail"].as_str()?)));
    bail!("{} {}{}", title.unwrap_or(status.as_str()), detail.unwrap_or_default(), fields.collect::<String>())
}

/// The answer for people, one member a line, or as JSON.
///
/// # Errors
/// Never for an answer of a service.
pub fn shown(answer: &Value, as_json: bool) -> Result<String> {
    let Some(members) = answer.as_object().filter(|_| !as_json) else {
        return Ok(serde_json::to_string_pretty(answer)?);
    };
    let line = |(name, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name:<14} {value}")
    };
    Ok(members.iter().filter(|(_, value)| !value.is_null()).map(line).collect::<Vec<_>>().join("\n"))
}
