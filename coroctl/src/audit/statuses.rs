//! The values of the tables' state columns, as enums that a `match` must exhaust.

macro_rules! column_enum {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant,)* }

        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

column_enum! {
    /// `payments.status`.
    PaymentStatus {
        Initiated = "initiated",
        Authorized = "authorized",
        Completed = "completed",
        Rejected = "rejected",
        Failed = "failed",
        Cancelled = "cancelled",
    }
}

column_enum! {
    /// `payments.event`.
    PaymentEvent {
        Initiated = "initiated",
        Authorized = "authorized",
        Completed = "completed",
        Rejected = "rejected",
        Failed = "failed",
        Cancelled = "cancelled",
        OutcomeUnknown = "outcome_unknown",
        CancelRecorded = "cancel_recorded",
        CancelRequested = "cancel_requested",
    }
}

column_enum! {
    /// `ledger.kind`.
    EntryKind {
        Hold = "hold",
        Rejection = "rejection",
        Deposit = "deposit",
        Capture = "capture",
        Release = "release",
    }
}

column_enum! {
    /// `charges.status`.
    ChargeStatus {
        Waiting = "waiting",
        Calling = "calling",
        Unknown = "unknown",
        Succeeded = "succeeded",
        Declined = "declined",
        Expired = "expired",
        Cancelled = "cancelled",
    }
}

impl PaymentStatus {
    pub fn has_ended(self) -> bool {
        match self {
            Self::Initiated | Self::Authorized => false,
            Self::Completed | Self::Rejected | Self::Failed | Self::Cancelled => true,
        }
    }
}

impl ChargeStatus {
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
