//! The binary: configuration, logs, signals, listeners.

use processor_svc::{Config, recovery};
use saga::recovery::Program;
use saga::{process, telemetry};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // The failpoints of FAILPOINTS are set while this guard lives.
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let config: Config = match process::config() {
        Program::Serve(config) => *config,
        Program::Recover(settings) => {
            telemetry::init(settings.log_format);
            return recovery::run(*settings).await;
        }
    };
    telemetry::init(config.log_format);
    let shutdown = process::shutdown_on_signal()?;
    let public = process::listen("LISTEN_ADDR", config.listen_addr).await?;
    let admin = process::listen("ADMIN_ADDR", config.admin_addr).await?;
    processor_svc::run(config, public, admin, shutdown).await
}
