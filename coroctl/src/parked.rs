//! `coroctl parked`: messages that the three services have set aside, and what operators do with them.
//!
//! * `list` and `show` read the databases, as a role that may only read. Pages go by the primary key.
//! * A parked message stays on the shard where it was parked, whoever owns its user by now; copies of one may be on several. So all
//!   shards of a service are looked at, and all that they have counts. A service finds the message by itself.
//! * `retry` and `dismiss` ask the service that parked the message, at its admin listener.
//! * A message is open until one of the two was done with it.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{Client, Row};

use crate::admin::{self, Admin, Service};
use crate::databases::{self, DatabaseUrls, Databases, ServiceDatabase, ServiceDatabases};
use crate::listing;

const REASON_CHARS_MAX: usize = 100;

// The payment that a parked message is about: by its header, or by the body of a work message. A body may be any bytes.
// Columns: payment, parked_id, reason, parked_at.
pub const OPEN_BY_PAYMENT: &str = "
    select * from (
        select coalesce(headers ->> 'ce_subject',
                        substring(encode(body, 'escape') from '\"transaction_id\": ?\"([0-9a-f-]{36})\"')) as payment,
               parked_id, reason, parked_at
          from parked p
         where not exists (select from parked_acts a where a.parked_id = p.parked_id)) open
     where payment = any($1)
     order by parked_at, parked_id";

#[derive(Subcommand)]
pub enum Parked {
    /// Print the parked messages of the three services that nobody has dealt with yet.
    List(List),
    /// Print one parked message: its headers, its body, and what was done with it.
    Show(Show),
    /// Apply a parked message again, by the code that consumes it.
    ///
    /// It changes what the message would have changed, once. It is refused while the message cannot be applied; the answer says
    /// why. Asking again has the same answer.
    Retry(Request),
    /// Put a parked message away that is not to be applied.
    ///
    /// The message stays, with your name and reason beside it, and counts for no check any more. It is refused while the message
    /// can be applied: then the payment that it is about may wait for it.
    Dismiss(Request),
}

/// A database, named by its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Database {
    Payments,
    Balance,
    Processor,
}

impl Database {
    fn name(self) -> &'static str {
        match self {
            Self::Payments => "payments",
            Self::Balance => "balance",
            Self::Processor => "processor",
        }
    }

    fn service(self) -> Service {
        match self {
            Self::Payments => Service::Payments,
            Self::Balance => Service::Balance,
            Self::Processor => Service::Processor,
        }
    }

    fn of(self, databases: &Databases) -> &ServiceDatabases {
        match self {
            Self::Payments => &databases.payments,
            Self::Balance => &databases.balance,
            Self::Processor => &databases.processor,
        }
    }
}

#[derive(Args)]
pub struct List {
    /// The messages of one database. Without it, of all three.
    #[arg(long)]
    pub database: Option<Database>,
    /// The messages that came from this topic or queue.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Also those that were retried or dismissed.
    #[arg(long)]
    pub all: bool,
    /// The largest number of messages to print of each database.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Go on behind this parked_id. Needs --database.
    #[arg(long, value_name = "PARKED_ID", requires = "database")]
    pub after: Option<String>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub databases: DatabaseUrls,
}

#[derive(Args)]
pub struct Show {
    /// The database that it is parked in. One record may be parked by two services.
    pub database: Database,
    /// Its parked_id: topic/partition/offset, or queue/message id.
    pub parked_id: String,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub databases: DatabaseUrls,
}

#[derive(Args)]
pub struct Request {
    /// The database that it is parked in.
    pub database: Database,
    /// Its parked_id: topic/partition/offset, or queue/message id.
    pub parked_id: String,
    /// Why you do this. It is kept.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print the answer as a JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub admin: Admin,
}

/// A parked message in a list.
#[derive(Debug, Serialize)]
pub struct Listed {
    pub database: &'static str,
    /// The shard on which it is parked, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    pub parked_id: String,
    pub r#type: Option<String>,
    /// The payment that it is about, by its headers, or as work by its body.
    pub subject: Option<String>,
    pub reason: String,
    pub parked_at: Timestamp,
    /// What operators did with it: `retried`, `dismissed`.
    pub acts: Vec<String>,
}

const LIST: &str = "
    select parked_id, type,
           coalesce(headers ->> 'ce_subject',
                    substring(encode(body, 'escape') from '\"transaction_id\": ?\"([0-9a-f-]{36})\"')),
           reason, parked_at, acts
      from parked p
      cross join lateral (
          select coalesce(array_agg(act order by acted_at), '{}') as acts
            from parked_acts a where a.parked_id = p.parked_id) a
     where parked_id > $1 and ($2 or cardinality(acts) = 0) and ($3::text is null or source = $3)
     order by parked_id limit $4";

const SHOW: &str = "
    select parked_id, type, headers ->> 'ce_subject', reason, parked_at, source, message_key, headers, body,
           encode(body, 'base64')
      from parked where parked_id = $1";

const ACTS: &str = "
    select act, operator, reason, outcome, acted_at from parked_acts where parked_id = $1 order by acted_at, act";

/// Carries out one of the commands.
///
/// # Errors
/// When a database or a service does not answer, there is no such message, or the service refuses the act.
pub async fn run(command: &Parked) -> Result<()> {
    match command {
        Parked::List(list) => print_list(list).await,
        Parked::Show(show) => print_one(show).await,
        Parked::Retry(request) => act(request, "retry").await,
        Parked::Dismiss(request) => act(request, "dismiss").await,
    }
}

async fn act(request: &Request, act: &str) -> Result<()> {
    let body = json!({
        "parked_id": request.parked_id,
        "operator": request.admin.operator,
        "reason": request.reason,
    });
    let answer = request.admin.post(request.database.service(), &format!("/parked/{act}"), &body).await?;
    saga::say!("{}", admin::shown(&answer, request.json)?);
    Ok(())
}

async fn print_list(list: &List) -> Result<()> {
    let databases = Databases::open(&list.databases).await?;
    let mut messages = Vec::new();
    for database in [Database::Payments, Database::Balance, Database::Processor] {
        if list.database.is_none_or(|only| only == database) {
            messages.extend(listed(database, database.of(&databases), list).await?);
        }
    }
    if list.json {
        saga::say!("{}", serde_json::to_string_pretty(&json!({"parked": messages}))?);
        return Ok(());
    }
    let header = ["DATABASE", "PARKED ID", "TYPE", "PAYMENT", "PARKED AT", "ACTS", "REASON"];
    let count = messages.len();
    let rows = messages.iter().map(|message| {
        let acts = message.acts.join(", ");
        let row = [
            message.database.to_owned(),
            message.parked_id.clone(),
            listing::optional(message.r#type.as_deref()),
            listing::optional(message.subject.as_deref()),
            listing::time(message.parked_at),
            listing::optional(Some(acts.as_str()).filter(|acts| !acts.is_empty())),
            listing::short(&message.reason, REASON_CHARS_MAX),
        ];
        (message.shard.as_deref(), row)
    });
    match count {
        0 => saga::say!("No message is parked{}.", if list.all { "" } else { " that waits for an operator" }),
        _ => saga::say!("{}", listing::located(header, rows)),
    }
    Ok(())
}

/// A page of the messages of a service. All copies of its last message are on it, since the next one begins behind that id.
///
/// # Errors
/// When a database does not answer.
pub async fn listed(database: Database, of: &ServiceDatabases, list: &List) -> Result<Vec<Listed>> {
    let after = list.after.as_deref().unwrap_or_default();
    let limit = i64::from(list.limit);
    let mut found = Vec::new();
    for ServiceDatabase { shard, client } in &of.databases {
        let rows = client.query(LIST, &[&after, &list.all, &list.source, &limit]).await;
        let rows = rows.with_context(|| databases::name("parked", shard.as_deref()))?;
        let message = |row: &Row| Listed {
            database: database.name(),
            shard: shard.clone(),
            parked_id: row.get(0),
            r#type: row.get(1),
            subject: row.get(2),
            reason: row.get(3),
            parked_at: row.get(4),
            acts: row.get(5),
        };
        found.extend(rows.iter().map(message));
    }
    if of.databases.len() > 1 {
        found.sort_by(|one, other| one.parked_id.cmp(&other.parked_id));
        let last = found.get(usize::from(list.limit) - 1).map(|last| last.parked_id.clone());
        found.retain(|message| last.as_ref().is_none_or(|last| message.parked_id <= *last));
    }
    Ok(found)
}

async fn print_one(show: &Show) -> Result<()> {
    let databases = Databases::open(&show.databases).await?;
    let message = one(show.database, show.database.of(&databases), &show.parked_id).await?;
    if show.json {
        saga::say!("{}", serde_json::to_string_pretty(&message)?);
        return Ok(());
    }
    let mut rows: Vec<[String; 2]> = Vec::new();
    for (name, value) in message.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        match value {
            Value::Object(members) => {
                rows.extend(members.iter().map(|(member, value)| [format!("{name}.{member}"), plain(value)]));
            }
            Value::Array(values) => rows.extend(values.iter().map(|value| [name.clone(), plain(value)])),
            value => rows.push([name.clone(), plain(value)]),
        }
    }
    saga::say!("{}", listing::table(["FIELD", "VALUE"], rows));
    Ok(())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A parked message with everything that is known of it, and its copies on other shards under `copies`. A body that is no text is
/// in base64.
///
/// # Errors
/// When there is none with this id, or a database does not answer.
pub async fn one(database: Database, of: &ServiceDatabases, parked_id: &str) -> Result<Value> {
    let mut found = Vec::new();
    for ServiceDatabase { shard, client } in &of.databases {
        let message = on_database(database, client, parked_id).await;
        let message = message.with_context(|| databases::name("parked", shard.as_deref()))?;
        found.extend(message.map(|mut message| {
            if let Some(shard) = shard {
                message["shard"] = shard.as_str().into();
            }
            message
        }));
    }
    let mut found = found.into_iter();
    let Some(mut first) = found.next() else {
        bail!("nothing with the id {parked_id} is parked in the {} database", database.name());
    };
    let copies: Vec<Value> = found.collect();
    if !copies.is_empty() {
        first["copies"] = copies.into();
    }
    Ok(first)
}

async fn on_database(database: Database, client: &Client, parked_id: &str) -> Result<Option<Value>> {
    let Some(row) = client.query_opt(SHOW, &[&parked_id]).await? else { return Ok(None) };
    let acts = client.query(ACTS, &[&parked_id]).await.context("parked_acts")?;
    let act = |row: &Row| {
        json!({
            "act": row.get::<_, String>(0),
            "operator": row.get::<_, String>(1),
            "reason": row.get::<_, String>(2),
            "outcome": row.get::<_, String>(3),
            "acted_at": row.get::<_, Timestamp>(4),
        })
    };
    let text = String::from_utf8(row.get::<_, Vec<u8>>(8)).ok();
    let base64 = text.is_none().then(|| row.get::<_, String>(9));
    Ok(Some(json!({
        "database": database.name(),
        "parked_id": row.get::<_, String>(0),
        "type": row.get::<_, Option<String>>(1),
        "subject": row.get::<_, Option<String>>(2),
        "reason": row.get::<_, String>(3),
        "parked_at": row.get::<_, Timestamp>(4),
        "source": row.get::<_, String>(5),
        "message_key": row.get::<_, Option<String>>(6),
        "headers": row.get::<_, Value>(7),
        "body": text,
        "body_base64": base64,
        "acts": acts.iter().map(act).collect::<Vec<Value>>(),
    })))
}
