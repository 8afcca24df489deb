//! The services: their binaries and what they are told by environment.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::environment;
use crate::layout::{Layout, Port};
use crate::servers::SERVICE_TIER;
use crate::spec::{Restart, Spec, StopSignal};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Gateway,
    Payments,
    Balance,
    Processor,
    Relay,
}

impl Service {
    pub const ALL: [Self; 5] = [Self::Gateway, Self::Payments, Self::Balance, Self::Processor, Self::Relay];

    /// Its name in the stack and the name of its binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway-sim",
            Self::Payments => "payments-svc",
            Self::Balance => "balance-svc",
            Self::Processor => "processor-svc",
            Self::Relay => "cdc-relay",
        }
    }

    pub fn ports(self) -> &'static [Port] {
        match self {
            Self::Gateway => &[Port::Gateway],
            Self::Payments => &[Port::Payments, Port::PaymentsAdmin],
            Self::Balance => &[Port::Balance, Port::BalanceAdmin],
            Self::Processor => &[Port::Processor, Port::ProcessorAdmin],
            Self::Relay => &[Port::RelayAdmin],
        }
    }

    /// Where it says whether it can do its work.
    pub fn ready_url(self, layout: &Layout) -> String {
        let (port, path) = match self {
            Self::Gateway => (Port::Gateway, "health"),
            Self::Payments => (Port::PaymentsAdmin, "ready"),
            Self::Balance => (Port::BalanceAdmin, "ready"),
            Self::Processor => (Port::ProcessorAdmin, "ready"),
            Self::Relay => (Port::RelayAdmin, "ready"),
        };
        format!("http://127.0.0.1:{}/{path}", layout.port(port))
    }

    fn binary(self, layout: &Layout) -> PathBuf {
        crate::workspace::binary(layout, self.name())
    }

    pub fn built(self, layout: &Layout) -> bool {
        self.binary(layout).is_file()
    }

    /// # Errors
    /// When its folder cannot be made.
    pub fn spec(self, layout: &Layout) -> Result<Spec> {
        let cwd = layout.dir.join("services").join(self.name());
        fs::create_dir_all(&cwd).with_context(|| format!("cannot make {}", cwd.display()))?;
        let mut argv = vec![self.binary(layout).display().to_string()];
        if self == Self::Relay {
            argv.push("run".to_owned());
        }
        Ok(Spec {
            name: self.name().to_owned(),
            argv,
            env: self.env(layout)?,
            log: layout.log(self.name()),
            cwd,
            uid: None,
            restart: Restart::Always,
            tier: SERVICE_TIER,
            stop_signal: StopSignal::Term,
            stop_seconds: 15,
            port: self.ports().first().map(|port| layout.port(*port)),
        })
    }

    fn env(self, layout: &Layout) -> Result<BTreeMap<String, String>> {
        let address = |port| format!("127.0.0.1:{}", layout.port(port));
        let url = |database: &str, role: &str| environment::postgres_url(layout, database, role);
        // Logs are files here.
        let mut env = vec![("TOKIO_WORKER_THREADS", "2".to_owned()), ("NO_COLOR", "1".to_owned())];
        let given = ["RUST_LOG", "LOG_FORMAT"].into_iter();
        env.extend(given.filter_map(|name| Some((name, std::env::var(name).ok()?))));
        let kafka = ("KAFKA_BROKERS", address(Port::Kafka));
        // One instance of each, so its name will do: a killed consumer is back at once, without a rebalance.
        let instance = ("GROUP_INSTANCE_ID", self.name().to_owned());
        let amqp = ("AMQP_URL", environment::amqp_url(layout)?);
        match self {
            Self::Gateway => env.extend([
                ("LISTEN_ADDR", address(Port::Gateway)),
                ("LEDGER_PATH", layout.dir.join("services/gateway-sim/ledger.ndjson").display().to_string()),
            ]),
            Self::Payments => env.extend([
                ("LISTEN_ADDR", address(Port::Payments)),
                ("ADMIN_ADDR", address(Port::PaymentsAdmin)),
                ("DATABASE_URL", url("payments", "payments_svc")?),
                kafka,
                instance,
            ]),
            Self::Balance => env.extend([
                ("LISTEN_ADDR", address(Port::Balance)),
                ("ADMIN_ADDR", address(Port::BalanceAdmin)),
                ("DATABASE_URL", url("balance", "balance_svc")?),
                kafka,
                instance,
            ]),
            Self::Processor => env.extend([
                ("LISTEN_ADDR", address(Port::Processor)),
                ("ADMIN_ADDR", address(Port::ProcessorAdmin)),
                ("DATABASE_URL", url("processor", "processor_svc")?),
                ("REDIS_URL", environment::redis_url(layout)?),
                ("GATEWAY_URL", format!("http://{}", address(Port::Gateway))),
                kafka,
                instance,
                amqp,
            ]),
            Self::Relay => env.extend([
                ("RELAY_ROUTES", layout.root.join("cdc-relay/relay.toml").display().to_string()),
                ("ADMIN_ADDR", address(Port::RelayAdmin)),
                ("PAYMENTS_RELAY_URL", url("payments", "coro_relay")?),
                ("BALANCE_RELAY_URL", url("balance", "coro_relay")?),
                ("PROCESSOR_RELAY_URL", url("processor", "coro_relay")?),
                kafka,
                amqp,
            ]),
        }
        Ok(env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}
