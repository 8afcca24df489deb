//! The part of a subscriber that differs between services.
//!
//! * A handler decodes an event whose envelope has been read. A record without a readable envelope is poison.
//! * A handler applies events without their records. It gets a function that builds the parked message of an event.

use super::{ApplyError, BatchCounts, Decoding, Delivery, Record, Subscriber};
use crate::contract::Envelope;
use crate::parked::Parked;

/// A [`Subscriber`] of events of the [contract](crate::contract).
pub trait EventHandler {
    type Event;

    fn decode(&self, envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Self::Event>;

    /// Applies the events in order and inserts `unreadable` as parked, in one transaction. `park` builds the parked
    /// message of the event at an index.
    ///
    /// # Errors
    /// When rows are missing or the database failed. Nothing was written then.
    fn apply(
        &self,
        events: &[&Self::Event],
        unreadable: &[Parked],
        park: impl Fn(usize, &str) -> Parked,
    ) -> impl Future<Output = Result<BatchCounts, ApplyError>>;
}

impl<H: EventHandler> Subscriber for H {
    type Event = H::Event;

    const WRITES_TO: &'static str = "database";

    fn decode(&self, record: &Record<'_>) -> Decoding<H::Event> {
        match record.envelope() {
            Ok(envelope) => EventHandler::decode(self, &envelope, record.body()),
            Err(reason) => Decoding::Poison(reason),
        }
    }

    async fn apply(
        &self,
        deliveries: &[Delivery<'_, H::Event>],
        unreadable: &[Parked],
    ) -> Result<BatchCounts, ApplyError> {
        let events: Vec<&H::Event> = deliveries.iter().map(|delivery| &delivery.event).collect();
        let park = |index: usize, reason: &str| deliveries[index].record.park(reason);
        EventHandler::apply(self, &events, unreadable, park).await
    }
}
