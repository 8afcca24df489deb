//! The SQL of resolutions: what two operators say of a charge.
//!
//! * A proposal is a row, and changes no charge.
//! * A confirmation locks the charge, decides on what it finds, and writes charge and confirmation in one transaction.
//! * Who confirms names a proposal, and the proposal its user. So users are looked up by its id alone; whatever follows names
//!   their buckets.
//! * An insert that meets another one writes nothing, and is decided again.
//! * What was done before is answered so once the standbys have it ([`confirm_visible`]).

use anyhow::{Context, bail};
use jiff::Timestamp;
use saga::postgres::{self, Transaction, confirm_visible};
use saga::shards::Ownership;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Store, charge, state};
use crate::charge::Charge;
use crate::saga::To;
use crate::saga::resolution::{Evidence, Found, MayConfirm, Proposal, Resolution, may_confirm, resolve};

/// Rounds in which a confirmation is decided. A row that appears stays, so the second one finds it.
const ROUNDS_MAX: usize = 3;

/// A proposal to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewProposal {
    pub resolution_id: Uuid,
    /// The payment, or the hold, with its terms.
    pub terms: Charge,
    pub evidence: Evidence,
    pub operator: String,
    pub reason: String,
}

/// The answer to a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposed {
    Recorded(Timestamp),
    /// The same was proposed before.
    Repeated(Timestamp),
    /// The key was used for another proposal.
    KeyReused,
    Refused(String),
}

/// The confirmation of a proposal.
#[derive(Clone, Debug, PartialEq)]
pub struct Confirmation {
    pub payment_id: Uuid,
    pub operator: String,
    pub reason: String,
    /// `applied`, or `already`.
    pub outcome: String,
    /// The charge before and after.
    pub before: Option<Value>,
    pub after: Value,
    pub confirmed_at: Timestamp,
}

/// The answer to a confirmation.
#[derive(Clone, Debug, PartialEq)]
pub enum Confirmed {
    /// The charge that it ended, if it ended one.
    Done(Confirmation, Option<Charge>),
    Repeated(Confirmation),
    /// There is no such proposal.
    Unknown,
    Refused(String),
}

const READ_CHARGE: &str = "
    select payment_id, user_id, client_number, service_id, amount, traceparent, status, attempt, exposed,
           provider_reference, version, lease_until <= now() as is_lease_over, to_jsonb(c) as document
      from charges c where payment_id = $1 and require_ownership($2, $3)";

// The charge may be another user's than the payment.
const READ_USERS: &str = "
    select r.user_id, c.user_id as charged from resolutions r left join charges c using (payment_id)
     where r.resolution_id = $1";

const PROPOSE: &str = "
    insert into resolutions (resolution_id, payment_id, user_id, client_number, service_id, amount, evidence,
                             provider_reference, code, charge, operator, reason)
    select $1::uuid, $2::uuid, $3::uuid, $4::text, $5::text, $6::int8, $7::text, $8::text, $9::text, $10::jsonb,
           $11::text, $12::text
     where require_ownership($13, $14)
    on conflict do nothing
    returning proposed_at";

const READ_PROPOSAL: &str = "
    select r.payment_id, r.user_id, r.client_number, r.service_id, r.amount, null::text as traceparent,
           r.evidence, r.provider_reference, r.code, r.operator, r.reason, r.proposed_at,
           r.proposed_at < now() - interval '24 hours' as has_lapsed, (r.charge ->> 'version')::int4 as charge_version,
           c.operator as confirmed_by, c.reason as confirmed_for, c.outcome, c.before, c.after, c.confirmed_at
      from resolutions r left join resolution_confirmations c using (resolution_id)
     where r.resolution_id = $1 and require_ownership($2, $3)";

const CONFIRM: &str = "
    insert into resolution_confirmations (resolution_id, proposed_by, operator, reason, outcome, before, after)
    select $1::uuid, $2::text, $3::text, $4::text, $5::text, $6::jsonb, $7::jsonb
     where require_ownership($8, $9)
    on conflict do nothing
    returning confirmed_at";

// The lease is over at once, since nobody calls.
const INSERT: &str = "
    insert into charges (payment_id, user_id, client_number, service_id, amount, status, reason, provider_reference,
                         lease_until, decided_at)
    select $1::uuid, $2::uuid, $3::text, $4::text, $5::int8, $6::text, $7::text, $8::text, now(), now()
     where require_ownership($9, $10)
    on conflict do nothing
    returning payment_id";

// The row is locked by the transaction that read it. Terms change only here, and only with an outcome.
const MOVE: &str = "
    update charges
       set user_id = $2, client_number = $3, service_id = $4, amount = $5, status = $6, reason = $7,
           provider_reference = $8, version = version + 1, decided_at = now()
     where payment_id = $1 and require_ownership($9, $10)
    returning payment_id";

impl Store {
    /// Records a proposal, unless it could not be confirmed now.
    ///
    /// # Errors
    /// When the database failed. The same proposal may be sent again.
    pub async fn propose(&self, proposal: &NewProposal) -> anyhow::Result<Proposed> {
        let propose = |owned| async move { propose(&owned, proposal).await };
        self.router.repeat(proposal.terms.user_id, propose).await
    }

    /// Confirms a proposal, and writes its outcome, on the charge as it is now.
    ///
    /// # Errors
    /// When the database failed. The same confirmation may be sent again.
    pub async fn confirm(
        &self,
        resolution_id: Uuid,
        operator: &str,
        reason: &str,
    ) -> anyhow::Result<Confirmed> {
        let failed = "cannot read whom the proposal is about";
        let rows = postgres::query(&self.pool, READ_USERS, &[&resolution_id], failed).await?;
        let Some(row) = rows.first() else { return Ok(Confirmed::Unknown) };
        let users: Vec<Uuid> =
            std::iter::once(row.get("user_id")).chain(row.get::<_, Option<Uuid>>("charged")).collect();
        let confirm = |owned| async move { confirm(&owned, resolution_id, operator, reason).await };
        self.router.repeat_for(&users, confirm).await
    }
}

async fn propose(owned: &Ownership, proposal: &NewProposal) -> anyhow::Result<Proposed> {
    let mut client = owned.client().await?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    if let Some(row) = read_proposal(&transaction, owned, proposal.resolution_id).await? {
        let at = row.get("proposed_at");
        if !is_same(proposal, &row)? {
            return Ok(Proposed::KeyReused);
        }
        confirm_visible(&transaction).await?;
        transaction.commit().await.context("cannot commit")?;
        return Ok(Proposed::Repeated(at));
    }
    let found = read_charge(&transaction, owned, proposal.terms.payment_id, "").await?;
    let document = found.as_ref().map(|(_, document)| document);
    let step = resolve(found.as_ref().map(|(f, _)| f), &proposal.terms, &proposal.evidence, false);
    if let Resolution::Refused(refusal) = step {
        return Ok(Proposed::Refused(refusal.to_string()));
    }
    let (evidence, provider_reference, code) = columns(&proposal.evidence);
    let Charge { payment_id, user_id, client_number, service_id, amount, traceparent: _ } = &proposal.terms;
    let insert = transaction.prepare_cached(PROPOSE).await?;
    let row = transaction
        .query_opt(
            &insert,
            &[
                &proposal.resolution_id,
                payment_id,
                user_id,
                client_number,
                service_id,
                amount,
                &evidence,
                &provider_reference,
                &code,
                &document,
                &proposal.operator,
                &proposal.reason,
                &owned.buckets,
                &owned.epochs,
            ],
        )
        .await
        .context("cannot record the proposal")?;
    let Some(row) = row else { bail!("the same was proposed at the same time; send it again") };
    transaction.commit().await.context("cannot commit")?;
    Ok(Proposed::Recorded(row.get(0)))
}

async fn confirm(
    owned: &Ownership,
    resolution_id: Uuid,
    operator: &str,
    reason: &str,
) -> anyhow::Result<Confirmed> {
    let mut client = owned.client().await?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let Some(row) = read_proposal(&transaction, owned, resolution_id).await? else {
        return Ok(Confirmed::Unknown);
    };
    let (terms, evidence) = (charge(&row), evidence(&row)?);
    let proposal = Proposal {
        operator: row.get("operator"),
        has_lapsed: row.get("has_lapsed"),
        confirmed_by: row.get("confirmed_by"),
    };
    match may_confirm(&proposal, operator) {
        MayConfirm::Yes => {}
        MayConfirm::Repeated => {
            confirm_visible(&transaction).await?;
            transaction.commit().await.context("cannot commit")?;
            return Ok(Confirmed::Repeated(confirmation(&row)));
        }
        MayConfirm::No(why) => return Ok(Confirmed::Refused(why)),
    }
    let written = written(&transaction, owned, &terms, &evidence, row.get("charge_version")).await?;
    let (before, outcome) = match written {
        Written::Refused(why) => return Ok(Confirmed::Refused(why)),
        Written::Done { before, outcome } => (before, outcome),
    };
    let after = read_charge(&transaction, owned, terms.payment_id, "").await?.map(|(_, document)| document);
    let after = after.context("the charge is gone that was just written")?;
    let insert = transaction.prepare_cached(CONFIRM).await?;
    let row = transaction
        .query_opt(
            &insert,
            &[
                &resolution_id,
                &proposal.operator,
                &operator,
                &reason,
                &outcome,
                &before,
                &after,
                &owned.buckets,
                &owned.epochs,
            ],
        )
        .await
        .context("cannot record the confirmation")?;
    let Some(row) = row else { bail!("it was confirmed at the same time; send it again") };
    let confirmed_at = row.get(0);
    transaction.commit().await.context("cannot commit")?;
    let confirmation = Confirmation {
        payment_id: terms.payment_id,
        operator: operator.to_owned(),
        reason: reason.to_owned(),
        outcome: outcome.to_owned(),
        before,
        after,
        confirmed_at,
    };
    Ok(Confirmed::Done(confirmation, (outcome == "applied").then_some(terms)))
}

/// What came of writing an outcome.
enum Written {
    Done { before: Option<Value>, outcome: &'static str },
    Refused(String),
}

/// Locks the charge, decides, and writes. `version`: of the charge that the proposal was about, if there was one.
async fn written(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    terms: &Charge,
    evidence: &Evidence,
    version: Option<i32>,
) -> anyhow::Result<Written> {
    for _ in 0..ROUNDS_MAX {
        let found = read_charge(transaction, owned, terms.payment_id, "for no key update").await?;
        let charge = found.as_ref().map(|(found, _)| found);
        let has_changed = charge.map(|charge| charge.version) != version;
        let (statement, to) = match resolve(charge, terms, evidence, has_changed) {
            Resolution::Insert(to) => (INSERT, to),
            Resolution::Move(to) => (MOVE, to),
            Resolution::Already => {
                let before = found.map(|(_, document)| document);
                return Ok(Written::Done { before, outcome: "already" });
            }
            Resolution::Refused(refusal) => return Ok(Written::Refused(refusal.to_string())),
        };
        let (status, reason, provider_reference) = match &to {
            To::Succeeded { provider_reference } => ("succeeded", None, Some(provider_reference.as_str())),
            To::Declined { code } => ("declined", Some(code.as_str()), None),
            To::Expired => ("expired", Some(crate::saga::resolution::NEVER_MADE), None),
            To::Cancelled | To::Waiting { .. } | To::Calling { .. } | To::Unknown { .. } => {
                bail!("a resolution led to {to:?}, which is no outcome of one; this is a defect")
            }
        };
        let Charge { payment_id, user_id, client_number, service_id, amount, traceparent: _ } = terms;
        let prepared = transaction.prepare_cached(statement).await?;
        let row = transaction
            .query_opt(
                &prepared,
                &[
                    payment_id,
                    user_id,
                    client_number,
                    service_id,
                    amount,
                    &status,
                    &reason,
                    &provider_reference,
                    &owned.buckets,
                    &owned.epochs,
                ],
            )
            .await
            .context("cannot write the charge")?;
        if row.is_some() {
            return Ok(Written::Done { before: found.map(|(_, document)| document), outcome: "applied" });
        }
    }
    bail!("the charge changed in every round; send the confirmation again")
}

/// The charge, and its whole row; with `lock` its row is locked first.
async fn read_charge(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    payment_id: Uuid,
    lock: &str,
) -> anyhow::Result<Option<(Found, Value)>> {
    let read = transaction.prepare_cached(&format!("{READ_CHARGE} {lock}")).await?;
    let row = transaction.query_opt(&read, &[&payment_id, &owned.buckets, &owned.epochs]).await;
    let row = row.context("cannot read the charge")?;
    let found = |row: &Row| -> anyhow::Result<(Found, Value)> {
        let found = Found {
            state: state(row)?,
            charge: charge(row),
            provider_reference: row.get("provider_reference"),
            version: row.get("version"),
            is_lease_over: row.get("is_lease_over"),
        };
        Ok((found, row.get("document")))
    };
    row.as_ref().map(found).transpose()
}

async fn read_proposal(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    resolution_id: Uuid,
) -> anyhow::Result<Option<Row>> {
    let read = transaction.prepare_cached(READ_PROPOSAL).await?;
    let row = transaction.query_opt(&read, &[&resolution_id, &owned.buckets, &owned.epochs]).await;
    row.context("cannot read the proposal")
}

/// The columns `evidence`, `provider_reference` and `code`.
fn columns(evidence: &Evidence) -> (&'static str, Option<&str>, Option<&str>) {
    match evidence {
        Evidence::Succeeded { provider_reference, amount: _ } => {
            ("succeeded", Some(provider_reference), None)
        }
        Evidence::Declined { code } => ("declined", None, Some(code)),
        Evidence::NeverMade => ("never_made", None, None),
    }
}

fn evidence(row: &Row) -> anyhow::Result<Evidence> {
    let (reference, code): (Option<String>, Option<String>) =
        (row.get("provider_reference"), row.get("code"));
    match (row.get::<_, &str>("evidence"), reference, code) {
        // A proposal of another amount was refused, so the amount is that of the terms.
        ("succeeded", Some(provider_reference), None) => {
            Ok(Evidence::Succeeded { provider_reference, amount: row.get("amount") })
        }
        ("declined", None, Some(code)) => Ok(Evidence::Declined { code }),
        ("never_made", None, None) => Ok(Evidence::NeverMade),
        (other, _, _) => bail!(
            "a proposal has the unknown evidence {other:?}; database and service versions do not fit each other"
        ),
    }
}

fn is_same(proposal: &NewProposal, row: &Row) -> anyhow::Result<bool> {
    let (operator, reason): (&str, &str) = (row.get("operator"), row.get("reason"));
    Ok(charge(row).is_same(&proposal.terms)
        && evidence(row)? == proposal.evidence
        && operator == proposal.operator
        && reason == proposal.reason)
}

fn confirmation(row: &Row) -> Confirmation {
    Confirmation {
        payment_id: row.get("payment_id"),
        operator: row.get("confirmed_by"),
        reason: row.get("confirmed_for"),
        outcome: row.get("outcome"),
        before: row.get("before"),
        after: row.get("after"),
        confirmed_at: row.get("confirmed_at"),
    }
}
