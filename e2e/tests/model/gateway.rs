//! The gateway's books about one payment, and what a request or an inquiry makes of them.

use processor_svc::cause::Cause;
use processor_svc::gateway as real;

use crate::bounds::{Bounds, Keys};
use crate::state::{CallAt, Life, Said, Task};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Books {
    /// By key. There is one key per payment; the second is used only where that is broken.
    pub keys: [Verdict; 2],
    /// Charges that were not given back.
    pub standing: u8,
    /// Inquiries find what was decided.
    pub visible: bool,
    /// The gateway declines everything from now on.
    pub barred: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verdict {
    #[default]
    None,
    /// Received, or declined for now: it will be decided later.
    Pending,
    Approved,
    Declined,
}

/// A [`real::Lookup`] without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lookup {
    Succeeded { surplus: bool },
    Declined,
    Voided,
    NotFound,
    Unavailable,
}

impl Lookup {
    pub fn real(self) -> real::Lookup {
        match self {
            Lookup::Succeeded { surplus } => {
                real::Lookup::Succeeded { provider_reference: String::new(), surplus }
            }
            Lookup::Declined => real::Lookup::Declined { code: String::new() },
            Lookup::Voided => real::Lookup::Voided,
            Lookup::NotFound => real::Lookup::NotFound,
            Lookup::Unavailable => real::Lookup::Unavailable { why: Cause::TimedOut },
        }
    }
}

impl Books {
    /// The possible decisions about a request that arrives now; one only if it is given already.
    pub fn verdicts(&self, key: usize, bounds: &Bounds) -> &'static [Verdict] {
        match self.given(key, bounds) {
            Some(_) => &[Verdict::None],
            None if bounds.late => &[Verdict::Approved, Verdict::Declined, Verdict::Pending],
            None => &[Verdict::Approved, Verdict::Declined],
        }
    }

    /// A request arrives; what is answered.
    pub fn arrives(&mut self, key: usize, verdict: Verdict, bounds: &Bounds) -> Said {
        match self.given(key, bounds) {
            Some(said) => said,
            None => {
                self.decides(key, verdict, bounds);
                said(verdict)
            }
        }
    }

    pub fn decides(&mut self, key: usize, verdict: Verdict, bounds: &Bounds) {
        let verdict = if self.barred { Verdict::Declined } else { verdict };
        if verdict == Verdict::Approved {
            self.standing += 1;
        }
        self.keys[key] = verdict;
        self.visible |= !bounds.late;
    }

    /// The answer that a request gets without being decided.
    fn given(&self, key: usize, bounds: &Bounds) -> Option<Said> {
        let before = self.keys[key];
        match (before, bounds.keys) {
            (_, _) if self.barred => Some(Said::Declined),
            (Verdict::None, _) => None,
            // Another call under this key is in progress.
            (Verdict::Pending, Keys::Honoured | Keys::OnceVisible) => Some(said(before)),
            (Verdict::Approved | Verdict::Declined, Keys::Honoured) => Some(said(before)),
            (Verdict::Approved | Verdict::Declined, Keys::OnceVisible) => {
                self.visible.then_some(said(before))
            }
            (Verdict::Pending | Verdict::Approved | Verdict::Declined, Keys::Ignored) => None,
        }
    }

    /// In the order in which `gateway-sim` looks.
    pub fn find(&self) -> Lookup {
        let any = |verdict| self.keys.contains(&verdict);
        if self.standing > 0 && self.visible {
            Lookup::Succeeded { surplus: self.standing > 1 }
        } else if any(Verdict::Pending) {
            Lookup::Unavailable
        } else if self.barred {
            Lookup::Voided
        } else if any(Verdict::Declined) && self.standing == 0 && self.visible {
            Lookup::Declined
        } else {
            Lookup::NotFound
        }
    }

    pub fn repair(&mut self, repair: &real::Repair) {
        match repair {
            real::Repair::VoidOthers { .. } => self.standing = self.standing.min(1),
            real::Repair::Reverse => {
                self.standing = 0;
                self.barred = true;
            }
        }
    }

    pub fn has_decided(&self) -> bool {
        self.keys.iter().any(|verdict| matches!(verdict, Verdict::Approved | Verdict::Declined))
    }

    pub fn is_pending(&self) -> bool {
        self.keys.contains(&Verdict::Pending)
    }

    /// The gateway said no, or gave everything back for good.
    pub fn has_refused(&self) -> bool {
        self.standing == 0 && (self.barred || self.keys.contains(&Verdict::Declined))
    }
}

fn said(verdict: Verdict) -> Said {
    match verdict {
        Verdict::Approved => Said::Succeeded,
        Verdict::Declined => Said::Declined,
        Verdict::None | Verdict::Pending => Said::Unknown,
    }
}

/// Nothing is under way that an inquiry would not find: what the gateway promises for the end of its visibility
/// delay.
pub fn is_quiet(life: &Life) -> bool {
    let sent = |task: &Task| matches!(task, Task::Call { at: CallAt::Sent, .. });
    let hidden = life.books.has_decided() && !life.books.visible;
    life.strays == 0 && !life.tasks.iter().any(sent) && !life.books.is_pending() && !hidden
}
