//! The secrets of a stack, each tried at what it opens.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use brokers::{Brokers, Properties, rabbitmq};
use rdkafka::consumer::{BaseConsumer, Consumer};
use reqwest::StatusCode;
use stack::layout::Layout;
use stack::login::Login;
use stack::servers::kafka;
use stack::services::INSTANCES;
use stack::{database_url, environment, probe};
use tokio_postgres::error::SqlState;

/// A server that refuses answers sooner; Kafka's client only stays without an answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// A secret, and what it opens.
pub struct Key {
    pub name: String,
    pub secret: String,
    lock: Lock,
}

enum Lock {
    Postgres { url: String },
    RabbitMq { url: String },
    Redis { layout: Box<Layout>, user: &'static str },
    Kafka { properties: Properties },
    AdminListener { url: String },
}

/// All of them, as they are now.
///
/// # Errors
/// When a file of secrets cannot be read.
pub fn all(layout: &Layout) -> Result<Vec<Key>> {
    let logins = Login::ALL.into_iter().map(|login| of_login(layout, login));
    let users = kafka::USERS.into_iter().chain([kafka::ADMIN]).map(|user| of_kafka(layout, user));
    // Those that write, each by the listener of its own.
    let writers = INSTANCES.into_iter().filter(|instance| WRITERS.contains(&instance.name));
    let listeners = writers.map(|instance| {
        Ok(Key {
            name: format!("the token of {}", instance.name),
            secret: layout.admin_token()?,
            lock: Lock::AdminListener { url: layout.http(instance.admin, "/parked/retry") },
        })
    });
    logins.chain(users).chain(listeners).collect()
}

/// The services of every stack whose admin listeners take a token.
const WRITERS: [&str; 4] = ["payments-svc", "payments-svc-2", "balance-svc", "processor-svc"];

fn of_login(layout: &Layout, login: Login) -> Result<Key> {
    let secret = login.password(layout)?;
    let name = login.secret();
    let lock = match name.split('-').next() {
        // Any role may try; who may not connect to the database is refused for another reason.
        Some("postgres") => Lock::Postgres { url: database_url::postgres_url(layout, "postgres", login)? },
        Some("rabbitmq") => Lock::RabbitMq { url: environment::amqp_url(layout, login)? },
        Some("redis") => Lock::Redis { layout: Box::new(layout.clone()), user: login.user() },
        _ => bail!("nobody knows how to try {name}"),
    };
    Ok(Key { name, secret, lock })
}

fn of_kafka(layout: &Layout, user: &str) -> Result<Key> {
    let file = kafka::client_file(layout, user).display().to_string();
    let properties = Properties::read(&file).map_err(anyhow::Error::msg)?;
    let secret = properties.get("sasl.password").with_context(|| format!("{file} has no sasl.password"))?;
    Ok(Key { name: kafka::secret_name(user), secret: secret.to_owned(), lock: Lock::Kafka { properties } })
}

impl Key {
    /// Whether its server takes the one before too, until the rotation ends.
    pub fn holds_until_the_end(&self) -> bool {
        match self.lock {
            Lock::Redis { .. } | Lock::AdminListener { .. } => true,
            Lock::Postgres { .. } | Lock::RabbitMq { .. } | Lock::Kafka { .. } => false,
        }
    }

    /// Whether the server lets it in.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn opens(&self) -> Result<bool> {
        let opens = match &self.lock {
            Lock::Postgres { url } => postgres(url).await,
            Lock::RabbitMq { url } => queue_login(url).await,
            Lock::Redis { layout, user } => {
                let (layout, user, secret) = (layout.clone(), *user, self.secret.clone());
                Ok(tokio::task::spawn_blocking(move || probe::redis_login(&layout, user, &secret)).await?)
            }
            Lock::Kafka { properties } => {
                let properties = properties.clone();
                tokio::task::spawn_blocking(move || kafka_login(properties)).await?
            }
            Lock::AdminListener { url } => admin_listener(url, &self.secret).await,
        };
        opens.with_context(|| format!("cannot try {}", self.name))
    }
}

async fn postgres(url: &str) -> Result<bool> {
    let Err(error) = sql::connect(url).await else { return Ok(true) };
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    match code {
        Some(code) if *code == SqlState::INVALID_PASSWORD => Ok(false),
        // It was let in, and may not use this database.
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Ok(true),
        _ => Err(error),
    }
}

async fn queue_login(url: &str) -> Result<bool> {
    match rabbitmq::connect(url, "drill", BROKER_TIMEOUT).await {
        Ok(connection) => {
            connection.close(200, "tried".into()).await.context("RabbitMQ")?;
            Ok(true)
        }
        Err(error) if format!("{error:#}").contains("ACCESS_REFUSED") => Ok(false),
        Err(error) => Err(error).context("RabbitMQ"),
    }
}

/// Its client says of a refused login nothing but that nobody answers.
fn kafka_login(properties: Properties) -> Result<bool> {
    let consumer: BaseConsumer = Brokers::new(None, properties)?.config().create()?;
    Ok(consumer.fetch_metadata(None, BROKER_TIMEOUT).is_ok())
}

/// Whose token is right is asked what to retry, which the request does not say.
async fn admin_listener(url: &str, token: &str) -> Result<bool> {
    let request = reqwest::Client::new().post(url).bearer_auth(token).json(&serde_json::json!({}));
    let status = request.send().await.context("the admin listener")?.status();
    match status {
        StatusCode::UNAUTHORIZED => Ok(false),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Ok(true),
        _ => bail!("the admin listener answered {status}"),
    }
}
