//! `coroctl resolve`: ends a charge by what the gateway says elsewhere, or a hold that has no payment.
//!
//! * One operator proposes, another confirms. A proposal changes nothing; the confirmation is decided on the charge as it is then.
//! * The terms are those of the payment, or of the hold where there is no payment. processor-svc writes them with the outcome,
//!   and balance-svc moves the hold only if they are the hold's.
//! * Only a hold that is open can be ended.
//! * Of several shards of a service those rows count that [`owned_rows`](crate::owned_rows) says. processor-svc finds the shard of
//!   the user by itself.

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::admin::{self, Admin, Service};
use crate::databases::{DatabaseUrls, Databases, ServiceDatabases};
use crate::find;
use crate::listing;
use crate::snapshots::{LocatedRow, MOVE_TIMEOUT, SagaSnapshots, Snapshots, left_out};

/// The client number of a charge whose payment is not there: the ledger has none.
const NO_CLIENT_NUMBER: &str = "unknown";
const REASON_CHARS_MAX: usize = 80;

#[derive(Subcommand)]
pub enum Resolve {
    /// Propose how a charge is to end. Nothing is changed by this.
    ///
    /// Look at the gateway first: what it says of the reference, which is the payment_id, decides. Another operator confirms
    /// within 24 hours.
    Propose(Propose),
    /// Confirm what another operator has proposed, and end the charge.
    ///
    /// It is decided on the charge as it is now, and refused while the charge is being called, or when it has ended meanwhile.
    Confirm(Confirm),
    /// Print the proposals, the newest first.
    List(List),
}

#[derive(Args)]
#[group(skip)]
pub struct Propose {
    /// The payment_id, which is the gateway's reference too.
    pub payment_id: Uuid,
    /// The user of a hold that has no payment. Of a payment it is known.
    #[arg(long, value_name = "UUID")]
    pub user: Option<Uuid>,
    #[command(flatten)]
    pub evidence: Evidence,
    /// What you saw, and where. It is kept.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The same key again is the same proposal. Without it each call is a new one.
    #[arg(long, value_name = "TEXT")]
    pub key: Option<String>,
    /// Print the answer as a JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub databases: DatabaseUrls,
    #[command(flatten)]
    pub admin: Admin,
}

/// What the gateway says.
#[derive(Args)]
#[group(required = true, multiple = true, args = ["succeeded", "declined", "never_made"])]
pub struct Evidence {
    /// It charged, once: its own id of the charge. Needs --amount.
    #[arg(long, value_name = "REFERENCE", requires = "amount", conflicts_with_all = ["declined", "never_made"])]
    pub succeeded: Option<String>,
    /// The amount that stands at the gateway, in minor units.
    #[arg(long, value_name = "AMOUNT", requires = "succeeded")]
    pub amount: Option<i64>,
    /// It declined, or has given everything back: its code, or `voided`.
    #[arg(long, value_name = "CODE", conflicts_with = "never_made")]
    pub declined: Option<String>,
    /// It has no charge with this reference, and will make none: have it bar the reference first, unless there is no charge
    /// row yet, or it waits.
    #[arg(long)]
    pub never_made: bool,
}

#[derive(Args)]
pub struct Confirm {
    /// The resolution_id of the proposal.
    pub resolution_id: Uuid,
    /// Why you confirm: what you saw yourself. It is kept.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print the answer as a JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub admin: Admin,
}

#[derive(Args)]
pub struct List {
    /// The proposals about this payment.
    #[arg(long, value_name = "UUID")]
    pub payment: Option<Uuid>,
    /// Also those that were confirmed, and those that are too old to be.
    #[arg(long)]
    pub all: bool,
    /// The largest number of proposals to print.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
    /// The processor database, as a role that may read it, or its shards: NAME=URL of each, separated by spaces.
    #[arg(long, env = "PROCESSOR_DATABASE_URL", hide_env_values = true)]
    pub processor_database_url: String,
}

const LIST: &str = "
    select r.resolution_id, r.payment_id, r.user_id, r.amount, r.evidence, r.provider_reference, r.code, r.operator, r.reason,
           r.proposed_at, c.operator, c.reason, c.outcome, c.confirmed_at,
           c.confirmed_at is null and r.proposed_at < now() - interval '24 hours'
      from {resolutions} r left join resolution_confirmations c using (resolution_id)
     where ($1::uuid is null or r.payment_id = $1)
       and ($2 or (c.confirmed_at is null and r.proposed_at >= now() - interval '24 hours'))
     order by r.proposed_at desc, r.resolution_id limit $3";

const ENTRIES: &str = "
    select kind, amount, service_id from {ledger} l where user_id = $1 and payment_id = $2 order by phase desc limit 1";

/// Carries out one of the commands.
///
/// # Errors
/// When a database or the processor does not answer, there is nothing to resolve, or the processor refuses.
pub async fn run(command: &Resolve) -> Result<()> {
    match command {
        Resolve::Propose(propose) => {
            let body = proposal(propose).await?;
            let answer = propose.admin.post(Service::Processor, "/resolutions", &body).await?;
            saga::say!("{}", admin::shown(&answer, propose.json)?);
        }
        Resolve::Confirm(confirm) => {
            let body = json!({"operator": confirm.admin.operator, "reason": confirm.reason});
            let path = format!("/resolutions/{}/confirm", confirm.resolution_id);
            let answer = confirm.admin.post(Service::Processor, &path, &body).await?;
            saga::say!("{}", admin::shown(&answer, confirm.json)?);
        }
        Resolve::List(list) => {
            let databases = ServiceDatabases::open("processor", &list.processor_database_url).await?;
            let processor = Snapshots::take(&databases, MOVE_TIMEOUT).await?;
            saga::say!("{}", listed(&processor, list).await?);
        }
    }
    Ok(())
}

/// The terms of a payment, or of a hold.
struct Terms {
    user_id: Uuid,
    client_number: String,
    service_id: String,
    amount: i64,
}

/// The body of a proposal.
async fn proposal(propose: &Propose) -> Result<Value> {
    let databases = Databases::open(&propose.databases).await?;
    let snapshots = SagaSnapshots::take(&databases).await?;
    let terms = terms(&snapshots, propose.payment_id, propose.user).await?;
    let Terms { user_id, client_number, service_id, amount } = &terms;
    let key = propose.key.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
    let mut body = json!({
        "payment_id": propose.payment_id,
        "user_id": user_id,
        "client_number": client_number,
        "service_id": service_id,
        "amount": amount,
        "operator": propose.admin.operator,
        "reason": propose.reason,
        "idempotency_key": key,
    });
    let Evidence { succeeded, amount, declined, never_made: _ } = &propose.evidence;
    match (succeeded, declined) {
        (Some(reference), _) => {
            body["evidence"] = "succeeded".into();
            body["provider_reference"] = reference.as_str().into();
            body["charged_amount"] = (*amount).into();
        }
        (None, Some(code)) => {
            body["evidence"] = "declined".into();
            body["code"] = code.as_str().into();
        }
        (None, None) => body["evidence"] = "never_made".into(),
    }
    Ok(body)
}

async fn terms(databases: &SagaSnapshots<'_>, payment_id: Uuid, user: Option<Uuid>) -> Result<Terms> {
    let payment = match payment_id.get_version_num() {
        7 => find::one(&databases.payments, payment_id).await?,
        // An id that somebody made up may have a hold, and never a payment.
        _ => None,
    };
    let user_id = match (&payment, user) {
        (Some(payment), Some(user)) if payment.user_id != user => {
            bail!("payment {payment_id} is user {}'s, not {user}'s", payment.user_id)
        }
        (Some(payment), _) => payment.user_id,
        (None, Some(user)) => user,
        (None, None) => bail!(
            "there is no payment {payment_id}. If it is a hold without a payment, name its user: --user \
             (`coroctl audit` does){}",
            databases.but_left_out()
        ),
    };
    // A user that is left out looks like one without rows.
    databases.ensure_decided(user_id)?;
    let hold = hold(&databases.balance, user_id, payment_id).await?;
    Ok(match payment {
        Some(payment) => {
            let agree =
                (payment.amount, payment.service_id.as_str()) == (hold.amount, hold.service_id.as_str());
            ensure!(agree, "payment and hold {payment_id} differ; run `coroctl audit`");
            Terms { client_number: payment.client_number, ..hold }
        }
        None => hold,
    })
}

/// The open hold.
async fn hold(balance: &Snapshots<'_>, user_id: Uuid, payment_id: Uuid) -> Result<Terms> {
    // The entries of a user count on one shard.
    let Some(LocatedRow { row, .. }) =
        balance.query(ENTRIES, &[&user_id, &payment_id], "ledger").await?.pop()
    else {
        bail!("user {user_id} has no hold for {payment_id}, so there is nothing to resolve");
    };
    let kind: &str = row.get(0);
    ensure!(
        kind == "hold",
        "the last entry of {payment_id} is a {kind}, so there is nothing to resolve. If the payment stands still, its \
         last event is to be emitted again: `coroctl replay {payment_id}`"
    );
    let service_id: Option<String> = row.get(2);
    let service_id = service_id.context("a hold without a service")?;
    Ok(Terms { user_id, client_number: NO_CLIENT_NUMBER.to_owned(), service_id, amount: row.get(1) })
}

async fn listed(processor: &Snapshots<'_>, list: &List) -> Result<String> {
    let limit = i64::from(list.limit);
    let mut found = processor.query(LIST, &[&list.payment, &list.all, &limit], "resolutions").await?;
    // Of several shards; each has its rows in this order.
    found.sort_by_key(|LocatedRow { row, .. }| {
        (std::cmp::Reverse(row.get::<_, Timestamp>(9)), row.get::<_, Uuid>(0))
    });
    found.truncate(usize::from(list.limit));
    let left_out = left_out(&[processor]);
    if list.json {
        let resolutions: Vec<Value> = found.iter().map(document).collect();
        let mut answer = json!({"resolutions": resolutions});
        if let Some(left_out) = left_out {
            answer["left_out"] = left_out.into();
        }
        return Ok(serde_json::to_string_pretty(&answer)?);
    }
    let left_out = left_out.map(|left_out| format!("\n{left_out}")).unwrap_or_default();
    if found.is_empty() {
        return Ok(format!("No proposal waits for a confirmation.{left_out}"));
    }
    let header = ["RESOLUTION", "PAYMENT", "AMOUNT", "CLAIM", "PROPOSED BY", "AT", "CONFIRMED BY", "REASON"];
    Ok(format!("{}{left_out}", listing::located(header, found.iter().map(line))))
}

/// For people.
fn line<'a>(LocatedRow { shard, row }: &LocatedRow<'a>) -> (Option<&'a str>, [String; 8]) {
    let detail: Option<String> = row.get::<_, Option<String>>(5).or(row.get(6));
    let evidence = match detail {
        Some(detail) => format!("{} ({detail})", row.get::<_, &str>(4)),
        None => row.get::<_, String>(4),
    };
    let confirmed = match (row.get::<_, Option<String>>(10), row.get::<_, bool>(14)) {
        (Some(by), _) => by,
        (None, true) => "too old".to_owned(),
        (None, false) => "-".to_owned(),
    };
    let line = [
        row.get::<_, Uuid>(0).to_string(),
        row.get::<_, Uuid>(1).to_string(),
        row.get::<_, i64>(3).to_string(),
        evidence,
        row.get(7),
        listing::time(row.get(9)),
        confirmed,
        listing::short(row.get(8), REASON_CHARS_MAX),
    ];
    (*shard, line)
}

fn document(LocatedRow { shard, row }: &LocatedRow<'_>) -> Value {
    let mut document = of_row(row);
    if let Some(shard) = shard {
        document["shard"] = (*shard).into();
    }
    document
}

fn of_row(row: &Row) -> Value {
    let text = |index: usize| row.get::<_, Option<String>>(index);
    json!({
        "resolution_id": row.get::<_, Uuid>(0),
        "payment_id": row.get::<_, Uuid>(1),
        "user_id": row.get::<_, Uuid>(2),
        "amount": row.get::<_, i64>(3),
        "evidence": text(4),
        "provider_reference": text(5),
        "code": text(6),
        "proposed_by": text(7),
        "reason": text(8),
        "proposed_at": row.get::<_, Timestamp>(9),
        "confirmed_by": text(10),
        "confirmed_for": text(11),
        "outcome": text(12),
        "confirmed_at": row.get::<_, Option<Timestamp>>(13),
        "has_lapsed": row.get::<_, bool>(14),
    })
}
