//! The services: their binaries and their environment.

pub mod further;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::certificates::{self, Certificate};
use crate::database_url::postgres_url;
use crate::environment;
use crate::extras::Extra;
use crate::layout::{Layout, Port};
use crate::login::Login;
use crate::servers::{kafka, smtp};
use crate::shards;
use crate::spec::{Restart, SERVICE_TIER, Spec, StopSignal};
use further::Scalable;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Gateway,
    Payments,
    Balance,
    Processor,
    Relay,
    SearchIndexer,
    Notifier,
    Fraud,
    /// Emits the alerts of fraud.
    FraudRelay,
    Auditor,
    Tracer,
}

impl Service {
    /// The name of its binary.
    pub fn program(self) -> &'static str {
        match self {
            Self::Gateway => "gateway-sim",
            Self::Payments => "payments-svc",
            Self::Balance => "balance-svc",
            Self::Processor => "processor-svc",
            Self::Relay | Self::FraudRelay => "cdc-relay",
            Self::SearchIndexer => "search-indexer",
            Self::Notifier => "notifier",
            Self::Fraud => "fraud",
            Self::Auditor => "auditor",
            Self::Tracer => "tracer",
        }
    }

    /// The extra that it belongs to; none if every stack has it.
    pub fn extra(self) -> Option<Extra> {
        match self {
            Self::Gateway | Self::Payments | Self::Balance | Self::Processor | Self::Relay => None,
            Self::SearchIndexer => Some(Extra::Search),
            Self::Notifier | Self::Fraud | Self::FraudRelay => Some(Extra::Notify),
            Self::Auditor => Some(Extra::Audit),
            Self::Tracer => Some(Extra::Traces),
        }
    }

    /// The servers that it connects to, each as itself, and settings that no other service has.
    fn links(self, layout: &Layout) -> Result<Vec<(&'static str, String)>> {
        let url = |database: &str, role: Login| postgres_url(layout, database, role);
        let kafka = |user| ("KAFKA_CONFIG", kafka::client_file(layout, user).display().to_string());
        let amqp = |user| anyhow::Ok(("AMQP_URL", environment::amqp_url(layout, user)?));
        let routes = |path: PathBuf| ("RELAY_ROUTES", path.display().to_string());
        Ok(match self {
            Self::Gateway => {
                let ledger = layout.dir.join("services/gateway-sim/ledger.ndjson");
                vec![("LEDGER_PATH", ledger.display().to_string())]
            }
            Self::Payments => {
                let role = Login::PaymentsService;
                let mut links = vec![("DATABASE_URL", url("payments", role)?), kafka("payments-svc")];
                links.extend(shards::setting(layout, "payments", role)?);
                links
            }
            Self::Balance => {
                let role = Login::BalanceService;
                let mut links = vec![("DATABASE_URL", url("balance", role)?), kafka("balance-svc")];
                links.extend(shards::setting(layout, "balance", role)?);
                links
            }
            Self::Processor => vec![
                ("DATABASE_URL", url("processor", Login::ProcessorService)?),
                ("REDIS_URL", environment::redis_url(layout, Login::CacheProcessor)?),
                ("GATEWAY_URL", layout.http(Port::Gateway, "")),
                // It is not behind the edge.
                ("DRAIN_MS", "0".to_owned()),
                kafka("processor-svc"),
                amqp(Login::QueueProcessor)?,
            ],
            Self::Relay => {
                let mut links = vec![
                    routes(shards::routes_file(layout, &layout.root)),
                    ("PAYMENTS_RELAY_URL", url("payments", Login::Relay)?),
                    ("BALANCE_RELAY_URL", url("balance", Login::Relay)?),
                    ("PROCESSOR_RELAY_URL", url("processor", Login::Relay)?),
                    ("RELAY_SYNCHRONOUS", synchronous(layout)),
                    kafka("relay"),
                    amqp(Login::QueueRelay)?,
                ];
                links.extend(shards::relay_urls(layout)?);
                links
            }
            Self::SearchIndexer => vec![kafka("search-indexer")],
            Self::Notifier => vec![
                ("DATABASE_URL", url("notifier", Login::Notifier)?),
                ("SMTP_URL", smtp::url(layout)),
                // Receivers of tests and demonstrations.
                ("WEBHOOK_ALLOW", "127.0.0.1/32".to_owned()),
                kafka("notifier"),
            ],
            Self::Fraud => vec![("DATABASE_URL", url("fraud", Login::Fraud)?), kafka("fraud")],
            Self::FraudRelay => vec![
                routes(layout.root.join("consumers/fraud/relay.toml")),
                ("FRAUD_RELAY_URL", url("fraud", Login::Relay)?),
                ("RELAY_SYNCHRONOUS", synchronous(layout)),
                kafka("relay"),
            ],
            Self::Auditor => vec![
                ("PAYMENTS_DATABASE_URL", shards::auditor_url(layout, "payments")?),
                ("BALANCE_DATABASE_URL", shards::auditor_url(layout, "balance")?),
                ("PROCESSOR_DATABASE_URL", url("processor", Login::Checker)?),
                kafka("auditor"),
            ],
            Self::Tracer => {
                vec![("OTEL_EXPORTER_OTLP_ENDPOINT", layout.http(Port::Otlp, "")), kafka("tracer")]
            }
        })
    }
}

/// Whether a relay emits nothing that its standbys lack: where there are standbys.
fn synchronous(layout: &Layout) -> String {
    if layout.is_ha() { "require" } else { "off" }.to_owned()
}

/// Settings of how payments-svc and balance-svc know their users, which the environment of `cargo stack up` gives. The last
/// names the authorities that vouch for the issuer of tokens.
const IDENTITY: [&str; 8] = [
    "AUTH",
    "AUTH_ISSUER",
    "AUTH_AUDIENCE",
    "AUTH_JWKS_URL",
    "AUTH_USER_CLAIM",
    "AUTH_TYP",
    "AUTH_LEEWAY_SECONDS",
    "SSL_CERT_FILE",
];

/// The issuer whose tokens clients need, if they need any.
pub fn token_issuer() -> Option<String> {
    let is_jwt = std::env::var("AUTH").is_ok_and(|auth| auth == "jwt");
    is_jwt.then(|| std::env::var("AUTH_ISSUER").unwrap_or_default())
}

/// One process of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance {
    pub service: Service,
    /// Its name in the stack, and in its consumer group.
    pub name: &'static str,
    /// Where clients reach it.
    pub public: Port,
    /// Where operators do; the same where there is one listener only.
    pub admin: Port,
}

/// Everything of ours that runs in a stack if nobody asks for another number of instances ([`further`]).
pub const INSTANCES: [Instance; 13] = [
    instance(Service::Gateway, "gateway-sim", Port::Gateway, Port::Gateway),
    instance(Service::Payments, "payments-svc", Port::Payments, Port::PaymentsAdmin),
    instance(Service::Payments, "payments-svc-2", Port::SecondPayments, Port::SecondPaymentsAdmin),
    instance(Service::Balance, "balance-svc", Port::Balance, Port::BalanceAdmin),
    instance(Service::Processor, "processor-svc", Port::Processor, Port::ProcessorAdmin),
    instance(Service::Relay, "cdc-relay", Port::RelayAdmin, Port::RelayAdmin),
    instance(Service::SearchIndexer, "search-indexer", Port::SearchIndexer, Port::SearchIndexer),
    instance(
        Service::SearchIndexer,
        "search-indexer-2",
        Port::SecondSearchIndexer,
        Port::SecondSearchIndexer,
    ),
    instance(Service::Notifier, "notifier", Port::Notifier, Port::Notifier),
    instance(Service::Fraud, "fraud", Port::Fraud, Port::Fraud),
    instance(Service::FraudRelay, "fraud-relay", Port::FraudRelay, Port::FraudRelay),
    instance(Service::Auditor, "auditor", Port::Auditor, Port::Auditor),
    instance(Service::Tracer, "tracer", Port::Tracer, Port::Tracer),
];

const fn instance(service: Service, name: &'static str, public: Port, admin: Port) -> Instance {
    Instance { service, name, public, admin }
}

impl Instance {
    /// The instances of a stack, in order of starting.
    pub fn of(layout: &Layout) -> Vec<Self> {
        let (kept, counted) = (Extra::of(layout), further::of(layout));
        let is_one_of_a_kind = |instance: &Self| Scalable::of(instance.service).is_none();
        let first = INSTANCES.into_iter().filter(|it| is_one_of_a_kind(it) || counted.contains(it));
        let further = counted.iter().copied().filter(|instance| !INSTANCES.contains(instance));
        first.chain(further).filter(|it| Extra::includes(&kept, it.service.extra())).collect()
    }

    pub fn named(name: &str) -> Option<Self> {
        INSTANCES.into_iter().chain(further::all()).find(|instance| instance.name == name)
    }

    /// The ports it listens on.
    pub fn ports(self) -> Vec<Port> {
        let mut ports = vec![self.public, self.admin];
        ports.dedup();
        ports
    }

    /// Where, on its admin listener, it says whether it can do its work.
    pub fn ready_path(self) -> &'static str {
        match self.service {
            Service::Gateway => "/health",
            Service::Payments
            | Service::Balance
            | Service::Processor
            | Service::Relay
            | Service::SearchIndexer
            | Service::Notifier
            | Service::Fraud
            | Service::FraudRelay
            | Service::Auditor
            | Service::Tracer => "/ready",
        }
    }

    fn binary(self, layout: &Layout) -> PathBuf {
        crate::workspace::binary(layout, self.service.program())
    }

    /// # Errors
    /// When its folder cannot be made.
    pub fn spec(self, layout: &Layout) -> Result<Spec> {
        let cwd = layout.dir.join("services").join(self.name);
        fs::create_dir_all(&cwd).with_context(|| format!("cannot make {}", cwd.display()))?;
        let mut argv = vec![self.binary(layout).display().to_string()];
        if matches!(self.service, Service::Relay | Service::FraudRelay) {
            argv.push("run".to_owned());
        }
        Ok(Spec {
            name: self.name.to_owned(),
            argv,
            env: self.env(layout)?,
            log: layout.log(self.name),
            cwd,
            uid: None,
            restart: Restart::Always,
            tier: SERVICE_TIER,
            stop_signal: StopSignal::Term,
            stop_seconds: 20,
            port: Some(layout.port(self.public)),
        })
    }

    fn env(self, layout: &Layout) -> Result<BTreeMap<String, String>> {
        use Service::{Auditor, Balance, Fraud, FraudRelay, Gateway, Payments, Relay, SearchIndexer, Tracer};
        // Logs are files here.
        let mut env = vec![("TOKIO_WORKER_THREADS", "2".to_owned()), ("NO_COLOR", "1".to_owned())];
        env.extend(given(&["RUST_LOG", "LOG_FORMAT"]));
        if self.service != Gateway {
            env.push(("ADMIN_ADDR", address(layout, self.admin)));
        }
        if self.public != self.admin || self.service == Gateway {
            env.push(("LISTEN_ADDR", address(layout, self.public)));
        }
        // A member of its consumer group that comes back under its name causes no rebalance.
        if !matches!(self.service, Gateway | Relay | FraudRelay | Auditor) {
            env.push(("GROUP_INSTANCE_ID", self.name.to_owned()));
        }
        // Who may write on admin listeners; the others have nothing to write.
        if !matches!(self.service, Relay | SearchIndexer | Fraud | FraudRelay | Auditor | Tracer) {
            env.push(("ADMIN_TOKEN", layout.admin_tokens()?));
        }
        if matches!(self.service, Payments | Balance) {
            env.extend(for_clients());
        }
        // After them: what vouches for a token's issuer outside vouches for nobody in here.
        if layout.is_encrypted() {
            env.extend(tls(layout));
        }
        if self.service == Payments {
            env.extend(given(&["HOLD_DELAY_MAX_SECONDS"]));
        }
        if self.service == Tracer {
            env.extend(given(&["TRACE_SAMPLE_RATIO"]));
        }
        if matches!(self.service, Payments | SearchIndexer) {
            env.extend(environment::search_url(layout).map(|url| ("SEARCH_URL", url)));
        }
        env.extend(self.service.links(layout)?);
        Ok(env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// The programs that `up` starts or runs, and all that it builds. Loads, benchmarks and tests are built by whoever
/// asks for them.
pub fn programs(layout: &Layout) -> Vec<&'static str> {
    let services = Instance::of(layout).into_iter().map(|instance| instance.service.program());
    let mut programs: Vec<&str> = services.chain(["migrate", "coroctl"]).collect();
    programs.sort_unstable();
    programs.dedup();
    programs
}

fn address(layout: &Layout, port: Port) -> String {
    format!("127.0.0.1:{}", layout.port(port))
}

/// Those of these variables that the environment of `cargo stack` has.
fn given(names: &[&'static str]) -> Vec<(&'static str, String)> {
    names.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect()
}

/// The settings of public listeners. A load on a stack has few users, so each may have everything if nobody says otherwise.
fn for_clients() -> Vec<(&'static str, String)> {
    let mut env = vec![("REQUESTS_PER_USER", "0".to_owned())];
    env.extend(given(&["REQUESTS_PER_USER", "CORS_ORIGINS", "CORS_CREDENTIALS_ORIGINS"]));
    env.extend(given(&IDENTITY));
    env
}

/// The certificate of its listeners, and the authority that vouches for everybody it connects to.
fn tls(layout: &Layout) -> [(&'static str, String); 3] {
    let Certificate { certificate, key } = certificates::of(layout, certificates::SERVICES);
    let text = |path: PathBuf| path.display().to_string();
    [
        ("TLS_CERT_FILE", text(certificate)),
        ("TLS_KEY_FILE", text(key)),
        ("SSL_CERT_FILE", text(layout.authority())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack in a folder of its own, of which nothing runs.
    fn layout(name: &str) -> Layout {
        let dir = std::env::temp_dir().join(format!("stack-services-{name}-{}", std::process::id()));
        Layout::new(Some(dir), 22_000).unwrap()
    }

    #[test]
    fn a_service_is_given_the_secrets_of_its_own_logins_and_no_others() {
        let layout = layout("secrets");
        for instance in INSTANCES {
            let own: &[Login] = match instance.service {
                Service::Gateway => &[],
                Service::Payments => &[Login::PaymentsService],
                Service::Balance => &[Login::BalanceService],
                Service::Processor => {
                    &[Login::ProcessorService, Login::QueueProcessor, Login::CacheProcessor]
                }
                Service::Relay => &[Login::Relay, Login::QueueRelay],
                Service::SearchIndexer => &[],
                Service::Notifier => &[Login::Notifier],
                Service::Fraud => &[Login::Fraud],
                Service::FraudRelay => &[Login::Relay],
                Service::Auditor => &[Login::Checker],
                Service::Tracer => &[],
            };
            let env = instance.spec(&layout).unwrap().env;
            for login in Login::ALL {
                let secret = login.password(&layout).unwrap();
                let given = env.values().any(|value| value.contains(&secret));
                assert_eq!(given, own.contains(&login), "{} and {login:?}", instance.name);
            }
        }
        fs::remove_dir_all(&layout.dir).unwrap();
    }

    /// Any user of the machine may read the arguments of every process.
    #[test]
    fn no_secret_is_an_argument() {
        let layout = layout("arguments");
        for instance in INSTANCES {
            let spec = instance.spec(&layout).unwrap();
            for file in fs::read_dir(layout.secrets()).unwrap() {
                let path = file.unwrap().path();
                let secret = fs::read_to_string(&path).unwrap();
                let shown = spec.argv.iter().any(|argument| argument.contains(secret.trim()));
                assert!(!shown, "{}: {} is among {:?}", instance.name, path.display(), spec.argv);
            }
        }
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
