//! The legal transitions of a payment, written down a second time: the audit does not ask the service that it audits.

use super::statuses::{PaymentEvent, PaymentStatus};

/// The state of a payment, as its events show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaymentState {
    status: PaymentStatus,
    /// The user asked to cancel.
    cancel: bool,
    /// Its outcome was unknown once.
    unknown: bool,
}

/// One transition, and the state after it.
#[derive(Clone, Copy, Debug)]
pub struct Transition {
    pub legal: bool,
    pub state: PaymentState,
}

impl PaymentState {
    /// Judges the transition to `version`. Without `before` the version before it is unknown, unless this is the
    /// first; then only rules that need no past apply.
    pub fn transition(
        before: Option<PaymentState>,
        version: u32,
        status: PaymentStatus,
        event: PaymentEvent,
    ) -> Transition {
        let cancel = matches!(event, PaymentEvent::CancelRecorded | PaymentEvent::CancelRequested);
        let unknown = event == PaymentEvent::OutcomeUnknown;
        let state = PaymentState {
            status,
            cancel: cancel || before.is_some_and(|before| before.cancel),
            unknown: unknown || before.is_some_and(|before| before.unknown),
        };
        let legal = match before {
            None if version == 1 => (status, event) == (PaymentStatus::Initiated, PaymentEvent::Initiated),
            None => (status, event) != (PaymentStatus::Initiated, PaymentEvent::Initiated),
            Some(before) => before.may(status, event),
        };
        Transition { legal, state }
    }

    fn may(self, status: PaymentStatus, event: PaymentEvent) -> bool {
        match (self.status, event, status) {
            (PaymentStatus::Initiated, PaymentEvent::CancelRecorded, PaymentStatus::Initiated) => {
                !self.cancel
            }
            (PaymentStatus::Initiated, PaymentEvent::Authorized, PaymentStatus::Authorized) => !self.cancel,
            // The cancel came first, and is asked for with the hold.
            (PaymentStatus::Initiated, PaymentEvent::CancelRequested, PaymentStatus::Authorized) => {
                self.cancel
            }
            (PaymentStatus::Initiated, PaymentEvent::Rejected, PaymentStatus::Rejected) => true,
            (PaymentStatus::Authorized, PaymentEvent::CancelRequested, PaymentStatus::Authorized) => {
                !self.cancel
            }
            (PaymentStatus::Authorized, PaymentEvent::OutcomeUnknown, PaymentStatus::Authorized) => {
                !self.unknown
            }
            (PaymentStatus::Authorized, PaymentEvent::Completed, PaymentStatus::Completed) => true,
            (PaymentStatus::Authorized, PaymentEvent::Failed, PaymentStatus::Failed) => true,
            // Only a request leads there.
            (PaymentStatus::Authorized, PaymentEvent::Cancelled, PaymentStatus::Cancelled) => self.cancel,
            (
                PaymentStatus::Initiated
                | PaymentStatus::Authorized
                | PaymentStatus::Completed
                | PaymentStatus::Rejected
                | PaymentStatus::Failed
                | PaymentStatus::Cancelled,
                _,
                _,
            ) => false,
        }
    }

    /// For people: the state before, with a leading "after".
    pub fn describe(before: Option<PaymentState>) -> String {
        match before {
            Some(PaymentState { status, cancel, unknown }) => {
                let flag = |set: bool, text: &'static str| if set { text } else { "" };
                let (cancel, unknown) =
                    (flag(cancel, ", cancel requested"), flag(unknown, ", outcome unknown"));
                format!(" after {}{cancel}{unknown}", status.as_str())
            }
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows `events` (with the status that each leads to); true when all transitions are legal.
    fn walk(events: &str) -> bool {
        let mut state = None;
        events.split(' ').zip(1..).all(|(name, version)| {
            let (event, status) = name.split_once('>').unwrap_or((name, name));
            let transition = PaymentState::transition(
                state,
                version,
                PaymentStatus::parse(status).unwrap(),
                PaymentEvent::parse(event).unwrap(),
            );
            state = Some(transition.state);
            transition.legal
        })
    }

    #[test]
    fn the_ways_a_payment_can_go() {
        for way in [
            "initiated authorized completed",
            "initiated authorized failed",
            "initiated rejected",
            "initiated cancel_recorded>initiated rejected",
            "initiated cancel_recorded>initiated cancel_requested>authorized cancelled",
            "initiated authorized cancel_requested>authorized cancelled",
            "initiated authorized cancel_requested>authorized outcome_unknown>authorized completed",
            "initiated authorized outcome_unknown>authorized cancel_requested>authorized failed",
        ] {
            assert!(walk(way), "{way}");
        }
    }

    #[test]
    fn the_ways_it_must_not_go() {
        for way in [
            "authorized",
            "initiated completed",
            "initiated failed",
            "initiated initiated",
            "initiated authorized authorized",
            "initiated authorized rejected",
            "initiated authorized cancelled",
            "initiated authorized completed failed",
            "initiated authorized completed outcome_unknown>authorized",
            "initiated authorized outcome_unknown>authorized outcome_unknown>authorized",
            "initiated cancel_recorded>initiated authorized",
            "initiated cancel_recorded>initiated cancel_recorded>initiated",
            "initiated cancel_requested>authorized",
            "initiated authorized failed completed",
            "initiated rejected authorized",
            "initiated authorized cancel_requested>authorized cancel_requested>authorized",
            "initiated authorized>initiated",
        ] {
            assert!(!walk(way), "{way}");
        }
    }

    #[test]
    fn a_transition_from_an_unknown_version_is_judged_by_itself() {
        let legal = |event, status| PaymentState::transition(None, 3, status, event).legal;
        assert!(legal(PaymentEvent::Completed, PaymentStatus::Completed));
        assert!(!legal(PaymentEvent::Initiated, PaymentStatus::Initiated));
    }
}
