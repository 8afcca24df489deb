//! Reads the gateway's answers: the only place that says whether an answer is the gateway's word about our charge.
//!
//! * An answer counts if it names our reference and our amount. Proxies, caches and connections whose answers are
//!   out of step give others, and some of them look like declines.
//! * A not-found names only the reference, as there is no charge to have an amount. It ends nothing.
//! * A name that is not ours is a mismatch whatever else the answer says, and whatever its status.

use serde::Deserialize;

use crate::cause::Cause;
use crate::charge::Charge;

const CODE_CHARS_MAX: usize = 64;
const REFERENCE_CHARS_MAX: usize = 128;

/// What was asked of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    Charge,
    Inquiry,
    Void,
}

impl CallKind {
    /// The statuses with which the gateway says something about a charge.
    fn is_definite(self, status: u16) -> bool {
        match self {
            CallKind::Charge => matches!(status, 200 | 400 | 402),
            CallKind::Inquiry => matches!(status, 200 | 404),
            CallKind::Void => status == 200,
        }
    }
}

/// What the gateway says of our charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `surplus`: further charges of the same reference stand.
    Succeeded {
        provider_reference: String,
        surplus: bool,
    },
    Declined {
        code: String,
    },
    /// Declined for now: the gateway will try again.
    DeclinedForNow,
    /// The input can never be charged.
    Rejected,
    NotFound,
    Pending,
    /// `barred`: later charges are kept out, too.
    Voided {
        barred: bool,
    },
}

/// Any document of the gateway.
#[derive(Deserialize)]
struct Document {
    reference: Option<String>,
    amount: Option<i64>,
    /// A word; a problem document (RFC 9457) has a number here.
    status: Option<serde_json::Value>,
    r#type: Option<String>,
    provider_reference: Option<String>,
    code: Option<String>,
    #[serde(default)]
    retryable: bool,
    #[serde(default)]
    barred: bool,
    /// Charges of the same reference beside this one.
    #[serde(default)]
    surplus: Vec<serde_json::Value>,
}

/// Whose name is on a document.
enum Name {
    Ours,
    /// Ours, of no amount.
    Reference,
    Another,
    None,
}

/// The gateway's word about `charge`, or why this answer is none.
pub fn read(charge: &Charge, call: CallKind, status: u16, body: &[u8]) -> Result<Verdict, Cause> {
    let document = serde_json::from_slice::<Document>(body).ok();
    let name = document.as_ref().map(|document| document.name(charge));
    match (document, name) {
        (_, Some(Name::Another)) => Err(Cause::Mismatch),
        (_, _) if !call.is_definite(status) => Err(Cause::Http(status)),
        (Some(document), Some(Name::Ours)) => document.verdict(status),
        (Some(document), Some(Name::Reference)) => match document.verdict(status) {
            Ok(Verdict::NotFound) => Ok(Verdict::NotFound),
            Ok(_) | Err(_) => Err(Cause::Unnamed),
        },
        (_, Some(Name::None)) => Err(Cause::Unnamed),
        (None, _) | (_, None) => Err(Cause::Unreadable),
    }
}

impl Document {
    fn name(&self, charge: &Charge) -> Name {
        let reference = self.reference.as_ref().map(|reference| *reference == charge.payment_id.to_string());
        let amount = self.amount.map(|amount| amount == charge.amount);
        match (reference, amount) {
            (Some(false), _) | (_, Some(false)) => Name::Another,
            (Some(true), Some(true)) => Name::Ours,
            (Some(true), None) => Name::Reference,
            (None, Some(true) | None) => Name::None,
        }
    }

    /// What it says, whoever it is about.
    fn verdict(self, status: u16) -> Result<Verdict, Cause> {
        let word = self.status.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        let surplus = !self.surplus.is_empty();
        let verdict = match (status, word) {
            // Only the gateway's own problems count, not those of something in between.
            (400, _) if self.is_problem("invalid-charge") => Some(Verdict::Rejected),
            (404, _) if self.is_problem("charge-not-found") => Some(Verdict::NotFound),
            (400 | 404, _) => return Err(Cause::Http(status)),
            (200, "succeeded") => storable_text(self.provider_reference, REFERENCE_CHARS_MAX)
                .map(|provider_reference| Verdict::Succeeded { provider_reference, surplus }),
            (200 | 402, "declined") if self.retryable => Some(Verdict::DeclinedForNow),
            (200 | 402, "declined") => {
                storable_text(self.code, CODE_CHARS_MAX).map(|code| Verdict::Declined { code })
            }
            (200, "pending") => Some(Verdict::Pending),
            (200, "voided") => Some(Verdict::Voided { barred: self.barred }),
            (_, _) => None,
        };
        verdict.ok_or(Cause::Unreadable)
    }

    fn is_problem(&self, kind: &str) -> bool {
        self.r#type.as_ref().is_some_and(|text| text.rsplit([':', '/']).next() == Some(kind))
    }
}

/// A text that can be stored and shown.
fn storable_text(text: Option<String>, chars_max: usize) -> Option<String> {
    let fits =
        |text: &str| (1..=chars_max).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    text.filter(|text| fits(text))
}
