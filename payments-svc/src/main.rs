use payments_svc::config::Config;
use saga::{process, telemetry};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = process::config();
    telemetry::init(config.log_format);
    let shutdown = process::shutdown_on_signal()?;
    let public = process::listen("LISTEN_ADDR", config.listen_addr).await?;
    let admin = process::listen("ADMIN_ADDR", config.admin_addr).await?;
    payments_svc::run(config, public, admin, shutdown).await
}
