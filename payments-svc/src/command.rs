//! The command that an event of another service gives to a payment.

use saga::contract::Terms;
use uuid::Uuid;

use crate::saga::Event;

/// One event, and the fields that the transition records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub event: Event,
    /// The terms that the event states.
    pub terms: Terms,
    pub reason: Option<String>,
}
