use saga::{process, telemetry};
use tracer::config::Config;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = process::config();
    telemetry::init(config.log_format);
    let shutdown = process::shutdown_on_signal()?;
    let admin = process::listen("ADMIN_ADDR", config.admin_addr).await?;
    tracer::run(config, admin, shutdown).await
}
