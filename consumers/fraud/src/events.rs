//! Consumes every event of PaymentTopic: each is about a payment, and after a resnapshot any may be the
//! first of its payment.

use saga::consumer::{ApplyError, BatchCounts, Decoding, EventHandler};
use saga::contract::{Envelope, PAYMENT_TOPIC, Payment};
use saga::parked::Parked;
use saga::postgres::Pool;

use crate::metrics::Metrics;
use crate::saga::Rules;
use crate::store;

pub struct Detector {
    pub pool: Pool,
    pub rules: Rules,
    pub metrics: Metrics,
}

impl EventHandler for Detector {
    type Event = Payment;

    fn decode(&self, envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Payment> {
        decode(envelope, body)
    }

    async fn apply(
        &self,
        payments: &[&Payment],
        unreadable: &[Parked],
        _park: impl Fn(usize, &str) -> Parked,
    ) -> Result<BatchCounts, ApplyError> {
        let outcome = store::apply(&self.pool, &self.rules, payments, unreadable).await?;
        for (rule, count) in outcome.alerts {
            self.metrics.alerts.with_label_values(&[rule.as_str()]).inc_by(count);
        }
        let (applied, already) = (outcome.new, payments.len() - outcome.new);
        Ok(BatchCounts { applied, already, ..BatchCounts::default() })
    }
}

fn decode(envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Payment> {
    if envelope.event_type.topic() == PAYMENT_TOPIC { envelope.read(body).into() } else { Decoding::Ignore }
}

#[cfg(test)]
mod tests {
    use saga::contract::EventType;

    use super::*;

    #[test]
    fn every_event_of_a_payment_is_counted_and_no_other() {
        for event_type in EventType::ALL {
            let (name, topic) = (event_type.as_str(), event_type.topic());
            let path = format!("{}/../../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let body = std::fs::read(path).unwrap();
            let key = b"0198c0de-0000-7000-8000-000000000001";
            let envelope =
                Envelope { event_type: *event_type, topic, key, id: None, source: None, subject: None };
            let is_counted = matches!(decode(&envelope, &body), Decoding::Event(_));
            assert_eq!(is_counted, topic == PAYMENT_TOPIC, "{name}");
        }
    }
}
