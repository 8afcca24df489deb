//! Writes transitions by compare-and-set.
//!
//! * A batch of transitions is one statement.
//! * Rows are written in one order, so that two batches with common rows seldom deadlock.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context;
use saga::shards::Ownership;
use uuid::Uuid;

use super::{Store, column, millis};
use crate::cause::Cause;
use crate::saga::{State, To};

/// One transition to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    /// The state it was decided from.
    pub from: State,
    pub to: To,
    /// The pause until the next call of a waiting charge, or until the first inquiry about an unknown one.
    pub pause: Duration,
}

// A first call after a pause is bound by the deadline, as a first call without one is.
const APPLY: &str = "
    with moved as (
        update charges c
           set status = w.status,
               attempt = w.attempt,
               exposed = c.exposed or w.status = 'unknown',
               reason = w.reason,
               version = c.version + 1,
               provider_reference = w.provider_reference,
               lease_until = coalesce(now() + w.lease_ms * interval '1 millisecond', c.lease_until),
               decided_at = case when w.status in ('succeeded', 'declined', 'expired', 'cancelled') then now() end
          from unnest($1::uuid[], $2::text[], $3::int4[], $4::text[], $5::int4[], $6::text[], $7::text[],
                      $8::int8[], $9::text[], $10::int8[])
               as w (payment_id, from_status, from_attempt, status, attempt, reason, provider_reference,
                     lease_ms, noted_kind, next_ms)
         where c.payment_id = w.payment_id and c.status = w.from_status and c.attempt = w.from_attempt
           and (w.status <> 'calling' or c.exposed or c.expires_at > now() or c.expires_at is null)
           and require_ownership($11, $12)
        returning c.payment_id, c.user_id, w.attempt, w.status, w.reason, w.noted_kind, w.next_ms
    ), noted as (
        insert into charge_attempts (payment_id, user_id, attempt, seq, kind, outcome, detail, next_at)
        select payment_id, user_id, attempt, 1, noted_kind,
               case status when 'waiting' then 'not_sent' else 'unknown' end, reason,
               now() + next_ms * interval '1 millisecond'
          from moved where noted_kind is not null
        on conflict do nothing
    )
    select payment_id from moved";

impl Store {
    /// Writes transitions (of distinct payments); returns those that applied. The rows of the others have left the state
    /// from which they were decided, or are past their deadline.
    pub async fn apply(&self, transitions: &[Transition]) -> anyhow::Result<HashSet<Uuid>> {
        if transitions.is_empty() {
            return Ok(HashSet::new());
        }
        let owned = self.owned(&column(transitions, |t| t.user_id)).await?;
        let moved = async { transit(&owned.client().await?, &owned, transitions, self.lease).await };
        self.heeded(&owned, moved.await).await
    }
}

/// The columns that a compare-and-set compares.
#[derive(Clone, Copy)]
struct StatusKey {
    status: &'static str,
    attempt: i32,
}

/// One row of [`APPLY`].
struct Values<'a> {
    payment_id: Uuid,
    from: StatusKey,
    to: StatusKey,
    reason: Option<Cow<'a, str>>,
    provider_reference: Option<&'a str>,
    lease_ms: Option<i64>,
    noted_kind: Option<&'static str>,
    next_ms: Option<i64>,
}

/// Writes transitions; returns those that applied.
pub(super) async fn transit(
    client: &impl deadpool_postgres::GenericClient,
    owned: &Ownership,
    transitions: &[Transition],
    lease: Duration,
) -> anyhow::Result<HashSet<Uuid>> {
    if transitions.is_empty() {
        return Ok(HashSet::new());
    }
    let mut rows: Vec<Values<'_>> = transitions.iter().map(|transition| values(transition, lease)).collect();
    // One order everywhere, so that two batches with common rows seldom deadlock.
    rows.sort_unstable_by_key(|row| row.payment_id);
    let apply = client.prepare_cached(APPLY).await?;
    let moved = client
        .query(
            &apply,
            &[
                &column(&rows, |r| r.payment_id),
                &column(&rows, |r| r.from.status),
                &column(&rows, |r| r.from.attempt),
                &column(&rows, |r| r.to.status),
                &column(&rows, |r| r.to.attempt),
                &column(&rows, |r| r.reason.as_deref()),
                &column(&rows, |r| r.provider_reference),
                &column(&rows, |r| r.lease_ms),
                &column(&rows, |r| r.noted_kind),
                &column(&rows, |r| r.next_ms),
                &owned.buckets,
                &owned.epochs,
            ],
        )
        .await
        .context("cannot write transitions")?;
    Ok(moved.iter().map(|row| row.get(0)).collect())
}

fn values(transition: &Transition, lease: Duration) -> Values<'_> {
    let from = match transition.from {
        State::Waiting { attempt } => StatusKey { status: "waiting", attempt },
        State::Calling { attempt, .. } => StatusKey { status: "calling", attempt },
        State::Unknown { attempt } => StatusKey { status: "unknown", attempt },
        // These states are never overwritten: the guard of the statement never matches.
        State::Absent | State::Succeeded | State::Declined | State::Expired | State::Cancelled => {
            StatusKey { status: "", attempt: 0 }
        }
    };
    let pause = millis(transition.pause);
    let mut values = Values {
        payment_id: transition.payment_id,
        from,
        to: StatusKey { status: "", ..from },
        reason: None,
        provider_reference: None,
        lease_ms: None,
        noted_kind: None,
        next_ms: None,
    };
    match &transition.to {
        To::Waiting { attempt, why } => {
            values.to = StatusKey { status: "waiting", attempt: *attempt };
            values.reason = Some(why.to_string().into());
            values.lease_ms = Some(pause);
            values.noted_kind = Some("charge");
        }
        To::Calling { attempt } => {
            values.to = StatusKey { status: "calling", attempt: *attempt };
            values.lease_ms = Some(millis(lease));
        }
        To::Unknown { attempt, why } => {
            values.to = StatusKey { status: "unknown", attempt: *attempt };
            values.reason = Some(why.to_string().into());
            values.noted_kind = Some(if *why == Cause::LeaseLapsed { "sweep" } else { "charge" });
            values.next_ms = Some(pause);
        }
        To::Succeeded { provider_reference } => {
            values.to.status = "succeeded";
            values.provider_reference = Some(provider_reference);
        }
        To::Declined { code } => {
            values.to.status = "declined";
            values.reason = Some(code.as_str().into());
        }
        To::Expired => {
            values.to.status = "expired";
            values.reason = Some("deadline_passed".into());
        }
        To::Cancelled => {
            values.to.status = "cancelled";
            values.reason = Some("cancel_requested".into());
        }
    }
    values
}
