//! Acts of operators on parked messages: a message is applied again, or put away.
//!
//! * A message is applied by the code of the service that consumes it, in the transaction of the act. So a retry can do
//!   nothing that the message could not have done, and does it once.
//! * A message that could be applied is not dismissed: a payment may wait for it.
//! * Each act is a row of `parked_acts`, once per message. The same request again has the same answer.
//! * A message may be on another shard than its user: the user was moved, or the shard was away when it was parked. Then it is
//!   applied where the user is, by a transaction of its own, and the act is recorded where the message is. If the process ends in
//!   between, the next request finds it applied.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use strum::IntoStaticStr;
use tokio_postgres::Row;

use super::Parked;
use crate::backoff;
use crate::consumer::{ApplyError, BatchCounts, Decoding};
use crate::contract::{Envelope, EventType, HEADER_ID, HEADER_SOURCE, HEADER_SUBJECT, HEADER_TYPE};
use crate::postgres::{Failure, Pool, Transaction, classify, confirm_visible};
use crate::shards::{Databases, Router, Unowned, is_refused};
use crate::telemetry::log_text;

/// A move lets go of a user after 300 milliseconds.
const MOVING_TRIES_MAX: usize = 10;
const MOVING_PAUSE_MAX: Duration = Duration::from_millis(100);
const STILL_MOVING: &str =
    "the user of the message is being moved to another shard, and that has not ended in time";

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Act {
    /// The message is applied again.
    Retried,
    /// The message is not to be applied.
    Dismissed,
}

impl Act {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What it does to apply a parked message now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reapplied {
    /// It changes rows.
    Applied,
    /// Its effect is there already, or nothing depends on it any more.
    Already,
    /// It cannot be applied; the text says why.
    Impossible(String),
}

/// What becomes of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Commit what applying the message wrote, and the row of the act.
    Apply(&'static str),
    /// Undo what applying the message wrote, and commit the row of the act.
    Record(String),
    /// Commit nothing; the text says why.
    Refuse(String),
}

/// Decides an act that was not done before.
pub fn decide(act: Act, reapplied: &Reapplied) -> Verdict {
    match (act, reapplied) {
        (Act::Retried, Reapplied::Applied) => Verdict::Apply("applied"),
        (Act::Retried, Reapplied::Already) => Verdict::Apply("already"),
        (Act::Retried, Reapplied::Impossible(why)) => {
            Verdict::Refuse(format!("The message cannot be applied: {why}. Nothing was changed."))
        }
        (Act::Dismissed, Reapplied::Applied) => Verdict::Refuse(
            "The message can be applied, and a payment may wait for it. Retry it. Nothing was changed."
                .to_owned(),
        ),
        (Act::Dismissed, Reapplied::Already) => Verdict::Record("already".to_owned()),
        (Act::Dismissed, Reapplied::Impossible(why)) => Verdict::Record(why.clone()),
    }
}

/// The part of a service that applies its parked messages again.
pub trait Reapply: Clone + Send + Sync + 'static {
    /// What is to be done once the transaction is committed.
    type Effect: Send;

    /// Applies the message in `transaction`, as its consumer would.
    ///
    /// # Errors
    /// When the database failed.
    fn reapply(
        &self,
        transaction: &Transaction<'_>,
        message: &Parked,
    ) -> impl Future<Output = anyhow::Result<(Reapplied, Option<Self::Effect>)>> + Send;

    /// Called after the commit.
    fn committed(&self, effect: Self::Effect);
}

/// Applies one message of a topic again: decodes it, hands it to the service's `apply`, and reads what came of it.
#[derive(Debug)]
pub struct Reapplication<'a> {
    message: &'a Parked,
    /// Why the service would park it again.
    reason: OnceLock<String>,
}

impl<'a> Reapplication<'a> {
    pub fn new(message: &'a Parked) -> Self {
        Self { message, reason: OnceLock::new() }
    }

    /// The event, as the service's `decode` reads it.
    ///
    /// # Errors
    /// When the message cannot be read, or is none that the service consumes.
    pub fn event<E>(&self, decode: impl Fn(&Envelope<'_>, &[u8]) -> Decoding<E>) -> Result<E, Reapplied> {
        let envelope = self.message.envelope().map_err(Reapplied::Impossible)?;
        match decode(&envelope, &self.message.body) {
            Decoding::Event(event) => Ok(event),
            Decoding::Ignore => {
                let name = envelope.event_type.as_str();
                Err(Reapplied::Impossible(format!("this service does not consume {name}")))
            }
            Decoding::Poison(why) | Decoding::Contradicts(why) => Err(Reapplied::Impossible(why)),
        }
    }

    /// Builds the parked message that `apply` asks for, which is there already, and keeps its new reason.
    pub fn park(&self, reason: &str) -> Parked {
        // The one message has one reason.
        let _ = self.reason.set(reason.to_owned());
        Parked { reason: reason.to_owned(), ..self.message.clone() }
    }

    /// What came of `apply`.
    ///
    /// # Errors
    /// When the database failed.
    pub fn result(self, applied: Result<BatchCounts, ApplyError>) -> anyhow::Result<Reapplied> {
        match applied {
            Ok(counts) if counts.parked > 0 => {
                Ok(Reapplied::Impossible(self.reason.into_inner().unwrap_or_default()))
            }
            Ok(counts) if counts.applied > 0 => Ok(Reapplied::Applied),
            Ok(_) => Ok(Reapplied::Already),
            Err(ApplyError::Missing(rows)) => {
                let rows: Vec<String> = rows.into_iter().map(|row| row.what).collect();
                Ok(Reapplied::Impossible(format!("missing: {}", rows.join(", "))))
            }
            Err(ApplyError::Moving(_)) => Err(Unowned::Moving.into()),
            Err(ApplyError::Absent(_)) => Err(Unowned::Away.into()),
            Err(ApplyError::Late(_)) => bail!("the database did not apply the message in time"),
            Err(ApplyError::Other(error)) => Err(error),
        }
    }
}

/// A request of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActRequest {
    pub act: Act,
    pub parked_id: String,
    pub operator: String,
    pub reason: String,
}

/// The row of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActRecord {
    pub operator: String,
    pub reason: String,
    pub outcome: String,
    pub acted_at: Timestamp,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActAnswer {
    Done(ActRecord),
    /// It was done before, by whoever the record names.
    Repeated(ActRecord),
    /// There is no such parked message.
    Unknown,
    Refused(String),
}

const READ: &str = "
    select parked_id, source, message_key, type, headers, body, reason from parked where parked_id = $1";

const READ_ACT: &str = "
    select operator, reason, outcome, acted_at from parked_acts where parked_id = $1 and act = $2";

const INSERT_ACT: &str = "
    insert into parked_acts (parked_id, act, operator, reason, outcome) values ($1, $2, $3, $4, $5)
    on conflict do nothing
    returning operator, reason, outcome, acted_at";

/// The database that has a message.
struct Home<'a> {
    pool: &'a Pool,
    /// Its place among the shards, if there may be several.
    shard: Option<(&'a Router, usize)>,
}

impl Home<'_> {
    /// The database of the user of a message, if it is another one. What prevents to know it, prevents to apply the message too.
    async fn apart(&self, message: &Parked) -> Option<Pool> {
        let ((router, shard), user_id) = (self.shard?, message.user_id()?);
        router.apart(shard, user_id).await
    }
}

/// Carries out a request in the database that has the message. One that is away is not asked.
///
/// # Errors
/// As [`act`]; and when no database has the message, and one of them is away.
pub async fn act_on<R: Reapply>(
    databases: &Databases,
    service: &R,
    request: &ActRequest,
) -> anyhow::Result<ActAnswer> {
    let router = match databases {
        Databases::One(pool) => return act(pool, service, request).await,
        Databases::Shards(router) => router,
    };
    let (mut answer, mut failed) = (ActAnswer::Unknown, None);
    for (shard, pool) in router.places() {
        if router.is_away(shard) {
            failed = Some(Unowned::Away.into());
            continue;
        }
        let home = Home { pool: &pool, shard: Some((router, shard)) };
        match router.in_time(act_at(&home, service, request)).await {
            Ok(next) => answer = of_both(answer, next),
            Err(error) => {
                router.may_be_away(shard, &error).await;
                failed = Some(error);
            }
        }
        if matches!(answer, ActAnswer::Refused(_)) {
            break;
        }
    }
    match (answer, failed) {
        (ActAnswer::Unknown, Some(error)) => Err(error),
        (answer, _) => Ok(answer),
    }
}

/// The answer about a message that two shards may have: while its own was away, another one got it too.
fn of_both(one: ActAnswer, other: ActAnswer) -> ActAnswer {
    match (one, other) {
        (ActAnswer::Unknown, other) => other,
        (one, ActAnswer::Unknown) => one,
        (done @ ActAnswer::Done(_), ActAnswer::Done(_) | ActAnswer::Repeated(_)) => done,
        (ActAnswer::Repeated(_) | ActAnswer::Refused(_), other) => other,
        (ActAnswer::Done(_), refused @ ActAnswer::Refused(_)) => refused,
    }
}

/// Carries out a request in one transaction, which is repeated while the user of the message is being moved to another shard.
///
/// # Errors
/// When the database failed. Nothing was written then, or the commit has no answer; the same request may be sent again.
pub async fn act<R: Reapply>(pool: &Pool, service: &R, request: &ActRequest) -> anyhow::Result<ActAnswer> {
    act_at(&Home { pool, shard: None }, service, request).await
}

async fn act_at<R: Reapply>(home: &Home<'_>, service: &R, request: &ActRequest) -> anyhow::Result<ActAnswer> {
    let mut pauses = backoff::unlimited(MOVING_PAUSE_MAX).take(MOVING_TRIES_MAX);
    loop {
        let error = match act_once(home, service, request).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let is_moving = is_refused(&error) || error.downcast_ref() == Some(&Unowned::Moving);
        match pauses.next().filter(|_| is_moving) {
            Some(pause) => tokio::time::sleep(pause).await,
            None if is_moving => return Err(error.context(STILL_MOVING)),
            None => return Err(error),
        }
    }
}

async fn act_once<R: Reapply>(
    home: &Home<'_>,
    service: &R,
    request: &ActRequest,
) -> anyhow::Result<ActAnswer> {
    let mut client = home.pool.get().await.context("no connection to the database")?;
    let mut transaction = client.transaction().await.context("cannot begin a transaction")?;
    let Some(message) = read(&transaction, &request.parked_id).await? else { return Ok(ActAnswer::Unknown) };
    if let Some(record) = record(&transaction, request).await? {
        confirm_visible(&transaction).await?;
        transaction.commit().await.context("cannot commit")?;
        return Ok(ActAnswer::Repeated(record));
    }
    let (verdict, effect) = match home.apart(&message).await {
        // What the message writes can be undone without what the act writes.
        None => {
            let savepoint = transaction.savepoint("message").await.context("cannot set a savepoint")?;
            apply(savepoint, service, request.act, &message).await?
        }
        Some(owner) => (apply_apart(&owner, service, request.act, &message).await?, None),
    };
    let outcome = match verdict {
        Verdict::Apply(outcome) => outcome.to_owned(),
        Verdict::Record(outcome) => outcome,
        Verdict::Refuse(why) => return Ok(ActAnswer::Refused(why)),
    };
    let insert = transaction.prepare_cached(INSERT_ACT).await?;
    let (act, operator, reason) = (request.act.as_str(), &request.operator, &request.reason);
    let row = transaction
        .query_opt(&insert, &[&request.parked_id, &act, operator, reason, &outcome])
        .await
        .context("cannot record the act")?;
    let Some(row) = row else {
        bail!("another request did the same at the same time; send this one again");
    };
    let done = act_record(&row);
    transaction.commit().await.context("cannot commit")?;
    if let Some(effect) = effect {
        service.committed(effect);
    }
    Ok(ActAnswer::Done(done))
}

/// Applies the message in a transaction, or in a part of one, which keeps what the message wrote only if that is the verdict.
async fn apply<R: Reapply>(
    transaction: Transaction<'_>,
    service: &R,
    act: Act,
    message: &Parked,
) -> anyhow::Result<(Verdict, Option<R::Effect>)> {
    let (reapplied, effect) = match service.reapply(&transaction, message).await {
        Ok(reapplied) => reapplied,
        Err(error) if classify(&error) == Failure::Poison => (Reapplied::Impossible(log_text(&error)), None),
        Err(error) => return Err(error),
    };
    let verdict = decide(act, &reapplied);
    if let Verdict::Apply(_) = verdict {
        transaction.commit().await.context("cannot keep what the message wrote")?;
        return Ok((verdict, effect));
    }
    transaction.rollback().await.context("cannot undo what the message wrote")?;
    Ok((verdict, None))
}

/// Applies the message in the database of its user, who is elsewhere.
async fn apply_apart<R: Reapply>(
    owner: &Pool,
    service: &R,
    act: Act,
    message: &Parked,
) -> anyhow::Result<Verdict> {
    let mut client = owner.get().await.context("no connection to the database of the user")?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let (verdict, effect) = apply(transaction, service, act, message).await?;
    // Its effect may be there by a commit that no standby has.
    confirm_visible(&client).await?;
    if let Some(effect) = effect {
        service.committed(effect);
    }
    Ok(verdict)
}

async fn read(transaction: &Transaction<'_>, parked_id: &str) -> anyhow::Result<Option<Parked>> {
    let read = transaction.prepare_cached(READ).await?;
    let row = transaction.query_opt(&read, &[&parked_id]).await.context("cannot read the parked message")?;
    Ok(row.map(|row| Parked {
        parked_id: row.get(0),
        source: row.get(1),
        message_key: row.get(2),
        event_type: row.get(3),
        headers: row.get(4),
        body: row.get(5),
        reason: row.get(6),
    }))
}

async fn record(transaction: &Transaction<'_>, request: &ActRequest) -> anyhow::Result<Option<ActRecord>> {
    let read = transaction.prepare_cached(READ_ACT).await?;
    let row = transaction.query_opt(&read, &[&request.parked_id, &request.act.as_str()]).await;
    Ok(row.context("cannot read the acts on the message")?.as_ref().map(act_record))
}

fn act_record(row: &Row) -> ActRecord {
    ActRecord { operator: row.get(0), reason: row.get(1), outcome: row.get(2), acted_at: row.get(3) }
}

impl Parked {
    /// The topic, the key and the headers of the record that was parked.
    ///
    /// # Errors
    /// When the type is missing or unknown.
    pub fn envelope(&self) -> Result<Envelope<'_>, String> {
        let header = |name: &str| self.headers.get(name).and_then(serde_json::Value::as_str);
        let name = header(HEADER_TYPE).ok_or("the record has no ce_type header")?;
        let event_type = EventType::parse(name).ok_or_else(|| format!("event type {name} is not known"))?;
        Ok(Envelope {
            event_type,
            topic: &self.source,
            key: self.message_key.as_deref().unwrap_or_default().as_bytes(),
            id: header(HEADER_ID),
            source: header(HEADER_SOURCE),
            subject: header(HEADER_SUBJECT),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_applied_or_put_away_and_never_put_away_while_it_can_be_applied() {
        let why = || "differs: amount".to_owned();
        for (act, reapplied, expected) in [
            (Act::Retried, Reapplied::Applied, Some(Verdict::Apply("applied"))),
            (Act::Retried, Reapplied::Already, Some(Verdict::Apply("already"))),
            (Act::Retried, Reapplied::Impossible(why()), None),
            (Act::Dismissed, Reapplied::Applied, None),
            (Act::Dismissed, Reapplied::Already, Some(Verdict::Record("already".to_owned()))),
            (Act::Dismissed, Reapplied::Impossible(why()), Some(Verdict::Record(why()))),
        ] {
            let verdict = decide(act, &reapplied);
            match expected {
                Some(expected) => assert_eq!(verdict, expected, "{act:?} {reapplied:?}"),
                None => assert!(matches!(verdict, Verdict::Refuse(_)), "{act:?} {reapplied:?}: {verdict:?}"),
            }
        }
    }

    #[test]
    fn the_copies_of_a_message_have_one_answer() {
        let record = |outcome: &str| ActRecord {
            operator: "alice".to_owned(),
            reason: "a test".to_owned(),
            outcome: outcome.to_owned(),
            acted_at: Timestamp::UNIX_EPOCH,
        };
        let (unknown, refused) = (|| ActAnswer::Unknown, || ActAnswer::Refused("why".to_owned()));
        let (done, repeated) =
            (|| ActAnswer::Done(record("applied")), || ActAnswer::Repeated(record("applied")));
        for (one, other, answer) in [
            (unknown(), unknown(), unknown()),
            (unknown(), done(), done()),
            (done(), unknown(), done()),
            (repeated(), done(), done()),
            (done(), ActAnswer::Done(record("already")), done()),
            (done(), repeated(), done()),
            (repeated(), repeated(), repeated()),
            (done(), refused(), refused()),
        ] {
            assert_eq!(of_both(one.clone(), other.clone()), answer, "{one:?} and {other:?}");
        }
    }

    #[test]
    fn a_parked_record_has_its_envelope_again() {
        let headers = json!({"ce_type": "balance.held.v1", "ce_id": "balance/ledger/1/1", "ce_subject": "1"});
        let parked = Parked {
            parked_id: "BalanceTopic/0/7".into(),
            source: "BalanceTopic".into(),
            message_key: Some("user".into()),
            event_type: None,
            headers,
            body: Vec::new(),
            reason: String::new(),
        };
        let envelope = parked.envelope().unwrap();
        assert_eq!((envelope.event_type, envelope.topic), (EventType::BalanceHeld, "BalanceTopic"));
        assert_eq!((envelope.key, envelope.id), (b"user".as_slice(), Some("balance/ledger/1/1")));
        assert_eq!((envelope.source, envelope.subject), (None, Some("1")));
        assert_eq!(parked.user_id(), None, "its key is none");
        let user_id = uuid::Uuid::from_u128(7);
        let of_a_user = Parked { message_key: Some(user_id.to_string()), ..parked.clone() };
        assert_eq!(of_a_user.user_id(), Some(user_id));
        let unknown = Parked { headers: json!({"ce_type": "no"}), ..parked.clone() };
        assert!(unknown.envelope().is_err());
        assert!(Parked { headers: json!({}), ..parked }.envelope().is_err());
    }
}
