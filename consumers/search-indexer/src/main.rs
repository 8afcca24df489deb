use saga::{process, telemetry};
use search_indexer::config::{Command, Config};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = process::config();
    telemetry::init(config.log_format);
    let shutdown = process::shutdown_on_signal()?;
    match config.command {
        Some(Command::Rebuild) => search_indexer::rebuild::rebuild(&config, &shutdown).await,
        None => {
            let admin = process::listen("ADMIN_ADDR", config.admin_addr).await?;
            search_indexer::run(config, admin, shutdown).await
        }
    }
}
