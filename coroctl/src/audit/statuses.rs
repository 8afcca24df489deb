//! The values of the tables' state columns, as enums that a `match` must exhaust.

use strum::{EnumString, IntoStaticStr};

/// `payments.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum PaymentStatus {
    Initiated,
    Authorized,
    Completed,
    Rejected,
    Failed,
    Cancelled,
}

impl PaymentStatus {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    pub fn has_ended(self) -> bool {
        match self {
            Self::Initiated | Self::Authorized => false,
            Self::Completed | Self::Rejected | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// `payments.event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum PaymentEvent {
    Initiated,
    Authorized,
    Completed,
    Rejected,
    Failed,
    Cancelled,
    OutcomeUnknown,
    CancelRecorded,
    CancelRequested,
}

impl PaymentEvent {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// `ledger.kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum EntryKind {
    Hold,
    Rejection,
    Deposit,
    Capture,
    Release,
}

impl EntryKind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// `charges.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ChargeStatus {
    Waiting,
    Calling,
    Unknown,
    Succeeded,
    Declined,
    Expired,
    Cancelled,
}

impl ChargeStatus {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    /// It is emitted on PaymentResultTopic; leases are the processor's own business.
    pub fn is_emitted(self) -> bool {
        match self {
            Self::Waiting | Self::Calling => false,
            Self::Unknown | Self::Succeeded | Self::Declined | Self::Expired | Self::Cancelled => true,
        }
    }

    /// Nothing leaves these.
    pub fn is_definite(self) -> bool {
        match self {
            Self::Waiting | Self::Calling | Self::Unknown => false,
            Self::Succeeded | Self::Declined | Self::Expired | Self::Cancelled => true,
        }
    }

    /// It was proved that no call was made.
    pub fn was_never_called(self) -> bool {
        match self {
            Self::Waiting | Self::Expired | Self::Cancelled => true,
            Self::Calling | Self::Unknown | Self::Succeeded | Self::Declined => false,
        }
    }
}
