//! Consumes the ends of payments, and ignores every other event of PaymentTopic.

use std::sync::Arc;

use saga::consumer::{ApplyError, BatchCounts, Decoding, EventHandler};
use saga::contract::{Envelope, Payment};
use saga::parked::Parked;
use saga::postgres::Pool;
use tokio::sync::Notify;

use crate::render::{EndedPayment, PaymentEnd};
use crate::store;

/// Inserts notifications, and wakes the dispatcher of this instance.
pub struct Intake {
    pub pool: Pool,
    pub due: Arc<Notify>,
}

impl EventHandler for Intake {
    type Event = PaymentEnd;

    fn decode(&self, envelope: &Envelope<'_>, body: &[u8]) -> Decoding<PaymentEnd> {
        if !envelope.event_type.ends_payment() {
            return Decoding::Ignore;
        }
        match envelope.read(body).map(payment_end) {
            Ok(Some(end)) => Decoding::Event(end),
            Ok(None) => Decoding::Poison("the payment has ended, but the time of its end is null".to_owned()),
            Err(error) => Err::<PaymentEnd, _>(error).into(),
        }
    }

    async fn apply(
        &self,
        events: &[&PaymentEnd],
        unreadable: &[Parked],
        _park: impl Fn(usize, &str) -> Parked,
    ) -> Result<BatchCounts, ApplyError> {
        let counts = store::insert(&self.pool, events, unreadable).await?;
        if counts.applied > 0 {
            self.due.notify_one();
        }
        Ok(counts)
    }
}

fn payment_end(payment: Payment) -> Option<PaymentEnd> {
    let ended_at = payment.ended_at()?;
    let Payment { payment_id, user_id, version, event: status, service_id, amount, reason, .. } = payment;
    let payment = EndedPayment { payment_id, user_id, version, status, service_id, amount, reason };
    Some(PaymentEnd { payment, ended_at })
}
