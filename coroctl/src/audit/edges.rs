//! The legal steps of a payment, written down a second time: the audit does not ask the service it audits.

use super::words::{Event, Status};

/// Where a payment stands, as its events tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    status: Status,
    /// The user asked to cancel.
    cancel: bool,
    /// Its outcome was once told to be unknown.
    unknown: bool,
}

/// A step that was told.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub legal: bool,
    pub path: Path,
}

impl Path {
    /// The step to `version`. Without `before` the version before it is not known (unless this is the first),
    /// and only what needs no past is judged.
    pub fn step(before: Option<Path>, version: u32, status: Status, event: Event) -> Step {
        let cancel = matches!(event, Event::CancelRecorded | Event::CancelRequested);
        let unknown = event == Event::OutcomeUnknown;
        let path = Path {
            status,
            cancel: cancel || before.is_some_and(|before| before.cancel),
            unknown: unknown || before.is_some_and(|before| before.unknown),
        };
        let legal = match before {
            None if version == 1 => (status, event) == (Status::Initiated, Event::Initiated),
            None => (status, event) != (Status::Initiated, Event::Initiated),
            Some(before) => before.may(status, event),
        };
        Step { legal, path }
    }

    fn may(self, status: Status, event: Event) -> bool {
        match (self.status, event, status) {
            (Status::Initiated, Event::CancelRecorded, Status::Initiated) => !self.cancel,
            (Status::Initiated, Event::Authorized, Status::Authorized) => !self.cancel,
            // The cancel came first, and is asked for with the hold.
            (Status::Initiated, Event::CancelRequested, Status::Authorized) => self.cancel,
            (Status::Initiated, Event::Rejected, Status::Rejected) => true,
            (Status::Authorized, Event::CancelRequested, Status::Authorized) => !self.cancel,
            (Status::Authorized, Event::OutcomeUnknown, Status::Authorized) => !self.unknown,
            (Status::Authorized, Event::Completed, Status::Completed) => true,
            (Status::Authorized, Event::Failed, Status::Failed) => true,
            // Only a request leads there.
            (Status::Authorized, Event::Cancelled, Status::Cancelled) => self.cancel,
            (
                Status::Initiated
                | Status::Authorized
                | Status::Completed
                | Status::Rejected
                | Status::Failed
                | Status::Cancelled,
                _,
                _,
            ) => false,
        }
    }

    /// For people: where it stood.
    pub fn after(before: Option<Path>) -> String {
        match before {
            Some(Path { status, cancel, unknown }) => {
                let flag = |set: bool, word: &'static str| if set { word } else { "" };
                let (cancel, unknown) = (flag(cancel, ", cancel asked"), flag(unknown, ", outcome unknown"));
                format!(" after {}{cancel}{unknown}", status.as_str())
            }
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps along `events` (with the status each leads to) and says whether all were legal.
    fn walk(events: &str) -> bool {
        let mut path = None;
        events.split(' ').zip(1..).all(|(word, version)| {
            let (event, status) = word.split_once('>').unwrap_or((word, word));
            let step =
                Path::step(path, version, Status::parse(status).unwrap(), Event::parse(event).unwrap());
            path = Some(step.path);
            step.legal
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
    fn a_step_from_an_unknown_version_is_judged_by_itself() {
        let step = |event, status| Path::step(None, 3, status, event).legal;
        assert!(step(Event::Completed, Status::Completed));
        assert!(!step(Event::Initiated, Status::Initiated));
    }
}
