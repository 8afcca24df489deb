//! A further instance of a service, with settings of its own.
//!
//! * It serves clients on the database of the stack's instances. They consume the events: it subscribes to topics that do not
//!   exist.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use stack::layout::Layout;
use stack::services::Instance;

use crate::harness::{WAIT_TIMEOUT, binary, get};

pub struct FurtherInstance {
    process: Child,
    /// The public listener.
    pub url: String,
    pub admin_url: String,
}

impl FurtherInstance {
    /// Starts one more instance of `service` and waits until it is ready.
    pub async fn start(service: &str, settings: &[(&str, &str)]) -> Self {
        let mut instance = Self::begin(service, settings);
        instance.ready().await;
        instance
    }

    /// Starts one more instance of `service`.
    pub fn begin(service: &str, settings: &[(&str, &str)]) -> Self {
        let layout = Layout::from_env().unwrap();
        let mut env = Instance::named(service).unwrap().spec(&layout).unwrap().env;
        let (public, admin) = (free_address(), free_address());
        let group = format!("further-{service}");
        let kafka = std::env::var("KAFKA_BROKERS").unwrap();
        let own =
            [("LISTEN_ADDR", public.as_str()), ("ADMIN_ADDR", admin.as_str()), ("GROUP_ID", group.as_str())];
        let apart = [("TOPIC_PREFIX", "nowhere-"), ("KAFKA_BROKERS", kafka.as_str()), ("DRAIN_MS", "0")];
        env.retain(|name, _| !["KAFKA_CONFIG", "GROUP_INSTANCE_ID"].contains(&name.as_str()));
        let given = own.iter().chain(&apart).chain(settings);
        env.extend(given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        // Beside the logs of the others, so that what is said of logs holds for this one too.
        let log = layout.log(&format!("{service}-further"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(binary(service));
        command.env_clear().envs(env).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        let url = |address: &str| format!("http://{address}");
        Self { process, url: url(&public), admin_url: url(&admin) }
    }

    async fn ready(&mut self) {
        let began = Instant::now();
        let is_ready = async |url: String| get(url).await.is_ok_and(|answer| answer.status() == 200);
        while !is_ready(format!("{}/ready", self.admin_url)).await {
            assert_eq!(self.process.try_wait().unwrap(), None, "the instance has ended");
            assert!(began.elapsed() < WAIT_TIMEOUT, "the instance is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its first answer about being ready, which says why it is not.
    pub async fn not_ready(&mut self) -> Value {
        let (began, url) = (Instant::now(), format!("{}/ready", self.admin_url));
        loop {
            if let Ok(answer) = get(&url).await {
                assert_eq!(answer.status(), 503);
                return answer.json().await.unwrap();
            }
            assert_eq!(self.process.try_wait().unwrap(), None, "the instance has ended");
            assert!(began.elapsed() < WAIT_TIMEOUT, "the instance does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The value of one of its metrics.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = get(format!("{}/metrics", self.admin_url)).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
    }
}

impl Drop for FurtherInstance {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address that was free a moment ago.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
