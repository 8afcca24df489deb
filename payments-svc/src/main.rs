use anyhow::Context;
use payments_svc::config::Config;
use saga::{process, telemetry};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = process::config();
    telemetry::init(config.log_format);
    let shutdown = process::shutdown_on_signal()?;
    let public = TcpListener::bind(config.listen_addr).await.with_context(|| {
        format!(
            "cannot listen on LISTEN_ADDR {}; choose an address of this host that is free",
            config.listen_addr
        )
    })?;
    let admin = TcpListener::bind(config.admin_addr).await.with_context(|| {
        format!(
            "cannot listen on ADMIN_ADDR {}; choose an address of this host that is free",
            config.admin_addr
        )
    })?;
    payments_svc::run(config, public, admin, shutdown).await
}
