//! Reads the answers of the gateway: this module alone decides whether an answer is about our charge.
//!
//! * An answer counts if it names our reference and our amount. Proxies, caches and connections out of step give other
//!   answers, and some of these look like declines.
//! * A not-found names the reference only, since there is no charge with an amount. It ends nothing.
//! * A name that is not ours is a mismatch, whatever the status and the rest of the answer.

use serde::Deserialize;

use crate::cause::Cause;
use crate::charge::Charge;

const CODE_CHARS_MAX: usize = 64;
const REFERENCE_CHARS_MAX: usize = 128;

/// The kind of a request to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    Charge,
    Inquiry,
    Void,
}

impl CallKind {
    /// Whether the gateway uses this status to answer about a charge.
    fn is_definite(self, status: u16) -> bool {
        match self {
            CallKind::Charge => matches!(status, 200 | 400 | 402),
            CallKind::Inquiry => matches!(status, 200 | 404),
            CallKind::Void => status == 200,
        }
    }
}

/// The verdict of the gateway about our charge.
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
    /// Declined for now; the gateway will try again.
    DeclinedForNow,
    /// The input can never be charged.
    Rejected,
    NotFound,
    Pending,
    /// `barred`: later charges are impossible too.
    Voided {
        barred: bool,
    },
}

/// Any document of the gateway.
#[derive(Deserialize)]
struct Document {
    reference: Option<String>,
    amount: Option<i64>,
    /// A text; a problem document (RFC 9457) has a number here.
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

/// The charge that a document names.
enum Name {
    Ours,
    /// Ours, without an amount.
    Reference,
    Another,
    None,
}

/// The verdict about `charge` in an answer.
///
/// # Errors
/// When the answer has none; the cause says why.
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

    /// The verdict of the document, whatever charge it names.
    fn verdict(self, status: u16) -> Result<Verdict, Cause> {
        let status_text = self.status.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        let surplus = !self.surplus.is_empty();
        let verdict = match (status, status_text) {
            // Only problems of the gateway itself count, not those of a proxy.
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

/// The text, if it can be stored and shown.
fn storable_text(text: Option<String>, chars_max: usize) -> Option<String> {
    let fits =
        |text: &str| (1..=chars_max).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    text.filter(|text| fits(text))
}
