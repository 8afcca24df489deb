//! Where the users of a service are: one database, or several.

use clap::Args;

// No Debug: it would print passwords.
#[derive(Args, Clone)]
pub struct Settings {
    /// The database of the service, as the role of the service.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
    /// The databases of the service, if its users are on several: NAME=URL of each, separated by spaces. DATABASE_URL is not used then.
    #[arg(long, env = "SHARDS", hide_env_values = true)]
    pub shards: Option<String>,
    /// Maximum number of connections to each database.
    #[arg(long, env = "POOL_SIZE", default_value_t = 8)]
    pub pool_size: usize,
}
