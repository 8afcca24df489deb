//! Faults that are planned for later calls, and the charges of recent answers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::record::Decision;
use crate::script::{Answer, Fault, Script};

/// The call and the charge of a request.
#[derive(Clone, Copy)]
pub struct About<'a> {
    pub call: Call,
    pub reference: &'a str,
    pub amount: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Charge,
    Inquiry,
    Void,
}

/// The faults that the next inquiries and voids of a reference will have.
#[derive(Default)]
pub struct PlannedFaults(Mutex<HashMap<String, Plan>>);

struct Plan {
    inquiry: Option<Fault>,
    void: Option<Fault>,
    amount: i64,
}

impl PlannedFaults {
    /// Plans the faults of inquiries and voids in the script of a charge. The first call of a reference counts.
    pub fn plan(&self, reference: &str, amount: i64, script: &Script) {
        let Script { inquiry, void, .. } = *script;
        if inquiry.is_some() || void.is_some() {
            let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            plans.entry(reference.to_owned()).or_insert(Plan { inquiry, void, amount });
        }
    }

    /// The fault of this inquiry or void, and the amount of its charge.
    pub fn take(&self, call: Call, reference: &str) -> Option<(Answer, i64)> {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.get_mut(reference)?;
        let planned = match call {
            Call::Charge => return None,
            Call::Inquiry => &mut plan.inquiry,
            Call::Void => &mut plan.void,
        };
        let fault = planned.as_mut().filter(|fault| fault.times > 0)?;
        fault.times -= 1;
        Some((fault.answer, plan.amount))
    }
}

/// The last two charges in answers, of different references.
#[derive(Default)]
pub struct Recent(Mutex<[Option<Decision>; 2]>);

impl Recent {
    pub fn record(&self, decision: &Decision) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent[0].as_ref().is_none_or(|last| last.reference != decision.reference) {
            recent.swap(0, 1);
            recent[0] = Some(decision.clone());
        }
    }

    /// The last charge with another reference than this.
    pub fn other_than(&self, reference: &str) -> Option<Decision> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let other = |decision: &&Decision| decision.reference.to_string() != reference;
        recent.iter().flatten().find(other).cloned()
    }
}
