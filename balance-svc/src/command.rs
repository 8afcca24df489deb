//! The command that an event of another service gives to the ledger.

use uuid::Uuid;

use crate::saga::Event;

/// One event, and the fields that its ledger entry records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub traceparent: Option<String>,
    /// The gateway's reason, stored behind the cause of a release.
    pub detail: Option<String>,
    pub event: Event,
}
